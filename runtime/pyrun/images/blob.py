"""A layer's blob on its way in: downloaded or stored, hashed twice, decompressed, in one pass.

`StoredBlob`, and `pyrun.images.download.RegistryBlob`, are the `pyrun.storage.contract.Blob` that a storage driver is
handed. The compressed bytes are hashed as they come and kept in the content store only when size and digest hold; the
uncompressed ones are hashed for the diff_id. A thread does that work, so that unpacking overlaps with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, BinaryIO, cast

from ..errors import DigestMismatch, ImageError, LayerError, StorageError
from .codec import Buffer, decompressed
from .content import ContentStore, mismatch
from .digest import hasher, short
from .stream import ThreadedReader

if TYPE_CHECKING:
    from ..layers.unpack import Unpacked
    from ..storage.contract import Whiteouts
    from .record import ImageLayer

CHUNK = 256 << 10  # bytes a read from the network or disk
BOMB_FREE = 1 << 30  # uncompressed bytes before the ratio counts
BOMB_RATIO = 1000

Report = Callable[[str, int, int], None]  # status, current, total


def silent(status: str, current: int, total: int) -> None:
    pass


class LayerBlob:
    """What both kinds share: the contract's attributes, and one pass over the content.

    ``unpacked`` counts the tar's bytes, final once ``verified``.
    """

    def __init__(
        self,
        content: ContentStore,
        layer: ImageLayer,
        annotations: Mapping[str, str] | None = None,
        report: Report = silent,
    ) -> None:
        self.digest = layer.digest
        self.diff_id = layer.diff_id
        self.media_type = layer.media_type
        self.annotations: Mapping[str, str] = annotations or {}
        self.size = layer.size
        self.verified = False
        self.intact = False  # True once size and digest of the compressed bytes held
        self.unpacked = 0
        self._content = content
        self._report = report
        self._begun = False

    def tar(self) -> BinaryIO:
        """The uncompressed tar stream; its end means that size, digest and diff_id hold.

        ``read(n)`` may return fewer bytes. A read raises `DigestMismatch`, `RegistryError`, `LayerError` or
        `StorageError`. Close it if it is not read to its end.
        """
        return cast(BinaryIO, self._open())

    def unpack(self, dirfd: int, whiteouts: Whiteouts) -> Unpacked:
        """Extract into ``dirfd`` by `pyrun.layers.unpack`, and verify to the end of the blob."""
        from ..layers.unpack import unpack

        mapped = _mapped_ids()
        with self._open() as stream:
            try:
                done = unpack(
                    cast(BinaryIO, stream),
                    dirfd,
                    whiteouts,
                    devices=os.geteuid() == 0 and mapped >= 0xFFFFFFFF,
                    single_uid=mapped == 1,
                )
            except LayerError:
                # Bytes that were tampered with make a bad tar: say that, which is the cause.
                stream.discard()
                raise
            stream.drain()
        return done

    def range(self, offset: int, count: int) -> bytes:
        """``count`` bytes of the compressed blob, not verified; from the content store."""
        with self._content.open(self.digest) as file:
            return os.pread(file.fileno(), count, offset)

    def verify(self) -> None:
        """Read to the end for the checks alone (and, from a registry, to store the compressed blob)."""
        with self._open() as stream:
            stream.drain()

    def _open(self) -> ThreadedReader:
        if self._begun:
            raise StorageError(f"layer {short(self.digest)} was read twice: tar or unpack may be called once")
        self._begun = True
        return ThreadedReader(self._stream)

    def _compressed(self) -> Generator[Buffer, None, None]:
        """The blob's bytes; its end means that size and digest hold."""
        raise NotImplementedError

    def _stream(self, discarding: Callable[[], bool]) -> Generator[bytes, None, None]:
        state = hasher(self.diff_id)
        compressed = 0

        def counted(chunks: Iterator[Buffer]) -> Iterator[Buffer]:
            nonlocal compressed
            for chunk in chunks:
                compressed += len(chunk)
                yield chunk

        source = self._compressed()
        try:
            try:
                for piece in decompressed(counted(source), self.media_type):
                    self.unpacked += len(piece)
                    if self.unpacked > BOMB_FREE and self.unpacked > BOMB_RATIO * compressed:
                        raise LayerError(
                            f"layer {short(self.digest)} expands more than {BOMB_RATIO} times",
                            hint="That is a decompression bomb, not a layer.",
                        )
                    state.update(piece)
                    yield piece
                    if discarding():
                        break
                else:
                    self._check_diff_id(state.hexdigest())
                    self.verified = True
                    return
                for _ in source:
                    pass
            except LayerError:
                # A damaged download is the better explanation, if it is one: the source raises at its end.
                for _ in source:
                    pass
                raise
        finally:
            source.close()

    def _check_diff_id(self, digits: str) -> None:
        if digits != self.diff_id.partition(":")[2]:
            algorithm = self.diff_id.partition(":")[0]
            raise DigestMismatch(
                f"layer {self.digest} unpacks to {algorithm}:{digits},"
                f" and the image config names {self.diff_id}",
                hint="The image is broken or was tampered with. Nothing of the layer was kept.",
            )


class StoredBlob(LayerBlob):
    """A blob of the content store. Its digest is checked again: disks rot."""

    def _compressed(self) -> Generator[Buffer, None, None]:
        state = hasher(self.digest)
        seen = 0
        buffer = memoryview(bytearray(CHUNK))
        with self._content.open(self.digest) as file:
            while count := file.readinto(buffer):
                seen += count
                state.update(buffer[:count])
                self._report("Extracting", seen, self.size)
                yield buffer[:count]
        if state.hexdigest() != self.digest.partition(":")[2]:
            raise mismatch(self.digest, f"the copy in {self._content.path} changed")
        self.intact = True
        if seen != self.size:
            raise wrong_size(self.digest, self.size, seen)


def wrong_size(digest: str, said: int, found: int) -> ImageError:
    """For a manifest that tells another size of a blob than the one with that digest has."""
    return ImageError(
        f"the manifest says that layer {digest} has {said} bytes, and the blob has {found}",
        hint="The image is broken: it has to be built or pushed again.",
    )


def _mapped_ids() -> int:
    """How many user ids this process's user namespace maps (man user_namespaces, /proc/PID/uid_map)."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return sum(int(line.split()[2]) for line in file)
    except (OSError, ValueError, IndexError):
        return 0
