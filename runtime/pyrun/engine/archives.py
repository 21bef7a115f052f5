"""Images from and to files, and from containers, by the Python API. On the path of `run`."""

from __future__ import annotations

import os

from ..errors import PyrunError, UsageError
from .containers import ContainerMethods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..containers.record import Container
    from ..images.archives.load import Loaded
    from ..images.record import Image, Progress
    from ..storage.store import Store
    from .difference import Difference


class ArchiveMethods(ContainerMethods):
    """What `Engine` makes images and archives from."""

    def save(
        self,
        names: Sequence[str],
        output: str | int,
        *,
        format: str = "docker-archive",
        platform: str | None = None,
    ) -> None:
        """Write images to an archive that docker, podman and skopeo read.

        names     images: a tag; a repository, which means all of its tags; an ID or digest, which is saved without
                  a name
        output    the path of a file (of a directory, for the formats that are one), which appears or is replaced
                  only when it is complete; or a descriptor that is written to
        format    "docker-archive", "oci-archive", "oci-dir" or "docker-dir": see `pyrun.images.archives.save`
        platform  "os/arch[/variant]" that every image has to suit: of a name that was pulled for several, the one
                  for this

        The same images give the same bytes. Garbage collection waits meanwhile. Raises `NotFound`, `UsageError`,
        `PlatformUnavailable`, `DigestMismatch` where a blob was damaged on disk, and `PyrunError` where ``output``
        can't be written.
        """
        from contextlib import ExitStack

        from ..images.archives import outlet, save
        from ..images.archives.choosing import chosen
        from ..images.making.assemble import assembling

        if format not in save.FORMATS:
            raise UsageError(f"--format {format}: unknown", hint=f"One of {', '.join(save.FORMATS)}.")
        if not names:
            raise UsageError("no image to save was named")
        if isinstance(output, int) and format in save.DIRECTORIES:
            raise UsageError(f"{format} is a directory", hint="Name it with -o.")
        images = self._images()
        self._enter()
        self._make_root()
        with assembling(self.root):
            wanted = chosen(images, names, platform, self._local)
            with ExitStack() as stack:
                target: outlet.Outlet
                if isinstance(output, int):
                    tar = outlet.TarOutlet(output, "the output")
                    stack.callback(tar.finish)
                    target = tar
                elif format in save.DIRECTORIES:
                    target = stack.enter_context(outlet.directory_at(output))
                else:
                    target = stack.enter_context(outlet.tar_at(output))
                save.save(images.content, wanted, target, format)

    def load(
        self,
        source: str | int,
        *,
        platform: str | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Loaded]:
        """Load the images of an archive: of docker or podman (docker-archive), or an OCI layout; compressed as a
        whole (gzip, bzip2, xz, zstd) or not.

        source    the path of a file, or of a directory (an OCI layout, or skopeo's ``dir:``); or a descriptor that is
                  read to its end. What can't be read at any place is kept in the store meanwhile, without a name
        platform  "os/arch[/variant]" that every image has to suit; of an image for several the one that is taken
                  (None: the host's)
        progress  is told of the layers, in this process

        A name that another image has moves; that one stays without. IDs, and of OCI archives digests, stay what they
        were. All images are loaded, or none: whatever ends this early leaves no image, but perhaps whole layers,
        which the garbage collector takes. Raises `ImageError` and its kinds (`DigestMismatch`, `PlatformUnavailable`,
        `InvalidReference`) for what is no sound archive, `LayerError`, `NotFound` for a file that is not there,
        `StorageError`. The process must have one thread.
        """
        from ..images.archives.load import load
        from ..images.archives.spool import opened
        from ..images.making.assemble import assembling

        store = self._open()
        images = self._images()
        with assembling(self.root), opened(self.root, source) as archive:
            return load(
                archive,
                platform=platform,
                content=images.content,
                images=images,
                layers=store.layers,
                progress=progress,
            )

    def import_image(
        self,
        source: str | int,
        target: str | None = None,
        *,
        changes: Sequence[str] = (),
        message: str = "",
        platform: str | None = None,
    ) -> Image:
        """Make an image of a root file system's tar, as `export` writes it; plain or compressed (gzip, zstd, bzip2,
        xz).

        source    the path of a file, an https URL (or http, of this machine's loopback), or a descriptor that is read
                  to its end
        target    the name to give; None: the image is known by its ID
        changes   Dockerfile instructions that set what it runs, and how: `pyrun.images.making.changes`
        message   of the image's history
        platform  "os/arch[/variant]" that the files are for; None: DOCKER_DEFAULT_PLATFORM, else the host's

        The image's time is the present, or SOURCE_DATE_EPOCH where that is set. Whatever ends this early leaves no
        image. Raises `UsageError`, `InvalidReference`, `RegistryError` for what can't be downloaded, `LayerError` for
        what is no tar or a hostile one, `StorageError`. The process must have one thread.
        """
        from ..images.archives.importing import import_tar
        from ..images.making.assemble import assembling
        from ..images.making.changes import changed
        from ..images.reference import Reference

        reference = Reference.parse(target) if target else None
        if reference is not None and reference.digest:
            raise UsageError(
                f"{target!r} can't be the name of a new image: it has a digest", hint='For example "app:1.0".'
            )
        settings = changed({}, changes)
        store = self._open()
        images = self._images()
        with assembling(self.root):
            return import_tar(
                source,
                settings=settings,
                reference=reference,
                message=message,
                platform=platform,
                content=images.content,
                images=images,
                layers=store.layers,
            )

    def diff(self, name: str, base: str | None = None) -> list[Difference]:
        """How the files of a container differ from those of its image, or how an image's topmost layer changes what
        lies below; with ``base``, the name of an image, how they differ from that one's. Sorted by path.

        A container is looked for first. Of a running one what changes meanwhile is told or not. What is mounted in a
        container, and what was made to mount it on, is no difference. Raises `NotFound`, `Conflict` where the
        container is being started or removed, `StorageError`.
        """
        from .difference import differences

        self._enter_beside(name)
        return differences(self, name, base)

    def export(self, name: str, output: str | int) -> int:
        """Write the files of a container to a tar; its length. ``output`` is the path of a file, which appears or is
        replaced only when it is complete; or a descriptor that is written to.

        It has all that the container's root file system has, with the owners that the container sees; of volumes and
        whatever else is mounted, the empty directories. Sockets are left out. The same files are the same bytes. Of a
        running container each file is as it was when it came to its turn. Raises as `diff`, and `PyrunError`
        where ``output`` can't be written; what a descriptor got then is no whole tar.
        """
        from .commit import export

        self._enter_beside(name)
        return export(self, name, output)

    def commit(
        self,
        name: str,
        target: str | None = None,
        *,
        author: str = "",
        message: str = "",
        changes: Sequence[str] = (),
        pause: bool = True,
        squash: bool = False,
        format: str = "oci",
        timestamp: int | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Image:
        """Make an image of a container: its own image, a layer with what the container changed, and the settings
        that `run` was given. What is mounted in it is left out. Returns the image's record.

        target     the name to give; None: the image has none and is known by its ID
        author, message  for the image's history
        changes    Dockerfile instructions for its settings, such as 'CMD ["sh"]' (`pyrun.images.making.changes`)
        pause      whether a running container stands still while it is read (`pyrun.containers.freeze`); without
                   that the layer may mix states
        squash     one layer with all files, and none of the container's image
        format     of the manifest: "oci" or "docker"
        timestamp  the image's time in seconds since the epoch; None: SOURCE_DATE_EPOCH of the environment, else the
                   time of the newest change that is not in the future
        say        called with what is being done, a line each

        Nothing of the moment is in the image: an unchanged container gives the same one again. Without a change
        there is no new layer. Raises as `diff`; `NotFound` where the container's image is gone, `InvalidReference`,
        `UsageError`, `StorageError`, and then no image was made. The process must have one thread.
        """
        from .commit import Request, commit

        self._enter_beside(name)
        request = Request(author, message, changes, pause, squash, format, timestamp, say)
        return commit(self, name, target, request)

    def _enter_beside(self, name: str) -> None:
        """As an ordinary user, enter the user namespace in which the container ``name`` runs, if it does: from this
        process's own its files could not be reached."""
        from ..sandbox import rootless

        if not rootless.needed():
            return
        containers = self._containers()
        try:
            pidfd = containers.supervisor(containers.find(name))
        except (PyrunError, OSError):
            return  # what is wrong with the name is told later
        if pidfd is None:
            return
        try:
            rootless.join(pidfd)
        except OSError:
            pass  # it has just ended: then any namespace of this user does
        finally:
            os.close(pidfd)

    def _store_of(self, container: Container) -> Store:
        """The store, opened with the driver that the container was made with."""
        store = self._open()
        return store if store.driver.name == container.driver else self._scene().store(container.driver)
