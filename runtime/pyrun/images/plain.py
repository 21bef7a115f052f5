"""Archives that are compressed as a whole, as docker loads them: with gzip, bzip2, xz or zstd.

They are decompressed in a confined process (`pyrun.layers.confined`), as layers are.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from ..errors import LayerError
from ..layers import confined
from .codec import Buffer, expanded

BOMB_FREE = 1 << 30  # plain bytes before the ratio counts
BOMB_RATIO = 1000


def plain_reader(chunks: Generator[Buffer, None, None], compression: str, what: str) -> confined.Reader:
    """The plain bytes of ``chunks``, read as a file; ``what`` names it in errors. Close it if it is not read to its
    end. Reads raise `LayerError` for damaged and truncated streams and for bombs, and what ``chunks`` raises."""

    def transform(source: Iterator[Buffer]) -> Iterator[bytes]:
        compressed = count = 0

        def counted() -> Iterator[Buffer]:
            nonlocal compressed
            for chunk in source:
                compressed += len(chunk)
                yield chunk

        try:
            for piece in expanded(counted(), compression):
                count += len(piece)
                if count > BOMB_FREE and count > BOMB_RATIO * compressed:
                    raise LayerError(
                        f"{what} expands more than {BOMB_RATIO} times",
                        hint="That is a decompression bomb, not an image.",
                    )
                yield piece
        except LayerError as error:
            raise LayerError(error.message.replace("the layer's", f"{what}'s", 1), hint=error.hint) from None

    return confined.Reader(chunks, transform, _nothing, _ignored)


def _nothing() -> Any:
    return None


def _ignored(found: Any) -> None:
    pass
