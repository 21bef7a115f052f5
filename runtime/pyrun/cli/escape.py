"""Text that came from a registry or a user, made safe for a terminal.

An escape sequence in an image's name, label or history could move the cursor, retitle the window or, in some
terminals, type a command. So what is not printable (controls C0 and C1, DEL, bidirectional overrides,
line separators, lone surrogates) shows as its escape.
"""

from __future__ import annotations


def _escaped(char: str) -> str:
    code = ord(char)
    if char in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[char]
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def printable(text: str, keep: str = "") -> str:
    """``text`` with every unprintable character escaped, but those in ``keep`` (``"\\n"``, say)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def printable_json(text: str) -> str:
    """A JSON document with what is unprintable as ``\\uXXXX``: the same document, safe to show.

    Only strings can hold such characters; between tokens stand spaces and newlines.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _json_escaped(c) for c in text)


def _json_escaped(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def quoted(text: str) -> str:
    """``text`` in double quotes as Go's ``strconv.Quote`` shows it (the COMMAND column of ``ps``)."""
    return '"' + printable(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def ellipsis(text: str, length: int) -> str:
    """At most ``length`` characters, the last of them "…" where something was cut."""
    return text if len(text) <= length else text[: length - 1] + "…"
