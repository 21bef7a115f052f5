"""fuse-overlayfs: layers stacked by a server process, where the kernel's own overlay can't be used.

A layer is the extracted tree in ``fs``; a writable layer is ``upper`` and ``work``. Opaque directories are marked by
``user.overlay.opaque``, which a server reads whether it may see trusted.* attributes or not. How the server is run,
and why it sits in a user namespace of the container's ids, says `pyrun_drivers.fuse_server`.

What a writable layer holds is this program's own form: the kernel's overlay would show files that were deleted.
The engine keeps layers by driver, so it never meets them.
"""

from __future__ import annotations

import errno
import os
import shutil

from pyrun.errors import TooManyLayers, Unsupported
from pyrun.storage.changes import compare
from pyrun.storage.contract import Change, Driver, Layer, Verdict

from . import fuse_covers, fuse_links, fuse_notes, fuse_server
from .overlay import copy_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, ClassVar

    from pyrun.layers.unpack import Unpacked
    from pyrun.storage.contract import Blob, Env, Option

PROGRAM = "fuse-overlayfs"
INSTALL = "apt-get install fuse-overlayfs (Debian, Ubuntu), or dnf install fuse-overlayfs (Fedora)."
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin"
# The server holds a descriptor a layer, and looks a name up in one layer after the other.
MAX_LAYERS = 500


class FuseOverlayfsDriver(Driver):
    """``volatile``: skip all syncs of the writable layer; a crash of the host may lose it."""

    name = "fuse-overlayfs"
    Options: ClassVar[Mapping[str, Option]] = {"volatile": False}

    def __init__(self, env: Env, options: Mapping[str, Any], verdict: Verdict) -> None:
        super().__init__(env, options, verdict)
        # By the number of their mount. What has ended is dropped as others come.
        self._servers: dict[int, fuse_server.Server] = {}

    @classmethod
    def version(cls) -> str:
        """The program's own identity is part of it: another one is tried anew."""
        program = find_program()
        if not program:
            return "1"
        found = os.stat(program)
        return f"1 {program} {found.st_ino} {found.st_size} {found.st_mtime_ns} {_device_mode()}"

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        from . import fuse_trial

        return fuse_trial.probe(cls, env, options)

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> Unpacked:
        os.mkdir(f"{dest}/fs", 0o755)
        fd = os.open(f"{dest}/fs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            unpacked = blob.unpack(fd, "userxattr")
        finally:
            os.close(fd)
        fuse_notes.record(dest)
        return unpacked

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        previous = os.umask(0)
        try:
            for name in ("upper", "work"):
                os.mkdir(f"{dest}/{name}", 0o755)
        finally:
            os.umask(previous)
        if layers:
            copy_attributes(f"{layers[-1].path}/fs", f"{dest}/upper", fuse_notes.PRIVATE)

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if len(layers) > MAX_LAYERS:
            raise TooManyLayers(
                f"the image has {len(layers)} layers; {self.name} stacks at most {MAX_LAYERS}",
                hint="Use an image with fewer layers, or another storage driver.",
            )
        program = find_program()
        if not program:
            raise Unsupported(f"{PROGRAM} is not installed any more", hint=INSTALL)
        # Of a layer that an image lists twice, the upper one hides the lower wholly.
        paths = list(dict.fromkeys(layer.path for layer in reversed(layers)))
        overlay = fuse_server.Overlay(
            program,
            self.env.root,
            [self._below(f"{path}/fs") for path in paths],
            None if rw is None else self._below(rw),
            self._flags(),
        )

        def covers() -> list[tuple[int, bytes]]:
            """Called when no server is about on ``rw``. By numbers as the server has them: from the top."""
            upwards = paths[::-1]
            if rw is not None:
                fuse_links.mend(rw, upwards)
            found = fuse_covers.covers(upwards, f"{rw}/upper" if rw is not None else None)
            return [(len(paths) - 1 - at, name) for at, name in found]

        mount, server = fuse_server.serve(overlay, idmap, covers)
        try:
            for id in [id for id, known in self._servers.items() if known.ended()]:
                del self._servers[id]
            self._servers[fuse_server.mount_id(mount)] = server
        except BaseException:
            os.close(mount)
            raise
        return mount

    def changes(
        self, layers: Sequence[Layer], rw: str, view: int, idmap: int | None = None
    ) -> Iterator[Change]:
        """The two views compared, but for what directories hide that were deleted and made again: a server may find
        that by name for as long as it runs. What is on disk tells."""
        below = self.mount(layers, None, idmap)
        try:
            deleted = set(fuse_covers.deleted(f"{rw}/upper", below))
            if not deleted:
                yield from compare(below, view)
                return
            found = [Change(name, "delete") for name in deleted]
            found += [change for change in compare(below, view) if not _within(change.path, deleted)]
            yield from sorted(found, key=lambda change: change.path.split(b"/"))
        finally:
            os.close(below)

    def server(self, mount: int) -> int | None:
        """A pidfd that is ready to read once the mount is served no more. Raises OSError where it isn't now."""
        server = self._servers.get(fuse_server.mount_id(mount))
        if server is None or server.ended() or (pidfd := server.open()) is None:
            raise OSError(errno.ENOTCONN, f"the {self.name} server of the mount has ended")
        return pidfd

    def _flags(self) -> list[str]:
        # A directory's count of links is 1 then, which means "unknown" (find, "-noleaf"): to give it, version 1.10
        # reads each directory ahead, and shows names again that were deleted in between.
        return ["static_nlink", *(["volatile"] if self.options["volatile"] else [])]

    def _below(self, path: str) -> str:
        return path.removeprefix(self.env.root + "/")


def _within(path: bytes, names: set[bytes]) -> bool:
    """Whether ``path`` is one of ``names`` or lies below one."""
    return path in names or any(path[:at] in names for at, byte in enumerate(path) if byte == 0x2F)


def find_program() -> str:
    """Where fuse-overlayfs is: on the caller's PATH, or where distributions put it; "" where it is not."""
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path=_PATH) or ""


def _device_mode() -> str:
    try:
        return oct(os.stat(fuse_server.DEVICE).st_mode)
    except OSError as error:
        return str(error.errno)
