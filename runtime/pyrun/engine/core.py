"""The store an engine works on: where it is, its driver, and what every part of the API reads it through. On the path
of `run`."""

from __future__ import annotations

import os

from .. import config as configuration
from ..errors import InvalidReference, NotFound, PyrunError, StorageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..containers.store import Containers
    from ..images.local import ImageStore
    from ..images.record import Image
    from ..storage.contract import Env
    from ..storage.store import Store
    from ..upkeep.scene import Scene


def default_root() -> str:
    """The store's directory: /var/lib/pyrun for root, else below XDG_DATA_HOME."""
    if os.geteuid() == 0:
        return "/var/lib/pyrun"
    base = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return f"{base}/pyrun"


def default_state() -> str:
    """The directory of what is true until the next boot: /run/pyrun, else below XDG_RUNTIME_DIR."""
    if os.geteuid() == 0:
        return "/run/pyrun"
    base = os.environ.get("XDG_RUNTIME_DIR")
    return f"{base}/pyrun" if base else f"/tmp/pyrun-{os.geteuid()}"


class Core:
    """What `Engine` is built on; its docstring tells of the arguments."""

    def __init__(
        self,
        root: str | None = None,
        state: str | None = None,
        config: str | None = None,
        *,
        storage: str | None = None,
        storage_opts: Sequence[str] = (),
    ) -> None:
        self.root = os.path.realpath(root or default_root())
        self.state = os.path.realpath(state or default_state())
        self.config = configuration.load(config)
        self._storage = storage
        self._options = {driver: dict(options) for driver, options in self.config.options.items()}
        self._size: int | None = None
        for text in storage_opts:
            if text.startswith("size="):
                from ..storage.quota import size_of

                self._size = size_of(text.removeprefix("size="))
                continue
            driver, dot, rest = text.partition(".")
            option, equals, value = rest.partition("=")
            if not dot or not equals or not driver or not option:
                raise UsageError(
                    f"invalid storage option {text!r}",
                    hint="Write driver.option=value, for example overlay.volatile=true.",
                )
            self._options.setdefault(driver, {})[option] = value
        self._store: Store | None = None
        self._uid = os.geteuid()

    def _scene(self) -> Scene:
        """The store for upkeep, whose driver need not work."""
        from ..storage.store import open_store
        from ..upkeep.scene import Scene, recorded_driver

        self._make_root()
        env = self._enter()

        def opener(driver: str) -> Store:
            # By no name where it is the store's own: the error says so, and what to do.
            name = "" if driver == recorded_driver(self.root) else driver
            return open_store(env, name, self._options, require=self.config.require)

        return Scene(env, self.state, self._storage or self.config.driver, opener)

    def _enter(self) -> Env:
        """Be root over the store's files: as an ordinary user, enter a user namespace first."""
        from ..sandbox import rootless
        from ..storage.contract import Env

        if rootless.needed():
            # The directories belong to the user; made here, so that a mistake shows before the namespace.
            self._make_root()
            rootless.enter()
        with open("/proc/self/uid_map") as file:
            extents = [line.split() for line in file]
        return Env(
            self.root,
            userns=extents != [["0", "0", "4294967295"]],
            single_uid=len(extents) == 1 and extents[0][2] == "1",
        )

    def _make_root(self) -> None:
        from ..storage.store import make_directories

        make_directories(self.root)

    def _make_state(self) -> None:
        try:
            os.makedirs(self.state, mode=0o700, exist_ok=True)
            if os.stat(self.state).st_uid != os.geteuid():
                raise PermissionError(13, "it belongs to another user")
        except OSError as error:
            raise StorageError(
                f"can't use {self.state} for the engine's state: {error.strerror}",
                hint="Choose another: --state DIR.",
            ) from error

    def _open(self) -> Store:
        """The store with its driver, ready for writing; what dead processes left is cleared up first."""
        if self._store is None:
            from ..storage.store import open_store

            named_by = "--storage" if self._storage else f"storage.driver in {self.config.path}"
            store = open_store(
                self._enter(),
                self._storage or self.config.driver,
                self._options,
                named_by=named_by if self._storage or self.config.driver else "",
                require=self.config.require,
            )
            containers = self._containers()
            store.staging.sweep(lambda path, driver: containers.clear_staged(path, driver, store.remove))
            if os.listdir(f"{self.root}/ingest"):
                from ..images.content import sweep

                sweep(self.root)
            lost = containers.lost()
            if lost:
                containers.recover(lost, store.remove)
            self._store = store
        return self._store

    def _containers(self) -> Containers:
        from ..containers.store import Containers

        return Containers(self.root, self.state)

    def _recover_containers(self) -> None:
        """End and tidy containers that lost their supervisor; the store is opened only if there are any."""
        containers = self._containers()
        try:
            lost = containers.lost() or containers.abandoned()
            if lost or os.listdir(f"{self.root}/staging"):
                store = self._open()
                containers.recover(lost, store.remove)
        except (OSError, PyrunError):
            # Looking must work where writing does not; `load` tells the truth about lost containers anyway.
            return

    def _images(self) -> ImageStore:
        from ..images.local import ImageStore

        return ImageStore(self.root)

    def _local(self, name: str) -> Image:
        """The local image ``name``, which may be an alias of registries.conf (read only where it must be)."""
        try:
            return self._images().get(name)
        except NotFound as missing:
            from ..images.registry.registries import Registries

            try:
                return self._images().get(Registries.load().reference(name).canonical)
            except (NotFound, InvalidReference):
                raise missing from None
