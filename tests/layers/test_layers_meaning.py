"""What a benign layer means: the same tree as GNU tar makes of it, and the same union in every form."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rawtar import END, Stream, directory, extract, file, gnu, hardlink, header, merged, pax, symlink, tree

from pyrun.errors import LayerError
from pyrun.layers.tar import TarReader
from pyrun.layers.unpack import unpack

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs uid 0: device nodes, chown and overlay mounts"
)

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep


@pytest.fixture
def benign(tmp_path: Path) -> Path:
    """A tree with one of everything that a tar can hold."""
    top = tmp_path / "benign"
    (top / "dir/sub").mkdir(parents=True)
    (top / "dir/file").write_bytes(b"content" * 1000)
    (top / "empty").touch()
    (top / ("n" * 255)).write_text("long name")
    (top / ("d" * 200) / ("e" * 200)).mkdir(parents=True)
    (top / ("d" * 200) / ("e" * 200) / ("f" * 200)).write_text("long path")
    with open(os.fsencode(top) + b"/\xff\xfe \n\x1b", "w") as opened:
        opened.write("not UTF-8")
    (top / "link").symlink_to("dir/file")
    (top / "long-link").symlink_to("t/" * 150)
    (top / "dangling").symlink_to("/nowhere")
    os.link(top / "dir/file", top / "hard")
    os.link(top / "link", top / "hard-link", follow_symlinks=False)
    os.mkfifo(top / "fifo", 0o640)
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(top / "block", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    os.chown(top / "null", 3, 4)
    (top / "script").write_text("#!/bin/sh")
    os.chown(top / "script", 1000, 3_000_000_000)
    (top / "script").chmod(0o6711)
    os.setxattr(top / "script", "security.capability", CAPABILITY)
    os.setxattr(top / "empty", "user.note", b"\0\n=x")
    os.setxattr(top / "dir", "user.dir", b"y" * 300)
    (top / "dir/sub").chmod(0o1777)
    (top / "dir").chmod(0o2750)
    with open(top / "sparse", "wb") as opened:
        for at in (0, 1 << 20, 5 << 20):
            opened.seek(at)
            opened.write(b"data" * 1024)
        opened.truncate(9 << 20)
    for name, ns in (("empty", 1_234_567_890_123_456_789), ("script", -1_500_000_001), ("dir/sub", 5)):
        os.utime(top / name, ns=(0, ns))
    os.utime(top / "link", ns=(0, 77), follow_symlinks=False)
    os.utime(top / "dir", ns=(0, 1))
    return top


def gnu_tar(*args: str | Path) -> None:
    subprocess.run(["tar", *map(str, args)], check=True)


@pytest.mark.parametrize("step", [1 << 20, 513, 4096])
@pytest.mark.parametrize(
    "options",
    [
        ["--format=posix", "--xattrs", "--xattrs-include=*"],
        ["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--sparse-version=1.0"],
        ["--format=gnu"],
        ["--format=gnu", "--sparse"],
    ],
    ids=" ".join,
)
def test_a_tree_comes_out_as_gnu_tar_extracts_it(
    tmp_path: Path, benign: Path, options: list[str], step: int
) -> None:
    archive = tmp_path / "layer.tar"
    gnu_tar("-C", benign, "--numeric-owner", *options, "-cf", archive, ".")
    (tmp_path / "oracle").mkdir()
    gnu_tar("-C", tmp_path / "oracle", "-xpf", archive, "--numeric-owner", "--xattrs", "--xattrs-include=*")
    (tmp_path / "root").mkdir()
    fd = os.open(tmp_path / "root", os.O_RDONLY)
    done = unpack(Stream(archive.read_bytes(), step), fd, "overlay")
    os.close(fd)
    assert tree(tmp_path / "root") == tree(tmp_path / "oracle")
    assert done.implied == []
    assert done.bytes == archive.stat().st_size
    assert done.entries == len(tree(benign)) + 1
    if "--sparse" in options:
        assert (tmp_path / "root/sparse").stat().st_blocks * 512 < 1 << 20


def test_offsets_point_at_the_content_in_the_stream(tmp_path: Path, benign: Path) -> None:
    archive = tmp_path / "layer.tar"
    gnu_tar("-C", benign, "--format=posix", "--sparse", "-cf", archive, ".")
    data = archive.read_bytes()
    checked = 0
    for entry in TarReader(Stream(data, 777)):
        if entry.type != "file":
            assert (entry.size, entry.stored) == (0, 0)
            continue
        stored = data[entry.offset : entry.offset + entry.stored]
        content = bytearray(entry.size)
        at = 0
        for offset, length in entry.sparse if entry.sparse is not None else [(0, entry.size)]:
            content[offset : offset + length] = stored[at : at + length]
            at += length
        with open(os.path.join(os.fsencode(benign), entry.name), "rb") as opened:
            assert opened.read() == content
        checked += 1
    assert checked > 5


def test_content_can_be_read_while_iterating() -> None:
    reader = TarReader(Stream(file(b"a", b"x" * 700) + file(b"b", b"yy") + END, 100))
    assert next(reader).name == b"a"
    assert reader.read(10) + reader.read(1000) + reader.read(5) == b"x" * 700
    assert next(reader).name == b"b"
    assert [*reader] == []


def test_a_file_of_more_than_8_gib_is_extracted(tmp_path: Path) -> None:
    with open(tmp_path / "huge", "wb") as opened:
        opened.truncate(9 << 30)
        opened.seek(8 << 30)
        opened.write(b"end")
    gnu_tar("-C", tmp_path, "--sparse", "--format=posix", "-cf", tmp_path / "layer.tar", "huge")
    extract(tmp_path / "root", (tmp_path / "layer.tar").read_bytes())
    assert (tmp_path / "root/huge").stat().st_size == 9 << 30
    assert (tmp_path / "root/huge").stat().st_blocks < 100


def test_a_directory_of_70000_entries_is_extracted(tmp_path: Path) -> None:
    extract(tmp_path / "root", directory(b"d"), *(header(b"d/%d" % i) for i in range(70_000)))
    assert len(os.listdir(tmp_path / "root/d")) == 70_000


# --- formats


def test_a_v7_directory_is_known_by_its_slash(tmp_path: Path) -> None:
    extract(tmp_path / "root", header(b"d/", b"\0", magic=b"", mode=0o700), header(b"f", b"\0", magic=b""))
    assert (tmp_path / "root/d").is_dir()
    assert (tmp_path / "root/f").is_file()


def test_a_prefix_counts_for_ustar_and_not_for_gnu(tmp_path: Path) -> None:
    extract(
        tmp_path / "root",
        header(b"a", prefix=b"p/q"),
        header(b"b", magic=b"ustar  \0", tail=b"12345670123\x0012345670123\0"),
    )
    assert (tmp_path / "root/p/q/a").exists()
    assert (tmp_path / "root/b").exists()


def test_sizes_of_what_has_no_content_are_ignored(tmp_path: Path) -> None:
    """As Go's reader does, which every image in the field was made with or checked by."""
    extract(
        tmp_path / "root", header(b"d", b"5", size=4096), file(b"f"), header(b"l", b"1", size=99, link=b"f")
    )
    assert sorted(os.listdir(tmp_path / "root")) == ["d", "f", "l"]


def test_a_global_pax_header_holds_until_the_next(tmp_path: Path) -> None:
    extract(
        tmp_path / "root",
        pax((b"uid", b"5"), (b"comment", b"x"), type=b"g"),
        file(b"a"),
        pax((b"uid", b"6")),
        file(b"b"),
        pax((b"uid", b""), type=b"g"),
        file(b"c", uid=7),
    )
    assert [(tmp_path / "root" / name).stat().st_uid for name in "abc"] == [5, 6, 7]


def test_gnu_long_names_and_targets_are_used(tmp_path: Path) -> None:
    name, target = b"n/" * 100 + b"x", b"t" * 300
    extract(tmp_path / "root", gnu(b"K", target), gnu(b"L", name), symlink(name, b""))
    assert os.readlink(os.path.join(os.fsencode(tmp_path / "root"), name)) == target


# --- one layer


def test_of_a_name_given_twice_the_last_holds(tmp_path: Path) -> None:
    kinds = {
        "file": file(b"x", b"new"),
        "dir": directory(b"x") + file(b"x/new"),
        "symlink": symlink(b"x", b"new"),
        "link": hardlink(b"x", b"other"),
        "fifo": header(b"x", b"6"),
    }
    old = {**kinds, "full": directory(b"x/y/z", uid=3) + file(b"x/y/z/f")}
    for first, before in old.items():
        for second, after in kinds.items():
            for form in "overlay", "apply":
                root = tmp_path / first / second / form
                extract(root, file(b"other", b"o"), before, after, whiteouts=form)
                expected = tmp_path / "expected" / first / second / form
                extract(expected, file(b"other", b"o"), after)
                if first in ("dir", "full") and second == "dir":
                    assert (root / "x/new").exists()
                else:
                    assert tree(root) == tree(expected)


def test_parents_that_the_tar_omits_are_made_and_named(tmp_path: Path) -> None:
    done = extract(
        tmp_path / "root",
        file(b"a/b/c"),
        directory(b"a", mode=0o700, mtime=9),
        file(b"gone/x"),
        file(b"gone"),
    )
    assert done.implied == [b"", b"a/b"]
    st = (tmp_path / "root/a/b").stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns) == (0o755, 0, 0, 0)
    assert stat.S_IMODE((tmp_path / "root/a").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "root").stat().st_mode) == 0o755


def test_the_root_has_the_attributes_that_the_layer_gives_it(tmp_path: Path) -> None:
    done = extract(tmp_path / "root", directory(b"./", mode=0o1771, uid=5, gid=6, mtime=99), file(b"x"))
    st = (tmp_path / "root").stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime) == (0o1771, 5, 6, 99)
    assert done.implied == []


def test_entries_below_a_symlinked_parent_go_to_its_target(tmp_path: Path) -> None:
    extract(
        tmp_path / "root",
        directory(b"usr/lib"),
        symlink(b"lib", b"usr/lib"),
        symlink(b"abs", b"/usr/../usr/lib"),
        file(b"lib/one"),
        directory(b"abs/two", mode=0o700, uid=5, mtime=44),
        file(b"abs/two/three"),
    )
    assert sorted(os.listdir(tmp_path / "root/usr/lib")) == ["one", "two"]
    st = (tmp_path / "root/usr/lib/two").stat()
    assert (st.st_uid, st.st_mtime) == (5, 44)


def test_the_umask_of_the_process_matters_not(tmp_path: Path) -> None:
    umask = os.umask(0o77)
    try:
        extract(tmp_path / "root", file(b"f", mode=0o666), header(b"p", b"6", mode=0o622))
        assert os.umask(0o77) == 0o77
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "root/f").stat().st_mode) == 0o666
    assert stat.S_IMODE((tmp_path / "root/p").stat().st_mode) == 0o622


def in_user_namespace(code: str, where: Path) -> subprocess.CompletedProcess[str]:
    """Run Python ``code`` as root of a user namespace that maps one ID."""
    python = f"import sys; sys.path[:0] = {[os.path.dirname(__file__)]!r}; from rawtar import *; {code}"
    return subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", python],
        cwd=where,
        capture_output=True,
        text=True,
    )


def test_rootless_refuses_a_device_node_and_makes_a_fifo(tmp_path: Path) -> None:
    code = (
        """extract('root', header(b'p', b'6'), header(b'dev/null', b'3', major=1, minor=3), devices=False)"""
    )
    ran = in_user_namespace(code, tmp_path)
    assert "'dev/null'" in ran.stderr
    assert "rootless can't make device nodes" in ran.stderr
    assert stat.S_ISFIFO((tmp_path / "root/p").stat().st_mode)


def test_a_single_id_keeps_the_files_of_others(tmp_path: Path) -> None:
    members = "file(b'f', uid=5, gid=5), directory(b'd', uid=9), symlink(b's', b'x', gid=3)"
    code = f"extract('root', {members}, single_uid=%s)"
    assert in_user_namespace(code % True, tmp_path).returncode == 0
    assert (tmp_path / "root/f").stat().st_uid == 0
    shutil.rmtree(tmp_path / "root")
    ran = in_user_namespace(code % False, tmp_path)
    assert "'f': owner 5:5 is not mapped" in ran.stderr
    assert "/etc/subuid" in ran.stderr


def test_access_lists_and_capabilities_of_ids_that_a_namespace_lacks(tmp_path: Path) -> None:
    acl = "02000000 01000600ffffffff 0200040005000000 04000400ffffffff 10000400ffffffff 20000000ffffffff"
    capability = "01000003 00040000 00000000 00000000 00000000 e8030000"
    code = "extract('root', pax((b'SCHILY.xattr.%s', bytes.fromhex('%s'))), file(b'f'), devices=False, single_uid=%s)"
    squashed = in_user_namespace(code % ("system.posix_acl_access", acl, True), tmp_path)
    assert squashed.returncode == 0, squashed.stderr
    assert os.listxattr(tmp_path / "root/f") == []
    shutil.rmtree(tmp_path / "root")
    ran = in_user_namespace(code % ("system.posix_acl_access", acl, False), tmp_path)
    assert "'f': an ID in its access list is not mapped" in ran.stderr
    shutil.rmtree(tmp_path / "root")
    ran = in_user_namespace(code % ("security.capability", capability, True), tmp_path)
    assert "'f': the root user that a capability is for is not mapped" in ran.stderr


# --- layers in a real overlay mount

BASE = [
    directory(b"d", mode=0o751, uid=1),
    directory(b"d/e"),
    file(b"d/e/deep", b"base"),
    file(b"d/one", b"base"),
    file(b"f", b"base", mtime=5),
    symlink(b"s", b"d"),
]


def union(tmp_path: Path, *layers: list[bytes]) -> dict[bytes, tuple[object, ...]]:
    """The union of the layers, found to be the same by overlay mount and by deleting in place."""
    for i, members in enumerate(layers):
        extract(tmp_path / f"l{i}", *members)
        extract(tmp_path / "applied", *members, whiteouts="apply")
    mounted = merged(tmp_path, [f"l{i}" for i in range(len(layers))])
    assert tree(tmp_path / "applied") == mounted
    return mounted


def names(found: dict[bytes, tuple[object, ...]]) -> set[bytes]:
    return set(found)


def test_a_deleted_file_stays_deleted_after_the_next_layer(tmp_path: Path) -> None:
    found = union(tmp_path, BASE, [file(b".wh.f")], [file(b"g")])
    assert b"f" not in found
    assert b"g" in found


def test_a_deleted_directory_made_again_shows_only_what_is_new(tmp_path: Path) -> None:
    for i, again in enumerate(
        (
            [file(b".wh.d"), directory(b"d", mode=0o700), file(b"d/new")],
            [directory(b"d", mode=0o700), file(b"d/new"), file(b".wh.d")],
            [directory(b"d", mode=0o700), file(b".wh.d"), file(b"d/new")],
            [directory(b"d", mode=0o700), file(b"d/.wh..wh..opq"), file(b"d/new")],
            [directory(b"d", mode=0o700), file(b"d/new"), file(b"d/.wh..wh..opq")],
            [file(b"d", b"file"), directory(b"d", mode=0o700), file(b"d/new")],
            [file(b".wh.d"), file(b"d/new")],
            [file(b"d/new"), file(b".wh.d")],
        )
    ):
        found = union(tmp_path / str(i), BASE, again)
        assert names(found) == {b"d", b"d/new", b"f", b"s"}


def test_opaque_hides_two_levels_down_and_spares_the_layers_own(tmp_path: Path) -> None:
    own = [directory(b"d", mode=0o700), directory(b"d/e", mode=0o711), file(b"d/e/mine")]
    for i, layer in enumerate(([*own, file(b"d/.wh..wh..opq")], [own[0], file(b"d/.wh..wh..opq"), *own[1:]])):
        found = union(tmp_path / str(i), BASE, layer)
        assert names(found) == {b"d", b"d/e", b"d/e/mine", b"f", b"s"}


def test_delete_add_delete_over_three_layers(tmp_path: Path) -> None:
    found = union(tmp_path, BASE, [file(b".wh.f")], [file(b"f", b"again")], [file(b".wh.f")])
    assert b"f" not in found


def test_a_whiteout_of_nothing_is_harmless(tmp_path: Path) -> None:
    assert names(union(tmp_path, BASE, [file(b".wh.nothing"), file(b".wh.nothing")])) == names(
        tree(tmp_path / "l0")
    )


def test_a_whiteout_in_a_directory_that_no_other_layer_has_is_not_listed(tmp_path: Path) -> None:
    own = [directory(b"own"), file(b"own/.wh.nothing")]
    opaque = [directory(b"d"), file(b"d/.wh..wh..opq"), file(b"d/.wh.one")]
    assert names(union(tmp_path, BASE, own, opaque)) == {b"d", b"f", b"own", b"s"}


def test_a_whiteout_and_an_add_of_one_name_leave_the_added_in_either_order(tmp_path: Path) -> None:
    for i, layer in enumerate(([file(b".wh.f"), file(b"f", b"new")], [file(b"f", b"new"), file(b".wh.f")])):
        assert union(tmp_path / str(i), BASE, layer)[b"f"][4] == b"new"


def test_files_directories_and_symlinks_take_each_others_place(tmp_path: Path) -> None:
    kinds = [
        [file(b"x", b"f")],
        [directory(b"x"), file(b"x/in")],
        [symlink(b"x", b"f")],
        [header(b"x", b"6")],
    ]
    for i, lower in enumerate(kinds):
        for j, upper in enumerate(kinds):
            found = union(tmp_path / f"{i}{j}", lower, upper, [file(b"y")])
            assert names(found) == {b"x", b"y"} | ({b"x/in"} if j == 1 else set())


def test_a_layer_of_attributes_only_changes_attributes(tmp_path: Path) -> None:
    found = union(
        tmp_path,
        BASE,
        [
            directory(b"d", mode=0o1777, uid=7, mtime=3),
            pax((b"SCHILY.xattr.user.a", b"b")),
            directory(b"d/e"),
        ],
    )
    assert found[b"d"][1:4] == (0o1777, 7, 0)
    assert found[b"d/e"][6] == (("user.a", b"b"),)
    assert b"d/one" in found


def test_attributes_from_below_do_not_shine_through(tmp_path: Path) -> None:
    acl = bytes.fromhex("02000000 01000700ffffffff 04000000ffffffff 10000700ffffffff 20000000ffffffff")
    lower = [
        pax(
            (b"SCHILY.xattr.user.a", b"1"),
            (b"SCHILY.xattr.security.mark", b"1"),
            (b"SCHILY.xattr.system.posix_acl_default", acl),
        ),
        directory(b"d", mode=0o2777, gid=9),
    ]
    found = union(tmp_path, lower, [directory(b"d"), file(b"d/f"), directory(b"d/e")])
    assert found[b"d"][1:4] == (0o755, 0, 0)
    assert found[b"d"][6] == found[b"d/f"][6] == found[b"d/e"][6] == ()


def test_a_directory_from_below_that_is_not_listed_keeps_its_attributes_when_applied(tmp_path: Path) -> None:
    extract(tmp_path / "root", directory(b"d", mode=0o1777, uid=4, mtime=12), whiteouts="apply")
    extract(tmp_path / "root", file(b"d/f"), whiteouts="apply")
    st = (tmp_path / "root/d").stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_mtime) == (0o1777, 4, 12)


def test_an_update_of_same_size_and_second_is_kept(tmp_path: Path) -> None:
    assert union(tmp_path, BASE, [file(b"f", b"BASE", mtime=5)])[b"f"][4] == b"BASE"


def test_an_update_of_a_hard_linked_file_leaves_its_other_name(tmp_path: Path) -> None:
    found = union(tmp_path, [file(b"a", b"old"), hardlink(b"b", b"a")], [file(b"a", b"new")])
    assert (found[b"a"][4], found[b"b"][4]) == (b"new", b"old")


def test_an_applied_hard_link_may_point_to_the_layers_below(tmp_path: Path) -> None:
    extract(tmp_path / "root", file(b"a", b"x"), whiteouts="apply")
    extract(tmp_path / "root", hardlink(b"b", b"a"), whiteouts="apply")
    assert (tmp_path / "root/b").stat().st_nlink == 2
    with pytest.raises(LayerError, match=r"'b'.*lacks"):
        extract(tmp_path / "other", hardlink(b"b", b"a"))


def test_an_opaque_root_is_reported_for_the_kernel_ignores_it(tmp_path: Path) -> None:
    assert extract(tmp_path / "l0", *BASE).opaque_root is False
    assert extract(tmp_path / "l1", file(b"new"), file(b".wh..wh..opq")).opaque_root is True
    extract(tmp_path / "applied", *BASE, whiteouts="apply")
    extract(tmp_path / "applied", file(b"new"), file(b".wh..wh..opq"), whiteouts="apply")
    assert names(merged(tmp_path, ["l1"])) == names(tree(tmp_path / "applied")) == {b"new"}


def test_the_userxattr_form_marks_with_user_attributes(tmp_path: Path) -> None:
    extract(
        tmp_path / "root", directory(b"d"), file(b"d/.wh..wh..opq"), file(b".wh.x"), whiteouts="userxattr"
    )
    assert os.listxattr(tmp_path / "root/d") == ["user.overlay.opaque"]
    st = (tmp_path / "root/x").lstat()
    assert stat.S_ISCHR(st.st_mode)
    assert st.st_rdev == 0


def test_the_userxattr_form_means_the_same_under_a_userxattr_mount(tmp_path: Path) -> None:
    layer = [
        directory(b"d", mode=0o700),
        file(b"d/.wh..wh..opq"),
        file(b"d/new"),
        file(b"d/.wh.no"),
        file(b".wh.f"),
    ]
    for i, members in enumerate((BASE, layer)):
        extract(tmp_path / f"l{i}", *members, whiteouts="userxattr")
    assert names(merged(tmp_path, ["l0", "l1"], userxattr=True)) == {b"d", b"d/new", b"s"}


def test_capabilities_and_owners_are_seen_through_the_mount(tmp_path: Path) -> None:
    found = union(
        tmp_path,
        [pax((b"SCHILY.xattr.security.capability", CAPABILITY)), file(b"ping", b"x", mode=0o755, uid=3)],
    )
    assert found[b"ping"][2] == 3
    assert dict(found[b"ping"][6]) == {"security.capability": CAPABILITY}


def test_a_socket_beside_the_store_is_none_of_a_tars_business(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        gnu_tar("-C", tmp_path, "--warning=no-file-ignored", "-cf", tmp_path / "layer.tar", "s")
    assert list(TarReader(Stream((tmp_path / "layer.tar").read_bytes()))) == []
