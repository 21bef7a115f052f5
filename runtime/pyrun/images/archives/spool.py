"""An image archive made readable at any place: in place where it is an uncompressed file, else by way of a file
without a name in the store, which is gone when the process is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...errors import ImageError, LayerError, NotFound, PyrunError
from ...kernel.files import write_all
from ..content import out_of_space
from ..making.compress import compression_of
from ..making.incoming import create
from .archive import Archive, DirectoryArchive, TarArchive

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEAD = 512
_CHUNK = 256 << 10
RESERVE = 256 << 20  # bytes of the store's file system that a spool leaves free, or a 20th of a small one


@contextmanager
def opened(root: str, source: str | int) -> Iterator[Archive]:
    """The archive at a path, or behind a descriptor, for as long as the block lasts.

    Raises `NotFound` or `PyrunError` where it can't be read, `ImageError` for what is no tar, `StorageError` where the
    store has no room for it.
    """
    what = source if isinstance(source, str) else "the input"
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC) if isinstance(source, str) else os.dup(source)
    except OSError as error:
        raise unreadable(what, error) from error
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            yield DirectoryArchive(fd, what)
            return
        file, offset, size = _seekable(root, fd, what)
        try:
            yield TarArchive(file, offset, size, what)
        finally:
            if file != fd:
                os.close(file)
    finally:
        os.close(fd)


def unreadable(what: str, error: OSError) -> PyrunError:
    """The error for what a user named and can't be read."""
    kind = NotFound if isinstance(error, FileNotFoundError) else PyrunError
    return kind(f"{what} can't be read: {error.strerror}")


def _seekable(root: str, fd: int, what: str) -> tuple[int, int, int]:
    """(descriptor, offset, size) of the plain tar: ``fd`` itself, or a new one."""
    found = os.fstat(fd)
    regular = stat.S_ISREG(found.st_mode)
    try:
        start = os.lseek(fd, 0, os.SEEK_CUR) if regular else 0
        head = b""
        while len(head) < _HEAD and (data := os.read(fd, _HEAD - len(head))):
            head += data
    except OSError as error:
        raise unreadable(what, error) from error
    if not head:
        raise ImageError(f"{what} is empty", hint="An archive of `pyrun save` or `docker save` is wanted.")
    compression = compression_of(head)
    if regular and compression == "none":
        return fd, start, max(found.st_size - start, 0)

    def chunks() -> Generator[bytes, None, None]:
        yield head
        try:
            while data := os.read(fd, _CHUNK):
                yield data
        except OSError as error:
            raise unreadable(what, error) from error

    if compression == "none":
        return _spooled(root, chunks())
    from ..plain import plain_reader

    with plain_reader(chunks(), compression, what) as reader:
        try:
            return _spooled(root, iter(lambda: reader.read(_CHUNK), b""))
        except LayerError as error:
            raise ImageError(error.message.removeprefix("layer: "), hint=error.hint) from None


def _spooled(root: str, chunks: Iterable[bytes]) -> tuple[int, int, int]:
    directory = os.path.join(root, "ingest")
    path, fd = create(directory)
    try:
        os.unlink(path)
        size = looked = 0
        for chunk in chunks:
            if size >= looked:
                _check_room(fd, directory)
                looked = size + (64 << 20)
            size += len(chunk)
            write_all(fd, chunk)
    except OSError as error:
        os.close(fd)
        raise out_of_space(error, directory) from error
    except BaseException:
        os.close(fd)
        raise
    return fd, 0, size


def _check_room(fd: int, directory: str) -> None:
    """Raise what a full disk raises while there is still room for others."""
    fs = os.fstatvfs(fd)
    if fs.f_bavail * fs.f_frsize < min(RESERVE, fs.f_blocks * fs.f_frsize // 20):
        raise OSError(28, os.strerror(28), directory)
