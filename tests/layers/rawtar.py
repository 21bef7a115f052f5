"""Tar streams made by hand: Python's tarfile and GNU tar don't write most of what a hostile layer holds."""

from __future__ import annotations

import os
import random
import stat

from pyrun.kernel import overlay
from pyrun.layers.unpack import Unpacked, unpack

END = bytes(1024)


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def header(
    name: bytes,
    type: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    major: int = 0,
    minor: int = 0,
    prefix: bytes = b"",
    tail: bytes = b"",
) -> bytes:
    """One header block. A number given as bytes stands there as it is."""

    def field(value: int | bytes, width: int) -> bytes:
        return value.ljust(width, b"\0") if isinstance(value, bytes) else octal(value, width)

    block = bytearray(512)
    block[0:100] = name[:100].ljust(100, b"\0")
    block[100:108] = octal(mode, 8)
    block[108:116] = field(uid, 8)
    block[116:124] = field(gid, 8)
    block[124:136] = field(size, 12)
    block[136:148] = field(mtime, 12)
    block[156:157] = type
    block[157:257] = link[:100].ljust(100, b"\0")
    block[257:265] = magic.ljust(8, b"\0")
    block[329:337] = octal(major, 8)
    block[337:345] = octal(minor, 8)
    block[345:500] = prefix[:155].ljust(155, b"\0")
    if tail:
        block[345 : 345 + len(tail)] = tail
    return checksummed(block)


def checksummed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"", **fields: object) -> bytes:
    return long(name, **fields) + header(name, b"0", **{"size": len(data), **fields}) + padded(data)


def directory(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    return long(name) + header(name, b"5", mode=mode, **fields)


def symlink(name: bytes, target: bytes, **fields: object) -> bytes:
    return header(name, b"2", link=target, mode=0o777, **fields)


def hardlink(name: bytes, target: bytes) -> bytes:
    return header(name, b"1", link=target)


def long(name: bytes, **_: object) -> bytes:
    return gnu(b"L", name) if len(name) > 100 else b""


def gnu(type: bytes, name: bytes) -> bytes:
    return header(b"././@LongLink", type, size=len(name) + 1) + padded(name + b"\0")


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while length != len(rest) + len(str(length)):
        length += 1
    return b"%d%s" % (length, rest)


def pax(*records: tuple[bytes, bytes], type: bytes = b"x") -> bytes:
    data = b"".join(record(*r) for r in records)
    return header(b"PaxHeaders/x", type, size=len(data)) + padded(data)


class Stream:
    """What a downloader is to the unpacker. ``step``: the most bytes that one read returns."""

    def __init__(self, data: bytes, step: int = 1 << 20) -> None:
        self.data = memoryview(data)
        self.at = 0
        self.step = step
        self.ended = False
        self.random = random.Random(step)

    def read(self, n: int) -> memoryview:
        assert n > 0
        n = min(n, self.step if self.step > 4096 else self.random.randint(1, self.step))
        piece = self.data[self.at : self.at + n]
        self.at += len(piece)
        self.ended = not piece
        return piece


def extract(
    where: os.PathLike[str] | str, *members: bytes, whiteouts: str = "overlay", **options: object
) -> Unpacked:
    """Unpack an archive of ``members`` into the directory ``where``, made if missing."""
    os.makedirs(where, exist_ok=True)
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    stream = Stream(b"".join(members) + END)
    try:
        done = unpack(stream, fd, whiteouts, **options)
    finally:
        os.close(fd)
    assert stream.ended, "the stream was not read to its end"
    return done


def tree(where: os.PathLike[str] | str | int, *, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Every name below ``where`` with all that a layer can say of it. Hard links appear as the first name."""
    found: dict[bytes, tuple[object, ...]] = {}
    inodes: dict[int, bytes] = {}
    root = os.fsencode(where) if not isinstance(where, int) else b"/proc/self/fd/%d" % where
    todo = [b""]
    while todo:
        at = todo.pop()
        path = root + b"/" + at
        for base in sorted(os.listdir(path)):
            name = at + b"/" + base if at else base
            full = root + b"/" + name
            st = os.lstat(full)
            kind = stat.S_IFMT(st.st_mode)
            content: object = None
            if kind == stat.S_IFREG:
                with open(full, "rb") as opened:
                    content = opened.read() if st.st_size < 1 << 24 else st.st_size
            elif kind == stat.S_IFLNK:
                content = os.readlink(full)
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                content = st.st_rdev
            elif kind == stat.S_IFDIR:
                todo.append(name)
            first = inodes.setdefault(st.st_ino, name) if kind != stat.S_IFDIR and st.st_nlink > 1 else name
            xattrs = {
                x: os.getxattr(full, x, follow_symlinks=False)
                for x in os.listxattr(full, follow_symlinks=False)
                if not x.startswith(("trusted.overlay.", "user.overlay."))
            }
            found[name] = (
                kind,
                st.st_mode & 0o7777,
                st.st_uid,
                st.st_gid,
                content,
                first,
                tuple(sorted(xattrs.items())),
            )
            if times:
                found[name] += (st.st_mtime_ns,)
    return found


def merged(
    root: os.PathLike[str] | str, layers: list[str], *, userxattr: bool = False, times: bool = True
) -> dict[bytes, tuple[object, ...]]:
    """`tree` of a real overlay mount of the directories ``layers`` below ``root``, bottom to top."""
    for name in ("nothing", "upper", "work"):
        os.makedirs(os.path.join(root, name), exist_ok=True)
    stack = overlay.Stack(
        os.fspath(root),
        [*reversed(layers), "nothing"],
        "upper",
        "work",
        {"userxattr": None} if userxattr else {},
    )
    fd = overlay.mount_overlay(stack, overlay.FDS)
    try:
        return tree(fd, times=times)
    finally:
        os.close(fd)
