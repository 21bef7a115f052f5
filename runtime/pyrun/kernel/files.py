"""Files: write(2) until all is written, fsync(2) of a directory. On the path of `run`."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    Buffer = bytes | bytearray | memoryview


def write_all(fd: int, data: Buffer) -> None:
    """Write all of ``data``: one write(2) may take less, at a signal, at a full pipe, or above 2 GiB (man write)."""
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            at += os.write(fd, view[at:])


def sync_directory(path: str) -> None:
    """Make the names in the directory ``path`` durable (man fsync: a new file's name is not with the file)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
