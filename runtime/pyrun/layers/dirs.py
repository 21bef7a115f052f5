"""Directories of a tree that is being unpacked, reached by fd, one component at a time.

No path of the layer is handed to the kernel as a whole. Each component is opened O_NOFOLLOW beneath the fd of
its parent; a symbolic link is read and its target walked in the same manner from the link's own directory, or
from the root, and ".." goes to the parent of the directory reached, never above the root. So nothing outside
the root can be named, by whatever the layer planted before; and every directory has one canonical name (free
of links), under which its fd is cached and its attributes are remembered.
"""

from __future__ import annotations

import os
import stat
from errno import ELOOP, ENOTDIR

from ..errors import LayerError
from .names import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS = 40  # as the kernel's MAXSYMLINKS
_PARTS = 4096  # components that one name may expand to


class Directories:
    """``fds``: canonical name → fd, the root's under the empty name, of the directories used lately.

    made(name, after)  called for a directory that had to be created (0700) because a name goes through it;
                       ``after`` is True where it took the place of a whiteout
    seen(name, fd)     called when an existing directory is opened
    pin                a canonical name whose fd must stay open while others are looked up

    An fd is closed only by `forget`, `close`, and when another is opened by `find` or `open` while the cache
    is full: use an fd before the next look-up, or pin it.
    """

    SIZE = 128

    def __init__(
        self,
        root: int,
        depth: int = 256,
        made: Callable[[bytes, bool], None] | None = None,
        seen: Callable[[bytes, int], None] | None = None,
    ) -> None:
        self.fds: dict[bytes, int] = {b"": root}
        self.pin = b""
        self._depth = depth
        self._made = made
        self.seen = seen

    def find(self, name: bytes) -> bytes:
        """The canonical name of the directory ``name``, whose fd is then in ``fds``. What is missing is made.

        Raises `LayerError` where a component is no directory, or links lead round or too deep; OSError.
        """
        if name in self.fds:
            return name
        parts = name.split(b"/")
        parts.reverse()
        at, fd, links = b"", self.fds[b""], 0
        while parts:
            part = parts.pop()
            if not part or part == b".":
                continue
            if part == b"..":
                at = at.rpartition(b"/")[0]
                fd = self.open(at)
                continue
            path = at + b"/" + part if at else part
            below = self.fds.get(path)
            if below is None:
                if path.count(b"/") >= self._depth:
                    raise LayerError(f"layer: {shown(name)} leads deeper than {self._depth} directories")
                target = self._enter(fd, path, part)
                if target is not None:
                    links += 1
                    if links > _LINKS or len(parts) + target.count(b"/") > _PARTS:
                        raise LayerError(f"layer: {shown(name)} goes through too many symbolic links")
                    parts.extend(reversed(target.split(b"/")))
                    if target[:1] == b"/":
                        at, fd = b"", self.fds[b""]
                    continue
                below = self.fds[path]
            at, fd = path, below
        return at

    def _enter(self, fd: int, path: bytes, part: bytes) -> bytes | None:
        """Open ``part`` of ``fd`` into the cache; or return the target, where it is a symbolic link."""
        try:
            below = os.open(part, O_DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            self._make(fd, path, part, after=False)
            return None
        except OSError as error:
            if error.errno not in (ENOTDIR, ELOOP):
                raise
            found = os.lstat(part, dir_fd=fd)
            if stat.S_ISLNK(found.st_mode):
                return os.readlink(part, dir_fd=fd)
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                os.unlink(part, dir_fd=fd)
                self._make(fd, path, part, after=True)
                return None
            raise LayerError(f"layer: {shown(path)} is used as a directory and is none") from None
        self._remember(path, below)
        if self.seen is not None:
            self.seen(path, below)
        return None

    def _make(self, fd: int, path: bytes, part: bytes, *, after: bool) -> None:
        os.mkdir(part, 0o700, dir_fd=fd)
        self._remember(path, os.open(part, O_DIRECTORY, dir_fd=fd))
        if self._made is not None:
            self._made(path, after)

    def open(self, name: bytes) -> int:
        """The fd of the directory with the canonical name ``name``. Raises FileNotFoundError or
        NotADirectoryError where there is no such directory any more."""
        at = name
        parts = []
        while (fd := self.fds.get(at)) is None:
            at, _, part = at.rpartition(b"/")
            parts.append(part)
        while parts:
            part = parts.pop()
            at = at + b"/" + part if at else part
            fd = os.open(part, O_DIRECTORY, dir_fd=fd)
            self._remember(at, fd)
        return fd

    def _remember(self, name: bytes, fd: int) -> None:
        if len(self.fds) >= self.SIZE:
            for old in self.fds:
                if old and old != self.pin:
                    os.close(self.fds.pop(old))
                    break
        self.fds[name] = fd

    def forget(self, name: bytes) -> None:
        """Close the fds of ``name`` and of what lies below it: it is about to go."""
        below = name + b"/"
        for old in [old for old in self.fds if old == name or old.startswith(below)]:
            os.close(self.fds.pop(old))

    def close(self) -> None:
        """Close every fd but the root's, which is the caller's."""
        for name, fd in self.fds.items():
            if name:
                os.close(fd)
        self.fds = {b"": self.fds[b""]}
