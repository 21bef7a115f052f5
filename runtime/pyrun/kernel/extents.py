"""Extents of a file: which of its blocks it shares with other files (ioctl FS_IOC_FIEMAP, kernel
Documentation/filesystems/fiemap.rst)."""

from __future__ import annotations

import fcntl
import struct
from errno import EBADR, EINVAL, ENOTTY, EOPNOTSUPP

_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_FLAG_SYNC = 1
_LAST = 0x1
_SHARED = 0x2000
_HEADER = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_COUNT = 256


def unshared(fd: int) -> int | None:
    """Allocated bytes of the regular file ``fd`` that no other file or snapshot shares; None where the file
    system can't tell. What of it is not on disk yet is written first, for only then has it blocks."""
    total = start = 0
    while True:
        buffer = bytearray(_HEADER.size + _COUNT * _EXTENT.size)
        _HEADER.pack_into(buffer, 0, start, 0xFFFFFFFFFFFFFFFF - start, _FIEMAP_FLAG_SYNC, 0, _COUNT, 0)
        try:
            fcntl.ioctl(fd, _FS_IOC_FIEMAP, buffer)
        except OSError as error:
            if error.errno in (EOPNOTSUPP, ENOTTY, EINVAL, EBADR):
                return None
            raise
        mapped = _HEADER.unpack_from(buffer)[3]
        flags = _LAST
        for number in range(mapped):
            logical, _, length, _, _, flags, *_ = _EXTENT.unpack_from(
                buffer, _HEADER.size + number * _EXTENT.size
            )
            if not flags & _SHARED:
                total += length
            start = logical + length
        if flags & _LAST:
            return total
