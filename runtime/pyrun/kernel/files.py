"""Files: write(2) until all is written, fsync(2) of a directory, files replaced whole. On the path of `run`."""

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


def replace(path: str, temporary: str, data: Buffer, mode: int, *, durable: bool) -> None:
    """Replace the file ``path`` atomically by way of ``temporary``, a name in the same directory that nobody else uses:
    write, (fsync), rename, (fsync of the directory). Raises OSError; ``temporary`` is gone then.

    Without ``durable`` a power cut may lose the change, or leave an empty file.
    """
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            write_all(fd, data)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    if durable:
        sync_directory(os.path.dirname(path))
