"""`Unpacked` as a confined child sends it, and as its parent, who can't trust it, takes it: name by name."""

from __future__ import annotations

from typing import Any

from ..errors import LayerError
from .limits import Limits
from .names import root_relative
from .unpack import Unpacked


def packed(done: Unpacked) -> dict[str, Any]:
    """``done`` in what JSON has. Names are bytes: Latin-1 has a character for each."""
    return {
        "entries": done.entries,
        "bytes": done.bytes,
        "implied": [name.decode("latin-1") for name in done.implied],
        "opaque_root": done.opaque_root,
        "dropped": [name.decode("latin-1") for name in done.dropped],
    }


def checked(answer: Any) -> Unpacked:
    """The `Unpacked` of ``answer``. Raises `LayerError` for anything that `packed` would not have made."""
    try:
        entries, size, opaque = answer["entries"], answer["bytes"], answer["opaque_root"]
        implied = [name.encode("latin-1") for name in answer["implied"]]
        dropped = [name.encode("latin-1") for name in answer["dropped"]]
        limits = Limits()
        sound = (
            type(entries) is type(size) is int
            and entries >= 0
            and size >= 0
            and type(opaque) is bool
            and len(dropped) <= 100
            and all(0 < len(name) <= 255 and b"\0" not in name for name in dropped)
            and all(root_relative(name, limits) == name for name in implied)
        )
    except (KeyError, TypeError, ValueError, AttributeError, LayerError):
        sound = False
    if not sound:
        raise LayerError(
            "layer: the process that unpacked it gave a senseless answer",
            hint="The layer may have made it do something else. Don't use the image.",
        )
    return Unpacked(entries, size, implied, opaque, dropped)
