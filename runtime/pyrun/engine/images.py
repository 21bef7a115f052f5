"""Images, by the Python API. On the path of `run`."""

from __future__ import annotations

import os

from ..errors import NotFound, UsageError
from .core import Core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..images.record import HistoryEntry, Image, Progress, PullResult


class ImageMethods(Core):
    """What `Engine` does with images."""

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
        from ..images.pull import pull
        from ..images.registries import Registries

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
        from ..storage.locks import SharedLock

        self._open()
        # Shared with pulls: garbage collection must not come between reading the source and naming it.
        with SharedLock(f"{self.root}/locks/store"):
            self._images().tag(self._local(source).reference, target)

    def remove_image(self, name: str, *, force: bool = False) -> list[tuple[str, str]]:
        """Remove a name; with the last one the image, and whatever no other image or container needs.

        Returns ("Untagged" | "Deleted", what) in order. Raises `Conflict` where a container uses it.
        """
        from ..images.gc import remove_image
        from ..storage.shelves import Shelves
        from ..upkeep.users import users

        store = self._open()
        containers = self._containers()
        containers.recover(containers.abandoned(), store.remove)
        return remove_image(
            self._images(), Shelves.of(store), name, force=force, users=lambda: users(containers)
        )

    def remove_layer(self, id: str, *, driver: str | None = None) -> None:
        """Remove one layer (a diff_id or chain_id) of ``driver`` (None: the one in use); it is made again from
        its blob when it is needed. Raises `Conflict` where a container, a lease or a pull uses it."""
        from ..images.gc import remove_layer
        from ..storage.shelves import Shelves
        from ..upkeep.users import users

        store = self._open()
        containers = self._containers()
        remove_layer(
            self._images(), Shelves.of(store), driver or store.driver.name, id, lambda: users(containers)
        )

    def history(self, name: str) -> list[HistoryEntry]:
        """How the image came to be, newest step first."""
        return self._images().history(self._local(name))

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
                from ..images.local import satisfies

                if platform is None and not os.environ.get("DOCKER_DEFAULT_PLATFORM"):
                    return found
                if satisfies(found, platform):
                    return found
                if policy == "never":
                    raise NotFound(f"the local image {name} is for {found.platform}, not {platform}")
        if not progress:
            return self._pull(name, platform, None).image
        from ..images.record import Progress
        from ..images.reference import Reference

        familiar = Reference.parse(name).familiar
        if policy != "always":
            progress(Progress("", f"Unable to find image '{familiar}' locally"))
        result = self._pull(name, platform, progress)
        progress(Progress("", f"Digest: {result.image.digest}"))
        outcome = "Downloaded newer image for" if result.newer else "Image is up to date for"
        progress(Progress("", f"Status: {outcome} {familiar}"))
        return result.image
