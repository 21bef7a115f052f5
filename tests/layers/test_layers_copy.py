"""Copying trees with all that files are."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest
from rawtar import tree

from pyrun.errors import KernelError
from pyrun.layers.copy import copy_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0: device nodes and chown")

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def copy(src: Path, dst: Path) -> None:
    dst.mkdir(exist_ok=True)
    fds = len(os.listdir("/proc/self/fd"))
    a, b = os.open(src, os.O_RDONLY), os.open(dst, os.O_RDONLY)
    try:
        copy_tree(a, b)
    finally:
        os.close(a)
        os.close(b)
    assert len(os.listdir("/proc/self/fd")) == fds


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "src"
    (top / "d/e").mkdir(parents=True)
    (top / "d/f").write_bytes(os.urandom(3_000_000))
    os.link(top / "d/f", top / "d/e/hard")
    (top / "s").symlink_to("/etc/passwd")
    os.link(top / "s", top / "hard-s", follow_symlinks=False)
    os.mkfifo(top / "p", 0o604)
    os.mknod(top / "n", stat.S_IFCHR | 0o622, os.makedev(1, 3))
    (top / "su").write_text("x")
    os.chown(top / "su", 7, 8)
    (top / "su").chmod(0o6755)
    (top / "cap").write_text("x")
    os.setxattr(top / "cap", "security.capability", CAPABILITY)
    os.setxattr(top / "d/e", "user.a", b"b")
    os.setxattr(top / "s", "trusted.a", b"b", follow_symlinks=False)
    (top / "readonly").mkdir()
    (top / "readonly/f").write_text("x")
    (top / "readonly").chmod(0o555)
    with open(os.fsencode(top) + b"/\xff\n" + b"n" * 253, "w"):
        pass
    for i, name in enumerate(("d/f", "d/e", "d", "su", ".")):
        os.utime(top / name, ns=(i, -5_000_000_000 + i))
    os.utime(top / "s", ns=(1, 2), follow_symlinks=False)
    top.chmod(0o1770)
    os.chown(top, 9, 10)
    return top


def test_a_copy_is_equal_in_every_respect(tmp_path: Path, source: Path) -> None:
    before = tree(source)
    umask = os.umask(0o77)
    try:
        copy(source, tmp_path / "dst")
    finally:
        os.umask(umask)
    assert tree(tmp_path / "dst") == before == tree(source)
    a, b = source.stat(), (tmp_path / "dst").stat()
    assert (a.st_mode, a.st_uid, a.st_gid, a.st_mtime_ns) == (b.st_mode, b.st_uid, b.st_gid, b.st_mtime_ns)


def test_a_copy_shares_no_inode_with_its_source(tmp_path: Path, source: Path) -> None:
    copy(source, tmp_path / "dst")
    (tmp_path / "dst/d/f").write_text("changed")
    assert (source / "d/f").stat().st_size == 3_000_000


@pytest.mark.parametrize(
    ("at", "size"), [([], 5 << 20), ([0], 5 << 20), ([1 << 20, 3 << 20], 5 << 20), ([4 << 20], 0)]
)
def test_holes_stay_holes(tmp_path: Path, at: list[int], size: int) -> None:
    (tmp_path / "src").mkdir()
    with open(tmp_path / "src/f", "wb") as opened:
        for offset in at:
            opened.seek(offset)
            opened.write(b"data" * 1024)
        if size:
            opened.truncate(size)
    copy(tmp_path / "src", tmp_path / "dst")
    assert (tmp_path / "dst/f").read_bytes() == (tmp_path / "src/f").read_bytes()
    assert (tmp_path / "dst/f").stat().st_blocks * 512 <= 4096 * len(at)


def test_overlay_attributes_and_sockets_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "src/d").mkdir(parents=True)
    for name in ("trusted.overlay.opaque", "user.overlay.opaque", "user.kept"):
        os.setxattr(tmp_path / "src/d", name, b"y")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "src/sock"))
        copy(tmp_path / "src", tmp_path / "dst")
    assert os.listdir(tmp_path / "dst") == ["d"]
    assert os.listxattr(tmp_path / "dst/d") == ["user.kept"]


def test_a_symlink_to_a_directory_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/f").write_text("x")
    (tmp_path / "src").mkdir()
    (tmp_path / "src/l").symlink_to("../other")
    copy(tmp_path / "src", tmp_path / "dst")
    assert os.readlink(tmp_path / "dst/l") == "../other"


def test_deep_and_wide_trees_are_copied_with_few_fds(tmp_path: Path) -> None:
    from test_layers_remove import make_deep

    from pyrun.layers.remove import remove_tree

    make_deep(tmp_path / "src", 500)
    copy(tmp_path / "src", tmp_path / "dst")
    fd, depth = os.open(tmp_path / "dst", os.O_RDONLY), 0
    while "d" in os.listdir(fd):
        assert sorted(os.listdir(fd)) == [".1", "d", "f"]
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd, depth = below, depth + 1
    os.close(fd)
    assert depth == 500
    remove_tree(str(tmp_path / "src"))
    remove_tree(str(tmp_path / "dst"))


def test_an_error_names_the_path(tmp_path: Path, source: Path) -> None:
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst/su").write_text("in the way")
    with pytest.raises(KernelError, match="'su'"):
        copy(source, tmp_path / "dst")
