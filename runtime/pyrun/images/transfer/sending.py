"""A stored blob as the body of requests: read once from the store, hashed on the way out."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable

from ..content import ContentStore, mismatch
from ..digest import hasher

PIECE = 256 << 10  # bytes handed to the socket at once


class Cancelled(Exception):
    """The push was given up: by Ctrl-C, or because another blob of it failed."""


class Outgoing:
    """The blob ``digest`` of ``size`` bytes. A context manager.

    Every byte is hashed the first time it is read, however the blob is cut into requests and whatever is sent
    again. The piece that holds the last byte is given out only once size and digest hold: of a blob that was
    damaged on disk no registry ever gets all bytes. ``sent`` is told how far the reading is; ``stop`` ends it.

    Raises `StorageError` where the blob is missing, `DigestMismatch` where it is damaged.
    """

    def __init__(
        self,
        content: ContentStore,
        digest: str,
        size: int,
        *,
        sent: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self.digest = digest
        self.size = size
        self._sent = sent
        self._stop = stop
        self._file = content.open(digest)
        self._hasher = hasher(digest)
        self._hashed = 0
        self._verified = False
        found = os.fstat(self._file.fileno()).st_size
        if found != size:
            self._file.close()
            raise _damaged(digest, f"it has {found} bytes instead of {size}")

    def part(self, start: int, end: int) -> Part:
        """The bytes from ``start`` up to ``end``, for one request."""
        return Part(self, start, end)

    def verify(self) -> None:
        """Hash what was not read yet. Raises `DigestMismatch`."""
        if not self._verified:
            self._catch_up(self.size)
            self._check()

    def read(self, at: int, count: int) -> bytes:
        if self._stop.is_set():
            raise Cancelled
        self._catch_up(at)
        data = os.pread(self._file.fileno(), count, at)
        if len(data) < count:
            raise _damaged(self.digest, f"it ends after {at + len(data)} of {self.size} bytes")
        if at + count > self._hashed:
            self._hasher.update(memoryview(data)[self._hashed - at :])
            self._hashed = at + count
        if at + count == self.size:
            self._check()
        self._sent(at + count)
        return data

    def _catch_up(self, to: int) -> None:
        """Hash the bytes before ``to`` that were never read: an upload was taken up beyond them."""
        while self._hashed < to:
            if self._stop.is_set():
                raise Cancelled
            data = os.pread(self._file.fileno(), min(PIECE, to - self._hashed), self._hashed)
            if not data:
                raise _damaged(self.digest, f"it ends after {self._hashed} of {self.size} bytes")
            self._hasher.update(data)
            self._hashed += len(data)

    def _check(self) -> None:
        if not self._verified and self._hasher.hexdigest() != self.digest.partition(":")[2]:
            raise _damaged(self.digest, "its bytes changed on disk")
        self._verified = True

    def __enter__(self) -> Outgoing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Part(io.RawIOBase):
    """Some bytes of an `Outgoing`, as the file that `Transport.request` sends. It can be sought back to where
    it began, and sent again."""

    def __init__(self, blob: Outgoing, start: int, end: int) -> None:
        super().__init__()
        self._blob = blob
        self._start = start
        self._end = end
        self._at = start

    def __len__(self) -> int:
        return self._end - self._start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence != os.SEEK_SET:
            raise io.UnsupportedOperation("only from the start")
        self._at = min(self._start + offset, self._end)
        return self.tell()

    def read(self, size: int = -1) -> bytes:
        count = self._end - self._at
        if size >= 0:
            count = min(count, size)
        if not count:
            return b""
        data = self._blob.read(self._at, min(count, PIECE))
        self._at += len(data)
        return data


def _damaged(digest: str, why: str) -> Exception:
    error = mismatch(digest, why)
    error.hint = "Nothing of it was sent whole. Pull the image again: a damaged blob is replaced."
    return error
