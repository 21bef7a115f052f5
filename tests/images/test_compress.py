"""Compressing what is made here: the same bytes, however they come."""

from __future__ import annotations

import gzip
import random

import pytest

from pyrun.errors import UsageError
from pyrun.images.making.compress import COMPRESSIONS, compression_of, compressor
from support.registry import zstd

DATA = random.Random(1).randbytes(300_000) + b"some words, again and again. " * 60_000


def packed(compression: str, size: int) -> bytes:
    pack = compressor(compression)
    found = b"".join(pack.compress(DATA[at : at + size]) for at in range(0, len(DATA), size))
    return found + pack.flush()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_size_of_the_pieces_makes_no_difference(compression: str) -> None:
    found = {packed(compression, size) for size in (777, 4096, 64 << 10, 256 << 10, 300_001, len(DATA))}
    (data,) = found
    plain = {"gzip": gzip.decompress, "zstd": zstd.decompress, "none": bytes}[compression](data)
    assert plain == DATA
    assert compression_of(data[:16]) == compression


def test_gzip_has_neither_name_nor_time() -> None:
    assert packed("gzip", 1 << 20)[:8] == b"\x1f\x8b\x08\0\0\0\0\0"


def test_another_compression_is_refused() -> None:
    with pytest.raises(UsageError, match="lzma"):
        compressor("lzma")
