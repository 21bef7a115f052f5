"""aufs mounts as detached fds (aufs(5), "MOUNT OPTIONS"; the kernels of Ubuntu up to 5.15 and others have it).

Aufs takes its branches as paths in the text of mount options, without a way to escape ":", "," or "=", and one
page of text a call. So the mount is made in a child whose working directory is /proc/self/fd, where a branch's
path is the few digits of an fd; and what doesn't fit the page is appended by remounting.
"""

from __future__ import annotations

import os

from . import mount as m
from .apart import mounted_apart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MS_RDONLY = 1
MS_REMOUNT = 32

_O_DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Branches:
    """What to mount. Paths are relative to ``root``, a directory, onto which the child mounts.

    readonly  branches with whiteouts of their own, top to bottom, at least one unless there is ``writable``
    writable  the topmost branch; None makes the mount read-only
    dirperm1  look at the topmost directory's permissions alone, not at those below it, too (aufs 3.19 and later)
    """

    __slots__ = ("dirperm1", "readonly", "root", "writable")

    def __init__(
        self, root: str, readonly: Sequence[str], writable: str | None = None, *, dirperm1: bool = False
    ) -> None:
        self.root = root
        self.readonly = readonly
        self.writable = writable
        self.dirperm1 = dirperm1


def mount_aufs(branches: Branches) -> int:
    """A detached aufs mount. Raises OSError: ENODEV where the kernel has no aufs, ENOSPC past the number of
    branches that it was built for, EINVAL for a branch on a file system that it doesn't take."""
    return mounted_apart(lambda: _mounted(branches), "the child that mounts aufs")


def _mounted(branches: Branches) -> int:
    root = os.fsencode(branches.root)
    top = os.open(branches.root, _O_DIR)
    names = []
    if branches.writable is not None:
        names.append(b"%d=rw" % os.open(branches.writable, _O_DIR, dir_fd=top))
    names += [b"%d=ro+wh" % os.open(path, _O_DIR, dir_fd=top) for path in branches.readonly]
    # The file of inode numbers is made O_EXCL and unlinked at once, so a path that all mounts shared would make
    # them fail at times. One in memory, out of everybody's sight, lives as long as the mount holds it open.
    memory = m.new_mount("tmpfs", {"mode": "0700"}, source="pyrun")
    more = b",dio,xino=%d/xino" % memory
    if branches.dirperm1:
        more += b",dirperm1"
    flags = MS_RDONLY if branches.writable is None else 0
    os.chdir("/proc/self/fd")
    for number, data in enumerate(calls(names, more, os.sysconf("SC_PAGE_SIZE"))):
        m.mount(b"none", root, b"aufs", flags | (MS_REMOUNT if number else 0), data)
    return m.open_tree(m.AT_FDCWD, branches.root)


def calls(names: Sequence[bytes], more: bytes, page: int) -> list[bytes]:
    """The option texts, each below ``page`` bytes, that mount the branches ``names`` ("path=permissions", top to
    bottom): of mount(2) first, with the options ``more``, and of as many remounts as it takes."""
    texts = []
    text = b"br:" + names[0]
    separator, room = b":", page - 1 - len(more)
    for name in names[1:]:
        if len(text) + len(separator) + len(name) > room:
            texts.append(text + more)
            text, separator, room, more = b"", b",append:", page - 1, b""
        text += (separator if text else b"append:") + name
    return [*texts, text + more]
