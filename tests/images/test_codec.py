"""Decompression of layers as registries hold them."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.errors import LayerError
from pyrun.images.codec import MAX_PIECE, decompressed
from support.registry import tar, zstd

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
PLAIN = "application/vnd.oci.image.layer.v1.tar"
SKIPPABLE = struct.pack("<II", 0x184D2A51, 6) + b"ignore"


def chunked(data: bytes, size: int) -> Iterator[memoryview]:
    """Chunks in one buffer that is overwritten, as the downloader hands them on."""
    buffer = bytearray(size)
    for at in range(0, len(data), size):
        part = data[at : at + size]
        buffer[: len(part)] = part
        yield memoryview(buffer)[: len(part)]


def whole(data: bytes, media_type: str, size: int = 1000) -> bytes:
    return b"".join(decompressed(chunked(data, size), media_type))


LAYER = tar({"a": os.urandom(3000), "b": b"x" * 5000})


@pytest.mark.parametrize("size", [1, 7, 511, 4096, 1 << 20])
@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (gzip.compress(LAYER), GZIP),
        (gzip.compress(LAYER[:3000]) + gzip.compress(LAYER[3000:3001]) + gzip.compress(LAYER[3001:]), GZIP),
        (gzip.compress(LAYER) + bytes(1000), GZIP),
        (zstd.compress(LAYER), ZSTD),
        (zstd.compress(LAYER[:3000]) + SKIPPABLE + zstd.compress(LAYER[3000:]) + SKIPPABLE, ZSTD),
        (SKIPPABLE + zstd.compress(LAYER), ZSTD),
        (LAYER, PLAIN),
        (zstd.compress(LAYER), GZIP),  # the type lies, the bytes don't
        (gzip.compress(LAYER), PLAIN),
        (LAYER, GZIP),
    ],
    ids=[
        "gzip",
        "members",
        "padded",
        "zstd",
        "frames",
        "skippable",
        "plain",
        "zstd-as-gzip",
        "gzip-as-plain",
        "plain-as-gzip",
    ],
)
def test_every_member_and_frame_is_read_however_the_bytes_arrive(
    data: bytes, media_type: str, size: int
) -> None:
    assert whole(data, media_type, size) == LAYER


@pytest.mark.parametrize("how", [gzip.compress, zstd.compress])
@pytest.mark.parametrize("cut", [1, 4, 9, 100])
def test_a_truncated_stream_is_refused(how: object, cut: int) -> None:
    data = how(LAYER)  # type: ignore[operator]
    with pytest.raises(LayerError, match="truncated"):
        whole(data[:-cut], GZIP)


def test_a_second_member_that_breaks_off_is_refused() -> None:
    with pytest.raises(LayerError):
        whole(gzip.compress(LAYER) + gzip.compress(LAYER)[:20], GZIP)


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (gzip.compress(LAYER) + b"trailing garbage", GZIP),
        (gzip.compress(LAYER)[:-8] + bytes(8), GZIP),  # the checksum does not fit
        (b"\x1f\x8b\x08" + os.urandom(600), GZIP),
        (zstd.compress(LAYER) + b"garbage", ZSTD),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 600, ZSTD),
        (b"BZh9" + os.urandom(600), GZIP),
        (b"<html>" * 200, ZSTD),
    ],
)
def test_a_damaged_or_foreign_stream_is_refused(data: bytes, media_type: str) -> None:
    with pytest.raises(LayerError):
        whole(data, media_type)


@pytest.mark.parametrize("how", [gzip.compress, zstd.compress])
def test_output_comes_in_bounded_pieces_whatever_the_input_expands_to(how: object) -> None:
    bomb = how(bytes(100 << 20))  # type: ignore[operator]
    count = 0
    for piece in decompressed(iter([bomb]), GZIP):
        assert len(piece) <= MAX_PIECE
        count += len(piece)
    assert count == 100 << 20


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5), st.integers(1, 64))
def test_members_join_to_what_was_compressed(parts: list[bytes], size: int) -> None:
    data = b"".join(zlib.compress(part, wbits=31) for part in parts)
    assert whole(data, GZIP, size) == b"".join(parts)


@given(
    st.binary(max_size=2000),
    st.sampled_from([GZIP, ZSTD, PLAIN]),
    st.sampled_from([b"", b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd"]),
)
def test_any_bytes_are_read_or_refused(data: bytes, media_type: str, magic: bytes) -> None:
    try:
        whole(magic + data, media_type)
    except LayerError:
        pass
