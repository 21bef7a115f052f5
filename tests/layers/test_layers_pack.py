"""Layers as they are written: the tree comes back, other readers of tar agree, and the bytes are always the same."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrun.errors import LayerError
from pyrun.layers.owners import translated
from pyrun.layers.pack import pack
from pyrun.layers.unpack import unpack
from pyrun.storage.changes import added
from pyrun.storage.contract import Change
from pyrun.testing.trees import assert_same, snapshot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners and devices")

MTIME = 1_700_000_000 * 10**9
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One of everything that a layer can hold."""
    top = tmp_path / "tree"
    (top / "dir/sub").mkdir(parents=True)
    (top / "dir/file").write_bytes(b"content" * 1000)
    (top / "empty").touch()
    (top / "block-sized").write_bytes(b"b" * 512)
    (top / ("n" * 255)).write_text("long name")
    (top / ("h" * 100)).write_text("a name that just fits the header")
    (top / ("d" * 99)).mkdir()
    (top / ("e" * 200) / ("e" * 200)).mkdir(parents=True)
    (top / ("e" * 200) / ("e" * 200) / ("f" * 200)).write_text("long path")
    raw = os.fsencode(top)
    for name in (b"\xff\xfe \n\x1b", b"\xe4" * 150):
        with open(raw + b"/" + name, "w") as file:
            file.write("not UTF-8")
    os.symlink(b"\xff", raw + b"/to-not-utf-8")
    (top / "umlaut-ü").touch()
    (top / "link").symlink_to("dir/file")
    (top / "long-link").symlink_to("t/" * 150)
    os.link(top / "dir/file", top / "hard")
    os.link(top / "link", top / "hard-link", follow_symlinks=False)
    os.link(top / ("e" * 200) / ("e" * 200) / ("f" * 200), top / "long-hard")
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(4095, 262143))
    os.chown(top / "null", 3, 4)
    (top / "huge-ids").touch()
    os.chown(top / "huge-ids", 2_097_152, 4_294_967_294)
    os.chown(top / "link", 2_097_151, 65536, follow_symlinks=False)
    (top / "setuid").write_text("#!/bin/sh")
    (top / "setuid").chmod(0o6711)
    os.setxattr(top / "setuid", "security.capability", CAPABILITY)
    os.setxattr(top / "empty", "user.note", b"\0\n=x\xff")
    os.setxattr(top / "dir", "user.dir", b"y" * 300)
    (top / "dir/sub").chmod(0o1777)
    (top / "dir").chmod(0o2750)
    with open(top / "sparse", "wb") as file:
        for at in (0, 1 << 20, 5 << 20):
            file.seek(at)
            file.write(b"data" * 1024)
        file.truncate(9 << 20)
    with open(top / "ends-with-data", "wb") as file:
        file.seek(1 << 20)
        file.write(b"odd length")
    with open(top / ("s" * 150), "wb") as file:
        file.truncate(1 << 20)
    for name, ns in (
        ("empty", -1),
        ("dir/file", -1_500_000_000),
        ("fifo", 1),
        ("null", (1 << 33) * 10**9),
        ("block-sized", 999_999_999),
        ("setuid", 1_234_567_890_000_000_000),
    ):
        os.utime(top / name, ns=(ns, ns))
    return top


def packed(top: Path, changes: list[Change] | None = None, **more: object) -> bytes:
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        out = io.BytesIO()
        if changes is None:
            changes = [Change(b"", "modify"), *added(fd, b"")]
        length = pack(changes, fd, out, **more)  # type: ignore[arg-type]
        assert length == len(out.getvalue())
        assert length % 512 == 0
        return out.getvalue()
    finally:
        os.close(fd)


def unpacked(tar: bytes, place: Path, whiteouts: str = "apply") -> Path:
    place.mkdir(exist_ok=True)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        unpack(io.BytesIO(tar), fd, whiteouts)  # type: ignore[arg-type]
    finally:
        os.close(fd)
    return place


def names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return archive.getnames()


def test_a_tree_comes_back_as_it_was(tree: Path, tmp_path: Path) -> None:
    assert_same(str(unpacked(packed(tree), tmp_path / "out")), str(tree), directory_times=True)


def test_holes_are_not_stored(tree: Path, tmp_path: Path) -> None:
    tar = packed(tree)
    assert len(tar) < 1 << 20
    out = unpacked(tar, tmp_path / "out")
    assert (out / "sparse").stat().st_blocks * 512 < 1 << 20
    assert (out / ("s" * 150)).stat().st_blocks == 0


def test_gnu_tar_reads_it_alike(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "gnu"
    out.mkdir()
    subprocess.run(
        [
            "tar",
            "-x",
            "-p",
            "--same-owner",
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "-C",
            str(out),
        ],
        input=packed(tree),
        check=True,
    )
    assert_same(str(out), str(tree), directory_times=True)


def test_python_reads_it_alike(tree: Path) -> None:
    expected = snapshot(str(tree))
    with tarfile.open(fileobj=io.BytesIO(packed(tree)), encoding="utf-8") as archive:
        members = {os.fsencode(m.name) if m.name != "." else b"": m for m in archive.getmembers()}
        assert members.keys() == expected.keys()
        for name, node in expected.items():
            member = members[name]
            assert member.mtime == pytest.approx(os.lstat(os.fsencode(tree) + b"/" + name).st_mtime, abs=1e-6)
            assert (member.uid, member.gid) == (node.uid, node.gid)
            if member.islnk():
                assert os.fsencode(member.linkname) == node.same
                continue
            assert member.mode == node.permissions
            if member.issym():
                assert os.fsencode(member.linkname) == node.what
            elif member.isfile():
                file = archive.extractfile(member)
                assert file is not None
                content = file.read()
                assert (len(content), hashlib.sha256(content).hexdigest()) == node.what
            elif member.isdev() and not member.isfifo():
                assert os.makedev(member.devmajor, member.devminor) == node.what


def test_the_same_tree_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    first = packed(tree)
    assert packed(tree) == first
    assert packed(unpacked(first, tmp_path / "out")) == first


def test_parents_of_a_change_are_listed_once_with_their_attributes(tree: Path) -> None:
    tar = packed(
        tree, [Change(b"dir/file", "modify"), Change(b"dir/sub", "modify"), Change(b"gone", "delete")]
    )
    assert names(tar) == [".", "dir", "dir/file", "dir/sub", ".wh.gone"]
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.getmember("dir").mode == 0o2750
        assert archive.getmember("dir").pax_headers["SCHILY.xattr.user.dir"] == "y" * 300


@pytest.mark.parametrize("name", [b".wh.x", b"dir/.wh..wh..opq", b".wh.d/file"])
def test_a_name_that_means_a_deletion_is_refused(tree: Path, name: bytes) -> None:
    os.makedirs(os.path.dirname(os.fsencode(tree) + b"/" + name), exist_ok=True)
    with open(os.fsencode(tree) + b"/" + name, "w"):
        pass
    with pytest.raises(LayerError, match="can't be in a layer"):
        packed(tree)


def test_what_was_added_and_is_gone_is_left_out(tree: Path) -> None:
    gone = [
        Change(b"no", "add"),
        Change(b"no/file", "add"),
        Change(b"dir/no", "add"),
        Change(b"fifo/x", "add"),
    ]
    assert names(packed(tree, [*gone, Change(b"empty", "add")])) == [".", "dir", "empty"]


def test_what_was_modified_and_is_gone_is_deleted(tree: Path) -> None:
    assert names(packed(tree, [Change(b"dir/no", "modify")])) == [".", "dir", "dir/.wh.no"]


def test_a_deletion_in_a_directory_that_is_gone_does_not_bring_it_back(tree: Path) -> None:
    changes = [Change(b"no", "modify"), Change(b"no/file", "delete"), Change(b"no/deep/file", "delete")]
    assert names(packed(tree, changes)) == [".", ".wh.no"]


def test_a_socket_is_left_out_and_hides_what_it_replaced(tree: Path) -> None:
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    assert names(packed(tree, [Change(b"socket", "add")])) == ["."]
    assert names(packed(tree, [Change(b"socket", "modify")])) == [".", ".wh.socket"]


def test_a_hard_link_without_its_other_names_is_a_file(tree: Path) -> None:
    tar = packed(tree, [Change(b"hard", "add")])
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.getmember("hard").isfile()
        assert archive.getmember("hard").size == 7000


def test_a_hard_link_never_names_what_the_layer_lacks(tree: Path, tmp_path: Path) -> None:
    """The first name of the file vanishes, or is another file's, just before the second is written."""

    for meddle in (lambda: os.unlink(tree / "a"), lambda: (tree / "a.new").replace(tree / "a")):
        (tree / "a").write_text("shared")
        (tree / "b").unlink(missing_ok=True)
        os.link(tree / "a", tree / "b")
        (tree / "a.new").write_text("another")
        turns = iter([lambda: None, meddle])
        tar = packed(tree, [Change(b"a", "add"), Change(b"b", "add")], each=lambda: next(turns)())  # noqa: B023
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            assert archive.getmember("b").isfile()
            assert not archive.getmember("b").islnk()
    tar = packed(tree, [Change(b"missing", "add"), Change(b"b", "add")])
    assert (unpacked(tar, tmp_path / "out") / "b").read_text() == "shared"


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_a_file_that_is_cut_short_meanwhile_keeps_the_tar_whole(
    tree: Path, tmp_path: Path, size: int
) -> None:
    """The header has promised its length; what is missing reads as zeros."""
    (tree / "log").write_bytes(b"l" * 3_000_000)

    class Cutting(io.BytesIO):
        def write(self, data: bytes, /) -> int:  # type: ignore[override]
            if data.startswith(b"llll"):
                os.truncate(tree / "log", size)
            return super().write(data)

    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    out = Cutting()
    pack([Change(b"log", "add")], fd, out)
    os.close(fd)
    found = (unpacked(out.getvalue(), tmp_path / "out") / "log").read_bytes()
    assert len(found) == 3_000_000
    assert found.rstrip(b"\0") == b"l" * (1 << 20)


def test_a_device_in_a_file_s_place_is_not_opened(tree: Path, tmp_path: Path) -> None:
    """A tape or a watchdog does something when it is opened; a fifo waits. By number 0:0 nothing can be opened."""
    os.mknod(tree / "odd", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    with tarfile.open(
        fileobj=io.BytesIO(packed(tree, [Change(b"odd", "add"), Change(b"fifo", "modify")]))
    ) as archive:
        assert archive.getmember("odd").ischr()
        assert archive.getmember("fifo").isfifo()


def test_more_directories_than_are_kept_open(tree: Path, tmp_path: Path) -> None:
    for number in range(300):
        (tree / f"many/{number:03}").mkdir(parents=True)
        (tree / f"many/{number:03}/file").touch()
    for number in range(150):  # to files whose directories were closed long since
        os.link(tree / f"many/{number:03}/file", tree / f"many/{299 - number:03}/link")
    before = len(os.listdir("/proc/self/fd"))
    tar = packed(tree)
    assert len(os.listdir("/proc/self/fd")) == before
    assert_same(str(unpacked(tar, tmp_path / "out")), str(tree), directory_times=True)


def test_deletions_take_effect(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    unpacked(packed(tree), copy)
    shutil.rmtree(tree / "dir")
    (tree / "empty").unlink()
    (tree / "dir").write_text("now a file")
    unpacked(packed(tree, [Change(b"dir", "modify"), Change(b"empty", "delete")]), copy)
    # "hard" was the same file as dir/file, and is one by itself now.
    assert_same(str(copy), str(tree))


# --- owners


def shifted(uid: int, gid: int) -> tuple[int, int]:
    return uid - 1000, gid - 2000


def test_owners_are_translated_everywhere(tree: Path) -> None:
    for name in ("dir", "dir/file", "link", "fifo", "setuid"):
        os.chown(tree / name, 1005, 2006, follow_symlinks=False)
    os.chown(tree, 1000, 2000)
    chosen = [Change(os.fsencode(n), "modify") for n in ("dir", "dir/file", "link", "fifo", "setuid")]
    with tarfile.open(fileobj=io.BytesIO(packed(tree, chosen, owner=shifted))) as archive:
        for member in archive:
            assert (member.uid, member.gid) == ((0, 0) if member.name == "." else (5, 6)), member.name


def _acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_ids_in_an_acl_are_translated() -> None:
    none = 0xFFFFFFFF
    shown = _acl((1, 6, none), (2, 4, 1007), (4, 4, none), (8, 6, 2009), (16, 6, none), (32, 0, none))
    stored = _acl((1, 6, none), (2, 4, 7), (4, 4, none), (8, 6, 9), (16, 6, none), (32, 0, none))
    for name in (b"system.posix_acl_access", b"system.posix_acl_default"):
        assert translated(name, shown, shifted) == stored
    assert translated(b"user.posix_acl_access", shown, shifted) == shown


def test_a_capability_of_the_containers_root_is_one_of_the_layers_root() -> None:
    data = struct.pack("<IIII", 0x400, 0, 0, 0)
    of_root = struct.pack("<I", 0x03000001) + data + struct.pack("<I", 1000)
    assert translated(b"security.capability", of_root, shifted) == struct.pack("<I", 0x02000001) + data
    of_another = struct.pack("<I", 0x03000001) + data + struct.pack("<I", 1042)
    expected = struct.pack("<I", 0x03000001) + data + struct.pack("<I", 42)
    assert translated(b"security.capability", of_another, shifted) == expected
    assert translated(b"security.capability", CAPABILITY, shifted) == CAPABILITY


@pytest.mark.parametrize("value", [b"", b"\2", b"\2\0\0\0x", b"\3\0\0\0" + bytes(8), bytes(24), bytes(19)])
def test_attributes_in_no_known_form_stay_as_they_are(value: bytes) -> None:
    def never(uid: int, gid: int) -> tuple[int, int]:
        raise AssertionError

    translate: Callable[[int, int], tuple[int, int]] = never
    for name in (b"system.posix_acl_access", b"security.capability"):
        assert translated(name, value, translate) == value


def test_a_hard_link_has_the_attributes_of_its_file(tmp_path: Path) -> None:
    """tarfile and docker give a link's mode to the file, and docker its owner, which takes capabilities off."""
    (tmp_path / "a").touch()
    os.chmod(tmp_path / "a", 0o4751)
    os.setxattr(tmp_path / "a", "security.capability", CAPABILITY)
    os.link(tmp_path / "a", tmp_path / "b")
    out = io.BytesIO()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        pack([Change(b"a", "add"), Change(b"b", "add")], fd, out)
    finally:
        os.close(fd)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        link = tar.getmember("b")
        assert link.islnk()
        assert link.mode == tar.getmember("a").mode == 0o4751
        assert "SCHILY.xattr.security.capability" in link.pax_headers
