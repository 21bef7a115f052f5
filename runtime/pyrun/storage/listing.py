"""The listing of a directory tree: one digest over the names and attributes of everything in it.

Recorded when a layer is made and compared by ``pyrun system check``: it tells that a file of a layer vanished,
appeared, or was changed by whoever does not reset its time; content is compared only by ``--deep``.
"""

from __future__ import annotations

import hashlib
import os
import stat
from errno import ENODATA, ENOTSUP

from ..layers.dirs import Directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# What the engine itself keeps beside the driver's files.
ENGINE = (b"meta.json", b"notes.json")


def listing(path: str) -> str:
    """The digest of the tree ``path``: "sha256:" and hex digits. Raises OSError."""
    state = hashlib.sha256()
    for name, line in lines(path):
        state.update(b"%s\0%s\n" % (name, line))
    return "sha256:" + state.hexdigest()


def lines(path: str) -> Iterator[tuple[bytes, bytes]]:
    """(name, attributes) of everything below ``path`` but the engine's own files, a directory before what is
    in it: type and mode, owner, and as far as the type has them size, mtime, links, device, target, xattrs."""
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    tree = Directories(top)
    stack = [b""]
    try:
        while stack:
            where = stack.pop()
            fd = tree.open(where)
            found = []
            # The length of a directory's own file differs from file system to file system, and so do its links.
            for text in sorted(os.listdir(fd)):
                base = os.fsencode(text)
                if not where and base in ENGINE:
                    continue
                st = os.lstat(base, dir_fd=fd)
                name = where + b"/" + base if where else base
                kind = stat.S_IFMT(st.st_mode)
                own: tuple[object, ...] = ()
                if kind == stat.S_IFREG:
                    own = (st.st_size, st.st_nlink)
                elif kind == stat.S_IFDIR:
                    found.append(name)
                elif kind == stat.S_IFLNK:
                    own = (os.readlink(base, dir_fd=fd),)
                else:
                    own = (st.st_rdev,)
                attributes = (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, own, _xattrs(fd, base))
                yield name, repr(attributes).encode()
            stack.extend(reversed(found))
    finally:
        tree.close()
        os.close(top)


def _xattrs(dirfd: int, base: bytes) -> list[tuple[str, bytes]]:
    path = b"/proc/self/fd/%d/%s" % (dirfd, base)
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != ENOTSUP:
            raise
        return []
    found = []
    for name in sorted(names):
        if name.startswith("security.selinux"):
            continue
        try:
            found.append((name, os.getxattr(path, name, follow_symlinks=False)))
        except OSError as error:
            if error.errno != ENODATA:
                raise
    return found
