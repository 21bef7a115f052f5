"""Images from and to files, and from containers, by the Python API. On the path of `run`."""

from __future__ import annotations

from .containers import ContainerMethods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..containers.record import Container
    from ..storage.store import Store
    from .commit import Sink
    from .difference import Difference


class ArchiveMethods(ContainerMethods):
    """What `Engine` makes images and archives from."""

    def diff(self, name: str, base: str | None = None) -> list[Difference]:
        """How the files of a container differ from those of its image, or how an image's topmost layer changes what
        lies below; with ``base``, the name of an image, how they differ from that one's. Sorted by path.

        A container is looked for first. Of a running one what changes meanwhile is told or not. What is mounted in a
        container, and what was made to mount it on, is no difference. Raises `NotFound`, `Conflict` where the
        container is being started or removed, `StorageError`.
        """
        from .difference import differences

        return differences(self, name, base)

    def export(self, name: str, out: Sink) -> int:
        """Write the files of a container to ``out``, something with a ``write``, as a tar; its length.

        It has all that the container's root file system has, with the owners that the container sees; of volumes and
        whatever else is mounted, the empty directories. Sockets are left out. The same files are the same bytes. Of a
        running container each file is as it was when it came to its turn. Raises as `diff`; whatever is raised, what
        was written is no whole tar.
        """
        from .commit import export

        return export(self, name, out)

    def _store_of(self, container: Container) -> Store:
        """The store, opened with the driver that the container was made with."""
        store = self._open()
        return store if store.driver.name == container.driver else self._scene().store(container.driver)
