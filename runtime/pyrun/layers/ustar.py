"""Headers of a tar's members, in one form only: POSIX ustar, and pax records for what that can't hold.

The same member always has the same header: records are sorted, and there are no user names (pax(1), "pax Interchange
Format").
"""

from __future__ import annotations

import os

BLOCK = 512  # bytes; whatever a tar holds is padded to whole ones


def header(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime_ns: int,
    records: dict[bytes, bytes],
    *,
    link: bytes = b"",
    device: int = 0,
) -> bytes:
    """The blocks before a member's content: its header, after one with pax ``records`` where there are any, given or
    needed. ``kind`` is ustar's typeflag; ``size`` bytes are stored; ``device`` as makedev(3) has it."""
    records = dict(records)
    seconds, nanoseconds = divmod(mtime_ns, 1_000_000_000)
    if len(name) > 100:
        records[b"path"] = name
    if len(link) > 100:
        records[b"linkpath"] = link
    if nanoseconds or not 0 <= seconds < 1 << 33:
        records[b"mtime"] = _time(mtime_ns)
        seconds = min(max(seconds, 0), (1 << 33) - 1)
    for key, value in ((b"uid", uid), (b"gid", gid)):
        if value >= 1 << 21:
            records[key] = b"%d" % value
    if size >= 1 << 33:
        records[b"size"] = b"%d" % size
    blocks = b""
    if records:
        data = b"".join(_record(key, value) for key, value in sorted(records.items()))
        blocks = _ustar(b"pax", b"x", 0o644, 0, 0, len(data), 0, b"", 0) + data + bytes(-len(data) % BLOCK)
    return blocks + _ustar(
        name[:100],
        kind,
        mode,
        uid if uid < 1 << 21 else 0,
        gid if gid < 1 << 21 else 0,
        size if size < 1 << 33 else 0,
        seconds,
        link[:100],
        device,
    )


def _ustar(
    name: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    size: int,
    mtime: int,
    link: bytes,
    device: int,
) -> bytes:
    """One header block (POSIX ustar)."""
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, uid, gid, size, mtime),
            b" " * 8,
            kind,
            link.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0%07o\0" % (os.major(device), os.minor(device)),
        )
    ).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _record(key: bytes, value: bytes) -> bytes:
    """One pax record; its length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _time(ns: int) -> bytes:
    sign, ns = (b"-", -ns) if ns < 0 else (b"", ns)
    seconds, fraction = divmod(ns, 1_000_000_000)
    return sign + b"%d.%09d" % (seconds, fraction)
