"""Containers, by the Python API. On the path of `run`."""

from __future__ import annotations

import os

from ..errors import ConfigError, UsageError
from .images import ImageMethods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..containers.options import ContainerOptions
    from ..containers.record import Container
    from ..images.record import Image, Progress
    from ..storage.contract import Layer
    from ..storage.store import Store


# What images for the host are most often recorded as; anything else is looked at closely.
_NATIVE = {
    "x86_64": "linux/amd64",
    "aarch64": "linux/arm64",
    "s390x": "linux/s390x",
    "riscv64": "linux/riscv64",
}


class ContainerMethods(ImageMethods):
    """What `Engine` does with containers, which are made from images."""

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
        from ..containers import create, run
        from ..storage.locks import SharedLock

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
            if found.platform != _NATIVE.get(os.uname().machine):
                self._check_platform(image, found, platform, progress)
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

    def _check_platform(
        self, name: str, image: Image, platform: str | None, progress: Callable[[Progress], None] | None
    ) -> None:
        """Refuse what can't run here, before anything is made for it."""
        from ..images.record import Progress
        from .foreign import check_runs

        asked = bool(platform or os.environ.get("DOCKER_DEFAULT_PLATFORM"))
        warning = check_runs(name, image.platform, asked=asked)
        if warning and progress:
            progress(Progress("", warning))

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
        if not any(image.id == image_id for image in self._images().naming(image_id)):
            # `rmi -f` left the layers to this container: it may have been their last user.
            from ..images.gc import collect
            from ..storage.shelves import Shelves
            from ..upkeep.users import users

            collect(self._images(), Shelves.of(store), lambda: users(containers))

    def spec(self, name: str) -> dict[str, Any]:
        """The OCI runtime spec that a container was started with."""
        containers = self._containers()
        return containers.spec(containers.find(name))

    def _layers(self, store: Store, image: Image) -> list[Layer]:
        """What to mount for the image, in the driver's form; a layer that is missing is made again from its
        blob."""
        from ..storage.layers import chain_id, check_depth

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
                from ..images.blob import StoredBlob

                blob = StoredBlob(self._images().content, layer)
                top = layer is image.layers[-1]
                found = store.layers.ingest(blob, parent, listed=store.layers.chained and top)
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
