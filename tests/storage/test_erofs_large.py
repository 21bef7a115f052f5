"""Large things in an EROFS index: sparse members, files and offsets beyond 4 GiB, wide and deep trees."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layers.rawtar import END, directory, file, header, pax
from pyrun.errors import LayerError
from pyrun.layers import erofs_format as fmt
from pyrun.layers.entry import Entry
from pyrun.layers.erofs_tree import Tree
from pyrun.layers.erofs_writer import Writer
from pyrun.layers.limits import Limits
from support.erofs import IDENTITY, agree, make, make_stream, mounted, noise, sparse

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount EROFS")


@pytest.fixture(scope="module")
def place(base: Path) -> Iterator[Path]:
    """A directory on the disk, for trees."""
    with tempfile.TemporaryDirectory(prefix="erofs-", dir=base) as name:
        yield Path(name)


MAPS: dict[str, tuple[int, list[tuple[int, bytes]]]] = {
    "nothing but a hole": (10_000, []),
    "data, then a hole": (9000, [(0, noise(1, 512))]),
    "a hole, then data to the end": (5000, [(4096, noise(2, 904))]),
    "a ragged end and a hole": (20_000, [(1024, noise(3, 1024)), (8192, noise(4, 700))]),
    "runs of one block": (40_960, [(n * 1536, noise(n, 512)) for n in range(20)]),
    "runs of pages": (1 << 20, [(n * 65_536, noise(n, 4096)) for n in range(16)]),
    "askew to blocks": (5000, [(100, noise(5, 512)), (1001, noise(6, 1024)), (4000, noise(7, 1000))]),
    "neighbours": (4096, [(0, noise(8, 512)), (512, noise(9, 512)), (1024, noise(10, 3072))]),
    "all of it": (3000, [(0, noise(11, 3000))]),
    "few runs, far apart": (
        3 << 30,
        [(1 << 30, noise(12, 1536)), (2 << 30, noise(13, 4096)), ((3 << 30) - 7, b"the end")],
    ),
    "a table that wants large chunks": (
        (1 << 33) - 1,
        [(512 + (n << 28), noise(n, 1024)) for n in range(30)],
    ),
}


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("case", MAPS)
def test_sparse_members_have_their_content_and_their_holes(tmp_path: Path, case: str, form: str) -> None:
    size, runs = MAPS[case]
    make(tmp_path / "l", file(b"before", b"b"), sparse(b"s", size, runs, form), file(b"after", b"a" * 600))
    with mounted(tmp_path / "l") as shown, open(f"{shown}/s", "rb") as opened:
        assert os.fstat(opened.fileno()).st_size == size
        for offset, content in runs:
            assert os.pread(opened.fileno(), len(content), offset) == content
        if size < 1 << 24:
            whole = bytearray(size)
            for offset, content in runs:
                whole[offset : offset + len(content)] = content
            assert opened.read() == bytes(whole)
        else:
            for (offset, content), (after, _) in zip(runs, [*runs[1:], (size, b"")], strict=True):
                end = offset + len(content)
                for at in {end, (end + after) // 2, max(end, after - 5000)}:
                    length = min(5000, after - at)
                    assert os.pread(opened.fileno(), length, at) == bytes(length)
            data = sum(length for _, length in segments(opened.fileno()))
            assert data < max(size // 100, 1 << 20)
        assert Path(shown, "after").read_bytes() == b"a" * 600
    index_ = os.stat(tmp_path / "l/index.erofs")
    assert index_.st_blocks * 512 < 2 << 20


def segments(fd: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the data of an open file."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end - start


@given(st.data(), st.sampled_from(["gnu", "0.0", "0.1", "1.0"]))
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sparse_map_gives_the_file_that_unpacking_gives(place: Path, data: Any, form: str) -> None:
    unit = data.draw(st.sampled_from([1, 512, 4096]))
    at, runs = 0, []
    for n in range(data.draw(st.integers(0, 12))):
        at += unit * data.draw(st.integers(0, 70))
        content = noise(n, 512 * data.draw(st.integers(1, 20)))
        runs.append((at, content))
        at += len(content)
    if runs and data.draw(st.booleans()):
        runs[-1] = (runs[-1][0], runs[-1][1][: -data.draw(st.integers(1, 511))])
        at = runs[-1][0] + len(runs[-1][1])
    size = at + data.draw(st.integers(0, 100_000))
    if size:
        assert not isinstance(agree(place, sparse(b"s", size, runs, form), file(b"f", b"x")), str)


# --- sizes


def test_files_of_more_than_4_gib_and_behind_4_gib(tmp_path: Path) -> None:
    """Of a tar that is 11 GiB of hole: what is indexed is told entry by entry, for nobody wants to read zeros."""
    size, at = (5 << 30) + 3, 6 << 30
    ends = {0: b"begin", 1 << 32: b"beyond 4 GiB", size - 7: b"the end"}
    big, small = (Entry(b"", name, "file", 0o644, 0, 0, 0) for name in (b"big", b"small"))
    big.size = big.stored = size
    big.offset = at
    small.size = small.stored = 5
    small.offset = at + size + -size % 512 + 512
    tree = Tree(Limits())
    tree.add(big)
    tree.add(small)
    layer = tmp_path / "l"
    layer.mkdir()
    tar, out = (os.open(layer / name, os.O_RDWR | os.O_CREAT) for name in ("layer.tar", "index.erofs"))
    for offset, data in ends.items():
        os.pwrite(tar, data, at + offset)
    os.pwrite(tar, b"small", small.offset)
    os.ftruncate(tar, small.offset + 2048)
    Writer(tree, tar, out, lambda _: None).write(IDENTITY, small.offset + 2048)
    os.close(tar)
    os.close(out)
    with mounted(layer) as shown:
        assert os.stat(f"{shown}/big").st_size == size
        with open(f"{shown}/big", "rb") as opened:
            for offset, data in ends.items():
                assert os.pread(opened.fileno(), len(data), offset) == data
            assert os.pread(opened.fileno(), 100, 3 << 30) == bytes(100)
            assert os.pread(opened.fileno(), 100, size) == b""
        assert Path(shown, "small").read_bytes() == b"small"


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_tar_with_a_file_of_more_than_4_gib(base: Path) -> None:
    size, zeros = (4 << 30) + 1000, memoryview(bytes(1 << 20))

    class Source:
        def __init__(self) -> None:
            self.left = size
            self.head = pax((b"size", b"%d" % size)) + header(b"big")
            self.tail = bytes(-size % 512) + file(b"behind", b"after 4 GiB") + END

        def read(self, n: int, /) -> bytes | memoryview:
            if self.head:
                head, self.head = self.head, b""
                return head
            if self.left:
                taken = min(self.left, n)
                self.left -= taken
                return zeros[:taken]
            tail, self.tail = self.tail, b""
            return tail

    with tempfile.TemporaryDirectory(prefix="erofs-", dir=base) as name:
        make_stream(Path(name) / "l", Source())
        with mounted(Path(name) / "l") as shown:
            assert os.stat(f"{shown}/big").st_size == size
            assert Path(shown, "behind").read_bytes() == b"after 4 GiB"


def test_a_sparse_file_of_a_tib(tmp_path: Path) -> None:
    size = 1 << 40
    runs = [(0, noise(1, 512)), (1 << 39, noise(2, 512)), (size - 512, noise(3, 512))]
    make(tmp_path / "l", sparse(b"s", size, runs, "1.0"))
    with mounted(tmp_path / "l") as shown, open(f"{shown}/s", "rb") as opened:
        for offset, content in runs:
            assert os.pread(opened.fileno(), 512, offset) == content
        assert os.pread(opened.fileno(), 512, 1 << 38) == bytes(512)
        assert len(list(segments(opened.fileno()))) == 3
    assert os.stat(tmp_path / "l/index.erofs").st_blocks * 512 < 16 << 20


def test_a_tar_beyond_32_bits_of_blocks_is_refused_in_words(tmp_path: Path) -> None:

    class Endless:
        """Says that it has read more than it gives: nobody has 2 TiB to spare."""

        first = pax((b"size", b"%d" % (fmt.TAR_LIMIT + 1))) + header(b"f")

        def read(self, n: int, /) -> Any:
            first, self.first = self.first, b""
            return first or Piece()

    class Piece(bytes):
        def __len__(self) -> int:
            return fmt.TAR_LIMIT

    with pytest.raises(LayerError, match="EROFS can't address"):
        make_stream(tmp_path / "l", Endless(), bytes=1 << 60)


def test_a_directory_of_70000_names_is_searched_and_listed(tmp_path: Path) -> None:
    dice = random.Random(7)
    names = {b"%d-%s" % (n, b"x" * dice.randrange(60)) for n in range(70_000)}
    order = sorted(names, key=lambda _: dice.random())
    began = time.monotonic()
    make(tmp_path / "l", *(header(b"wide/" + name, b"6") for name in order))
    took = time.monotonic() - began
    with mounted(tmp_path / "l") as shown:
        assert set(os.listdir(os.fsencode(shown) + b"/wide")) == names
        for name in names:
            assert os.path.lexists(os.fsencode(shown) + b"/wide/" + name)
        for missing in (b"", b"0", b"zzz", b"35000-x" + b"y" * 99, b"!", b"\xff"):
            if missing:
                assert not os.path.lexists(os.fsencode(shown) + b"/wide/" + missing)
    assert took < 20


def test_a_tree_of_250_directories_one_in_the_other(place: Path) -> None:
    parts = [b"d%d" % n for n in range(250)]
    members = [directory(b"/".join(parts[: n + 1]), mode=0o700 + n % 8) for n in range(250)]
    assert not isinstance(agree(place, *members, file(b"/".join(parts) + b"/f", b"deep")), str)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_million_files_in_600_mib(tmp_path: Path) -> None:
    """In a process of its own, whose memory is measured."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            make_stream(tmp_path / "l", Files(1_000_000))
            code = 0
        os._exit(code)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0
    assert usage.ru_maxrss < 600 << 10
    with mounted(tmp_path / "l") as shown:
        assert os.path.exists(f"{shown}/d99/e999/f999999")
        assert sum(len(names) for _, _, names in os.walk(shown)) == 1_000_000


class Files:
    """The tar of so many empty files in a thousand directories, made as it is read."""

    def __init__(self, count: int) -> None:
        self.at, self.count = 0, count

    def read(self, _: int, /) -> bytes:
        first, self.at = self.at, self.at + 1000
        if first > self.count:
            return b""
        if first == self.count:
            return END
        return b"".join(header(b"d%d/e%d/f%d" % (n % 100, n % 1000, n)) for n in range(first, first + 1000))
