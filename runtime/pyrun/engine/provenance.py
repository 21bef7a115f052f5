"""Where the files of an image come from, by the Python API. On the path of `run`."""

from __future__ import annotations

from .containers import ContainerMethods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from .anatomy import LayersReport
    from .which import Which


class ProvenanceMethods(ContainerMethods):
    """What `Engine` tells of an image's layers."""

    def which(self, name: str, path: str, *, follow: bool = True) -> Which:
        """The layer of the container or image ``name`` that supplied ``path``, with every version and deletion
        below it: see `pyrun.engine.which.Which`, whose ``problem`` tells of a path that leads to nothing.

        A relative path starts at the root. Symbolic links are followed within the image, as a process there would
        be led; without ``follow`` all but the last. A container's writable layer counts as one more on top, of a
        running one as it is now.

        Raises `NotFound` (no such image or container), `StorageError` where a layer can't be read, `DigestMismatch`
        or `LayerError` where its blob was tampered with.
        """
        from .which import which

        return which(self, name, path, follow=follow)

    def content(
        self, name: str, path: str, layer: str | None = None, *, follow: bool = True
    ) -> AbstractContextManager[Iterator[bytes]]:
        """The content of the file ``path``, as a context manager that gives its pieces: of the version that shows,
        or of the one in ``layer``: "@2" (from the bottom), "@container", or "@" and digits of a digest or diff_id.

        Raises as `which` does, `NotFound` also for a path that leads to nothing and a layer without a version of it,
        `UsageError` for what is no file.
        """
        from .which import content

        return content(self, name, path, layer, follow=follow)

    def layers(self, name: str) -> LayersReport:
        """What each layer of the image ``name`` adds, replaces, deletes and wastes: see
        `pyrun.engine.anatomy.LayersReport`. Raises as `which` does."""
        from .anatomy import layers

        return layers(self, name)
