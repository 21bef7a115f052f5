"""One member of a layer's tar stream."""

from __future__ import annotations

from .names import shown


class Entry:
    """One member.

    name         root-relative (see `pyrun.layers.names`); ``dir`` and ``base`` are its two parts. The root
                 is the empty name
    type         "file", "dir", "symlink", "link", "char", "block", "fifo"; or "whiteout", where ``name`` is
                 what the lower layers lose, or "opaque", where ``name`` is the directory whose content they
                 lose
    mode         permission bits with setuid, setgid and sticky (0o7777)
    uid, gid     0 to 2**32 - 2
    size         of the file in bytes, holes included; 0 for every other type
    mtime_ns     nanoseconds since the epoch, perhaps negative
    linkname     a symlink's target, verbatim; a hard link's, root-relative
    devmajor, devminor  of "char" and "block"
    xattrs       by name; those that no layer may set are left out
    offset       of the stored content in the tar stream; ``stored`` counts its bytes
    sparse       None, or (offset, length) runs that the stored bytes fill in turn
    """

    __slots__ = (
        "base",
        "devmajor",
        "devminor",
        "dir",
        "gid",
        "linkname",
        "mode",
        "mtime_ns",
        "offset",
        "size",
        "sparse",
        "stored",
        "type",
        "uid",
        "xattrs",
    )

    def __init__(
        self, dir: bytes, base: bytes, type: str, mode: int, uid: int, gid: int, mtime_ns: int
    ) -> None:
        self.dir = dir
        self.base = base
        self.type = type
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.size = self.stored = self.offset = self.devmajor = self.devminor = 0
        self.linkname = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.sparse: list[tuple[int, int]] | None = None

    @property
    def name(self) -> bytes:
        return self.dir + b"/" + self.base if self.dir else self.base

    def __repr__(self) -> str:
        return f"Entry({self.type} {shown(self.name)})"
