"""Names from a tar stream: brought into one form, and shown without harm.

A name is bytes, relative to the layer's root, without a leading, trailing or doubled slash and without "."
components; the root itself is the empty name. A ".." component has no such form and is refused: what it
means depends on symbolic links that another layer may change (the bug class of CVE-2026-17106).
"""

from __future__ import annotations

from ..errors import LayerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .limits import Limits

# The forms of the OCI image layer spec, "Whiteouts". The doubled prefix is aufs' own metadata.
WHITEOUT = b".wh."
WHITEOUT_META = b".wh..wh."
WHITEOUT_OPAQUE = b".wh..wh..opq"

# Prefixes of extended attributes that no layer carries: they would be read by the overlay that it becomes part of,
# or label a host.
PRIVATE_XATTRS = ("trusted.overlay.", "user.overlay.", "security.selinux")


def root_relative(name: bytes, limits: Limits, what: str = "entry") -> bytes:
    """``name`` as the tar has it, in the form above. An absolute name means one below the layer's root.

    Raises `LayerError` for a NUL byte, a ".." component, or a name past ``limits``.
    """
    if b"\0" in name:
        raise LayerError(f"layer {what} {shown(name)}: the name contains a NUL byte")
    parts = []
    for part in name.split(b"/"):
        if not part or part == b".":
            continue
        if part == b"..":
            raise LayerError(f"layer {what} {shown(name)}: the name contains '..'")
        # The name that is deleted counts: the whiteout of one of 255 bytes has 259, in the tar only.
        if len(part.removeprefix(WHITEOUT)) > limits.component:
            raise LayerError(
                f"layer {what} {shown(name)}: a component is longer than {limits.component} bytes"
            )
        parts.append(part)
    if len(parts) > limits.depth:
        raise LayerError(f"layer {what} {shown(name)}: deeper than {limits.depth} directories")
    return b"/".join(parts)


def shown(name: bytes) -> str:
    """``name`` quoted for a message: shortened if long, and control bytes escaped: they may drive
    a terminal."""
    cut = name if len(name) <= 300 else name[:300] + b"..."
    text = cut.decode("utf-8", "backslashreplace")
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return f"'{text}'"
