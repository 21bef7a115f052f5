"""Engine: the Python API. The command line calls only this.

On the path of `run`: rooms are imported by the method that needs them.

    engine = Engine(root="/tmp/store")
    engine.pull("redis")
    code = engine.run("redis", ["redis-server", "--version"], ContainerOptions(rm=True))
"""

from __future__ import annotations

import os

from . import config as configuration
from .errors import ConfigError, InvalidReference, NotFound, PyrunError, StorageError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .containers.options import ContainerOptions
    from .containers.record import Container
    from .containers.store import Containers
    from .images.local import ImageStore
    from .images.record import HistoryEntry, Image, Progress, PullResult
    from .storage.contract import DriverReport, Env, Layer
    from .storage.store import Store
    from .upkeep.migrate import Migrated
    from .upkeep.problems import Checked
    from .upkeep.prune import Pruned
    from .upkeep.scene import Scene
    from .upkeep.usage import DiskUsage


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


class Engine:
    """A store, and what can be done with it.

    root, state  directories (None: as root /var/lib/pyrun and /run/pyrun, else below XDG_DATA_HOME and
                 XDG_RUNTIME_DIR); made on first use, mode 0700
    config       a TOML file (None: /etc/pyrun/config.toml, then ~/.config/pyrun/config.toml, if present)
    storage      driver name (None: what the store recorded, else the configuration, else by choice)
    storage_opts "driver.option=value" each; and "size=10G", which limits what a container of `run` may write

    Everything raises `PyrunError` and its kinds. As an ordinary user, the first method that works on layers
    moves this process into a user namespace of its own, for good: it must have one thread then.
    """

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
                from .storage.quota import size_of

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

    # --- images

    def pull(
        self,
        reference: str,
        *,
        platform: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> PullResult:
        """Pull an image by name: nothing is fetched that is here already, nothing unverified is kept."""
        if self._size is not None:
            raise UsageError("--storage-opt size= limits a container; an image has the size it has")
        return self._pull(reference, platform, progress)

    def _pull(
        self, reference: str, platform: str | None, progress: Callable[[Progress], None] | None
    ) -> PullResult:
        from .images.pull import pull
        from .images.registries import Registries

        registries = Registries.load()
        parsed = registries.reference(reference)
        store = self._open()
        images = self._images()
        return pull(
            parsed,
            platform=platform,
            content=images.content,
            images=images,
            layers=store.layers,
            registries=registries,
            progress=progress,
        )

    def images(self) -> list[Image]:
        """All local images, newest first."""
        return self._images().list()

    def image(self, name: str) -> Image:
        """The local image by reference, id or unique id prefix. Raises `NotFound`."""
        return self._local(name)

    def tag(self, source: str, target: str) -> None:
        """Give the image ``source`` the further name ``target``."""
        from .storage.locks import SharedLock

        self._open()
        # Shared with pulls: garbage collection must not come between reading the source and naming it.
        with SharedLock(f"{self.root}/locks/store"):
            self._images().tag(self._local(source).reference, target)

    def remove_image(self, name: str, *, force: bool = False) -> list[tuple[str, str]]:
        """Remove a name; with the last one the image, and whatever no other image or container needs.

        Returns ("Untagged" | "Deleted", what) in order. Raises `Conflict` where a container uses it.
        """
        from .images.gc import remove_image
        from .storage.shelves import Shelves
        from .upkeep.users import users

        store = self._open()
        containers = self._containers()
        containers.recover(containers.abandoned(), store.remove)
        return remove_image(
            self._images(), Shelves.of(store), name, force=force, users=lambda: users(containers)
        )

    def remove_layer(self, id: str, *, driver: str | None = None) -> None:
        """Remove one layer (a diff_id or chain_id) of ``driver`` (None: the one in use); it is made again from
        its blob when it is needed. Raises `Conflict` where a container, a lease or a pull uses it."""
        from .images.gc import remove_layer
        from .storage.shelves import Shelves
        from .upkeep.users import users

        store = self._open()
        containers = self._containers()
        remove_layer(
            self._images(), Shelves.of(store), driver or store.driver.name, id, lambda: users(containers)
        )

    def history(self, name: str) -> list[HistoryEntry]:
        """How the image came to be, newest step first."""
        return self._images().history(self._local(name))

    # --- containers

    def run(
        self,
        image: str,
        command: Sequence[str],
        options: ContainerOptions,
        *,
        pull: str = "missing",
        platform: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> int:
        """Run a container in the foreground, on fds 0, 1 and 2; returns its exit code.

        pull      "missing", "always" or "never"
        platform  "os/arch[/variant]"; the host's where None
        """
        from .containers import create, run
        from .storage.locks import SharedLock

        if pull not in ("missing", "always", "never"):
            raise UsageError(f"--pull {pull}: unknown policy", hint="One of missing, always, never.")
        _keep_standard_fds()
        store = self._open()
        env = create.check(store, options, self.config.userns, self._size)
        containers = self._containers()
        self._make_state()
        # From the look at the image on: garbage collection must not come between that and the container's record.
        with SharedLock(f"{self.root}/locks/store"):
            found = self._local_or_pulled(image, pull, platform, progress)
            layers = self._layers(store, found)
            made = create.create(
                store,
                containers,
                {"given": image, "id": found.id, "config": found.config},
                layers,
                command,
                options,
                env=env,
                userns_default=self.config.userns,
                size=self._size,
            )
        return run.start(made, containers, options, self.state)

    def containers(self, *, all: bool = False) -> list[Container]:
        """The running containers, or all of them; newest first."""
        self._recover_containers()
        return [c for c in self._containers().all() if all or c.status == "running"]

    def container(self, name: str) -> Container:
        """A container by id, name or unique id prefix. Raises `NotFound`."""
        self._recover_containers()
        containers = self._containers()
        return containers.load(containers.find(name))

    def remove_container(self, name: str, *, force: bool = False) -> None:
        """Remove a container with its writable layer and anonymous volumes; a running one only by force."""
        store = self._open()
        containers = self._containers()
        id = containers.find(name)
        try:
            image_id = containers.load(id).image_id
        except (ConfigError, KeyError, TypeError) as error:
            if not force:
                raise ConfigError(
                    f"the record of container {id[:12]} is damaged",
                    hint=f"Give it up, with what it wrote: pyrun rm -f {id[:12]}",
                ) from error
            containers.remove_damaged(id, store.driver.name, store.remove)
            return
        containers.remove(id, force=force, remove=store.remove)
        if not any(image.id == image_id for image in self._images().records()):
            # `rmi -f` left the layers to this container: it may have been their last user.
            from .images.gc import collect
            from .storage.shelves import Shelves
            from .upkeep.users import users

            collect(self._images(), Shelves.of(store), lambda: users(containers))

    # --- both

    def inspect(self, name: str, *, kind: str | None = None) -> dict[str, Any]:
        """All that is known of a container or image, as docker shows it. ``kind``: "container", "image", None.

        A container is looked for first. Raises `NotFound`.
        """
        if kind != "image":
            try:
                from .containers.inspect import describe

                return describe(self.container(name), self.root)
            except NotFound:
                if kind == "container":
                    raise
        try:
            return self._images().inspect(self._local(name))
        except NotFound:
            if kind == "image":
                raise
            raise NotFound(f"no such object: {name}") from None

    def spec(self, name: str) -> dict[str, Any]:
        """The OCI runtime spec that a container was started with."""
        containers = self._containers()
        return containers.spec(containers.find(name))

    def doctor(self) -> list[DriverReport]:
        """Every storage driver, usable or not, with the reason; each is tried afresh."""
        from .storage.store import doctor

        return doctor(self._enter(), self._storage or self.config.driver, self._options)

    def driver_options(self, name: str) -> dict[str, Any]:
        """The options that the configuration and ``storage_opts`` give to the driver ``name``, unchecked."""
        return dict(self._options.get(name, {}))

    def info(self) -> dict[str, Any]:
        """The engine, its store and its host, as ``pyrun info`` shows them."""
        from .host import describe

        return describe(self)

    # --- upkeep

    def check(
        self,
        *,
        deep: bool = False,
        repair: bool = False,
        progress: Callable[[str], None] = lambda text: None,
    ) -> Checked:
        """Look for damage and leftovers: see `pyrun.upkeep.check.check`. Works without a usable driver."""
        from .upkeep.check import check

        return check(self._scene(), deep=deep, repair=repair, say=progress)

    def disk_usage(self) -> DiskUsage:
        """What the store takes on disk, item by item."""
        from .upkeep.usage import disk_usage

        return disk_usage(self._scene())

    def prune(self, *, all: bool = False, before: float | None = None) -> Pruned:
        """Remove what is not in use: see `pyrun.upkeep.prune.prune`."""
        from .upkeep.prune import prune

        return prune(self._scene(), all=all, before=before)

    def migrate(
        self, to: str, *, containers: bool = True, progress: Callable[[str], None] = lambda text: None
    ) -> Migrated:
        """Move the store to the storage driver ``to``: see `pyrun.upkeep.migrate.migrate`."""
        from .upkeep.migrate import migrate

        done = migrate(self._scene(), to, containers=containers, say=progress)
        self._store = None  # it was open with the driver of before
        chosen = self._storage or self.config.driver
        if chosen and chosen != to:
            source = "--storage" if self._storage else f"storage.driver in {self.config.path}"
            done.notes.append(f"{source} still chooses {chosen}: change it to {to}")
        return done

    # --- inside

    def _scene(self) -> Scene:
        """The store for upkeep, whose driver need not work."""
        from .storage.store import open_store
        from .upkeep.scene import Scene, recorded_driver

        self._make_root()
        env = self._enter()

        def opener(driver: str) -> Store:
            # By no name where it is the store's own: the error says so, and what to do.
            name = "" if driver == recorded_driver(self.root) else driver
            return open_store(env, name, self._options, require=self.config.require)

        return Scene(env, self.state, self._storage or self.config.driver, opener)

    def _enter(self) -> Env:
        """Be root over the store's files: as an ordinary user, enter a user namespace first."""
        from .sandbox import rootless
        from .storage.contract import Env

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
        from .storage.store import make_directories

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
            from .storage.store import open_store

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
                from .images.content import sweep

                sweep(self.root)
            lost = containers.lost()
            if lost:
                containers.recover(lost, store.remove)
            self._store = store
        return self._store

    def _containers(self) -> Containers:
        from .containers.store import Containers

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
        from .images.local import ImageStore

        return ImageStore(self.root)

    def _local(self, name: str) -> Image:
        """The local image ``name``, which may be an alias of registries.conf (read only where it must be)."""
        try:
            return self._images().get(name)
        except NotFound as missing:
            from .images.registries import Registries

            try:
                return self._images().get(Registries.load().reference(name).canonical)
            except (NotFound, InvalidReference):
                raise missing from None

    def _local_or_pulled(
        self, name: str, policy: str, platform: str | None, progress: Callable[[Progress], None] | None
    ) -> Image:
        if policy != "always":
            try:
                found = self._local(name)
            except NotFound:
                if policy == "never":
                    raise
            else:
                from .images.local import satisfies

                if platform is None and not os.environ.get("DOCKER_DEFAULT_PLATFORM"):
                    return found
                if satisfies(found, platform):
                    return found
                if policy == "never":
                    raise NotFound(f"the local image {name} is for {found.platform}, not {platform}")
        if not progress:
            return self._pull(name, platform, None).image
        from .images.record import Progress
        from .images.reference import Reference

        familiar = Reference.parse(name).familiar
        if policy != "always":
            progress(Progress("", f"Unable to find image '{familiar}' locally"))
        result = self._pull(name, platform, progress)
        progress(Progress("", f"Digest: {result.image.digest}"))
        outcome = "Downloaded newer image for" if result.newer else "Image is up to date for"
        progress(Progress("", f"Status: {outcome} {familiar}"))
        return result.image

    def _layers(self, store: Store, image: Image) -> list[Layer]:
        """What to mount for the image, in the driver's form; a layer that is missing is made again from its
        blob."""
        from .storage.layers import chain_id, check_depth

        check_depth(store.driver, len(image.layers))
        layers: list[Layer] = []
        parent: Layer | None = None
        for layer in image.layers:
            id = (
                chain_id(parent.id if parent else None, layer.diff_id)
                if store.layers.chained
                else layer.diff_id
            )
            found = store.layers.find(id)
            if found is None:
                from .images.blob import StoredBlob

                inner = layer is not image.layers[-1]
                found = store.layers.ingest(StoredBlob(self._images().content, layer), parent, inner=inner)
            layers.append(found)
            parent = found
        layers = store.layers.mended(layers)
        check_depth(store.driver, len(layers), mended=len(layers) > len(image.layers))
        return layers


def _keep_standard_fds() -> None:
    """Have fds 0, 1 and 2 open: one that the caller closed would be given to the next file opened here."""
    while True:
        fd = os.open("/dev/null", os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)
