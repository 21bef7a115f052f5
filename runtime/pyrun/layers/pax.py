"""pax extended headers: POSIX.1-2017 pax(1), "pax Extended Header", and GNU tar's sparse keywords."""

from __future__ import annotations

from ..errors import LayerError

XATTR = b"SCHILY.xattr."

# An attribute of these would be read by the overlay that the layer becomes part of, or labels a host.
_DROPPED = (b"trusted.overlay.", b"user.overlay.", b"security.selinux")

# Keywords that a global header must not set: they say what one entry is, and readers disagree on them.
_PER_ENTRY = (b"path", b"linkpath", b"size")


def parse(data: bytes) -> dict[bytes, bytes]:
    """The records of one extended header; of a keyword given twice the last holds.

    The sparse map of GNU format 0.0 (many offset and numbytes records) comes back as that of format 0.1
    (``GNU.sparse.map``). Raises `LayerError` for a malformed record.
    """
    records: dict[bytes, bytes] = {}
    pairs: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        space = data.find(b" ", at, at + 12)
        digits = data[at:space]
        if space < 0 or not digits.isdigit():
            raise LayerError("layer: a pax record has no length")
        stop = at + int(digits)
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if stop > end or stop <= space + 1 or data[stop - 1] != 10 or not equals or not key or b"\0" in key:
            raise LayerError("layer: a pax record is malformed")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            if key.endswith(b"offset") == len(pairs) % 2:
                raise LayerError("layer: the offsets and lengths of a sparse map don't alternate")
            pairs.append(value)
        else:
            records[key] = value
        at = stop
    if pairs:
        if b"GNU.sparse.map" in records:
            raise LayerError("layer: an entry has two sparse maps")
        records[b"GNU.sparse.map"] = b",".join(pairs)
    return records


def check_global(records: dict[bytes, bytes]) -> None:
    """Raises `LayerError` where a global header sets what only one entry can have."""
    for key in records:
        if key in _PER_ENTRY or key.startswith(b"GNU.sparse."):
            raise LayerError(f"layer: a global pax header sets {key.decode('ascii', 'replace')!r}")


def xattr_name(key: bytes) -> bytes | None:
    """The extended attribute that a ``SCHILY.xattr.`` keyword names; None for one that no layer may set."""
    name = key[len(XATTR) :]
    if name.startswith(_DROPPED):
        return None
    if not name or len(name) > 255:
        raise LayerError("layer: an extended attribute's name is empty or longer than 255 bytes")
    return name


def decimal(value: bytes, what: str) -> int:
    """A non-negative decimal number of at most 20 digits. Raises `LayerError`."""
    if not value.isdigit() or len(value) > 20:
        raise LayerError(f"layer: {what} is not a number")
    return int(value)


def nanoseconds(value: bytes) -> int:
    """``[-]seconds[.fraction]`` in nanoseconds, further digits cut off. Raises `LayerError`."""
    seconds, _, fraction = value.removeprefix(b"-").partition(b".")
    if fraction and not fraction.isdigit():
        raise LayerError("layer: a time is not a number")
    total = decimal(seconds, "a time") * 1_000_000_000 + int((fraction + b"000000000")[:9])
    return -total if value[:1] == b"-" else total
