"""Cases of section B: what layers mean when they are stacked (OCI image spec, layer.md, "Applying Changesets").

Nearly all go through `oracle.merged` (a stack in every manner it can be shown) or `oracle.changed` (a change in a
rootfs: at once, after a remount, committed), which compare with a plain directory. What the outcome is, is spelt
out beside that: the oracle is made by the same unpacker as the layers of many drivers.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import stat
import struct
from errno import EINVAL, EOPNOTSUPP, EPERM

import pytest

from ..errors import LayerError
from .oracle import changed, merged, plain
from .rig import Rig
from .tars import (
    MTIME,
    Device,
    Dir,
    Fifo,
    File,
    Link,
    Member,
    Opaque,
    Sparse,
    Symlink,
    Whiteout,
    many,
    tar,
)
from .trees import snapshot

MIB = 1 << 20

# vfs_cap_data of linux/capability.h: CAP_NET_BIND_SERVICE, permitted and effective; revision 3 names the root
# user of the namespace that the capability is for.
CAPABILITY_2 = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
CAPABILITY_3 = struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, 1000)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel takes it (linux/posix_acl_xattr.h): (tag, permissions, id) each."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


# user::rw- user:5:r-- group::r-- mask::r-- other::---
ACL = acl((1, 6, 0xFFFFFFFF), (2, 4, 5), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))


class LayerCases:
    """Cases that need the fixture ``rig``."""

    long: bool

    def test_15_a_deleted_file_is_hidden(self, rig: Rig) -> None:
        base = tar(Dir("d"), File("d/gone"), File("d/stays"), File("gone"), Symlink("gone-link", "d"))
        tree = merged(rig, base, tar(Whiteout("d/gone"), Whiteout("gone"), Whiteout("gone-link")))
        assert set(tree) == {b"", b"d", b"d/stays"}

    def test_15a_a_file_deleted_in_a_rootfs_stays_deleted(self, rig: Rig) -> None:
        def delete(root: str) -> None:
            os.unlink(f"{root}/d/gone")

        tree = changed(rig, delete, tar(Dir("d"), File("d/gone"), File("d/stays")))
        assert set(tree) == {b"", b"d", b"d/stays"}

    def test_15b_a_deleted_directory_is_hidden_with_all_below_it(self, rig: Rig) -> None:
        base = tar(Dir("d"), Dir("d/sub"), File("d/sub/file"), File("other"))
        assert set(merged(rig, base, tar(Whiteout("d")))) == {b"", b"other"}
        assert set(changed(rig, lambda root: shutil.rmtree(f"{root}/d"), base)) == {b"", b"other"}

    def test_16_a_directory_removed_and_made_again_has_only_what_is_new(self, rig: Rig) -> None:
        base = tar(Dir("d", 0o700), File("d/old"), Dir("d/sub"), File("d/sub/old"))
        for again in (
            tar(Whiteout("d"), Dir("d"), File("d/new", b"n")),
            tar(Dir("d"), File("d/new", b"n"), Whiteout("d")),
            tar(Dir("d"), Opaque("d"), File("d/new", b"n")),
            tar(Dir("d"), File("d/new", b"n"), Opaque("d")),
        ):
            tree = merged(rig, base, again)
            assert set(tree) == {b"", b"d", b"d/new"}
            assert tree[b"d"].permissions == 0o755

    def test_16a_a_directory_removed_and_made_again_in_a_rootfs_is_empty(self, rig: Rig) -> None:
        def again(root: str) -> None:
            shutil.rmtree(f"{root}/d")
            os.mkdir(f"{root}/d", 0o755)
            assert os.listdir(f"{root}/d") == []
            os.mkdir(f"{root}/d/sub", 0o755)

        base = tar(Dir("d"), File("d/old"), Dir("d/sub"), File("d/sub/old"))
        assert set(changed(rig, again, base)) == {b"", b"d", b"d/sub"}

    def test_17_an_opaque_directory_hides_what_lies_deeper(self, rig: Rig) -> None:
        base = tar(Dir("a"), Dir("a/b"), Dir("a/b/c"), File("a/b/c/old"), File("a/b/old"), File("a/old"))
        tree = merged(rig, base, tar(Opaque("a/b/c"), File("a/b/c/new")))
        assert set(tree) == {b"", b"a", b"a/old", b"a/b", b"a/b/old", b"a/b/c", b"a/b/c/new"}
        tree = merged(rig, base, tar(Opaque("a"), Dir("a/b"), Dir("a/b/c"), File("a/b/c/new")))
        assert set(tree) == {b"", b"a", b"a/b", b"a/b/c", b"a/b/c/new"}

    def test_18_deleted_added_and_deleted_again_over_three_layers(self, rig: Rig) -> None:
        base = tar(File("f", b"1"), Dir("d"), File("d/1"), File("z"))
        gone = tar(Whiteout("f"), Whiteout("d"))
        back = tar(File("f", b"2"), Dir("d"), File("d/2"))
        assert set(merged(rig, base, gone)) == {b"", b"z"}
        tree = merged(rig, base, gone, back)
        assert set(tree) == {b"", b"d", b"d/2", b"f", b"z"}
        assert tree[b"f"].holds(b"2")
        again = tar(Whiteout("d"), Whiteout("f"), File("x"))  # another layer than the first deletion
        assert set(merged(rig, base, gone, back, again)) == {b"", b"x", b"z"}

    def test_19_a_whiteout_of_a_missing_name_is_harmless(self, rig: Rig) -> None:
        base = tar(Dir("d"), File("d/f"), Whiteout("never"), Whiteout("d/never"))
        assert set(merged(rig, base)) == {b"", b"d", b"d/f"}
        over = tar(Whiteout("none"), Whiteout("d/none"), Dir("new"), Whiteout("new/none"))
        assert set(merged(rig, base, over)) == {b"", b"d", b"d/f", b"new"}
        assert set(merged(rig, over)) == {b"", b"d", b"new"}

    def test_20_what_a_layer_adds_wins_over_its_own_whiteout_in_either_order(self, rig: Rig) -> None:
        base = tar(File("f", b"old"), Dir("d"), File("d/old"))
        for members in (
            [Whiteout("f"), File("f", b"new"), Whiteout("d"), Dir("d"), File("d/new")],
            [File("f", b"new"), Whiteout("f"), Dir("d"), File("d/new"), Whiteout("d")],
        ):
            tree = merged(rig, base, tar(*members))
            assert set(tree) == {b"", b"d", b"d/new", b"f"}
            assert tree[b"f"].holds(b"new")

    @pytest.mark.parametrize("seed", range(6))
    def test_20a_random_layers_show_what_they_leave_when_applied(self, rig: Rig, seed: int) -> None:
        dice = random.Random(seed)
        merged(rig, *(_random_layer(dice) for _ in range(4)))

    def test_21_files_directories_and_links_take_each_others_place(self, rig: Rig) -> None:
        base = tar(
            File("file-dir"), Dir("dir-file"), File("dir-file/x"), Symlink("link-dir", "dir-file"),
            Dir("dir-link"), File("dir-link/x"), File("file-link"), Symlink("link-file", "file-dir"),
            Fifo("fifo-file"), File("file-fifo"),
        )  # fmt: skip
        flipped = tar(
            Dir("file-dir"), File("file-dir/y"), File("dir-file", b"f"), Dir("link-dir"), File("link-dir/y"),
            Symlink("dir-link", "link-dir"), Symlink("file-link", "gone"), File("link-file", b"f"),
            File("fifo-file", b"f"), Fifo("file-fifo"),
        )  # fmt: skip
        tree = merged(rig, base, flipped)
        assert {name.decode(): node.kind for name, node in tree.items()} == {
            "": "dir", "dir-file": "file", "dir-link": "symlink", "fifo-file": "file", "file-dir": "dir",
            "file-dir/y": "file", "file-fifo": "fifo", "file-link": "symlink", "link-dir": "dir",
            "link-dir/y": "file", "link-file": "file",
        }  # fmt: skip
        assert tree[b"link-file"].holds(b"f")
        # And back again: what the lowest layer had in the directories must not come out.
        assert set(merged(rig, base, flipped, base)) == set(merged(rig, base))

    def test_21a_files_directories_and_links_take_each_others_place_in_a_rootfs(self, rig: Rig) -> None:
        def flip(root: str) -> None:
            os.unlink(f"{root}/file")
            os.mkdir(f"{root}/file", 0o755)
            shutil.rmtree(f"{root}/dir")
            os.close(os.open(f"{root}/dir", os.O_CREAT | os.O_WRONLY, 0o644))
            os.unlink(f"{root}/link")
            os.mkdir(f"{root}/link", 0o755)

        tree = changed(rig, flip, tar(File("file"), Dir("dir"), File("dir/x"), Symlink("link", "dir")))
        assert {name: node.kind for name, node in tree.items()} == {
            b"": "dir",
            b"dir": "file",
            b"file": "dir",
            b"link": "dir",
        }

    def test_22_a_layer_that_only_changes_owners_keeps_everything_else(self, rig: Rig) -> None:
        uid, gid = (0, 0) if rig.env.single_uid else (5, 6)
        base = tar(File("f", b"text", mode=0o640), Dir("d", 0o750), File("d/inside", b"in"))
        over = tar(File("f", b"text", mode=0o640, uid=uid, gid=gid), Dir("d", 0o750, uid=uid, gid=gid))
        tree = merged(rig, base, over)
        assert (tree[b"f"].uid, tree[b"f"].gid, tree[b"f"].permissions) == (uid, gid, 0o640)
        assert (tree[b"d"].uid, tree[b"d"].gid, tree[b"d"].permissions) == (uid, gid, 0o750)
        assert tree[b"f"].holds(b"text")
        assert tree[b"d/inside"].uid == 0

    def test_22a_a_change_of_owner_in_a_rootfs_keeps_everything_else(self, rig: Rig) -> None:
        base = tar(
            File("f", b"text", mode=0o640), Dir("d", 0o750), File("d/in", b"in"), Symlink("l", "f"), Fifo("p")
        )
        if rig.env.single_uid:
            with rig.rootfs(rig.stack(base)) as root, pytest.raises(OSError) as raised:
                os.chown(f"{root.path}/f", 5, 6)
            assert raised.value.errno in (EINVAL, EPERM)
            return

        def give_away(root: str) -> None:
            for name in ("f", "d", "l", "p"):
                os.chown(f"{root}/{name}", 5, 6, follow_symlinks=False)

        tree = changed(rig, give_away, base, times=True)
        assert {n for n, node in tree.items() if (node.uid, node.gid) == (5, 6)} == {b"f", b"d", b"l", b"p"}
        assert tree[b"f"].holds(b"text")
        assert tree[b"d"].permissions == 0o750

    def test_23_directory_permissions_survive_commit(self, rig: Rig) -> None:
        modes = {"tmp": 0o1777, "private": 0o700, "group": 0o2755, "none": 0o000, "old": 0o711}

        def work(root: str) -> None:
            for name, mode in modes.items():
                if name != "old":
                    os.mkdir(f"{root}/{name}")
                os.chmod(f"{root}/{name}", mode)
            os.chmod(f"{root}/kept/inner", 0o1770)
            os.chmod(root, 0o750)

        tree = changed(rig, work, tar(Dir("old"), Dir("kept", 0o2750), Dir("kept/inner")))
        assert {name: tree[name.encode()].permissions for name in modes} == modes
        assert (tree[b"kept"].permissions, tree[b"kept/inner"].permissions) == (0o2750, 0o1770)
        assert tree[b""].permissions == 0o750

    def test_24_directories_that_a_layer_goes_through_keep_their_attributes(self, rig: Rig) -> None:
        uid = 0 if rig.env.single_uid else 7
        base = tar(Dir("tmp", 0o1777), Dir("var", 0o750, uid=uid, gid=uid, xattrs={"user.mark": b"1"}))
        tree = merged(rig, base, tar(File("tmp/x"), File("var/new/f")))
        assert tree[b"tmp"].permissions == 0o1777
        assert (tree[b"var"].permissions, tree[b"var"].uid, tree[b"var"].gid) == (0o750, uid, uid)
        assert (tree[b"var/new"].permissions, tree[b"var/new"].uid) == (0o755, 0)
        with plain(rig, [base]) as oracle:
            assert tree[b"var"].xattrs == snapshot(oracle)[b"var"].xattrs

    def test_24a_the_root_keeps_the_attributes_that_a_lower_layer_gave_it(self, rig: Rig) -> None:
        base = tar(Dir("./", 0o711), File("f"))
        assert merged(rig, base)[b""].permissions == 0o711
        assert merged(rig, base, tar(File("g")))[b""].permissions == 0o711
        assert merged(rig, base, tar(Dir("./", 0o755), File("g")))[b""].permissions == 0o755

    def test_24b_of_directories_gone_through_the_last_listing_counts(self, rig: Rig) -> None:
        base, middle, top = (
            tar(Dir("t", 0o1777), File("t/1")),
            tar(Dir("t", 0o700)),
            tar(File("t/x")),
        )
        assert merged(rig, base, middle, top)[b"t"].permissions == 0o700
        assert merged(rig, base, top)[b"t"].permissions == 0o1777
        assert merged(rig, base, top, middle)[b"t"].permissions == 0o700
        # One layer over two bases has the attributes of each; and asked again it is the same.
        other = tar(Dir("t", 0o711))
        assert merged(rig, other, top)[b"t"].permissions == 0o711
        assert merged(rig, base, top)[b"t"].permissions == 0o1777
        # A deleted directory's attributes are not those of the new one.
        assert merged(rig, base, tar(Whiteout("t")), top)[b"t"].permissions == 0o755

    def test_24c_an_opaque_root_hides_every_lower_layer(self, rig: Rig) -> None:
        base = tar(File("old"), Dir("d", 0o700), File("d/old"))
        tree = merged(rig, base, tar(File("middle")), tar(Opaque(""), File("d/new")), tar(File("top")))
        assert set(tree) == {b"", b"d", b"d/new", b"top"}
        assert tree[b"d"].permissions == 0o755

    def test_25_hard_links_within_a_layer_are_one_file(self, rig: Rig) -> None:
        base = tar(File("a", b"same"), Dir("d"), Link("d/b", "a"), Link("c", "d/b"), File("apart", b"same"))
        tree = merged(rig, base)
        assert [tree[n].same for n in (b"a", b"c", b"d/b")] == [b"a"] * 3
        with rig.view(rig.stack(base, tar(File("other")))) as root:
            found = [os.stat(f"{root.path}/{name}") for name in ("a", "c", "d/b")]
            assert [st.st_nlink for st in found] == [3, 3, 3]
            assert len({(st.st_dev, st.st_ino) for st in found}) == 1
            assert os.stat(f"{root.path}/apart").st_nlink == 1

    def test_25a_a_layer_that_replaces_one_name_leaves_the_other(self, rig: Rig) -> None:
        base = tar(File("a", b"old"), Link("b", "a"))
        tree = merged(rig, base, tar(File("a", b"new")))
        assert (tree[b"a"].holds(b"new"), tree[b"b"].holds(b"old")) == (True, True)

    def test_26_two_names_of_a_lower_file_stay_one_as_claimed(self, rig: Rig) -> None:
        layers = rig.stack(tar(File("a", b"old"), Link("b", "a"), Dir("d"), Link("d/c", "a")))
        rw = rig.prepare(layers)
        try:
            with rig.rootfs(layers, rw) as root:
                _write(f"{root.path}/b", b"written")
                at_once = [_read(f"{root.path}/{name}") for name in ("a", "b", "d/c")]
            with rig.rootfs(layers, rw) as root:
                later = [_read(f"{root.path}/{name}") for name in ("a", "b", "d/c")]
        finally:
            rig.discard(rw)
        assert b"written" in (at_once[1], later[1])
        assert later[1] == b"written", "what was written through one name is lost after a remount"
        one = at_once == later == [b"written"] * 3
        assert one == rig.caps.hardlinks, (
            f"hardlinks is claimed to be {rig.caps.hardlinks}; written through b, the three names have "
            f"{at_once}, and {later} after a remount"
        )

    def test_26a_a_link_made_to_a_lower_file_shares_what_is_written(self, rig: Rig) -> None:
        def work(root: str) -> None:
            os.link(f"{root}/lower", f"{root}/new")
            _write(f"{root}/new", b"written")
            assert _read(f"{root}/lower") == b"written"

        # Without the claim, the two may be taken for two files when they are listed; what they hold is one.
        tree = changed(rig, work, tar(File("lower", b"old")), links=rig.caps.hardlinks)
        assert tree[b"lower"].holds(b"written")
        assert tree[b"new"].holds(b"written")
        assert not rig.caps.hardlinks or tree[b"new"].same == b"lower"

    def test_27_an_update_of_same_size_in_the_same_second_is_kept(self, rig: Rig) -> None:
        base = tar(File("f", b"aaaa", mtime="1700000000.25"))
        assert merged(rig, base, tar(File("f", b"bbbb", mtime="1700000000.25")))[b"f"].holds(b"bbbb")

    def test_27a_a_write_that_keeps_size_and_time_is_committed(self, rig: Rig) -> None:
        def work(root: str) -> None:
            _write(f"{root}/f", b"bbbb")
            os.utime(f"{root}/f", ns=(MTIME * 10**9, MTIME * 10**9))

        tree = changed(rig, work, tar(File("f", b"aaaa"), File("g", b"aaaa")), times=True)
        assert tree[b"f"].holds(b"bbbb")
        assert tree[b"f"].mtime == MTIME * 10**9

    def test_28_no_entry_leaves_the_layer(self, rig: Rig) -> None:
        outside = f"{rig.root}/outside"
        os.mkdir(outside)
        _create(f"{outside}/kept", b"kept")
        before = snapshot(outside, directory_times=True)
        # Through links of the same layer, absolute and relative: they lead to places below its root.
        through = tar(
            Symlink("absolute", outside), File("absolute/evil"), Symlink("up", "../../../.."), File("up/evil"),
            File("/leading/slash"), Whiteout("absolute/kept"), Symlink("mine", "real"), Dir("real"),
            File("mine/file"),
        )  # fmt: skip
        tree = merged(rig, through)
        assert {b"evil", b"leading/slash", b"real/file"} <= set(tree)
        # Through a link of a lower layer: what becomes of the name differs among unions, but it stays inside.
        layers = rig.stack(tar(Symlink("dir", outside)), tar(File("dir/evil")), tar(Whiteout("dir/kept")))
        with rig.rootfs(layers) as root:
            assert stat.S_ISDIR(os.stat(root.fd).st_mode)
        assert snapshot(outside, directory_times=True) == before

    @pytest.mark.parametrize("name", ["../evil", "d/../../evil", "/..", "d/.."])
    def test_28a_a_name_with_dots_is_refused_and_nothing_kept(self, rig: Rig, name: str) -> None:
        with pytest.raises(LayerError, match=r"\.\."):
            rig.ingest(tar(Dir("d"), File(name)))
        assert list(rig.layers.keys()) == []
        assert not os.path.lexists(f"{rig.root}/evil")

    def test_29_extended_attributes_and_acls_are_kept(self, rig: Rig) -> None:
        wanted = {
            "user.plain": b"text",
            "user.binary": bytes(range(256)),
            "user.empty": b"",
            "system.posix_acl_access": ACL,
        }
        if not rig.env.userns:
            wanted |= {"trusted.mark": b"t", "security.mark": b"s"}
        kept = _kept(rig, wanted)
        base = tar(
            File("f", xattrs=wanted),
            Dir("d", xattrs=wanted | {"system.posix_acl_default": ACL}),
            File("d/in"),
        )
        tree = merged(rig, base, tar(File("over")))
        assert {k: v for k, v in tree[b"f"].xattrs if k in kept} == kept
        assert {k: v for k, v in tree[b"d"].xattrs if k in kept} == kept
        assert tree[b"d/in"].xattrs == ()
        # The upper file's attributes are its own.
        assert merged(rig, base, tar(File("f"), Dir("d")))[b"f"].xattrs == ()

    def test_29b_an_acl_for_an_id_that_nobody_has_is_refused_or_squashed(self, rig: Rig) -> None:
        # user::rw- user:4000000:r-- group::r-- mask::r-- other::---
        foreign = acl(
            (1, 6, 0xFFFFFFFF),
            (2, 4, 4_000_000),
            (4, 4, 0xFFFFFFFF),
            (16, 4, 0xFFFFFFFF),
            (32, 0, 0xFFFFFFFF),
        )
        base = tar(File("f", xattrs={"system.posix_acl_access": foreign}))
        if rig.env.userns and not rig.env.single_uid:
            with pytest.raises(LayerError, match="not mapped") as refused:
                rig.ingest(base)
            assert refused.value.hint
        elif rig.env.single_uid:
            assert merged(rig, base)[b"f"].xattrs == ()
        else:
            kept = _kept(rig, {"system.posix_acl_access": foreign})
            assert dict(merged(rig, base)[b"f"].xattrs) == kept

    def test_29a_extended_attributes_and_acls_set_in_a_rootfs_are_kept(self, rig: Rig) -> None:
        wanted = _kept(rig, {"user.new": b"n", "system.posix_acl_access": ACL})

        def work(root: str) -> None:
            for name in ("f", "d", ""):
                for key, value in wanted.items():
                    os.setxattr(f"{root}/{name}", key, value)
            if "user.new" in wanted:
                os.removexattr(f"{root}/f", "user.old")

        base = tar(
            File("f", b"text", xattrs={"user.old": b"o"}),
            Dir("d", xattrs={"user.old": b"o"}),
            File("touched", xattrs={"user.old": b"o"}),
        )
        tree = changed(rig, work, base)
        for name in (b"f", b"d", b""):
            assert {k: v for k, v in tree[name].xattrs if k in wanted} == wanted
        if "user.new" in wanted:
            assert "user.old" not in dict(tree[b"f"].xattrs)
            assert dict(tree[b"d"].xattrs)["user.old"] == b"o"

    def test_30_file_capabilities_are_kept(self, rig: Rig) -> None:
        base = tar(File("two", b"#!", mode=0o755, xattrs={"security.capability": CAPABILITY_2}))
        tree = merged(rig, base, tar(Dir("over")))
        assert dict(tree[b"two"].xattrs) == {"security.capability": CAPABILITY_2}

        def touch(root: str) -> None:
            os.utime(f"{root}/two", ns=(1, 1))

        tree = changed(rig, touch, base, times=True)
        assert dict(tree[b"two"].xattrs) == {"security.capability": CAPABILITY_2}

        def write(root: str) -> None:
            _write(f"{root}/two", b"other")

        assert changed(rig, write, base)[b"two"].xattrs == ()  # a write takes them away, man capabilities

    def test_30a_a_capability_for_a_namespace_is_kept_or_refused(self, rig: Rig) -> None:
        base = tar(File("three", b"#!", mode=0o755, xattrs={"security.capability": CAPABILITY_3}))
        if rig.env.single_uid:
            # It is for the root user of another namespace, whom this one has no name for.
            with pytest.raises(LayerError, match="not mapped"):
                rig.stack(base)
            return
        tree = merged(rig, base)
        assert dict(tree[b"three"].xattrs) == {"security.capability": CAPABILITY_3}

    def test_31_attributes_of_a_union_in_a_layer_mean_nothing(self, rig: Rig) -> None:
        hostile = {
            f"{space}.overlay.{name}": value
            for space in ("trusted", "user")
            for name, value in (
                ("opaque", b"y"), ("redirect", b"/secret"), ("metacopy", b""), ("whiteout", b"y"), ("origin", b""),
            )
        }  # fmt: skip
        base = tar(Dir("d"), File("d/seen", b"seen"), Dir("secret"), File("secret/file"), File("f", b"lower"))
        tree = merged(rig, base, tar(Dir("d", xattrs=hostile), File("f", b"upper", xattrs=hostile)))
        assert set(tree) == {b"", b"d", b"d/seen", b"f", b"secret", b"secret/file"}
        assert tree[b"f"].holds(b"upper")
        assert tree[b"d/seen"].holds(b"seen")

    def test_31a_attributes_of_a_union_set_in_a_rootfs_are_private_or_refused(self, rig: Rig) -> None:
        layers = rig.stack(tar(Dir("d"), File("d/seen", b"seen"), File("f", b"text")))
        rw = rig.prepare(layers)
        try:
            with rig.rootfs(layers, rw) as root:
                for space in ("trusted", "user"):
                    for name, value in (
                        (f"{space}.overlay.opaque", b"y"),
                        (f"{space}.overlay.metacopy", b""),
                    ):
                        for where in ("d", "f"):
                            with contextlib.suppress(OSError):
                                os.setxattr(f"{root.path}/{where}", name, value)
            with rig.rootfs(layers, rw) as root:
                assert _read(f"{root.path}/d/seen") == b"seen"
                assert _read(f"{root.path}/f") == b"text"
                assert os.listdir(f"{root.path}/d") == ["seen"]
        finally:
            rig.discard(rw)

    def test_32_a_sparse_file_stays_sparse(self, rig: Rig) -> None:
        size, data = 16 * MIB, {8 * MIB: b"data" * 1024, 12 * MIB: b"end" * 1024}
        layers = rig.stack(tar(Sparse("s", size, data)))
        content = _content(size, data)
        with rig.view(layers) as root:
            assert _read(f"{root.path}/s") == content
            assert _stored(f"{root.path}/s") < size // 4
        rw = rig.prepare(layers)
        try:
            with rig.rootfs(layers, rw) as root, open(f"{root.path}/s", "r+b") as file:
                file.seek(4 * MIB)
                file.write(b"more")
            with rig.rootfs(layers, rw) as root:
                expected = content[: 4 * MIB] + b"more" + content[4 * MIB + 4 :]
                assert _read(f"{root.path}/s") == expected
                # Copying up may fill a hole in part: kernels do it by the MiB.
                assert _stored(f"{root.path}/s") < size // 4
                layer = root.commit()
        finally:
            rig.discard(rw)
        assert len(layer) < size // 4
        with rig.view([*layers, rig.ingest(layer, layers[-1])]) as root:
            assert _read(f"{root.path}/s") == expected
            assert _stored(f"{root.path}/s") < size // 4

    def test_33_special_files_are_what_they_were(self, rig: Rig) -> None:
        base = tar(Fifo("pipe", 0o620), Dir("dev"), Fifo("dev/pipe"))
        assert {n: x.kind for n, x in merged(rig, base).items() if b"pipe" in n} == {
            b"pipe": "fifo",
            b"dev/pipe": "fifo",
        }
        devices = tar(Device("null", "char", 1, 3, 0o666), Device("loop", "block", 7, 0, 0o660))
        if rig.env.userns:
            with pytest.raises(LayerError, match="rootless") as refused:
                rig.ingest(devices)
            assert "null" in str(refused.value)
            assert refused.value.hint
            assert not list(rig.layers.keys())[1:], "the refused layer was kept"
            return
        tree = merged(rig, base, devices)
        assert (tree[b"null"].kind, tree[b"null"].what) == ("char", os.makedev(1, 3))
        assert (tree[b"loop"].kind, tree[b"loop"].what) == ("block", os.makedev(7, 0))
        assert tree[b"null"].permissions == 0o666

    def test_33a_special_files_made_in_a_rootfs_stay(self, rig: Rig) -> None:
        def make(root: str) -> None:
            os.mkfifo(f"{root}/pipe", 0o600)
            os.chmod(f"{root}/old", 0o640)
            if not rig.env.userns:
                os.mknod(f"{root}/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
            directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                with socket.socket(socket.AF_UNIX) as listener:
                    # A socket's address holds 107 bytes, and the root may be anywhere.
                    listener.bind(f"/proc/self/fd/{directory}/socket")
            finally:
                os.close(directory)
            assert stat.S_ISSOCK(os.lstat(f"{root}/socket").st_mode)

        tree = changed(rig, make, tar(Fifo("old", 0o600)))
        assert (tree[b"pipe"].kind, tree[b"old"].kind) == ("fifo", "fifo")
        assert tree[b"old"].permissions == 0o640
        assert rig.env.userns or tree[b"null"].what == os.makedev(1, 3)

    def test_34_setuid_setgid_and_sticky_are_kept(self, rig: Rig) -> None:
        modes = {"suid": 0o4755, "sgid": 0o2755, "both": 0o6711, "odd": 0o1644, "dir": 0o3777}
        uid = 0 if rig.env.single_uid else 3
        base = tar(
            *(
                Dir(name, mode, uid=uid) if name == "dir" else File(name, b"x", mode, uid=uid)
                for name, mode in modes.items()
            )
        )
        tree = merged(rig, base, tar(File("dir/in")))
        assert {name: tree[name.encode()].permissions for name in modes} == modes

        def touch(root: str) -> None:
            for name in modes:
                os.utime(f"{root}/{name}", ns=(5, 5))
            os.chmod(f"{root}/sgid", 0o4711)

        tree = changed(rig, touch, base, times=True)
        assert {name: tree[name.encode()].permissions for name in modes} == modes | {"sgid": 0o4711}

    def test_35_names_of_any_bytes_are_kept(self, rig: Rig) -> None:
        names = [
            b"\xff\xfe\x80", b"n" * 255, b"new\nline", b"tab\tback\\slash", "é".encode(), "e\u0301".encode(),
            b"sp ace", b'"quoted"', b":,=", b"%2e", b".wh", b"wh.", b"..dots", b"-", b"#1",
        ]  # fmt: skip
        members: list[Member] = [Dir(b"d")]
        members += [File(b"d/" + name, name) for name in names]
        tree = merged(rig, tar(*members))
        assert set(tree) == {b"", b"d", *(b"d/" + name for name in names)}
        assert all(tree[b"d/" + name].holds(name) for name in names)
        gone = tar(Whiteout(b"d/" + names[0]), Whiteout(b"d/" + b"n" * 251))
        assert b"d/" + names[0] not in merged(rig, tar(*members, File(b"d/" + b"n" * 251)), gone)

        def make(root: str) -> None:
            for name in names:
                _create(os.fsencode(root) + b"/" + name, name)
            os.unlink(os.fsencode(root) + b"/d/" + names[1])

        assert set(changed(rig, make, tar(*members))) == {*tree, *names} - {b"d/" + names[1]}

    def test_35a_a_name_that_means_a_deletion_is_never_taken_for_one(self, rig: Rig) -> None:
        layers = rig.stack(tar(Dir("d"), File("d/f", b"f"), File("d/g", b"g")))
        rw = rig.prepare(layers)
        made = []
        try:
            with rig.rootfs(layers, rw) as root:
                for name in (".wh.f", ".wh.new", ".wh..wh..opq"):
                    with contextlib.suppress(OSError):  # a union may keep such names to itself
                        _create(f"{root.path}/d/{name}", b"mine")
                        made.append(name)
            with rig.rootfs(layers, rw) as root:
                assert sorted(os.listdir(f"{root.path}/d")) == sorted(["f", "g", *made])
                assert all(_read(f"{root.path}/d/{name}") == b"mine" for name in made)
                if made:
                    with pytest.raises(LayerError, match=r"\.wh\."):
                        root.commit()
        finally:
            rig.discard(rw)

    def test_35b_a_deep_tree_is_kept(self, rig: Rig) -> None:
        deep = "/".join(["deep"] * 64)
        members = [Dir(deep[: 5 * n + 4]) for n in range(64)]
        tree = merged(rig, tar(*members, File(f"{deep}/bottom", b"b")), tar(Whiteout(f"{deep}/none")))
        assert len(tree) == 66
        tree = changed(
            rig, lambda root: _write(f"{root}/{deep}/bottom", b"new"), tar(*members, File(f"{deep}/bottom"))
        )
        assert tree[f"{deep}/bottom".encode()].holds(b"new")

    def test_36_times_are_kept_to_the_nanosecond_before_1970_too(self, rig: Rig) -> None:
        times = {
            "ns": ("1700000000.123456789", 1_700_000_000_123_456_789),
            "negative": ("-86400", -86_400_000_000_000),
            "part": ("-1.500000000", -1_500_000_000),
            "zero": ("0", 0),
            "late": ("4294967300.000000001", 4_294_967_300_000_000_001),
        }
        base = tar(
            *(File(f"{name}-f", mtime=text) for name, (text, _) in times.items()),
            *(Dir(f"{name}-d", mtime=text) for name, (text, _) in times.items()),
            *(Symlink(f"{name}-l", "x", mtime=text) for name, (text, _) in times.items()),
        )
        merged(rig, base)
        with plain(rig, [base]) as oracle, rig.view(rig.stack(base, tar(Dir("over")))) as root:
            for name, (_, ns) in times.items():
                for kind in "fdl":
                    kept = os.lstat(
                        f"{oracle}/{name}-{kind}"
                    ).st_mtime_ns  # what the store's file system can hold
                    found = os.lstat(f"{root.path}/{name}-{kind}").st_mtime_ns
                    assert found == kept
                    assert kept == ns or kept // 10**9 != ns // 10**9 or kept % 10**9 == 0

        def touch(root: str) -> None:
            for name, (_, ns) in times.items():
                _create(f"{root}/{name}", b"")
                for kept in (name, f"{name}-f", f"{name}-l"):
                    os.utime(f"{root}/{kept}", ns=(ns + 1, ns + 1), follow_symlinks=False)

        changed(rig, touch, base, times=True)

    def test_37_a_directory_of_70000_entries_is_listed_whole(self, rig: Rig) -> None:
        count = 70_000
        layers = rig.stack(many("d", count))
        wanted = {f"{number:06}" for number in range(count)}
        with rig.view(layers) as view:
            listed = os.listdir(f"{view.path}/d")
            assert len(listed) == count
            assert set(listed) == wanted
        with rig.rootfs(layers) as root:
            os.unlink(f"{root.path}/d/069999")
            os.unlink(f"{root.path}/d/000007")
            _create(f"{root.path}/d/new", b"")
            listed = os.listdir(f"{root.path}/d")
            assert len(listed) == count - 1
            assert set(listed) == wanted - {"069999", "000007"} | {"new"}

    def test_37a_a_file_of_more_than_8_gib_is_shown(self, rig: Rig) -> None:
        size = (8 << 30) + 4 * MIB + 1
        ends = {0: b"begin" * 512, 8 << 30: b"middle" * 512, size - 513: b"end" * 171}
        layers = rig.stack(tar(Sparse("big", size, ends)))
        with rig.view(layers) as root:
            with open(f"{root.path}/big", "rb") as file:
                assert os.fstat(file.fileno()).st_size == size
                for offset, data in ends.items():
                    assert os.pread(file.fileno(), len(data), offset) == data
                assert os.pread(file.fileno(), 4096, 4 << 30) == bytes(4096)
                assert os.pread(file.fileno(), 10, size) == b""
            assert _stored(f"{root.path}/big") < MIB


def _random_layer(dice: random.Random) -> bytes:
    """Members over few names, so that layers meet. A name is once in a layer, whiteouts aside; nothing lies
    below a symbolic link, where unions and plain directories rightly differ."""
    names, members, dirs = ["a", "b", "c", "d"], list[Member](), {""}
    taken: set[str] = set()
    files: list[str] = []
    for _ in range(dice.randint(3, 12)):
        where = dice.choice(sorted(dirs))
        name = f"{where}/{dice.choice(names)}".lstrip("/")
        if name in taken:
            continue
        taken.add(name)
        what = dice.choice(["dir", "dir", "dir", "file", "file", "link", "symlink", "whiteout", "whiteout"])
        mode = dice.choice([0o755, 0o700, 0o1777])
        if what == "dir" and name.count("/") < 3:
            members.append(Dir(name, mode))
            dirs.add(name)
            if dice.random() < 0.2:
                members.append(Opaque(name))
            if dice.random() < 0.2:
                members.append(Whiteout(name))
        elif what == "link" and files:
            members.append(Link(name, dice.choice(files)))
        elif what == "symlink":
            members.append(Symlink(name, dice.choice(names)))
        elif what == "whiteout":
            members.append(Whiteout(name))
        else:
            members.append(File(name, dice.randbytes(3), mode))
            files.append(name)
    return tar(*members)


def _kept(rig: Rig, attributes: dict[str, bytes]) -> dict[str, bytes]:
    """Those that a file beside the layers can have: file systems and namespaces differ in what they take."""
    path = f"{rig.root}/attributes"
    _create(path, b"")
    kept = {}
    for name, value in attributes.items():
        try:
            os.setxattr(path, name, value)
        except OSError as error:
            if error.errno not in (EOPNOTSUPP, EPERM, EINVAL):
                raise
            continue
        kept[name] = value
    os.unlink(path)
    return kept


def _stored(path: str) -> int:
    """Bytes of a file that are no hole. Some file systems count holes as blocks, and tell them by SEEK_DATA."""
    blocks, told, end = os.stat(path).st_blocks * 512, 0, 0
    with open(path, "rb") as file, contextlib.suppress(OSError):  # ENXIO: the rest is a hole
        while True:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            told += end - start
    return min(blocks, told)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, content: bytes) -> None:
    """Into the file that is there, as an editor that writes in place does."""
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()


def _create(path: str | bytes, content: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    with open(fd, "wb") as file:
        file.write(content)


def _taken(path: str) -> int:
    """Bytes of the file that are no holes: by its blocks, which some file systems count without looking, or by
    asking for its data."""
    with open(path, "rb") as file:
        fd = file.fileno()
        data = end = 0
        with contextlib.suppress(OSError):  # ENXIO: no more of it
            while True:
                start = os.lseek(fd, end, os.SEEK_DATA)
                end = os.lseek(fd, start, os.SEEK_HOLE)
                data += end - start
        return min(data, os.fstat(fd).st_blocks * 512)


def _content(size: int, data: dict[int, bytes]) -> bytes:
    content = bytearray(size)
    for offset, part in data.items():
        content[offset : offset + len(part)] = part
    return bytes(content)
