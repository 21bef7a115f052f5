"""Directory entries beside what `os` offers: getdents64(2) with its positions, and renameat2(2) with its flags."""

from __future__ import annotations

import ctypes
import os
import struct

from .syscall import syscall

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_AT_FDCWD = -100
_HEADER = struct.Struct("=QqHB")  # struct linux_dirent64 without its name


class Entry:
    """One name of a directory. ``after`` is the position behind it, for lseek(2) on the same fd."""

    __slots__ = ("after", "inode", "name")

    def __init__(self, name: bytes, inode: int, after: int) -> None:
        self.name = name
        self.inode = inode
        self.after = after


def entries(fd: int, size: int = 4096) -> list[Entry]:
    """The next entries of the directory ``fd``, "." and ".." included, as many as fit ``size`` bytes; none at
    its end."""
    buffer = ctypes.create_string_buffer(size)
    count = syscall("getdents64", fd, buffer, size)
    found = []
    at = 0
    while at < count:
        inode, after, length, _ = _HEADER.unpack_from(buffer, at)
        name = buffer.raw[at + _HEADER.size : at + length].partition(b"\0")[0]
        found.append(Entry(name, inode, after))
        at += length
    return found


def rename(old: str | bytes, new: str | bytes, flags: int) -> None:
    """renameat2(2) with RENAME_* ``flags``."""
    syscall("renameat2", _AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags, path=old)
