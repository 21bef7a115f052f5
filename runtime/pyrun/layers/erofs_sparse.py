"""Where the content of a sparse member lies in its tar, as EROFS chunks.

A chunk-based file is a table with one block address for each chunk of a power of two; a hole has none. A chunk
that a run of stored bytes fills to its end (or the file's) is read from the tar itself. One that a run fills in
part, or askew to the tar's blocks, is a *piece*: its bytes are put together in the index, which is a sparse file
too. Small chunks make a long table, large ones many pieces; what takes least is chosen for each file.
"""

from __future__ import annotations

import sys
from array import array

from . import erofs_format as fmt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Runs = list[tuple[int, int]]

_LARGEST = 40  # bits: chunks of 2**(9 + 31) bytes, all that the format can say
_ENOUGH = 64 << 10  # bytes of table that no pieces are made for
_STEP = 1 << 16


class Plan:
    """How one sparse file is laid out.

    runs, size, offset  of the tar entry: (offset, length) pairs, the file's size, and where in the tar the
                        stored bytes begin
    bits                the chunk size is ``1 << bits``
    """

    __slots__ = ("bits", "offset", "runs", "size")

    def __init__(self, runs: Runs, size: int, offset: int) -> None:
        self.runs = runs
        self.size = size
        self.offset = offset
        self.bits = self._choose()

    def _choose(self) -> int:
        edges = 0
        for offset, length in self.runs:
            edges |= offset
            if offset + length != self.size:
                edges |= offset + length
        # The largest chunk that needs no pieces.
        low = (edges & -edges).bit_length() - 1 if edges else _LARGEST
        bits = min(max(low, fmt.BLOCK_BITS), _LARGEST)
        while bits > fmt.BLOCK_BITS and 1 << bits - 1 >= self.size:
            bits -= 1
        best, least = bits, self._cost(bits)
        worse = 0
        while 4 * (self.size >> bits) > _ENOUGH and worse < 3 and bits < _LARGEST:
            bits += 1
            cost = self._cost(bits)
            if cost < least:
                best, least, worse = bits, cost, 0
            else:
                worse += 1
        return best

    def _cost(self, bits: int) -> int:
        """Bytes of the table and, roughly, of the pieces, zeros included: whoever copies the file meets those."""
        size, chunk, cost = self.size, 1 << bits, 4 * self.chunks(bits)
        for offset, length in self.runs:
            end = offset + length
            if offset % fmt.BLOCK:
                cost += ((end - 1 >> bits) - (offset >> bits) + 1) << bits
                continue
            if offset % chunk:
                cost += chunk
            if end % chunk and end != size and (offset >> bits != end >> bits or not offset % chunk):
                cost += chunk
        return cost

    def chunks(self, bits: int = 0) -> int:
        return -(-self.size // (1 << (bits or self.bits)))

    @property
    def format(self) -> int:
        """i_u of the inode."""
        return self.bits - fmt.BLOCK_BITS

    @property
    def table(self) -> int:
        """Bytes of the table."""
        return 4 * self.chunks()

    def pieces(self) -> dict[int, list[tuple[int, int, int]]]:
        """The chunks to put together: number → (offset in the chunk, offset in the tar, length), in order."""
        bits, chunk = self.bits, 1 << self.bits
        found: dict[int, list[tuple[int, int, int]]] = {}
        stored = self.offset
        for offset, length in self.runs:
            end = offset + length
            if offset % fmt.BLOCK:
                spans = [(offset, end)]
            else:
                whole = offset + -offset % chunk  # from here to `until` chunks are read from the tar
                until = end if end == self.size else end - end % chunk
                spans = [(offset, end)] if whole >= until else [(offset, whole), (until, end)]
            for begin, stop in spans:
                while begin < stop:
                    number = begin >> bits
                    part = min(stop, (number + 1) << bits) - begin
                    found.setdefault(number, []).append(
                        (begin - (number << bits), stored + begin - offset, part)
                    )
                    begin += part
            stored += length
        return found

    def addresses(self, pieces: dict[int, int]) -> Iterator[bytes]:
        """The table, part by part; ``pieces`` are the block addresses of the pieces by chunk number."""
        bits, step = self.bits, 1 << (self.bits - fmt.BLOCK_BITS)
        number, stored = 0, self.offset
        for offset, length in self.runs:
            end = offset + length
            first, last = offset >> bits, (end - 1) >> bits
            yield from _holes(number, first)
            number = max(number, first)
            while number <= last:
                if number in pieces:
                    yield pieces[number].to_bytes(4, "little")
                    number += 1
                    continue
                until = min(number + _STEP, last + 1)
                while until - 1 > number and until - 1 in pieces:
                    until -= 1
                begin = fmt.TAR_AT + (stored + (number << bits) - offset) // fmt.BLOCK
                part = array("I", range(begin, begin + (until - number) * step, step))
                if sys.byteorder == "big":
                    part.byteswap()
                yield part.tobytes()
                number = until
            stored += length
        yield from _holes(number, self.chunks())


def _holes(first: int, end: int) -> Iterator[bytes]:
    while first < end:
        count = min(end - first, _STEP)
        yield fmt.HOLE * count
        first += count
