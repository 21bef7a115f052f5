"""Local images, by the Python API. On the path of `run`."""

from __future__ import annotations

from .core import Core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..images.record import HistoryEntry, Image
    from ..images.sizes import ImageSizes
    from ..images.tree import TreeImage
    from ..upkeep.prune import Pruned


class CatalogueMethods(Core):
    """What `Engine` does with the images it has."""

    def images(
        self,
        *,
        all: bool = False,
        filters: Sequence[str] = (),
        warn: Callable[[str], None] | None = None,
    ) -> list[Image]:
        """The local images, a record a name, newest first.

        all      also names by digest that a tag of the same repository makes superfluous
        filters  "key=value" each (`pyrun.images.filters`); `UsageError` where one can't be understood, `NotFound`
                 where ``before`` or ``since`` names no image
        warn     is told of each record that can't be read; such an image is left out
        """
        store = self._images()
        if not filters:
            found = store.list(all=all)
            self._warned(store.warnings, warn)
            return found
        from ..images.filters import Filters

        wanted = Filters(filters)
        found = store.list(all=True)
        self._warned(store.warnings, warn)
        used = self._used() if wanted.wants_containers else ()
        found = wanted.select(found, self._local, used)
        return found if all else store.shown(found)

    def image(self, name: str) -> Image:
        """The local image by reference, id or unique id prefix. Raises `NotFound`."""
        return self._local(name)

    def image_sizes(self, images: Sequence[Image]) -> dict[str, ImageSizes]:
        """By image ID, what each of ``images`` shares with the other local images, and its containers."""
        from ..images.sizes import sizes

        return sizes(images, self._images().records(), self._used())

    def image_tree(
        self,
        *,
        all: bool = False,
        filters: Sequence[str] = (),
        warn: Callable[[str], None] | None = None,
    ) -> list[TreeImage]:
        """The local images, each with its names and the platforms it is for; arguments as for `images`, but images
        without a tag are left out unless ``all`` are wanted."""
        from ..images.tree import tree

        images = self.images(all=True, filters=filters, warn=warn)
        return tree(images, self._images().content, set(self._used()), all=all)

    def tag(self, source: str, target: str) -> None:
        """Give the image ``source`` the further name ``target``."""
        from ..storage.locks import SharedLock

        self._open()
        # Shared with pulls: garbage collection must not come between reading the source and naming it.
        with SharedLock(f"{self.root}/locks/store"):
            self._images().tag(self._local(source).reference, target)

    def untag(self, name: str, names: Sequence[str] = ()) -> list[tuple[str, str]]:
        """Take ``names``, or all, off the image ``name``; it stays, if need be without any, and is found by its ID.

        Returns ("Untagged", what) each. Raises `NotFound`, also for a name that is another image's.
        """
        self._open()
        return self._images().untag(self._local(name).reference, names)

    def remove_image(self, name: str, *, force: bool = False, prune: bool = True) -> list[tuple[str, str]]:
        """Remove a name; with the last one the image, and whatever no other image or container needs.

        force  also an image that has more names (given its ID) or stopped containers; a running container keeps
               its image, without a name
        prune  False: layers and blobs stay, to be removed by the next removal or `prune_images`

        Returns ("Untagged" | "Deleted", what) in order. Raises `NotFound`, `Conflict` where a container uses it.
        """
        from ..images.gc import remove_image
        from ..storage.shelves import Shelves
        from ..upkeep.users import users

        store = self._open()
        containers = self._containers()
        containers.recover(containers.abandoned(), store.remove)
        return remove_image(
            self._images(),
            Shelves.of(store),
            name,
            force=force,
            keep=not prune,
            users=lambda: users(containers),
        )

    def prune_images(self, *, all: bool = False, filters: Sequence[str] = ()) -> Pruned:
        """Remove images without a tag, or with ``all`` every one, that no container uses, and layers and blobs that
        nothing needs then: see `pyrun.upkeep.prune.prune_images`."""
        from ..upkeep.prune import prune_images

        return prune_images(self._scene(), all=all, filters=filters)

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

    def _used(self) -> list[str]:
        """The ID of every container's image; a container whose record is damaged counts for none."""
        from ..errors import PyrunError

        found = []
        containers = self._containers()
        for id in containers.ids():
            try:
                found.append(containers.load(id).image_id)
            except (PyrunError, KeyError, TypeError):
                continue
        return found

    @staticmethod
    def _warned(warnings: Sequence[str], warn: Callable[[str], None] | None) -> None:
        if warn is not None:
            for text in warnings:
                warn(text)
