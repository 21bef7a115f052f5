"""Sparse members: GNU tar's manual, "Storing Sparse Files", old GNU format and pax formats 0.0, 0.1 and 1.0.

A map is a list of (offset, length) pairs: where in the file each run of stored bytes belongs.
"""

from __future__ import annotations

from ..errors import LayerError
from .pax import decimal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Map = list[tuple[int, int]]


def checked(runs: Map, size: int, stored: int, limit: int) -> Map:
    """``runs`` where they describe a file of ``size`` bytes of which ``stored`` are in the archive.

    Raises `LayerError` for a map that lies: overlapping, descending, past the end, of another sum; or for a
    file larger than ``limit``.
    """
    if size > limit:
        raise LayerError(f"layer: a sparse file of {size} bytes, more than the limit of {limit}")
    at = total = 0
    ragged = False
    for offset, length in runs:
        if offset < at or length < 0 or offset + length > size:
            raise LayerError("layer: a sparse map overlaps itself or leaves the file")
        # GNU tar pads every run to a block, Go's reader only the last: with a short run before the last the
        # two read different files from one archive.
        if ragged and length:
            raise LayerError("layer: a sparse map has a run that doesn't end on a block")
        ragged = ragged or length % 512 != 0
        at = offset + length
        total += length
    if total != stored:
        raise LayerError("layer: a sparse map covers more or less than is stored")
    return [run for run in runs if run[1]]


def old_gnu(
    header: bytes, extension: Callable[[], bytes], number: Callable[[bytes], int], limit: int
) -> tuple[Map, int]:
    """Map and size from a type "S" header; ``extension`` reads the next 512-byte block of the stream, and
    ``limit`` caps the bytes of such blocks."""
    runs: Map = []
    fields, more, size = header[386:482], header[482], number(header[483:495])
    read = 0
    while True:
        for i in range(0, len(fields), 24):
            if fields[i] == 0:
                break
            runs.append((number(fields[i : i + 12]), number(fields[i + 12 : i + 24])))
        if not more:
            return runs, size
        read += 512
        if read > limit:
            raise LayerError(f"layer: a sparse map is larger than {limit} bytes")
        block = extension()
        fields, more = block[:504], block[504]


def from_pax(records: dict[bytes, bytes]) -> Map | None:
    """The map of formats 0.0 and 0.1; None for format 1.0, whose map stands before the data."""
    major, minor = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if (major, minor) == (b"1", b"0"):
        return None
    text = records.get(b"GNU.sparse.map")
    if major not in (None, b"0") or text is None:
        raise LayerError("layer: a sparse file of an unknown format")
    numbers = [decimal(n, "a sparse map's entry") for n in text.split(b",")] if text else []
    if (
        len(numbers) % 2
        or decimal(records.get(b"GNU.sparse.numblocks", b""), "a sparse map's size") != len(numbers) // 2
    ):
        raise LayerError("layer: a sparse map has another length than it says")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def leading(block: Callable[[], bytes], limit: int) -> tuple[Map, int]:
    """The map of format 1.0, read by ``block`` from the front of the data, and the bytes it took."""
    read = 0
    rest = b""

    def line() -> int:
        nonlocal rest, read
        while b"\n" not in rest:
            # A line holds one number of at most 20 digits.
            if len(rest) > 20 or read >= limit:
                raise LayerError("layer: a sparse map is malformed or too large")
            rest += block()
            read += 512
        number, _, rest = rest.partition(b"\n")
        return decimal(number, "a sparse map's entry")

    count = line()
    if count * 4 > limit:
        raise LayerError(f"layer: a sparse map is larger than {limit} bytes")
    return [(line(), line()) for _ in range(count)], read
