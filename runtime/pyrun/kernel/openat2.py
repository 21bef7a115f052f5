"""openat2(2): open a path with limits on how it may be resolved. On the path of `run`."""

from __future__ import annotations

import ctypes
import os

from .syscall import syscall

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dirfd: int, path: bytes | str, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open ``path`` below ``dirfd`` under the RESOLVE_* limits; O_CLOEXEC is always added.

    RESOLVE_IN_ROOT treats ``dirfd`` as the root, so absolute symlinks and ``..`` stay inside; EAGAIN means
    that a rename raced with the walk, which is retried here (man openat2, ERRORS).
    """
    how = _How(flags | os.O_CLOEXEC, mode, resolve)
    raw = os.fsencode(path)
    for _ in range(128):
        try:
            return syscall("openat2", dirfd, raw, ctypes.byref(how), ctypes.sizeof(how), path=path)
        except BlockingIOError:
            continue
    raise BlockingIOError(11, "openat2: the path kept changing while it was walked", path)
