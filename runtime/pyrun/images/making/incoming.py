"""A blob on its way into the content store whose digest is known only at its end: a layer that is made here.

It lies in ``<root>/ingest/incoming-<random>`` meanwhile, locked with flock by its writer: a writer that died leaves it
without a lock, and `pyrun.images.content.ContentStore.sweep` removes it.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from ...kernel.files import sync_directory, write_all
from ..content import out_of_space
from ..digest import hasher

if TYPE_CHECKING:
    from ..content import ContentStore

    Buffer = bytes | bytearray | memoryview

_PREFIX = "incoming-"


class Incoming:
    """A context manager: leaving it without `commit` removes what was written.

    size  bytes written so far
    """

    def __init__(self, content: ContentStore) -> None:
        self.size = 0
        self._content = content
        self._hasher = hasher("sha256:")
        self._path, self._fd = create(os.path.join(content.root, "ingest"))
        self._committed = False

    def write(self, data: Buffer) -> None:
        """Append. Raises `StorageError`, in words where the disk is full."""
        self._hasher.update(data)
        self.size += len(data)
        try:
            write_all(self._fd, data)
        except OSError as error:
            raise out_of_space(error, self._path) from error

    def commit(self) -> str:
        """Put the blob in its place, durably; its digest. One that is stored already stays, unless it was damaged."""
        digest = f"sha256:{self._hasher.hexdigest()}"
        target = self._content.blob_path(digest)
        try:
            if not self._content.has(digest) or not self._content.intact(digest):
                self._content.make_layout()
                os.fchmod(self._fd, 0o644)
                os.fsync(self._fd)
                os.rename(self._path, target)
                sync_directory(os.path.dirname(target))
                self._committed = True
        except OSError as error:
            raise out_of_space(error, target) from error
        return digest

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._committed:
            try:
                os.unlink(self._path)  # before the lock goes with the descriptor
            except FileNotFoundError:
                pass
        os.close(self._fd)


def create(directory: str) -> tuple[str, int]:
    """(path, descriptor) of a new file in the store's directory ``ingest``, locked: it is swept once nobody has it
    open any more."""
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        while True:
            path = os.path.join(directory, _PREFIX + os.urandom(8).hex())
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return path, fd
            os.close(fd)  # swept between the two calls
    except OSError as error:
        raise out_of_space(error, directory) from error
