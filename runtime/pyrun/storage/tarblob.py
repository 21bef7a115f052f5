"""A layer blob that is an uncompressed tar in memory or in a file: for layers that the engine makes itself, and
for tests."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from ..errors import DigestMismatch, StorageError

if TYPE_CHECKING:
    from ..layers.unpack import Unpacked
    from .contract import Whiteouts


_CHUNK = 256 << 10


class TarBlob:
    """A `pyrun.storage.contract.Blob` whose content is an uncompressed tar: bytes, or the path of a file.

    ``diff_id`` may be given to make a blob that lies about itself.
    """

    media_type = "application/vnd.oci.image.layer.v1.tar"

    def __init__(
        self, content: bytes | str, *, diff_id: str = "", annotations: Mapping[str, str] | None = None
    ):
        self._content = content
        if isinstance(content, bytes):
            digest = hashlib.sha256(content).hexdigest()
            self.size = len(content)
        else:
            with open(content, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self.size = os.path.getsize(content)
        self.digest = f"sha256:{digest}"
        self.diff_id = diff_id or self.digest
        self.annotations: Mapping[str, str] = annotations or {}
        self.verified = False
        self.unpacked = self.size
        self._begun = False

    def again(self) -> TarBlob:
        """The same blob, unread."""
        fresh = object.__new__(TarBlob)
        fresh.__dict__.update(self.__dict__, verified=False, _begun=False)
        return fresh

    def tar(self) -> BinaryIO:
        if self._begun:
            raise StorageError("the blob was read twice: tar or unpack may be called once")
        self._begun = True
        return cast(BinaryIO, _Verified(self, self._open()))

    def unpack(self, dirfd: int, whiteouts: Whiteouts) -> Unpacked:
        from ..layers import confinement
        from ..layers.unpack import unpack

        with open("/proc/self/uid_map") as file:
            mapped = sum(int(line.split()[2]) for line in file)
        root = mapped >= 0xFFFFFFFF

        def work(stream: BinaryIO, inside: int) -> Unpacked:
            return unpack(stream, inside, whiteouts, devices=root, single_uid=mapped == 1)

        return self.confined(dirfd, work, confinement.UNPACKING_AS_ROOT if root else confinement.UNPACKING)

    def confined(
        self, dirfd: int, work: Callable[[BinaryIO, int], Unpacked], keep: Sequence[str] = ()
    ) -> Unpacked:
        from ..layers import confined
        from ..layers.answer import checked, packed

        with self.tar() as stream:
            found = confined.run(
                iter(lambda: stream.read(_CHUNK), b""),
                lambda chunks: (bytes(chunk) for chunk in chunks),
                lambda inside, root: packed(work(cast(BinaryIO, inside), root)),
                dirfd=dirfd,
                keep=keep,
            )
        return checked(found)

    def range(self, offset: int, count: int) -> bytes:
        with self._open() as file:
            file.seek(offset)
            return file.read(count)

    def _open(self) -> BinaryIO:
        return io.BytesIO(self._content) if isinstance(self._content, bytes) else open(self._content, "rb")


class _Verified(io.RawIOBase):
    """Reads through; at the end the digest must be the diff_id."""

    def __init__(self, blob: TarBlob, file: BinaryIO) -> None:
        self._blob = blob
        self._file = file
        self._hasher = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        count = self._file.readinto(view)  # type: ignore[attr-defined]
        if count:
            self._hasher.update(view[:count])
        elif len(view) and not self._blob.verified:
            found = f"sha256:{self._hasher.hexdigest()}"
            if found != self._blob.diff_id:
                raise DigestMismatch(f"layer unpacks to {found}, not {self._blob.diff_id}")
            self._blob.verified = True
        return int(count)

    def close(self) -> None:
        self._file.close()
        super().close()
