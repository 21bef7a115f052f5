"""Removing trees that may be hostile."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pyrun.errors import KernelError
from pyrun.layers.remove import remove_tree

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")


def test_a_tree_of_every_kind_of_file_is_removed_and_what_links_lead_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "outside/dir").mkdir(parents=True)
    (tmp_path / "outside/file").write_text("stays")
    top = tmp_path / "tree"
    (top / "a/b/c").mkdir(parents=True)
    (top / "a/file").write_text("x")
    (top / "a/dir").symlink_to(tmp_path / "outside/dir")
    (top / "a/up").symlink_to("../..")
    os.mkfifo(top / "a/b/fifo")
    os.link(tmp_path / "outside/file", top / "hard")
    with open(os.fsencode(top) + b"/\xff\n", "w"):
        pass
    fds = len(os.listdir("/proc/self/fd"))
    remove_tree(str(top))
    assert not top.exists()
    assert sorted(os.listdir(tmp_path / "outside")) == ["dir", "file"]
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_missing_path_is_success(tmp_path: Path) -> None:
    remove_tree(str(tmp_path / "missing"))
    remove_tree(str(tmp_path / "missing/deeper"))


def test_a_file_and_a_symlink_are_removed_themselves(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("kept")
    remove_tree(str(tmp_path / "file"))
    remove_tree(str(tmp_path / "link"))
    assert os.listdir(tmp_path) == ["kept"]


def test_a_relative_path_and_a_trailing_slash_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d/e").mkdir(parents=True)
    remove_tree("d/")
    assert os.listdir(tmp_path) == []


def make_deep(top: Path, depth: int) -> None:
    """``depth`` directories, each with a file and, so that moved names meet others, one called ".1"."""
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        os.mkdir(".1", dir_fd=fd)
        os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def test_a_tree_5000_directories_deep_is_removed(tmp_path: Path) -> None:
    make_deep(tmp_path / "deep", 5000)
    remove_tree(str(tmp_path / "deep"))
    assert os.listdir(tmp_path) == []


def test_a_directory_with_more_subdirectories_than_are_remembered_is_removed(tmp_path: Path) -> None:
    (tmp_path / "wide").mkdir()
    for i in range(5000):
        os.mkdir(tmp_path / f"wide/{i}")
    remove_tree(str(tmp_path / "wide"))
    assert os.listdir(tmp_path) == []


@root_only
def test_an_ordinary_user_removes_directories_without_permissions(tmp_path: Path) -> None:
    # The user's own directory lies where others may go: pytest's is root's.
    code = """
import os, shutil, tempfile
where = tempfile.mkdtemp(dir="/tmp")
child = os.fork()
if child:
    status = os.waitpid(child, 0)[1]
    shutil.rmtree(where)
    raise SystemExit(status != 0)
os.chown(where, 12345, 12345)
os.setgroups([])
os.setresgid(12345, 12345, 12345)
os.setresuid(12345, 12345, 12345)
for mode in (0, 0o100, 0o400, 0o500, 0o555):
    top = f"{where}/top"
    deep = top + "/a" + "/d" * 70
    os.makedirs(deep)
    for name in (top + "/a/f", deep + "/f"):
        open(name, "w").close()
    at = deep
    while at != where:
        os.chmod(at, mode)
        at = os.path.dirname(at)
    remove_tree(top)
    assert not os.path.exists(top), oct(mode)
"""
    # /root may be closed to that user: everything is imported before the change of user.
    preload = "import traceback; from pyrun.layers.remove import remove_tree\n"
    ran = subprocess.run([sys.executable, "-c", preload + code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@root_only
def test_an_immutable_file_is_an_error_that_names_it_and_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "top/sub").mkdir(parents=True)
    target = tmp_path / "top/sub/fixed"
    target.write_text("x")
    get, put, immutable = (
        0x80086601,
        0x40086602,
        0x10,
    )  # linux/fs.h: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_FL
    fd = os.open(target, os.O_RDONLY)
    try:
        try:
            flags = struct.unpack("i", fcntl.ioctl(fd, get, bytes(4)))[0]
            fcntl.ioctl(fd, put, struct.pack("i", flags | immutable))
        except OSError as error:
            pytest.skip(f"this file system has no immutable flag: {error}")
        try:
            with pytest.raises(KernelError, match="top/sub/fixed") as caught:
                remove_tree(str(tmp_path / "top"))
            assert "chattr" in caught.value.hint
            assert target.exists()
        finally:
            fcntl.ioctl(fd, put, struct.pack("i", flags))
    finally:
        os.close(fd)
    remove_tree(str(tmp_path / "top"))
    assert os.listdir(tmp_path) == []


@root_only
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_what_is_mounted_in_the_tree_is_not_removed(tmp_path: Path, kind: str) -> None:
    """In a child with a mount namespace of its own, so that the mount goes with it."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").write_text("stays")
    (tmp_path / "top/mnt").mkdir(parents=True)
    what = "-t tmpfs none" if kind == "tmpfs" else "--bind other"
    script = f"""
mount {what} top/mnt && touch top/mnt/precious
{sys.executable} -c 'from pyrun.layers.remove import remove_tree; remove_tree("top")'
ls top/mnt/precious
"""
    ran = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.stdout == "top/mnt/precious\n"
    assert "mounted there" in ran.stderr
    assert (tmp_path / "other/precious").exists()
