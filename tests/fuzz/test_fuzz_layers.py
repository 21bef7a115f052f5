"""Layers that nobody would write, through the parser and the confined child; and what layers mean, by a naive model."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rawtar import END, Stream, directory, extract, file, merged, tree
from rounds import rounds
from test_layers_random import seed_archive

from pyrun.errors import DigestMismatch, LayerError
from pyrun.images.blob import StoredBlob
from pyrun.images.content import ContentStore
from pyrun.images.record import ImageLayer
from pyrun.layers.limits import Limits
from pyrun.layers.tar import TarReader
from pyrun.layers.unpack import unpack

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0: device nodes and overlay mounts"),
]

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
SEED = bytes(seed_archive())

# --- damage

FIELDS = [
    (0, 100),
    (100, 8),
    (108, 8),
    (116, 8),
    (124, 12),
    (136, 12),
    (156, 1),
    (157, 100),
    (257, 8),
    (329, 16),
    (345, 155),
]
VALUES = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [
            b"\xff" * 12,
            b"\x80" + b"\xff" * 11,
            b"-1",
            b"7" * 12,
            b"../../outside/secret",
            b"/etc/x",
            b"x",
            b"g",
            b"S",
            b"L",
        ]
    ),
)
DAMAGE = st.one_of(
    st.tuples(st.just("field"), st.integers(0, 40), st.sampled_from(FIELDS), VALUES),
    st.tuples(st.just("byte"), st.integers(0, len(SEED) - 1), st.integers(0, 255), st.none()),
    st.tuples(st.just("swap"), st.integers(0, 40), st.integers(0, 40), st.none()),
    st.tuples(st.just("repeat"), st.integers(0, 40), st.integers(1, 3), st.none()),
    st.tuples(st.just("cut"), st.integers(0, len(SEED)), st.none(), st.none()),
    st.tuples(st.just("insert"), st.integers(0, len(SEED)), st.binary(max_size=600), st.none()),
)


def damaged(steps: list[tuple[str, Any, Any, Any]]) -> bytes:
    data = bytearray(SEED)
    for what, where, how, value in steps:
        blocks = max(len(data) // 512, 1)
        at = where % blocks * 512
        if what == "field" and len(data) >= at + 512:
            start, width = how
            data[at + start : at + start + width] = value[:width].ljust(width, b"\0")
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        elif what == "byte" and data:
            data[where % len(data)] = how
        elif what == "swap":
            other = how % blocks * 512
            data[at : at + 512], data[other : other + 512] = data[other : other + 512], data[at : at + 512]
        elif what == "repeat":
            data[at:at] = data[at : at + 512] * how
        elif what == "cut":
            del data[where:]
        elif what == "insert":
            data[where:where] = how
    return bytes(data)


def sound(error: LayerError) -> None:
    assert str(error).replace("\n", "").isprintable()
    assert len(str(error)) < 10_000


@given(
    st.lists(DAMAGE, min_size=1, max_size=5).map(damaged),
    st.sampled_from(["overlay", "userxattr", "aufs", "apply"]),
)
@rounds(400)
def test_a_damaged_archive_gives_a_tree_or_a_refusal(data: bytes, form: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        Path(place, "outside").mkdir()
        Path(place, "outside/secret").write_text("untouched")
        before = tree(f"{place}/outside")
        Path(place, "root").mkdir()
        fd = os.open(f"{place}/root", os.O_RDONLY | os.O_DIRECTORY)
        held = os.listdir("/proc/self/fd")
        here = os.getcwd()
        began = time.monotonic()
        try:
            done = unpack(Stream(data), fd, form, limits=Limits(bytes=1 << 24))
            assert done.bytes == len(data)
        except LayerError as error:
            sound(error)
        finally:
            assert os.listdir("/proc/self/fd") == held
            os.close(fd)
        assert time.monotonic() - began < 20
        assert os.getcwd() == here
        assert sorted(os.listdir(place)) == ["outside", "root"]
        assert tree(f"{place}/outside") == before


def whole(where: str, data: bytes, tar: bytes) -> None:
    """``data`` through blob, confined child and unpacker."""
    content = ContentStore(where)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    content.add_bytes(data, digest)
    layer = ImageLayer(digest, f"sha256:{hashlib.sha256(tar).hexdigest()}", len(data), 0, GZIP)
    blob = StoredBlob(content, layer)
    os.mkdir(f"{where}/root")
    fd = os.open(f"{where}/root", os.O_RDONLY | os.O_DIRECTORY)
    try:
        blob.unpack(fd, "overlay")
    finally:
        os.close(fd)
    assert blob.verified


@given(
    st.sampled_from([gzip.compress, zstd.compress]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
    st.binary(max_size=8),
)
@rounds(60)
def test_a_damaged_compressed_stream_is_refused_in_the_child_and_told_in_words(
    compress: Callable[[bytes], bytes], bytes_: list[tuple[float, int]], cut: float, tail: bytes
) -> None:
    good = compress(SEED)
    data = bytearray(good)
    for where, value in bytes_:
        data[int(where * (len(data) - 1))] = value
    if cut > 0.5:
        del data[int(len(data) * (cut - 0.5) * 2) :]
    data += tail
    with tempfile.TemporaryDirectory() as place:
        try:
            whole(place, bytes(data), SEED)
        except LayerError as error:
            sound(error)
        except DigestMismatch:
            assert bytes(data) != good


# --- what Python reads

NAMES = (
    st.lists(st.text(alphabet="abcé .-", min_size=1, max_size=60), min_size=1, max_size=5)
    .map("/".join)
    .filter(lambda name: not any(part in ("", ".", "..") for part in name.split("/")))
)
MEMBERS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "type": st.sampled_from(
            [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
        ),
        "mode": st.integers(0, 0o7777),
        "uid": st.one_of(st.integers(0, 70_000), st.integers(2**21, 2**32 - 2)),
        "gid": st.integers(0, 2**32 - 2),
        "mtime": st.integers(-(2**40), 2**40),
        "linkname": st.text(alphabet="ab/.é", min_size=1, max_size=150),
        "content": st.binary(max_size=1500),
    }
)


@given(st.lists(MEMBERS, max_size=6), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
@rounds(400)
def test_archives_are_read_as_python_reads_them(members: list[dict[str, Any]], form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member in members:
            info = tarfile.TarInfo(member["name"])
            for key in ("type", "mode", "uid", "gid", "mtime"):
                setattr(info, key, member[key])
            if info.type == tarfile.SYMTYPE:
                info.linkname = member["linkname"]
            if info.type == tarfile.CHRTYPE:
                info.devmajor, info.devminor = 1, 3
            content = member["content"] if info.type == tarfile.REGTYPE else b""
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    data = out.getvalue()
    kinds = {
        tarfile.REGTYPE: "file",
        tarfile.DIRTYPE: "dir",
        tarfile.SYMTYPE: "symlink",
        tarfile.FIFOTYPE: "fifo",
        tarfile.CHRTYPE: "char",
    }
    expected = []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for info in archive:
            opened = archive.extractfile(info) if info.isreg() else None
            expected.append(
                (
                    os.fsencode(info.name),
                    kinds[info.type],
                    info.mode,
                    info.uid,
                    info.gid,
                    int(info.mtime),
                    os.fsencode(info.linkname) if info.issym() else b"",
                    opened.read() if opened else b"",
                )
            )
    reader = TarReader(Stream(data, 700))
    found = []
    for entry in reader:
        content = b""
        while piece := reader.read(1000):
            content += piece
        found.append(
            (
                entry.name,
                entry.type,
                entry.mode,
                entry.uid,
                entry.gid,
                entry.mtime_ns // 10**9,
                entry.linkname,
                content,
            )
        )
    assert found == expected
    assert reader.offset == len(data)


# --- what layers mean

PARTS = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
LAYERS = st.lists(
    st.lists(st.tuples(st.sampled_from(["file", "dir", "whiteout", "opaque"]), PATHS), max_size=7),
    min_size=1,
    max_size=3,
)
Tree = dict[str, str]  # name → "dir", or the content of a file


class Refused(Exception):
    pass


class Unsettled(Exception):
    """A name that lies in what is a file below, without saying that this is a directory now: refused by chained
    drivers, and by others not known."""


def above(path: str) -> Iterator[str]:
    parts = path.split("/")
    for count in range(1, len(parts)):
        yield "/".join(parts[:count])


def remove(state: Tree, path: str) -> None:
    for name in [name for name in state if name == path or name.startswith(path + "/")]:
        del state[name]


def naive(layers: list[list[tuple[str, str]]]) -> Tree:
    """What the layers mean (OCI image spec, layer.md): a layer deletes from those below first, then adds."""
    state: Tree = {}
    for number, layer in enumerate(layers):
        own: Tree = {}
        hidden: set[str] = set()  # names whose lower content is gone, with all below
        emptied: set[str] = set()  # directories whose lower content is gone
        implied: set[str] = set()  # directories by what lies in them only, so far
        for kind, path in layer:
            for parent in [*above(path), *([path] if kind == "opaque" else [])]:
                if parent not in own:
                    implied.add(parent)
                if own.setdefault(parent, "dir") != "dir":
                    raise Refused
            if kind == "file":
                remove(own, path)
                own[path] = f"{number}"
                hidden.add(path)  # also where the layer makes a directory of it after all
            elif kind == "dir":
                own[path] = "dir"
            elif kind == "whiteout":
                hidden.add(path)
            else:
                emptied.add(path)
        if any(state.get(path, "dir") != "dir" for path in implied):
            raise Unsettled
        for path in hidden:
            remove(state, path)
        for path in emptied:
            for name in [name for name in state if name.startswith(path + "/")]:
                del state[name]
        for path, what in own.items():
            if what != "dir" or state.get(path, "dir") != "dir":
                remove(state, path)  # a file replaces what was there; a directory replaces a file
            state[path] = what
    return state


def member(kind: str, path: str, number: int) -> bytes:
    name = path.encode()
    parent, _, base = name.rpartition(b"/")
    if kind == "file":
        return file(name, b"%d" % number)
    if kind == "dir":
        return directory(name)
    if kind == "opaque":
        return file(name + b"/.wh..wh..opq")
    return file((parent + b"/" if parent else b"") + b".wh." + base)


def seen(found: dict[bytes, tuple[object, ...]]) -> Tree:
    return {
        name.decode(): "dir" if what[0] == stat.S_IFDIR else bytes(what[4]).decode()  # type: ignore[call-overload]
        for name, what in found.items()
    }


def applied(place: str, streams: list[list[bytes]]) -> None:
    for members in streams:
        extract(f"{place}/applied", *members, whiteouts="apply")


@given(LAYERS)
@example([[("file", "a/b"), ("file", "a/c")], [("whiteout", "a"), ("file", "a/b")]])
@example([[("file", "a/b/c")], [("opaque", "a"), ("dir", "a/b")]])
@example([[("file", "a")], [("dir", "a"), ("file", "a/b")], [("whiteout", "a/b")]])
@example([[("file", "a")], [("opaque", "a"), ("file", "a")]])
@example([[("file", "a")], [("file", "a/a"), ("dir", "a")]])
@example([[("file", "a/a")], [("file", "a"), ("dir", "a")]])
@rounds(150)
def test_layers_mean_what_a_naive_model_says(layers: list[list[tuple[str, str]]]) -> None:
    streams = [[member(kind, path, number) for kind, path in layer] for number, layer in enumerate(layers)]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        try:
            wanted = naive(layers)
        except Refused:
            with pytest.raises(LayerError):
                applied(place, streams)
            return
        except Unsettled:
            return
        applied(place, streams)
        for number, members in enumerate(streams):
            extract(f"{place}/l{number}", *members)
        assert seen(tree(f"{place}/applied", times=False)) == wanted
        assert seen(merged(place, [f"l{n}" for n in range(len(layers))], times=False)) == wanted


def test_the_end_of_the_seed_is_sound() -> None:
    assert SEED.endswith(END)
    assert len(list(TarReader(Stream(SEED)))) > 10
