"""Indexing a tar and unpacking it, and comparing what came of the two: the oracle of the EROFS index."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from layers.rawtar import END, Stream, header, padded, pax
from pyrun.errors import LayerError
from pyrun.layers.erofs import index
from pyrun.layers.limits import Limits
from pyrun.layers.unpack import Unpacked, unpack
from pyrun.testing.trees import Tree, difference, snapshot
from pyrun_drivers import erofs_mounts

IDENTITY = bytes(range(32))
MARKS = ("trusted.overlay.opaque", "trusted.overlay.origin")


def make(layer: Path, *members: bytes, end: bytes = END, step: int = 1 << 20, **limits: Any) -> Unpacked:
    """Index an archive of ``members`` in the new directory ``layer``."""
    stream = Stream(b"".join(members) + end, step)
    done = make_stream(layer, stream, **limits)
    assert stream.ended, "the stream was not read to its end"
    return done


def make_stream(layer: Path, stream: Any, **limits: Any) -> Unpacked:
    """Index the tar that ``stream.read`` gives, likewise."""
    layer.mkdir()
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    tar, out = os.open(layer / "layer.tar", flags), os.open(layer / "index.erofs", flags)
    try:
        return index(stream, tar, out, IDENTITY, Limits(**limits) if limits else None)
    finally:
        os.close(tar)
        os.close(out)


@contextlib.contextmanager
def mounted(layer: Path) -> Iterator[str]:
    try:
        fd = erofs_mounts.mount(str(layer), erofs_mounts.FILE)
    except OSError:  # before Linux 6.12; the index is the same
        fd = erofs_mounts.mount(str(layer), erofs_mounts.LOOP)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def extract(where: Path, *members: bytes, end: bytes = END, **limits: Any) -> Unpacked:
    where.mkdir()
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return unpack(
            Stream(b"".join(members) + end), fd, "overlay", limits=Limits(**limits) if limits else None
        )
    finally:
        os.close(fd)


def marks(path: str) -> dict[bytes, tuple[object, ...]]:
    """What overlayfs reads of the directories below ``path``, and link counts of everything."""
    found: dict[bytes, tuple[object, ...]] = {}
    root = os.fsencode(path)
    todo = [b""]
    while todo:
        name = todo.pop()
        full = root + b"/" + name
        st_ = os.lstat(full)
        if stat.S_ISDIR(st_.st_mode):
            todo += [name + b"/" + base if name else base for base in os.listdir(full)]
            there = os.listxattr(full, follow_symlinks=name == b"")
            found[name] = tuple((mark, os.getxattr(full, mark)) for mark in MARKS if mark in there)
        found[name] = (st_.st_nlink, *found.get(name, ()))
    return found


def tree(path: str) -> Tree:
    """All that a layer can say, but for the time of whiteouts, which unpacking leaves to the clock."""
    found = snapshot(path, directory_times=True)
    for name, node in found.items():
        if node.kind == "char" and node.what == 0:
            found[name] = node._replace(mtime=0)
    return found


def facts(done: Unpacked) -> dict[str, object]:
    return {name: getattr(done, name) for name in Unpacked.__slots__}


def outcome(work: Callable[..., Unpacked], *args: Any, **more: Any) -> Unpacked | str:
    """What ``work`` returns, or the words in which it refuses."""
    try:
        return work(*args, **more)
    except LayerError as error:
        return str(error)


def agree(place: Path, *members: bytes, words: bool = True, **more: Any) -> Unpacked | str:
    """Unpack and index the archive: the two must come to the same. Returns that: a result, or what was refused."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        plain, layer = Path(name) / "plain", Path(name) / "layer"
        wanted = outcome(extract, plain, *members, **more)
        found = outcome(make, layer, *members, **more)
        if isinstance(wanted, str) or isinstance(found, str):
            assert isinstance(wanted, str), f"only the index refuses: {found}"
            assert isinstance(found, str), f"only unpacking refuses: {wanted}"
            if words:
                assert found == wanted
            return found
        assert facts(found) == facts(wanted)
        with mounted(layer) as shown:
            problem = difference(tree(shown), tree(str(plain)), ("indexed", "unpacked"))
            assert not problem, problem
            assert marks(shown) == marks(str(plain))
        return found


def sparse(name: bytes, size: int, runs: list[tuple[int, bytes]], form: str) -> bytes:
    """A sparse member with ``runs`` of data at their offsets, in one of the four formats of GNU tar."""
    data = b"".join(content for _, content in runs)
    pairs = [*((offset, len(content)) for offset, content in runs), (size, 0)]  # GNU tar ends its maps so
    if form == "gnu":
        block = bytearray(header(name, b"S", size=len(data), magic=b"ustar  \0"))
        for at, pair in zip(range(386, 482, 24), pairs, strict=False):
            block[at : at + 24] = b"".join(b"%011o\0" % number for number in pair)
        more = b""
        left = pairs[4:]
        block[482] = bool(left)
        block[483:495] = b"%011o\0" % size
        while left:
            extension = bytearray(512)
            for at, pair in zip(range(0, 504, 24), left, strict=False):
                extension[at : at + 24] = b"".join(b"%011o\0" % number for number in pair)
            left = left[21:]
            extension[504] = bool(left)
            more += bytes(extension)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        return bytes(block) + more + padded(data)
    numbers = [number for pair in pairs for number in pair]
    if form == "1.0":
        table = padded(b"".join(b"%d\n" % number for number in [len(pairs), *numbers]))
        records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
        records += [(b"GNU.sparse.name", name), (b"GNU.sparse.realsize", b"%d" % size)]
        return pax(*records) + header(name, size=len(table) + len(data)) + padded(table + data)
    records = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(pairs))]
    if form == "0.1":
        records.append((b"GNU.sparse.map", b",".join(b"%d" % number for number in numbers)))
    else:
        for offset, length in pairs:
            records += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
    return pax(*records) + header(name, size=len(data)) + padded(data)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)
