"""The content store: an OCI image-layout directory (OCI image spec, image-layout.md), so other tools read it.

    <root>/content/oci-layout, index.json, blobs/<algorithm>/<hex>
    <root>/content/.tmp-<pid>-<name>          being written, by that process
    <root>/ingest/<algorithm>-<hex>.part      being written, or broken off (`pyrun.images.parts`)

A blob appears under its name only when size and digest hold and its bytes are on disk: write, fsync, rename,
fsync of the directory.
``index.json`` is a view derived from the image records (`pyrun.images.index`).
"""

from __future__ import annotations

import os

from ..errors import DigestMismatch, StorageError
from ..kernel.files import replace
from . import parts
from .digest import HEX_LENGTH, digest_like, hasher, is_digest
from .parts import Writer, same_file
from .parts import mismatch as mismatch
from .parts import out_of_space as out_of_space

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO

REF_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class ContentStore:
    """Blobs by digest below ``root``, the engine's store. Directories are made on first write."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.path = os.path.join(root, "content")
        self._ingest = os.path.join(root, "ingest")

    def has(self, digest: str) -> bool:
        return os.path.exists(self.blob_path(digest))

    def size(self, digest: str) -> int:
        """Bytes of the blob. Raises `StorageError` where it is missing."""
        with self._missing_named(digest):
            return os.stat(self.blob_path(digest)).st_size
        raise AssertionError("unreachable")

    def open(self, digest: str) -> FileIO:
        """The blob's file, unbuffered, for reading; its content is not checked. `StorageError` if missing."""
        with self._missing_named(digest):
            return open(self.blob_path(digest), "rb", buffering=0)
        raise AssertionError("unreachable")

    def read(self, digest: str, limit: int = 4 << 20) -> bytes:
        """The whole of a small blob, checked. Raises `DigestMismatch` where it was damaged on disk."""
        with self.open(digest) as file:
            data = file.read(limit + 1)
        if len(data) > limit or digest_like(digest, data) != digest:
            raise DigestMismatch(
                f"{self.blob_path(digest)} is damaged: its content is not what its name says",
                hint="Pull the image again: the damaged blob is replaced.",
            )
        return data

    def intact(self, digest: str) -> bool:
        """Whether the blob's content is what its name says; reads all of it. `StorageError` if missing."""
        state = hasher(digest)
        buffer = memoryview(bytearray(256 << 10))
        with self.open(digest) as file:
            while count := file.readinto(buffer):
                state.update(buffer[:count])
        return bool(state.hexdigest() == digest.partition(":")[2])

    def add_bytes(self, data: bytes, digest: str) -> None:
        """Store ``data`` under ``digest``; nothing happens if it is there already."""
        writer = self.writer(digest, len(data))
        if writer is not None:
            with writer:
                writer.write(data)
                writer.commit()

    def writer(
        self,
        digest: str,
        size: int,
        *,
        resumable: bool = False,
        waiting: Callable[[int], None] | None = None,
    ) -> Writer | None:
        """A `Writer` for a blob of exactly ``size`` bytes; None where the blob is stored already.

        Waits while another process writes the same blob, and then finds the blob, or takes over. ``resumable``:
        what a writer before this one left is gone on with, and what this one leaves is kept. ``waiting`` is
        called now and then with the bytes that the other process has so far.
        """
        path = self.blob_path(digest)
        part = os.path.join(self._ingest, parts.file_name(digest))
        try:
            os.makedirs(self._ingest, mode=0o700, exist_ok=True)
            while not os.path.exists(path):
                fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    parts.acquire(fd, waiting)
                    if same_file(fd, part) and not os.path.exists(path):
                        self.make_layout()
                        return Writer(fd, part, path, digest, size, keeps=resumable)
                    # The file was renamed into place, or removed, while this call waited for its lock.
                    if same_file(fd, part):
                        os.unlink(part)
                except BaseException:
                    os.close(fd)
                    raise
                os.close(fd)
        except OSError as error:
            raise out_of_space(error, error.filename or part) from error
        return None

    def remove(self, digest: str) -> int:
        """Delete the blob; the bytes it had. A missing one is no error."""
        path = self.blob_path(digest)
        try:
            size = os.stat(path).st_size
            os.unlink(path)
        except FileNotFoundError:
            return 0
        return size

    def digests(self) -> Iterator[str]:
        """Every stored blob."""
        for algorithm in HEX_LENGTH:
            try:
                names = os.listdir(os.path.join(self.path, "blobs", algorithm))
            except FileNotFoundError:
                continue
            for name in names:
                if is_digest(f"{algorithm}:{name}"):
                    yield f"{algorithm}:{name}"

    def sweep(self, kept: float = parts.KEPT) -> int:
        """Remove what dead writers left: parts that are of no more use (`pyrun.images.parts.stale`; with ``kept``
        0 all that nobody writes), and the temporary files of processes that are gone. Their number."""
        return self._sweep_temporary() + parts.sweep(self._ingest, self.has, kept)

    def stale(self, part: str) -> bool:
        """Whether the file named ``part`` in ``ingest`` is of no more use, for a caller that knows nobody writes it."""
        return parts.stale(os.path.join(self._ingest, part), self.has)

    def unfinished(self) -> dict[str, int]:
        """Bytes that are there of blobs that are not whole yet, by digest; being written or not."""
        found = {}
        try:
            for entry in os.scandir(self._ingest):
                digest = parts.digest_of(entry.name)
                if digest:
                    try:
                        found[digest] = entry.stat(follow_symlinks=False).st_size
                    except FileNotFoundError:
                        pass  # finished just now
        except FileNotFoundError:
            pass
        return found

    def _sweep_temporary(self) -> int:
        swept = 0
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return 0
        for name in names:
            prefix, _, rest = name.partition("-")
            if prefix == ".tmp" and not os.path.exists(f"/proc/{rest.partition('-')[0]}"):
                try:
                    os.unlink(os.path.join(self.path, name))
                    swept += 1
                except OSError:
                    pass  # swept by another process, or by nobody
        return swept

    def blob_path(self, digest: str) -> str:
        """Where the blob is, or would be."""
        if not is_digest(digest):
            raise StorageError(f"{digest!r} is not a digest")
        algorithm, _, digits = digest.partition(":")
        return os.path.join(self.path, "blobs", algorithm, digits)

    def make_layout(self) -> None:
        """Make the directories and the two files that every OCI layout has, if they are missing."""
        layout = os.path.join(self.path, "oci-layout")
        if os.path.exists(layout):
            return
        for algorithm in HEX_LENGTH:
            os.makedirs(os.path.join(self.path, "blobs", algorithm), mode=0o700, exist_ok=True)
        index = os.path.join(self.path, "index.json")
        empty = os.path.join(self.path, f".tmp-{os.getpid()}-empty")
        write_file(empty, b'{"schemaVersion":2,"manifests":[]}')
        try:
            os.link(empty, index)  # never over one that another process published meanwhile
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            if not os.path.exists(index):
                write_file(index, b'{"schemaVersion":2,"manifests":[]}')
        os.unlink(empty)
        write_file(layout, _LAYOUT)

    def _missing_named(self, digest: str) -> _MissingNamed:
        return _MissingNamed(digest, self.path)


def sweep(root: str) -> int:
    """`ContentStore.sweep` of the engine's store ``root``."""
    return ContentStore(root).sweep()


class _MissingNamed:
    def __init__(self, digest: str, path: str) -> None:
        self.digest = digest
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise StorageError(
                f"{self.digest} is not in the store {self.path}", hint="Pull the image again to fetch it."
            ) from error


def write_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace ``path`` atomically and durably: temporary file, fsync, rename, fsync of the directory."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".tmp-{os.getpid()}-{name[:100]}")
    try:
        replace(path, temporary, data, mode, durable=True)
    except OSError as error:
        raise out_of_space(error, path) from error
