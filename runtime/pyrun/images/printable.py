"""Text from a registry, made safe for a terminal and bounded in length."""

from __future__ import annotations

MAX_LENGTH = 4096


def printable(text: str, limit: int = MAX_LENGTH) -> str:
    """``text`` with every character that could steer a terminal written as an escape, cut to ``limit``.

    Control characters, bidirectional overrides and undecodable bytes are what `str.isprintable` refuses;
    a line break becomes a space so that one message stays one line.
    """
    text = text.replace("\r\n", " ").replace("\n", " ")
    cut = text[:limit]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
    return cut + "..." if len(text) > limit else cut
