"""Blobs on their way into the content store: ``<root>/ingest/<algorithm>-<hex>.part``.

Its writer holds the file's flock. However the writer ended (an error, Ctrl-C, SIGKILL, a full disk, a power cut), what
it had stays, and the next writer of the blob reads that first and goes on behind it: nothing of it is believed until
the digest of the whole holds. What nobody came back for within `KEPT` seconds is swept, and so is what can't be gone
on with. No reader ever looks at a part: a blob has its name only when it is whole.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from ..errors import DigestMismatch, StorageError
from ..kernel.files import sync_directory, write_all
from .digest import hasher, is_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Buffer = bytes | bytearray | memoryview

SUFFIX = ".part"
KEPT = 7 * 24 * 3600.0  # seconds after its last byte
_READ = 256 << 10  # bytes a read of what is there
_LOOK = 0.05  # seconds between two looks at a part that another process writes


def file_name(digest: str) -> str:
    """The part's name, within the directory ``ingest``."""
    return digest.replace(":", "-") + SUFFIX


def digest_of(name: str) -> str:
    """The digest that a part's name stands for, "" where it is no part's."""
    digest = name.removesuffix(SUFFIX).replace("-", ":", 1)
    return digest if name.endswith(SUFFIX) and is_digest(digest) else ""


def stale(path: str, stored: Callable[[str], bool], kept: float = KEPT) -> bool:
    """Whether the part at ``path``, which nobody writes, is of no more use: empty, no part at all, its blob
    ``stored``, or left alone for ``kept`` seconds."""
    digest = digest_of(os.path.basename(path))
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return (
        not digest
        or not stat.S_ISREG(found.st_mode)
        or not found.st_size
        or stored(digest)
        or not -kept < time.time() - found.st_mtime < kept
    )


def sweep(directory: str, stored: Callable[[str], bool], kept: float = KEPT) -> int:
    """Remove every part that nobody writes and that is `stale`; their number."""
    swept = 0
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return 0
    for name in names:
        path = os.path.join(directory, name)
        if not stale(path, stored, kept):
            continue
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if same_file(fd, path):
                os.unlink(path)
                swept += 1
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
    return swept


def acquire(fd: int, waiting: Callable[[int], None] | None) -> None:
    """Lock the part. While another process has it, ``waiting`` is told now and then how far that one is."""
    while waiting is not None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waiting(os.fstat(fd).st_size)
            time.sleep(_LOOK)
    fcntl.flock(fd, fcntl.LOCK_EX)


class Writer:
    """One blob being stored. A context manager: without `commit`, what is there stays for the next writer if
    ``keeps``, unless it was `discard`ed.

    written  bytes there that were hashed; the next `write` goes behind them. `replay` first where ``held``.
    held     bytes that an earlier writer left
    """

    __slots__ = (
        "_committed", "_digest", "_discarded", "_fd", "_hasher", "_keeps", "_part", "_path", "_size", "held", "written",
    )  # fmt: skip

    def __init__(self, fd: int, part: str, path: str, digest: str, size: int, *, keeps: bool) -> None:
        self._fd = fd
        self._part = part
        self._path = path
        self._digest = digest
        self._size = size
        self._keeps = keeps
        self._hasher = hasher(digest)
        self._committed = False
        self._discarded = False
        self.written = 0
        self.held = os.fstat(fd).st_size
        if self.held and (not keeps or self.held > size):
            os.ftruncate(fd, 0)
            self.held = 0

    def replay(self) -> Iterator[Buffer]:
        """The bytes that are there, hashed as they are read."""
        buffer = memoryview(bytearray(min(_READ, max(self.held, 1))))
        while self.written < self.held:
            count = os.preadv(self._fd, [buffer[: self.held - self.written]], self.written)
            if not count:
                break
            self._hasher.update(buffer[:count])
            self.written += count
            yield buffer[:count]
        os.lseek(self._fd, self.written, os.SEEK_SET)

    def write(self, data: Buffer) -> None:
        """Append. Raises `DigestMismatch` as soon as there is more than the expected size."""
        if self.written + len(data) > self._size:
            self.discard()
            raise mismatch(self._digest, f"it is longer than the {self._size} bytes it should have")
        self._hasher.update(data)
        try:
            write_all(self._fd, data)
        except OSError as error:
            raise out_of_space(error, self._part) from error
        self.written += len(data)

    def discard(self) -> None:
        """Keep nothing."""
        self._discarded = True

    def commit(self) -> None:
        """Check size and digest (`DigestMismatch`, and nothing is kept), and put the blob in its place, durably."""
        if self.written != self._size:
            self.discard()
            raise mismatch(self._digest, f"it has {self.written} bytes instead of {self._size}")
        found = self._hasher.hexdigest()
        if found != self._digest.partition(":")[2]:
            self.discard()
            raise mismatch(self._digest, f"its bytes are {self._digest.partition(':')[0]}:{found}")
        try:
            os.fchmod(self._fd, 0o644)
            os.fsync(self._fd)
            os.rename(self._part, self._path)
            sync_directory(os.path.dirname(self._path))
        except OSError as error:
            raise out_of_space(error, self._path) from error
        self._committed = True

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._committed and (self._discarded or not self._keeps or not os.fstat(self._fd).st_size):
            try:
                os.unlink(self._part)  # before the lock goes with the descriptor
            except FileNotFoundError:
                pass
        os.close(self._fd)


def mismatch(digest: str, why: str) -> DigestMismatch:
    return DigestMismatch(
        f"blob {digest} is damaged or tampered with: {why}",
        hint="Nothing of it was kept. If it happens again, the registry or mirror serves bad content.",
    )


def out_of_space(error: OSError, path: str) -> StorageError:
    """The `StorageError` for a failed write at ``path``; says so in words where the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"no space left for {path}",
            hint="Free some space (`pyrun system prune` also removes unfinished downloads), or use a store"
            " elsewhere with --root.",
        )
    return StorageError(f"{path} can't be written: {error.strerror}", hint="Check the store's directory.")


def same_file(fd: int, path: str) -> bool:
    """Whether ``path`` still names the open file: its writer may have renamed or removed it meanwhile."""
    mine = os.fstat(fd)
    try:
        theirs = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)
