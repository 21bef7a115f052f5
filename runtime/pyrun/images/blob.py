"""A layer's blob on its way in: downloaded or stored, hashed twice, decompressed, in one pass.

`StoredBlob`, and `pyrun.images.transfer.download.RegistryBlob`, are the `pyrun.storage.contract.Blob` that a storage
driver is handed. The compressed bytes are hashed as they come and kept in the content store only when size and digest
hold; the uncompressed ones are made, hashed for the diff_id and unpacked in a confined child process
(`pyrun.layers.confined`), where a thread decompresses, so that all of it overlaps.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ..errors import DigestMismatch, ImageError, LayerError, StorageError
from ..layers import confined, confinement
from ..layers.answer import checked, packed
from ..layers.stream import ThreadedReader
from ..layers.unpack import unpack
from .codec import Buffer, decompressed
from .content import ContentStore, mismatch
from .digest import hasher, is_hex, short

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
        self._begin()
        plain = Plain(self.digest, self.diff_id, self.media_type)
        return cast(BinaryIO, confined.Reader(self._compressed(), plain.stream, plain.told, self._settle))

    def unpack(self, dirfd: int, whiteouts: Whiteouts) -> Unpacked:
        """Extract into ``dirfd`` by `pyrun.layers.unpack`, and verify to the end of the blob."""
        mapped = _mapped_ids()
        root = os.geteuid() == 0 and mapped >= 0xFFFFFFFF

        def work(stream: BinaryIO, inside: int) -> Unpacked:
            return unpack(stream, inside, whiteouts, devices=root, single_uid=mapped == 1)

        return self.confined(dirfd, work, confinement.UNPACKING_AS_ROOT if root else confinement.UNPACKING)

    def confined(
        self, dirfd: int, work: Callable[[BinaryIO, int], Unpacked], keep: Sequence[str] = ()
    ) -> Unpacked:
        """``work(tar stream, directory)`` in a confined child process: see `pyrun.layers.confined`."""
        found = self._inside(lambda stream, root: packed(work(cast(BinaryIO, stream), root)), dirfd, keep)
        return checked(found)

    def read_confined(self, work: Callable[[BinaryIO], Any]) -> Any:
        """What ``work(tar stream)`` returns, as JSON has it, in a confined child that has no files at all."""
        return self._inside(lambda stream, root: work(cast(BinaryIO, stream)), None, ())

    def range(self, offset: int, count: int) -> bytes:
        """``count`` bytes of the compressed blob, not verified; from the content store."""
        with self._content.open(self.digest) as file:
            return os.pread(file.fileno(), count, offset)

    def verify(self) -> None:
        """Read to the end for the checks alone (and, from a registry, to store the compressed blob)."""
        self._inside(lambda stream, root: stream.drain(), None, ())

    def _begin(self) -> None:
        if self._begun:
            raise StorageError(
                f"layer {short(self.digest)} was read twice: tar, unpack or confined may be called once"
            )
        self._begun = True

    def _compressed(self) -> Generator[Buffer, None, None]:
        """The blob's bytes; its end means that size and digest hold."""
        raise NotImplementedError

    def _inside(
        self, work: Callable[[ThreadedReader, int], Any], dirfd: int | None, keep: Sequence[str]
    ) -> Any:
        """One pass: ``work`` on the tar, in a confined child."""
        self._begin()
        plain = Plain(self.digest, self.diff_id, self.media_type)

        def all_of_it(stream: ThreadedReader, root: int) -> Any:
            value = work(stream, root)
            stream.drain()
            return {"value": value, **plain.told()}

        with closing(self._compressed()) as source:
            found = confined.run(source, plain.stream, all_of_it, dirfd=dirfd, keep=keep)
        self._settle(found)
        return found.get("value")

    def _settle(self, found: Any) -> None:
        """Take what the confined child found out about the tar."""
        try:
            count, digits = found["unpacked"], found["hash"]
        except (KeyError, TypeError):
            raise confined.senseless() from None
        if type(count) is not int or count < 0 or not isinstance(digits, str) or not is_hex(digits):
            raise confined.senseless()
        self.unpacked = count
        self._check_diff_id(digits)
        self.verified = True

    def _check_diff_id(self, digits: str) -> None:
        if digits != self.diff_id.partition(":")[2]:
            algorithm = self.diff_id.partition(":")[0]
            raise DigestMismatch(
                f"layer {self.digest} unpacks to {algorithm}:{digits},"
                f" and the image config names {self.diff_id}",
                hint="The image is broken or was tampered with; the layer was not unpacked.",
            )


class Plain:
    """The uncompressed stream of a blob, counted and hashed, where it is made: in the confined child."""

    def __init__(self, digest: str, diff_id: str, media_type: str) -> None:
        self._digest = digest
        self._media_type = media_type
        self._count = 0
        self._state = hasher(diff_id)

    def stream(self, chunks: Iterator[Buffer]) -> Generator[bytes, None, None]:
        compressed = 0

        def counted() -> Iterator[Buffer]:
            nonlocal compressed
            for chunk in chunks:
                compressed += len(chunk)
                yield chunk

        for piece in decompressed(counted(), self._media_type):
            self._count += len(piece)
            if self._count > BOMB_FREE and self._count > BOMB_RATIO * compressed:
                raise LayerError(
                    f"layer {short(self._digest)} expands more than {BOMB_RATIO} times",
                    hint="That is a decompression bomb, not a layer.",
                )
            self._state.update(piece)
            yield piece

    def told(self) -> dict[str, Any]:
        return {"unpacked": self._count, "hash": self._state.hexdigest()}


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
