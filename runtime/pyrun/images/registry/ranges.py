"""Parts of a blob over HTTP (RFC 9110, section 14), as far as they can be believed."""

from __future__ import annotations


def from_offset(offset: int) -> dict[str, str]:
    """The header that asks for everything from ``offset`` on; none for 0. If-Range is not needed: what comes is
    hashed together with what is there."""
    return {"Range": f"bytes={offset}-"} if offset else {}


def begins(status: int, content_range: str | None, offset: int, size: int) -> int | None:
    """Where in the blob the body begins of an answer to a request for all from ``offset`` of ``size`` bytes.

    0 for a 200, which is the whole. ``offset`` for a 206 with exactly one Content-Range, whose first byte is
    ``offset`` and whose last and total say that the rest of ``size`` bytes follows. None for everything else,
    which can't be used: a 206 that was not asked for, several parts, 416.
    """
    if status == 200:
        return 0
    if status != 206 or not offset:
        return None
    rest = f"bytes {offset}-{size - 1}/{size}"
    return offset if (content_range or "").strip() == rest else None
