"""Layer compression: gzip (any number of members), zstd (any number of frames, skippable ones too), none.

eStargz layers are many gzip members, zstd:chunked ones hold skippable frames: a decoder that stops after the
first would drop most of the layer without a word.
"""

from __future__ import annotations

import bz2
import lzma
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from isal import igzip_lib

from ..errors import LayerError

# Imported here, not at first use: in the confined process that decompresses there are no modules to import.
if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

XZ_MEMORY = 256 << 20  # bytes that an xz stream may ask for; xz -9 needs 65 MiB
MAX_PIECE = 1 << 20  # bytes of output a call, whatever the input expands to
_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after one byte of 0x50 to 0x5f
_TAR_MAGIC = slice(257, 262)
_SNIFF = 512

Buffer = bytes | bytearray | memoryview


class _Decompressor(Protocol):
    """The interface that bz2, zstd and igzip decompressors share."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: Buffer, max_length: int = -1, /) -> bytes: ...


def decompressed(chunks: Iterable[Buffer], media_type: str) -> Iterator[bytes]:
    """The uncompressed stream of ``chunks``, in pieces of at most `MAX_PIECE` bytes.

    The first bytes decide the format, the media type only whether what is in no known format may be a plain
    tar: registries hold layers whose type is wrong, and the diff_id tells whether the result is right.
    Each chunk may be overwritten once the next is asked for. Raises `LayerError`.
    """
    source = iter(chunks)
    head = b""
    for chunk in source:
        head += chunk
        if len(head) >= _SNIFF:
            break
    if head.startswith(_GZIP):
        yield from _members(head, source, "gzip")
    elif head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50):
        yield from _members(head, source, "zstd")
    elif not media_type.endswith(("gzip", "zstd")) or head[_TAR_MAGIC] == b"ustar" or not any(head):
        yield from _pieces(head)
        for chunk in source:
            yield from _pieces(chunk)
    else:
        raise LayerError("the layer is neither gzip, zstd nor tar")


def expanded(chunks: Iterable[Buffer], format: str) -> Iterator[bytes]:
    """The plain stream of ``chunks`` in the format "gzip", "zstd", "bzip2" or "xz"; otherwise as `decompressed`."""
    yield from _members(b"", iter(chunks), format)


def _pieces(chunk: Buffer) -> Iterator[bytes]:
    for at in range(0, len(chunk), MAX_PIECE):
        yield bytes(chunk[at : at + MAX_PIECE])


def _decoder(format: str) -> tuple[Any, Any]:
    """(the exception it raises, a fresh decompressor)"""
    if format == "gzip":
        return igzip_lib.IsalError, igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    if format == "bzip2":
        return OSError, bz2.BZ2Decompressor()
    if format == "xz":
        return lzma.LZMAError, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)
    return zstd.ZstdError, zstd.ZstdDecompressor()


def _members(head: bytes, source: Iterator[Buffer], format: str) -> Iterator[bytes]:
    decoder: _Decompressor
    error, decoder = _decoder(format)
    data: Buffer = head
    begun = False  # whether the current member has had input
    while True:
        while data or not decoder.needs_input:
            begun = True
            try:
                piece = decoder.decompress(data, MAX_PIECE)
            except error as problem:
                raise LayerError(f"the layer's {format} stream is damaged: {problem}") from problem
            data = b""
            if piece:
                yield piece
            if decoder.eof:
                data = decoder.unused_data
                _, decoder = _decoder(format)
                begun = False
                if not any(data[:1]) and not any(data):
                    data = b""  # zero padding behind the last member, as gzip(1) allows it
        chunk = next(source, None)
        if chunk is None:
            break
        # Padding may go on in the next chunk.
        data = chunk if begun or any(chunk[:1]) or any(chunk) else b""
    if begun:
        raise LayerError(f"the layer's {format} stream is truncated")
