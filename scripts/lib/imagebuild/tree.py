"""Trees as mappings of names to tar members, their differences, and layers written so that bytes repeat."""

from __future__ import annotations

import copy
import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from .bootstrap import EPOCH

# apt's view of the machine that built the image is nobody else's business, and devices come from the runtime.
_PRIVATE = (
    "dev/",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/hostname",
    "etc/resolv.conf",
)


@dataclass
class Entry:
    """One file: its header (name without a leading "./"), and where its bytes are.

    ``source`` is the archive that holds them and the header as it stands there; None: they are ``data``.
    """

    info: tarfile.TarInfo
    data: bytes = b""
    source: tuple[tarfile.TarFile, tarfile.TarInfo] | None = None

    def open(self) -> IO[bytes]:
        if self.source is None:
            return io.BytesIO(self.data)
        archive, member = self.source
        return cast("IO[bytes]", archive.extractfile(member))


Tree = dict[str, Entry]


def made(name: str, data: bytes = b"", *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    """A regular file that no package has."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid, info.mtime = len(data), mode, uid, gid, EPOCH
    return Entry(info, data)


def directory(name: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Entry:
    entry = made(name, mode=mode, uid=uid, gid=gid)
    entry.info.type = tarfile.DIRTYPE
    return entry


def hard_link(name: str, target: str) -> Entry:
    entry = made(name, mode=0o755)
    entry.info.type, entry.info.linkname = tarfile.LNKTYPE, target
    return entry


def whiteout(name: str) -> Entry:
    """Deletes ``name`` of the layers below (OCI image spec, layer.md, "Whiteouts")."""
    parent, _, base = name.rpartition("/")
    return made(f"{parent}/.wh.{base}" if parent else f".wh.{base}")


def opaque(name: str) -> Entry:
    """Hides everything the layers below have in the directory ``name``."""
    return made(f"{name}/.wh..wh..opq")


def _private(name: str) -> bool:
    return any(name.startswith(p) and name != p if p.endswith("/") else name == p for p in _PRIVATE)


def read(path: Path) -> Tree:
    """The tree in a tar file, which stays open and must stay where it is."""
    archive = tarfile.open(path)
    tree: Tree = {}
    for member in archive:
        name = member.name.removeprefix("./").strip("/")
        if name in ("", ".") or _private(name):
            continue
        info = copy.copy(member)
        info.name, info.uname, info.gname = name, "", ""
        if info.islnk():
            info.linkname = info.linkname.removeprefix("./")
        info.pax_headers = {k: v for k, v in member.pax_headers.items() if k.startswith("SCHILY.xattr.")}
        tree[name] = Entry(info, source=(archive, member))
    return tree


def _same(one: Entry, other: Entry) -> bool:
    a, b = one.info, other.info
    if (a.type, a.mode, a.uid, a.gid, a.linkname) != (b.type, b.mode, b.uid, b.gid, b.linkname):
        return False
    if a.pax_headers != b.pax_headers:
        return False
    if not a.isreg():
        return True
    if a.size != b.size:
        return False
    with one.open() as left, other.open() as right:
        return left.read() == right.read()


def difference(lower: Tree, upper: Tree) -> Tree:
    """The layer that turns ``lower`` into ``upper``: changed entries, whiteouts, parent directories."""
    changed = {
        name: entry for name, entry in upper.items() if name not in lower or not _same(lower[name], entry)
    }
    # A hard link may not point into another layer's file, so all names of a changed file come along.
    for name, entry in upper.items():
        if entry.info.islnk() and (name in changed or entry.info.linkname in changed):
            changed[name] = entry
            changed[entry.info.linkname] = upper[entry.info.linkname]
    for name in lower:
        parent = name.rpartition("/")[0]
        if name not in upper and (not parent or parent in upper):
            gone = whiteout(name)
            changed[gone.info.name] = gone
    return with_parents(changed, upper)


def with_parents(entries: Tree, tree: Tree) -> Tree:
    """``entries`` and every directory above them, as ``tree`` has it."""
    out = dict(entries)
    for name in entries:
        parent = name.rpartition("/")[0]
        while parent and parent not in out:
            out[parent] = tree[parent]
            parent = parent.rpartition("/")[0]
    return out


def _ordered(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Parents before children (name order sees to it) and hard links after what they name."""
    ordered = sorted(entries, key=lambda entry: entry.info.name)
    yield from (entry for entry in ordered if not entry.info.islnk())
    yield from (entry for entry in ordered if entry.info.islnk())


@dataclass(frozen=True)
class Written:
    """A layer blob: ``digest`` and ``size`` are the gzip's, ``diff_id`` and ``unpacked`` the tar's."""

    digest: str
    size: int
    diff_id: str
    unpacked: int
    entries: int


class _Hashing(io.RawIOBase):
    def __init__(self, below: IO[bytes]) -> None:
        self.below, self.hash, self.size = below, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.hash.update(data)
        self.size += len(data)
        self.below.write(data)
        return len(data)

    @property
    def digest(self) -> str:
        return "sha256:" + self.hash.hexdigest()


def write_layer(entries: Iterable[Entry], path: Path) -> Written:
    """Write a gzip-compressed layer whose bytes depend on ``entries`` alone."""
    count = 0
    with path.open("wb") as out:
        packed = _Hashing(out)
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as deflate:
            plain = _Hashing(cast("IO[bytes]", deflate))
            with tarfile.open(fileobj=plain, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for entry in _ordered(entries):
                    count += 1
                    if entry.info.isreg():
                        with entry.open() as content:
                            tar.addfile(entry.info, content)
                    else:
                        tar.addfile(entry.info)
    return Written(packed.digest, packed.size, plain.digest, plain.size, count)
