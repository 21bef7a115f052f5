"""The EROFS index of any layer, of damaged archives, and of one tar made twice."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from layers.rawtar import END, directory, file, gnu, hardlink, header, padded, pax, symlink
from pyrun.testing.trees import difference
from support.erofs import IDENTITY, agree, extract, make, mounted, noise, outcome, sparse, tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount EROFS")


@pytest.fixture(scope="module")
def place(base: Path) -> Iterator[Path]:
    """A directory on the disk, for trees."""
    with tempfile.TemporaryDirectory(prefix="erofs-", dir=base) as name:
        yield Path(name)


PARTS = st.sampled_from([b"a", b"b", b"c"])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map(b"/".join)
TARGETS = st.sampled_from([b"b", b"/c/a", b"../a", b"..", b"/", b"a/b", b"c/../b", b"nowhere"])
ENTRIES = st.one_of(
    st.builds(lambda n, c: file(n, b"x" * c), NAMES, st.sampled_from([0, 1, 600])),
    st.builds(lambda n, m: directory(n, mode=m, uid=m % 7), NAMES, st.sampled_from([0o700, 0o1777, 0o2755])),
    st.builds(lambda n: file(n.rpartition(b"/")[0] + b"/.wh." + n.rpartition(b"/")[2]), NAMES),
    st.builds(lambda n: file(n + b"/.wh..wh..opq"), NAMES),
    st.builds(symlink, NAMES, TARGETS),
    st.builds(hardlink, NAMES, NAMES),
    st.builds(lambda n: header(n, b"6"), NAMES),
    st.builds(lambda n: pax((b"SCHILY.xattr.trusted.t", n)) + directory(n), NAMES),
)
UNDER_LINKS = [symlink(b"a", b"b"), file(b"a/c", b"x"), directory(b"a"), hardlink(b"b/a", b"a"), file(b"a/c")]


@given(st.lists(ENTRIES, max_size=12))
@example(UNDER_LINKS)
@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_entries_are_indexed_as_they_are_unpacked(place: Path, members: list[bytes]) -> None:
    agree(place, *members)


@pytest.mark.long
@pytest.mark.timeout(900)
@given(st.lists(ENTRIES, max_size=20))
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_entries_are_indexed_as_they_are_unpacked_in_many_rounds(
    place: Path, members: list[bytes]
) -> None:
    agree(place, *members)


def damaged(archive: bytes, dice: random.Random) -> bytes:
    """The archive with some fields of headers, some bytes or the order of some blocks changed."""
    data = bytearray(archive)
    for _ in range(dice.randint(1, 4)):
        block = dice.randrange(len(data) // 512) * 512
        choice = dice.random()
        if choice < 0.6:
            start, width = dice.choice(
                [
                    (0, 100),
                    (100, 8),
                    (108, 8),
                    (116, 8),
                    (124, 12),
                    (136, 12),
                    (156, 1),
                    (157, 100),
                    (345, 155),
                ]
            )
            value = dice.choice(
                [
                    dice.randbytes(width),
                    b"d/f",
                    b"out/x",
                    b"../x",
                    b"7" * width,
                    b"",
                    bytes([dice.choice(b"01234567xgLKS")]),
                ]
            )
            data[block + start : block + start + width] = value[:width].ljust(width, b"\0")
            if any(data[block : block + 512]):
                data[block + 148 : block + 156] = b" " * 8
                data[block + 148 : block + 156] = b"%06o\0 " % sum(data[block : block + 512])
        elif choice < 0.8:
            data[dice.randrange(len(data))] = dice.randrange(256)
        elif choice < 0.9:
            other = dice.randrange(len(data) // 512) * 512
            data[block : block + 512], data[other : other + 512] = (
                data[other : other + 512],
                data[block : block + 512],
            )
        else:
            del data[max(dice.randrange(len(data)), 1024) :]
    return bytes(data)


def fuzz(place: Path, rounds: int, seed: int) -> None:
    """Damaged archives: index and unpacking take the same ones. Times that ext4 can't hold don't count."""
    archive = b"".join(
        (
            directory(b"./"),
            directory(b"d", uid=3),
            file(b"d/f", b"y" * 600, mode=0o4755),
            pax((b"path", b"d/p"), (b"mtime", b"1.5"), (b"SCHILY.xattr.user.a", b"b"), (b"size", b"3")),
            header(b"x", size=3) + padded(b"abc"),
            gnu(b"L", b"d/" + b"l" * 120) + header(b"d/l"),
            symlink(b"out", b"d"),
            hardlink(b"h", b"d/f"),
            header(b"p", b"6"),
            header(b"n", b"3", major=1, minor=3),
            file(b"d/.wh.gone"),
            file(b"d/.wh..wh..opq"),
            file(b"out/x", b"z"),
            sparse(b"s", 4096, [(0, noise(1, 512)), (2048, noise(2, 100))], "1.0"),
            END,
        )
    )
    dice = random.Random(seed)
    refused = 0
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(rounds):
        data = damaged(archive, dice)
        with tempfile.TemporaryDirectory(dir=place) as name:
            plain, layer = Path(name) / "plain", Path(name) / "layer"
            wanted = outcome(extract, plain, data, end=b"", bytes=1 << 24)
            found = outcome(make, layer, data, end=b"", bytes=1 << 24)
            assert isinstance(found, str) == isinstance(wanted, str), (found, wanted, data)
            if isinstance(found, str):
                refused += 1
                assert found.isprintable()
                continue
            with mounted(layer) as shown:
                one, two = tree(shown), tree(str(plain))
                for name_, node in one.items():
                    if not -(1 << 31) <= node.mtime // 10**9 < 1 << 33:
                        one[name_] = node._replace(mtime=two[name_].mtime)
                problem = difference(one, two, ("indexed", "unpacked"))
                assert not problem, problem
    assert 0 < refused < rounds
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_damaged_archive_is_indexed_just_where_it_is_unpacked(place: Path) -> None:
    fuzz(place, 300, 1)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(2, 6))
def test_damaged_archives_in_many_rounds(place: Path, seed: int) -> None:
    fuzz(place, 5000, seed)


# --- the index itself


def test_the_same_tar_gives_the_same_index_however_it_comes(tmp_path: Path) -> None:
    members = [
        directory(b"d"),
        file(b"d/f", b"x" * 5000),
        symlink(b"l", b"d"),
        pax((b"SCHILY.xattr.user.b", b"1"), (b"SCHILY.xattr.user.a", b"2")) + file(b"g"),
        sparse(b"s", 1 << 20, [(5000, noise(1, 700))], "1.0"),
        file(b"d/.wh.gone"),
    ]
    make(tmp_path / "a", *members)
    make(tmp_path / "b", *members, step=100)
    for name in ("index.erofs", "layer.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a/layer.tar").read_bytes() == b"".join(members) + END


def test_the_file_system_is_named_after_the_tar(tmp_path: Path) -> None:
    make(tmp_path / "l", file(b"f"))
    with open(tmp_path / "l/index.erofs", "rb") as opened:
        blocks = opened.read(1536)
    assert blocks[1024 + 48 : 1024 + 64] == IDENTITY[:16]
    assert IDENTITY.hex().encode() in blocks
