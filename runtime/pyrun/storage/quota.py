"""The size of a container's writable layer, ``--storage-opt size=10G`` as docker has it."""

from __future__ import annotations

from ..errors import UsageError

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def size_of(text: str) -> int:
    """Bytes of ``text``: a whole number with b, k, m, g or t (powers of 1024), of either case. `UsageError`."""
    word = text.strip().lower()
    number = word.rstrip("bkmgti")
    unit = word[len(number) :].removesuffix("b").removesuffix("i")
    if not number.isascii() or not number.isdecimal() or unit not in _UNITS or int(number) == 0:
        raise UsageError(
            f"invalid size {text!r}", hint="A number and a unit, for example size=512m or size=10G."
        )
    return int(number) * _UNITS[unit]
