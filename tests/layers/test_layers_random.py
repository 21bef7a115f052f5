"""Random layers: one meaning in every form. Damaged streams: a tree or a LayerError, and nothing else."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rawtar import (
    END,
    Stream,
    directory,
    extract,
    file,
    gnu,
    hardlink,
    header,
    merged,
    padded,
    pax,
    symlink,
    tree,
)

from pyrun.errors import LayerError
from pyrun.layers.limits import Limits
from pyrun.layers.tar import TarReader
from pyrun.layers.unpack import unpack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0: device nodes and overlay mounts")

# Few names, so that entries meet; parents are listed or not as it comes.
PARTS = st.sampled_from([b"a", b"b", b"c"])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map(b"/".join)
ENTRIES = st.one_of(
    st.tuples(st.just("file"), NAMES, st.integers(0, 3)),
    st.tuples(st.just("dir"), NAMES, st.sampled_from([0o700, 0o1777, 0o2755])),
    st.tuples(st.just("whiteout"), NAMES, st.none()),
    st.tuples(st.just("opaque"), NAMES, st.none()),
    st.tuples(st.just("symlink"), NAMES, st.sampled_from([b"b", b"/c/a", b"../a", b"..", b"/"])),
    st.tuples(st.just("link"), NAMES, NAMES),
    st.tuples(st.just("fifo"), NAMES, st.none()),
)
LAYERS = st.lists(st.lists(ENTRIES, max_size=8), min_size=1, max_size=3)


def member(kind: str, name: bytes, detail: object) -> bytes:
    where, _, base = name.rpartition(b"/")
    match kind:
        case "file":
            return file(name, b"x" * detail)
        case "dir":
            return directory(name, mode=detail, uid=detail % 7)
        case "whiteout":
            return file((where + b"/" if where else b"") + b".wh." + base)
        case "opaque":
            return file(name + b"/.wh..wh..opq")
        case "symlink":
            return symlink(name, detail)
        case "link":
            return hardlink(name, detail)
        case _:
            return header(name, b"6")


def listed(layer: list[tuple[str, bytes, object]], below: set[bytes]) -> list[bytes]:
    """Members for ``layer``. ``below``: names that lower layers ever had as something else than a directory.
    A parent among those is listed: an independent layer can't know what its parents are below."""
    members: list[bytes] = []
    own_files: set[bytes] = set()
    others: set[bytes] = set()
    directories: set[bytes] = set()
    for kind, name, detail in layer:
        parents = name.split(b"/")[: None if kind == "opaque" else -1]
        paths = [b"/".join(parents[: i + 1]) for i in range(len(parents))]
        if any(path in others | own_files for path in paths):
            continue  # a parent that isn't a directory is refused or followed; other tests have that
        for path in paths:
            if path in below and path not in directories:
                members.append(directory(path))
                directories.add(path)
        if kind == "link" and (detail not in own_files or (detail + b"/").startswith(name + b"/")):
            continue
        if kind in ("file", "link"):
            own_files.add(name)
        elif kind in ("symlink", "fifo"):
            others.add(name)
            own_files.discard(name)
        elif kind == "dir":
            others.discard(name)
            own_files.discard(name)
            directories.add(name)
        if kind in ("file", "link", "symlink", "fifo"):
            directories -= {d for d in directories if d == name or d.startswith(name + b"/")}
            inside = name + b"/"
            own_files -= {f for f in own_files if f.startswith(inside)}
            others -= {f for f in others if f.startswith(inside)}
        members.append(member(kind, name, detail))
    below |= own_files | others
    return members


def check_layers(layers: list[list[tuple[str, bytes, object]]]) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        root = Path(name)
        below: set[bytes] = set()
        implied: set[bytes] = set()
        for i, layer in enumerate(layers):
            members = listed(layer, below)
            implied |= set(extract(root / f"l{i}", *members).implied)
            implied |= set(extract(root / "applied", *members, whiteouts="apply").implied)
        mounted = merged(root, [f"l{i}" for i in range(len(layers))], times=False)
        applied = tree(root / "applied", times=False)
        assert set(mounted) == set(applied)
        for path, what in applied.items():
            # An independent layer gives a directory that it doesn't list attributes of its own.
            kind = slice(0, 1) if path in implied else slice(None)
            assert mounted[path][kind] == what[kind], path


LINK_THEN_DELETE = [[("file", b"a", 1), ("link", b"b", b"a")], [("whiteout", b"a", None), ("file", b"b", 2)]]
OPAQUE_BELOW_WHITEOUT = [
    [("file", b"a/b/c", 1)],
    [("whiteout", b"a", None), ("opaque", b"a/b", None), ("file", b"a/b/a", 1)],
]


@given(LAYERS)
@example(LINK_THEN_DELETE)
@example(OPAQUE_BELOW_WHITEOUT)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_stacked_layers_mean_what_applied_layers_mean(layers: list[list[tuple[str, bytes, object]]]) -> None:
    check_layers(layers)


@pytest.mark.long
@pytest.mark.timeout(900)
@given(LAYERS)
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
def test_stacked_layers_mean_what_applied_layers_mean_in_many_rounds(
    layers: list[list[tuple[str, bytes, object]]],
) -> None:
    check_layers(layers)


def seed_archive() -> bytearray:
    """One of everything, so that a damaged byte meets every branch."""
    front = padded(b"1\n0\n512\n")
    return bytearray(
        b"".join(
            (
                pax((b"comment", b"x"), type=b"g"),
                directory(b"./"),
                directory(b"d", uid=3),
                file(b"d/f", b"y" * 600, mode=0o4755),
                pax((b"path", b"d/p"), (b"mtime", b"1.5"), (b"SCHILY.xattr.user.a", b"b"), (b"size", b"3")),
                header(b"x", size=3) + padded(b"abc"),
                gnu(b"L", b"d/" + b"l" * 120) + header(b"d/l"),
                symlink(b"out", b"../outside"),
                gnu(b"K", b"../" * 30 + b"tmp") + symlink(b"far", b""),
                hardlink(b"h", b"d/f"),
                header(b"p", b"6"),
                header(b"n", b"3", major=1, minor=3),
                file(b"d/.wh.gone"),
                file(b"d/.wh..wh..opq"),
                file(b"out/x", b"z"),
                pax(
                    (b"GNU.sparse.major", b"1"),
                    (b"GNU.sparse.minor", b"0"),
                    (b"GNU.sparse.name", b"s"),
                    (b"GNU.sparse.realsize", b"4096"),
                ),
                header(b"s", size=len(front) + 512) + front + bytes(512),
                END,
            )
        )
    )


def damaged(seed: bytearray, rng: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randint(1, 4)):
        block = rng.randrange(len(data) // 512) * 512
        choice = rng.random()
        if choice < 0.55:  # a field of a header, with the checksum made right again
            start, width = rng.choice(
                [
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
            )
            value = rng.choice(
                [
                    rng.randbytes(width),
                    b"\xff" * width,
                    b"\x80" + b"\xff" * (width - 1),
                    b"-" * width,
                    b"../../outside/secret",
                    b"/etc/x",
                    b"out/secret",
                    b"7" * width,
                    bytes(width),
                    bytes([rng.choice(b"01234567xgLKSV\0")]),
                ]
            )[:width].ljust(width, b"\0")
            data[block + start : block + start + width] = value
            if not any(data[block : block + 512]):
                continue
            data[block + 148 : block + 156] = b" " * 8
            data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
        elif choice < 0.8:  # any byte
            data[rng.randrange(len(data))] = rng.randrange(256)
        elif choice < 0.9:  # blocks out of order
            other = rng.randrange(len(data) // 512) * 512
            data[block : block + 512], data[other : other + 512] = (
                data[other : other + 512],
                data[block : block + 512],
            )
        else:
            del data[rng.randrange(len(data)) :]
            if len(data) < 1024:
                break
    return bytes(data)


def fuzz(rounds: int, seed: int, where: Path) -> None:
    archive, rng = seed_archive(), random.Random(seed)
    (where / "outside").mkdir()
    (where / "outside/secret").write_text("untouched")
    names = set(os.listdir(where)) | {"root"}
    outside = tree(where / "outside")
    fds = len(os.listdir("/proc/self/fd"))
    refused = 0
    words: set[str] = set()
    for number in range(rounds):
        data = damaged(archive, rng)
        (where / "root").mkdir()
        fd = os.open(where / "root", os.O_RDONLY)
        form = rng.choice(["overlay", "userxattr", "aufs", "apply"])
        try:
            unpack(Stream(data, rng.choice([100, 5000])), fd, form, limits=Limits(bytes=1 << 24))
        except LayerError as error:
            refused += 1
            words.add(str(error).replace("\n", ""))
        except BaseException:
            (where / f"crash-{seed}-{number}.tar").write_bytes(data)
            raise
        finally:
            os.close(fd)
        assert set(os.listdir(where)) == names, "something was written beside the root"
        shutil.rmtree(where / "root")
    assert tree(where / "outside") == outside
    assert len(os.listdir("/proc/self/fd")) == fds
    assert 0 < refused < rounds
    assert all(text.isprintable() for text in words)


def test_a_damaged_stream_gives_a_tree_or_a_layer_error(tmp_path: Path) -> None:
    fuzz(700, 1, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 5))
def test_damaged_streams_in_many_rounds(tmp_path: Path, seed: int) -> None:
    fuzz(20_000, seed, tmp_path)


@given(st.binary(max_size=2048))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_archive_are_refused(data: bytes) -> None:
    with pytest.raises(LayerError):
        list(TarReader(Stream(data + b"\1")))
