"""What distinguishes two trees, and what a directory takes on disk: on plain directories, for every driver stands
on them."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrun.layers.pack import pack
from pyrun.layers.unpack import unpack
from pyrun.storage.changes import added, allocated, compare
from pyrun.testing.trees import assert_same

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners and devices")

MTIME = 1_600_000_000 * 10**9


class Trees:
    """``below`` and ``view``, equal at first but for their ctimes."""

    def __init__(self, path: Path) -> None:
        self.below = path / "below"
        self.view = path / "view"
        self.below.mkdir()
        (self.below / "d/sub").mkdir(parents=True)
        for name in ("f", "g", "d/one", "d/sub/two"):
            (self.below / name).write_text(name)
            os.utime(self.below / name, ns=(MTIME, MTIME))
        os.symlink("f", self.below / "link")
        shutil.copytree(self.below, self.view, symlinks=True)

    def changes(self, **more: int) -> list[str]:
        fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (self.below, self.view)]
        try:
            found = compare(fds[0], fds[1], **more)
            return [f"{change.kind} {os.fsdecode(change.path)}" for change in found]
        finally:
            for fd in fds:
                os.close(fd)


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Trees]:
    before = len(os.listdir("/proc/self/fd"))
    yield Trees(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_copies_are_equal(trees: Trees) -> None:
    assert trees.changes() == []


def test_content_is_read_where_only_the_ctime_differs(trees: Trees) -> None:
    (trees.view / "f").write_text("F")
    os.utime(trees.view / "f", ns=(MTIME, MTIME))
    assert trees.changes() == ["modify f"]


def test_content_of_files_that_are_no_younger_than_their_copy_is_not_read(trees: Trees) -> None:
    now = os.stat(trees.view / "f").st_ctime_ns
    (trees.below / "f").write_text("F")
    os.utime(trees.below / "f", ns=(MTIME, MTIME))
    assert trees.changes(unchanged_since=now) == []
    assert trees.changes(unchanged_since=now - 1) == ["modify f"]


def test_a_directory_comes_before_what_is_in_it(trees: Trees) -> None:
    (trees.view / "d.x").touch()
    os.chmod(trees.view / "d", 0o700)
    (trees.view / "d/new").mkdir()
    (trees.view / "d/new/x").touch()
    shutil.rmtree(trees.view / "d/sub")
    os.chmod(trees.view, 0o700)
    assert trees.changes() == [
        "modify ",
        "modify d",
        "add d/new",
        "add d/new/x",
        "delete d/sub",
        "add d.x",
    ]


def test_devices_differ_by_their_numbers(trees: Trees) -> None:
    for path, minor in ((trees.below, 3), (trees.view, 5)):
        os.mknod(path / "device", stat.S_IFCHR | 0o600, os.makedev(1, minor))
        os.utime(path / "device", ns=(MTIME, MTIME))
    assert trees.changes() == ["modify device"]


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_attributes_of_what_is_no_file_count(trees: Trees, kind: str) -> None:
    for path in (trees.below, trees.view):
        if kind == "fifo":
            os.mkfifo(path / "x")
        else:
            os.symlink("x", path / "x")
        os.utime(path / "x", ns=(MTIME, MTIME), follow_symlinks=False)
    assert trees.changes() == []
    os.setxattr(trees.view / "x", "trusted.note", b"1", follow_symlinks=False)
    assert trees.changes() == ["modify x"]


@pytest.mark.parametrize("name", ["trusted.overlay.origin", "user.overlay.opaque", "security.selinux"])
def test_attributes_that_no_layer_carries_do_not_count(trees: Trees, name: str) -> None:
    for path in ("f", "d"):
        try:
            os.setxattr(trees.view / path, name, b"x")
        except OSError:
            pytest.skip(f"this kernel refuses to set {name}")
    assert trees.changes() == []


def test_a_further_name_of_an_unchanged_file_tells_the_file_too(trees: Trees) -> None:
    os.link(trees.view / "d/one", trees.view / "a")
    os.link(trees.view / "d/one", trees.view / "z")
    assert trees.changes() == ["add a", "add z", "modify d/one"]


def test_equal_files_that_became_one_are_told(trees: Trees) -> None:
    for path in (trees.below, trees.view):
        shutil.copy2(path / "f", path / "e")
    os.unlink(trees.view / "e")
    os.link(trees.view / "f", trees.view / "e")
    assert trees.changes() == ["modify e", "modify f"]


def test_names_of_one_file_that_parted_are_told(trees: Trees) -> None:
    for name in ("f1", "f2"):
        os.link(trees.below / "f", trees.below / name)
        shutil.copy2(trees.view / "f", trees.view / name)
    assert trees.changes() == ["modify f1", "modify f2"]


def test_names_that_were_one_file_before_and_are_so_now_are_no_change(trees: Trees) -> None:
    for path in (trees.below, trees.view):
        os.link(path / "f", path / "same")
    assert trees.changes() == []
    (trees.view / "f").write_text("both")
    assert trees.changes() == ["modify f", "modify same"]


def test_a_tree_of_any_depth_and_width(trees: Trees) -> None:
    at = trees.view
    for _ in range(300):  # deeper than directories are kept open, and than Python recurses with ease
        at = at / "x"
        at.mkdir()
    for number in range(200):
        (trees.view / f"w{number}/inner").mkdir(parents=True)
    found = trees.changes()
    assert len(found) == 300 + 400
    assert "add " + "/".join("x" * 300) in found


def test_everything_below_a_directory_is_added(trees: Trees) -> None:
    fd = os.open(trees.view, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert [(c.kind, c.path) for c in added(fd, b"d")] == [
            ("add", b"d/one"),
            ("add", b"d/sub"),
            ("add", b"d/sub/two"),
        ]
    finally:
        os.close(fd)


def _swap_for_links(top: Path) -> None:
    """Directories and files become links to other places, and back."""
    for name in ("d", "f"):
        os.rename(top / name, top / "aside")
        os.symlink("/etc", top / name)
        os.unlink(top / name)
        os.rename(top / "aside", top / name)


def _come_and_go(top: Path) -> None:
    (top / "n/m").mkdir(parents=True)
    (top / "n/m/file").write_text("x")
    (top / "g").unlink()
    os.mkfifo(top / "g")
    shutil.rmtree(top / "n")
    os.unlink(top / "g")
    (top / "g").write_text("G")
    os.utime(top / "g", ns=(MTIME, MTIME))


@pytest.mark.parametrize("disturb", [_swap_for_links, _come_and_go])
def test_a_tree_that_changes_meanwhile_leads_nobody_astray(
    trees: Trees, disturb: Callable[[Path], None]
) -> None:
    over = threading.Event()
    failed: list[BaseException] = []

    def keep_on() -> None:
        try:
            while not over.is_set():
                disturb(trees.view)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=keep_on)
    thread.start()
    try:
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            for line in trees.changes():
                name = line.split(" ")[1]
                # Nothing of /etc, which the links lead to.
                assert name in (
                    *("aside", "aside/one", "aside/sub", "aside/sub/two", "d", "d/one", "d/sub", "d/sub/two"),
                    *("f", "g", "n", "n/m", "n/m/file"),
                )
    finally:
        over.set()
        thread.join(10)
    assert failed == []


def test_what_a_directory_takes_on_disk(tmp_path: Path) -> None:
    empty = allocated(str(tmp_path))
    assert empty.inodes == 1
    (tmp_path / "d").mkdir()
    with open(tmp_path / "d/file", "wb") as file:
        file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 30)
    for number in range(10):
        os.link(tmp_path / "d/file", tmp_path / f"link{number}")
    os.symlink("/etc", tmp_path / "elsewhere")
    found = allocated(str(tmp_path))
    assert found.inodes == 5
    assert 1 << 20 <= found.bytes - empty.bytes < (1 << 20) + (1 << 16)
    assert allocated(str(tmp_path / "missing")).bytes == 0


# --- any two trees

_NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff"])
_FILES = st.builds(
    lambda content, mode, mtime, inode: ("file", content, mode, mtime, inode),
    st.sampled_from([b"", b"one", b"two"]),
    st.sampled_from([0o644, 0o4755]),
    st.sampled_from([MTIME, MTIME + 1]),
    st.integers(0, 3),  # files of one number are one file: the first's
)
_LINKS = st.builds(lambda target: ("link", target), st.sampled_from([b"a", b"/etc"]))
_FIFOS = st.just(("fifo",))
_TREES = st.recursive(
    st.dictionaries(_NAMES, _FILES | _LINKS | _FIFOS, max_size=3),
    lambda below: st.dictionaries(_NAMES, _FILES | _LINKS | _FIFOS | below, max_size=4),
    max_leaves=12,
)


def _make(top: bytes, tree: dict[bytes, Any], inodes: dict[int, bytes]) -> None:
    os.mkdir(top)
    for name, node in sorted(tree.items()):
        path = top + b"/" + name
        if isinstance(node, dict):
            _make(path, node, inodes)
        elif node[0] == "link":
            os.symlink(node[1], path)
            os.utime(path, ns=(MTIME, MTIME), follow_symlinks=False)
        elif node[0] == "fifo":
            os.mkfifo(path)
            os.utime(path, ns=(MTIME, MTIME))
        elif node[4] in inodes:
            os.link(inodes[node[4]], path)
        else:
            _, content, mode, mtime, inode = node
            if inode:  # those of number 0 have one name each
                inodes[inode] = path
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, mode)
            os.utime(path, ns=(mtime, mtime))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(_TREES, _TREES)
def test_the_changes_of_any_tree_to_any_other_make_the_other_of_it(
    below: dict[bytes, Any], view: dict[bytes, Any]
) -> None:
    with tempfile.TemporaryDirectory(prefix="pyrun-changes-") as directory:
        places = [f"{directory}/{name}" for name in ("below", "view")]
        for place, tree in zip(places, (below, view), strict=True):
            _make(os.fsencode(place), tree, {})
        fds = [os.open(place, os.O_RDONLY | os.O_DIRECTORY) for place in places]
        try:
            layer = io.BytesIO()
            pack(compare(*fds), fds[1], layer)
            unpack(io.BytesIO(layer.getvalue()), fds[0], "apply")
            assert_same(places[0], places[1])
            assert list(compare(*fds)) == []
        finally:
            for fd in fds:
                os.close(fd)
