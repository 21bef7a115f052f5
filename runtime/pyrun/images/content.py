"""The content store: an OCI image-layout directory (OCI image spec, image-layout.md), so other tools read it.

    <root>/content/oci-layout, index.json, blobs/<algorithm>/<hex>
    <root>/content/.tmp-<pid>-<name>          being written, by that process
    <root>/ingest/<algorithm>-<hex>.part      being written, locked with flock by its writer

A blob appears under its name only when size and digest hold and its bytes are on disk: write, fsync, rename,
fsync of the directory. A writer that died leaves a ``.part`` file without a lock, which `sweep` removes.
``index.json`` is a view derived from the image records; nothing in pyrun reads it to decide anything.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os

from ..errors import DigestMismatch, StorageError
from .digest import HEX_LENGTH, digest_like, hasher, is_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import FileIO
    from typing import Any

    Buffer = bytes | bytearray | memoryview

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

    def writer(self, digest: str, size: int) -> Writer | None:
        """A `Writer` for a blob of exactly ``size`` bytes; None where the blob is stored already.

        Waits while another process writes the same blob.
        """
        path = self.blob_path(digest)
        part = os.path.join(self._ingest, f"{digest.replace(':', '-')}.part")
        try:
            return self._writer(part, path, digest, size)
        except OSError as error:
            raise out_of_space(error, error.filename or part) from error

    def _writer(self, part: str, path: str, digest: str, size: int) -> Writer | None:
        os.makedirs(self._ingest, mode=0o700, exist_ok=True)
        while not os.path.exists(path):
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if _same_file(fd, part) and not os.path.exists(path):
                    os.ftruncate(fd, 0)
                    self._make_layout()
                    return Writer(fd, part, path, digest, size)
            except BaseException:
                os.close(fd)
                raise
            # The file was renamed into place, or removed, while this call waited for its lock.
            if _same_file(fd, part):
                os.unlink(part)
            os.close(fd)
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

    def sweep(self) -> int:
        """Remove what dead writers left: every ``.part`` file that nobody holds a lock on, and the temporary
        files of processes that are gone. Their number."""
        swept = self._sweep_temporary()
        try:
            names = os.listdir(self._ingest)
        except FileNotFoundError:
            return swept
        for name in names:
            path = os.path.join(self._ingest, name)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same_file(fd, path):
                    os.unlink(path)
                    swept += 1
            except BlockingIOError:
                pass
            finally:
                os.close(fd)
        return swept

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

    def publish(self, names: dict[str, str]) -> None:
        """Rewrite ``index.json`` so that it lists ``names``: reference -> digest of its manifest.

        The caller serialises calls. Names whose manifest is not stored are left out.
        """
        self._make_layout()
        path = os.path.join(self.path, "index.json")
        known: dict[str, dict[str, Any]] = {}
        try:
            with open(path, "rb") as file:
                for entry in json.load(file)["manifests"]:
                    known[entry["digest"]] = {k: entry[k] for k in ("mediaType", "digest", "size")}
        except (OSError, ValueError, KeyError, TypeError):
            known = {}  # a view: made anew
        manifests = []
        for name, digest in sorted(names.items()):
            if digest not in known:
                try:
                    data = self.read(digest)
                    manifest = json.loads(data)
                except (StorageError, DigestMismatch, ValueError):
                    continue
                # OCI lets a manifest leave its own type out; Docker's always carries it.
                media_type = manifest.get("mediaType") or "application/vnd.oci.image.manifest.v1+json"
                known[digest] = {"mediaType": media_type, "digest": digest, "size": len(data)}
            manifests.append({**known[digest], "annotations": {REF_NAME: name}})
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": manifests,
        }
        write_file(path, json.dumps(index, separators=(",", ":")).encode())

    def blob_path(self, digest: str) -> str:
        """Where the blob is, or would be."""
        if not is_digest(digest):
            raise StorageError(f"{digest!r} is not a digest")
        algorithm, _, digits = digest.partition(":")
        return os.path.join(self.path, "blobs", algorithm, digits)

    def _make_layout(self) -> None:
        layout = os.path.join(self.path, "oci-layout")
        if os.path.exists(layout):
            return
        for algorithm in HEX_LENGTH:
            os.makedirs(os.path.join(self.path, "blobs", algorithm), mode=0o700, exist_ok=True)
        index = os.path.join(self.path, "index.json")
        if not os.path.exists(index):
            write_file(index, b'{"schemaVersion":2,"manifests":[]}')
        write_file(layout, _LAYOUT)

    def _missing_named(self, digest: str) -> _MissingNamed:
        return _MissingNamed(digest, self.path)


def sweep(root: str) -> int:
    """`ContentStore.sweep` of the engine's store ``root``."""
    return ContentStore(root).sweep()


class Writer:
    """One blob being stored. A context manager: leaving it without `commit` removes what was written."""

    __slots__ = ("_committed", "_digest", "_fd", "_hasher", "_part", "_path", "_size", "written")

    def __init__(self, fd: int, part: str, path: str, digest: str, size: int) -> None:
        self._fd = fd
        self._part = part
        self._path = path
        self._digest = digest
        self._size = size
        self._hasher = hasher(digest)
        self._committed = False
        self.written = 0

    def write(self, data: Buffer) -> None:
        """Append. Raises `DigestMismatch` as soon as there is more than the expected size."""
        self.written += len(data)
        if self.written > self._size:
            raise mismatch(self._digest, f"it is longer than the {self._size} bytes it should have")
        self._hasher.update(data)
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError as error:
                raise out_of_space(error, self._part) from error

    def commit(self) -> None:
        """Check size and digest (`DigestMismatch`), and put the blob in its place, durably."""
        if self.written != self._size:
            raise mismatch(self._digest, f"it has {self.written} bytes instead of {self._size}")
        found = self._hasher.hexdigest()
        if found != self._digest.partition(":")[2]:
            raise mismatch(self._digest, f"its bytes are {self._digest.partition(':')[0]}:{found}")
        try:
            os.fchmod(self._fd, 0o644)
            os.fsync(self._fd)
            os.rename(self._part, self._path)
            _fsync_directory(os.path.dirname(self._path))
        except OSError as error:
            raise out_of_space(error, self._path) from error
        self._committed = True

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._committed:
            try:
                os.unlink(self._part)  # before the lock goes with the descriptor
            except FileNotFoundError:
                pass
        os.close(self._fd)


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


def mismatch(digest: str, why: str) -> DigestMismatch:
    return DigestMismatch(
        f"blob {digest} is damaged or tampered with: {why}",
        hint="Nothing of it was kept. If it happens again, the registry or mirror serves bad content.",
    )


def out_of_space(error: OSError, path: str) -> StorageError:
    """The `StorageError` for a failed write at ``path``; says so in words where the disk is full."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"no space left for {path}", hint="Free some space, or use a store elsewhere with --root."
        )
    return StorageError(f"{path} can't be written: {error.strerror}", hint="Check the store's directory.")


def write_file(path: str, data: bytes, mode: int = 0o644) -> None:
    """Replace ``path`` atomically and durably: temporary file, fsync, rename, fsync of the directory."""
    directory, name = os.path.split(path)
    temporary = os.path.join(directory, f".tmp-{os.getpid()}-{name[:100]}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
        _fsync_directory(directory)
    except OSError as error:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise out_of_space(error, path) from error


def _fsync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _same_file(fd: int, path: str) -> bool:
    """Whether ``path`` still names the open file: its writer may have renamed or removed it meanwhile."""
    mine = os.fstat(fd)
    try:
        theirs = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (mine.st_dev, mine.st_ino) == (theirs.st_dev, theirs.st_ino)
