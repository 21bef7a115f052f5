"""Cases of section D: changes, commit, usage.

What a driver tells of a container's changes is compared with the operations that were done, written out name by
name; what a commit stores is compared with what the container showed.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import tarfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from ..kernel.process import CLONE_NEWUSER, set_pdeathsig, setns
from ..kernel.userns import IdMap, hold
from ..storage.contract import Change, Layer
from .apart import apart
from .rig import Rig
from .tars import MTIME, Dir, Fifo, File, Link, Opaque, Symlink, Whiteout, tar
from .trees import snapshot
from .twins import twins

LOWER = tar(
    Dir("d"),
    File("d/one", b"1"),
    File("d/two", b"2"),
    Dir("d/sub"),
    File("d/sub/deep", b"deep"),
    Dir("e", 0o700),
    File("f", b"content", xattrs={"user.note": b"kept"}),
    File("g", b"other"),
    Link("g-link", "g"),
    Symlink("link", "f"),
    Symlink("to-d", "d"),
    Fifo("fifo"),
)
MERGED = tar(Dir("d"), File("d/four", b"4"), Whiteout("d/one"))

# A capability as the kernel keeps it: revision 2, cap_net_bind_service, effective.
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def stamped(path: str, ns: int = MTIME * 10**9) -> None:
    os.utime(path, ns=(ns, ns), follow_symlinks=False)


def _same_size_same_mtime(path: str) -> None:
    write(f"{path}/f", b"CONTENT")
    stamped(f"{path}/f")


def _opaque(path: str) -> None:
    shutil.rmtree(f"{path}/d")
    os.mkdir(f"{path}/d", 0o755)
    os.chmod(f"{path}/d", 0o755)
    write(f"{path}/d/new", b"n")


def _replace(path: str, name: str, make: Callable[[str], object]) -> None:
    _remove(f"{path}/{name}")
    make(f"{path}/{name}")


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _new_tree(path: str) -> None:
    os.makedirs(f"{path}/new/inner")
    write(f"{path}/new/inner/file", b"x")
    os.symlink("nowhere", f"{path}/new/link")
    os.mkfifo(f"{path}/new.fifo")


def _file_to_directory(path: str) -> None:
    _replace(path, "f", os.mkdir)
    write(f"{path}/f/x", b"x")


def _all_of_it(path: str) -> None:
    for name in os.listdir(path):
        _remove(f"{path}/{name}")


# What is done in a container over LOWER and MERGED, and the changes of it: "A" added, "M" modified, "D" deleted.
_OPERATIONS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "nothing": (lambda p: None, []),
    "new file": (lambda p: write(f"{p}/new", b""), ["A new"]),
    "new tree": (_new_tree, ["A new", "A new.fifo", "A new/inner", "A new/inner/file", "A new/link"]),
    "new in a directory": (lambda p: write(f"{p}/d/sub/new", b""), ["A d/sub/new"]),
    "written": (lambda p: write(f"{p}/f", b"longer content"), ["M f"]),
    "written, same size and time": (_same_size_same_mtime, ["M f"]),
    "time": (lambda p: stamped(f"{p}/f", MTIME * 10**9 + 1), ["M f"]),
    "mode": (lambda p: os.chmod(f"{p}/f", 0o4755), ["M f"]),
    "mode of a directory": (lambda p: os.chmod(f"{p}/d", 0o1777), ["M d"]),
    "mode of the root": (lambda p: os.chmod(f"{p}/.", 0o711), ["M "]),
    "attribute": (lambda p: os.setxattr(f"{p}/f", "user.more", b"1"), ["M f"]),
    "attribute's value": (lambda p: os.setxattr(f"{p}/f", "user.note", b"Kept"), ["M f"]),
    "attribute removed": (lambda p: os.removexattr(f"{p}/f", "user.note"), ["M f"]),
    "attribute of a directory": (lambda p: os.setxattr(f"{p}/d", "user.more", b"1"), ["M d"]),
    "deleted": (lambda p: os.unlink(f"{p}/f"), ["D f"]),
    "tree deleted": (lambda p: shutil.rmtree(f"{p}/d"), ["D d"]),
    "deleted in a directory": (lambda p: os.unlink(f"{p}/d/four"), ["D d/four"]),
    "everything deleted": (
        _all_of_it,
        ["D d", "D e", "D f", "D fifo", "D g", "D g-link", "D link", "D to-d"],
    ),
    "directory made again": (_opaque, ["D d/four", "A d/new", "D d/sub", "D d/two"]),
    "file to directory": (_file_to_directory, ["M f", "A f/x"]),
    "directory to file": (lambda p: _replace(p, "d", lambda d: write(d, b"")), ["M d"]),
    "symlink to directory": (lambda p: _replace(p, "to-d", os.mkdir), ["M to-d"]),
    "directory to symlink": (lambda p: _replace(p, "d", lambda d: os.symlink("e", d)), ["M d"]),
    "file to symlink": (lambda p: _replace(p, "f", lambda f: os.symlink("g", f)), ["M f"]),
    "file to fifo": (lambda p: _replace(p, "f", os.mkfifo), ["M f"]),
    "symlink's target": (lambda p: _replace(p, "link", lambda n: os.symlink("g", n)), ["M link"]),
    "file renamed": (lambda p: os.rename(f"{p}/f", f"{p}/d/sub/f"), ["A d/sub/f", "D f"]),
    "file renamed over another": (lambda p: os.rename(f"{p}/d/two", f"{p}/f"), ["D d/two", "M f"]),
    "through a symlink": (lambda p: write(f"{p}/to-d/new", b""), ["A d/new"]),
    "a further name": (lambda p: os.link(f"{p}/f", f"{p}/e/name"), ["A e/name", "M f"]),
    "a name less": (lambda p: os.unlink(f"{p}/g-link"), ["D g-link"]),
}
_OWNERS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "owner": (lambda p: os.chown(f"{p}/f", 1, 0), ["M f"]),
    "group of a symlink": (lambda p: os.chown(f"{p}/link", 0, 1, follow_symlinks=False), ["M link"]),
    "owner of a directory": (lambda p: os.chown(f"{p}/d", 5, 5), ["M d"]),
}
_DIRECTORY_RENAMED = (
    lambda p: os.rename(f"{p}/d", f"{p}/moved"),
    ["D d", "A moved", "A moved/four", "A moved/sub", "A moved/sub/deep", "A moved/two"],
)


def _touch_and_revert(path: str) -> None:
    os.chmod(f"{path}/f", 0o600)
    os.chmod(f"{path}/f", 0o644)
    write(f"{path}/f", b"content")
    stamped(f"{path}/f")


def _recreate(path: str) -> None:
    os.unlink(f"{path}/d/two")
    write(f"{path}/d/two", b"2")
    os.chmod(f"{path}/d/two", 0o644)
    stamped(f"{path}/d/two")


def _recreate_tree(path: str) -> None:
    shutil.rmtree(f"{path}/d/sub")
    os.mkdir(f"{path}/d/sub")
    os.chmod(f"{path}/d/sub", 0o755)
    write(f"{path}/d/sub/deep", b"deep")
    os.chmod(f"{path}/d/sub/deep", 0o644)
    stamped(f"{path}/d/sub/deep")


def _back_and_forth(path: str) -> None:
    os.rename(f"{path}/f", f"{path}/away")
    os.rename(f"{path}/away", f"{path}/f")
    os.setxattr(f"{path}/d", "user.x", b"")
    os.removexattr(f"{path}/d", "user.x")


def _come_and_go(path: str) -> None:
    os.makedirs(f"{path}/new/inner")
    write(f"{path}/d/new", b"x")
    os.unlink(f"{path}/d/new")
    shutil.rmtree(f"{path}/new")
    os.link(f"{path}/d/two", f"{path}/name")
    os.unlink(f"{path}/name")
    with open(f"{path}/d/four", "r+b"):
        pass  # overlayfs copies up


_REVERTED = {
    "touched": _touch_and_revert,
    "file made again": _recreate,
    "tree made again": _recreate_tree,
    "renamed back": _back_and_forth,
    "made and removed": _come_and_go,
}


def told(changes: Iterable[Change]) -> list[str]:
    """Changes in the form of the tables above, sorted by name. The order in which a driver tells them must have
    a directory before what is in it, and each name once."""
    seen: set[bytes] = set()
    for change in changes:
        assert change.path not in seen, f"{change.path!r} is told twice"
        below = [path for path in seen if change.path and path.startswith(change.path + b"/")]
        assert not below, f"{change.path!r} is told after {below[0]!r}"
        seen.add(change.path)
    letters = {"add": "A", "modify": "M", "delete": "D"}
    found = sorted((change.path, letters[change.kind]) for change in changes)
    return [f"{letter} {os.fsdecode(path)}" for path, letter in found]


class ChangeCases:
    """Cases that need the fixture ``rig``."""

    @pytest.mark.parametrize("what", [*_OPERATIONS, *_OWNERS, "directory renamed"])
    def test_55_changes_are_the_operations_that_were_done(self, rig: Rig, what: str) -> None:
        if what in _OWNERS and rig.env.single_uid:
            pytest.skip("this user namespace maps a single ID")
        if what == "directory renamed" and not rig.caps.rename_dir:
            pytest.skip("the driver can't rename directories of a layer, as it declares")
        operation, expected = {**_OPERATIONS, **_OWNERS, "directory renamed": _DIRECTORY_RENAMED}[what]
        with twins(rig, LOWER, MERGED) as pair:
            pair.both(operation)
            if what == "a further name" and not rig.caps.hardlinks:
                # Then nothing may tell that the two are one, and the old name is as it was.
                assert set(told(pair.root.changes())) - {"M f"} == {"A e/name"}
                return
            assert told(pair.root.changes()) == expected

    def test_55a_directories_of_files_that_look_alike_change_places(self, rig: Rig) -> None:
        """Same names, sizes and times, made in one instant: only the content tells them apart."""
        if not rig.caps.rename_dir:
            pytest.skip("the driver can't rename directories of a layer, as it declares")
        names = ("one", "two", "all/three", "all/four")
        layers = rig.stack(
            tar(Dir("all"), *(m for n in names for m in (Dir(n), File(f"{n}/f", n[-3:].encode()))))
        )
        with rig.rootfs(layers) as root:
            for one, two in (names[:2], names[2:]):
                os.rename(f"{root.path}/{one}", f"{root.path}/aside")
                os.rename(f"{root.path}/{two}", f"{root.path}/{one}")
                os.rename(f"{root.path}/aside", f"{root.path}/{two}")
            assert told(root.changes()) == ["M all/four/f", "M all/three/f", "M one/f", "M two/f"]
            layers.append(rig.ingest(root.commit(), layers[-1]))
        with rig.view(rig.layers.mended(layers)) as view:
            found = []
            for name in names:
                with open(f"{view.path}/{name}/f") as file:
                    found.append(file.read())
            assert found == ["two", "one", "our", "ree"]

    @pytest.mark.parametrize("what", _REVERTED)
    def test_56_what_was_undone_is_no_change(self, rig: Rig, what: str) -> None:
        with twins(rig, LOWER, MERGED) as pair:
            pair.both(_REVERTED[what])
            assert told(pair.root.changes()) == []
            pair.remount()
            assert told(pair.root.changes()) == []

    def test_57_a_committed_container_is_the_same_tree_as_an_image(self, rig: Rig) -> None:
        with twins(rig, LOWER, MERGED, tar(Opaque("e"), Dir("e"), File("e/x"))) as pair:
            pair.both(_much, not rig.env.userns, not rig.env.single_uid)
            # And once more over what was committed: layers on layers.
            stack = pair.committed()
            with rig.rootfs(stack) as again:
                assert told(again.changes()) == []
                shutil.rmtree(f"{again.path}/new")
                write(f"{again.path}/f/x", b"third")
                assert told(again.changes()) == ["M f/x", "D new"]

    def test_58_commits_of_the_same_changes_are_the_same_bytes(self, rig: Rig) -> None:
        layers = rig.stack(LOWER, MERGED)
        commits = []
        for _ in range(2):
            rw = rig.prepare(layers)
            with rig.rootfs(layers, rw) as root:
                _much(root.path, not rig.env.userns, not rig.env.single_uid)
                _stamp_all(root.path)
                commits += [root.commit(), root.commit()]
            with rig.rootfs(layers, rw) as root:
                commits.append(root.commit())
            rig.discard(rw)
        assert len(commits[0]) > 10_000
        assert commits.count(commits[0]) == len(commits), _tars_differ(commits)

    def test_58b_a_commit_lists_what_is_above_a_change(self, rig: Rig) -> None:
        """With its attributes, so that the layer means the same without those below."""
        layers = rig.stack(tar(Dir("a", 0o1777, uid=0), Dir("a/b", 0o710), File("a/b/c", b"c"), Dir("z")))
        with rig.rootfs(layers) as root:
            write(f"{root.path}/a/b/new", b"")
            with tarfile.open(fileobj=io.BytesIO(root.commit())) as archive:
                found = {member.name: oct(member.mode) for member in archive}
        assert list(found) == [".", "a", "a/b", "a/b/new"]
        assert (found["a"], found["a/b"]) == (oct(0o1777), oct(0o710))

    def test_59_changes_of_a_container_that_writes_meanwhile(self, rig: Rig) -> None:
        """A commit is taken from the live mount: a second one of the same directory is no sound view of it."""
        layers = rig.stack(LOWER, MERGED)
        rw = rig.prepare(layers)
        mounts: list[str | None] = []
        mount = rig.driver.mount

        def watched(layers: Any, rw: str | None, idmap: int | None = None) -> int:
            mounts.append(rw)
            return mount(layers, rw, idmap)

        with rig.rootfs(layers, rw) as root:
            rig.driver.mount = watched  # type: ignore[method-assign]
            writer = _writer(root.path)
            try:
                deadline = time.monotonic() + (10 if getattr(self, "long", False) else 1)
                rounds = 0
                while time.monotonic() < deadline or rounds < 2:
                    rounds += 1
                    for line in told(root.changes()):
                        letter, name = line.split(" ", 1)
                        assert letter in "AMD"
                        assert name.split("/")[0] in ("busy", "d", "f", "f.tmp", "g", "g-link"), line
                    committed = root.commit()
                    above = rig.ingest(committed, layers[-1])
                    with rig.view([*layers, above]) as view:
                        assert sorted(os.listdir(f"{view.path}/e")) == []
                        assert os.readlink(f"{view.path}/link") == "f"
                    rig.layers.remove(above.id)
            finally:
                os.kill(writer, signal.SIGKILL)
                _, status = os.waitpid(writer, 0)
                del rig.driver.mount
            assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the writer has failed"
            assert mounts != [], "nothing was compared"
            assert rw not in mounts
            # Now that it is still, they are what a comparison by hand finds.
            before, after = _tree(rig, layers), snapshot(root.path)
            assert told(root.changes()) == _by_hand(before, after)
        rig.discard(rw)

    def test_60_usage_grows_by_what_is_written(self, rig: Rig) -> None:
        size, slack = 4 << 20, 1 << 20
        big = tar(Dir("d"), File("big", os.urandom(8 << 20)))
        layers = rig.stack(big, tar(File("small", b"s")))
        if not rig.caps.chained:
            # A layer by itself, without those below it.
            below, above = (rig.driver.usage(layer.path) for layer in layers[:2])
            assert 8 << 20 <= below.bytes < 9 << 20
            assert above.bytes < slack
        with rig.rootfs(layers) as root:
            empty = root.usage()
            if not rig.caps.chained:
                assert empty.bytes < slack, "a fresh container is counted with its layers"
            _durable(f"{root.path}/new", os.urandom(size))
            written = root.usage()
            assert size <= written.bytes - empty.bytes < size + slack
            assert written.inodes - empty.inodes >= 1
            for number in range(20):
                os.link(f"{root.path}/new", f"{root.path}/d/link{number}")
            linked = root.usage()
            assert linked.bytes - written.bytes < slack, "a hard link is counted as a file"
            assert linked.inodes - written.inodes <= 4
            with open(f"{root.path}/sparse", "wb") as file:
                file.truncate(64 << 20)
            assert root.usage().bytes - linked.bytes < slack, "holes are counted"
            for number in range(50):
                write(f"{root.path}/d/{number}", b"")
            files = root.usage()
            assert 50 <= files.inodes - linked.inodes < 60
            for name in os.listdir(f"{root.path}/d"):
                os.unlink(f"{root.path}/d/{name}")
            os.unlink(f"{root.path}/new")
            # A server in user space may hold the file for a moment longer.
            deadline = time.monotonic() + 5
            while root.usage().bytes - empty.bytes >= slack:
                assert time.monotonic() < deadline, "what was deleted is still counted"
                time.sleep(0.02)
        assert rig.driver.usage(f"{rig.root}/missing").bytes == 0

    def test_61_a_commit_of_an_idmapped_container_has_the_layers_ids(self, rig: Rig) -> None:
        """Two containers do the same, one of them in a user namespace: one tar, byte by byte."""
        if rig.env.userns or not rig.caps.idmap:
            pytest.skip("the driver has no idmapped mounts here, as it declares")
        base, count = 0x10000000, 65536
        layers = rig.stack(tar(Dir("d", uid=3), File("d/own", b"o", uid=3, gid=4), File("f", b"x"), Dir("e")))
        with rig.rootfs(layers) as root:
            _owned(root.path)
            plain = root.commit()

        def inside(uid: int, gid: int) -> tuple[int, int]:
            assert base <= uid < base + count
            assert base <= gid < base + count
            return uid - base, gid - base

        namespace = hold([IdMap(0, base, count)], [IdMap(0, base, count)])
        try:
            with rig.rootfs(layers, idmap=namespace) as root:

                def work() -> None:
                    setns(namespace, CLONE_NEWUSER)
                    os.setgroups([])
                    os.setresgid(0, 0, 0)
                    os.setresuid(0, 0, 0)
                    _owned(root.path)

                apart(work, mounts=False)
                assert os.stat(f"{root.path}/d/own").st_uid == base + 3
                assert told(root.changes()) == [
                    "M d", "M d/own", "A d/private", "A e/link", "A e/new", "M f", "A f2"
                ]  # fmt: skip
                mapped = root.commit(owner=inside)
        finally:
            os.close(namespace)
        assert mapped == plain, _tars_differ([plain, mapped])


def _much(path: str, devices: bool, owners: bool) -> None:
    """A container's work: one of everything, over LOWER and MERGED."""
    os.makedirs(f"{path}/new/a/b")
    write(f"{path}/new/a/file", b"x" * 100_000)
    os.link(f"{path}/new/a/file", f"{path}/new/a/b/same")
    os.link(f"{path}/g", f"{path}/new/g")  # a further name for a file of a layer
    os.chmod(f"{path}/new/a", 0o2750)
    write(f"{path}/new/setuid", b"#!/bin/sh\n")
    if owners:
        os.chown(f"{path}/new/setuid", 12, 3_000_000 if devices else 13)
        os.chown(f"{path}/e", 5, 6)
    os.chmod(f"{path}/new/setuid", 0o6755)
    os.setxattr(f"{path}/new/setuid", "security.capability", _CAPABILITY)
    os.setxattr(f"{path}/new", "user.bytes", bytes(range(256)))
    os.symlink("t/" * 120, f"{path}/new/long-target")
    os.mkfifo(f"{path}/new/fifo", 0o620)
    if devices:
        os.mknod(f"{path}/new/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(f"{path}/new/block", stat.S_IFBLK | 0o660, os.makedev(259, 200_000))
    with open(f"{path}/new/sparse", "wb") as file:
        for at in (0, 1 << 20, 5 << 20):
            file.seek(at)
            file.write(b"data" * 1024)
        file.truncate(7 << 20)
    with open(f"{path}/new/hole", "wb") as file:
        file.truncate(1 << 20)
    raw = os.fsencode(path)
    os.makedirs(raw + b"/new/" + b"n" * 255 + b"/" + b"m" * 200)
    with open(raw + b"/new/" + b"n" * 255 + b"/\xff\xfe\n\x01", "wb") as odd:
        odd.write(b"not UTF-8")
    os.unlink(f"{path}/d/four")
    shutil.rmtree(f"{path}/d/sub")
    os.mkdir(f"{path}/d/sub", 0o711)
    write(f"{path}/d/sub/fresh", b"")
    _file_to_directory(path)
    _replace(path, "to-d", lambda name: write(name, b"was a link"))
    os.unlink(f"{path}/link")
    os.symlink("new", f"{path}/link")
    for name, ns in (("new/setuid", -1_500_000_000), ("new/fifo", 1), ("d/two", 5_000_000_000_123_456_789)):
        stamped(f"{path}/{name}", ns)
    stamped(f"{path}/link", 999_999_999)


def _owned(path: str) -> None:
    """Work in which owners count, in files, ACLs and capabilities."""
    os.chown(f"{path}/d/own", 1000, 1001)
    os.chown(f"{path}/d/own", 3, 5)
    os.chown(f"{path}/f", 65535, 65535)
    os.chmod(f"{path}/f", 0o4711)
    write(f"{path}/f2", b"of root")
    os.setxattr(f"{path}/f2", "security.capability", _CAPABILITY)
    write(f"{path}/d/private", b"p")
    # user::rw-, user:7:r--, group::r--, group:9:rw-, mask::rw-, other::---
    acl = bytes.fromhex(
        "02000000" "01000600ffffffff" "0200040007000000" "04000400ffffffff" "0800060009000000"
        "10000600ffffffff" "20000000ffffffff"
    )  # fmt: skip
    os.setxattr(f"{path}/d/private", "system.posix_acl_access", acl)
    os.setxattr(f"{path}/d", "system.posix_acl_default", acl)
    os.symlink("x", f"{path}/e/link")
    os.chown(f"{path}/e/link", 12, 13, follow_symlinks=False)
    write(f"{path}/e/new", b"n")
    os.link(f"{path}/e/new", f"{path}/e/gone")
    os.unlink(f"{path}/e/gone")
    _stamp_all(path)


def _stamp_all(path: str) -> None:
    """One time for everything, and another for nothing."""
    for directory, directories, files in os.walk(os.fsencode(path), topdown=False):
        for name in directories + files:
            os.utime(directory + b"/" + name, ns=(MTIME * 10**9,) * 2, follow_symlinks=False)
    os.utime(f"{path}/.", ns=(MTIME * 10**9,) * 2)


def _writer(path: str) -> int:
    """A process that makes, renames, replaces and removes files of every kind until it is killed; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        set_pdeathsig(signal.SIGKILL)
        signal.alarm(60)
        os.mkdir(f"{path}/busy")
        turn = 0
        while True:
            turn += 1
            at = f"{path}/busy/{turn % 7}"
            os.makedirs(f"{at}/x/y", exist_ok=True)
            write(f"{at}/file", b"z" * (turn % 5 * 3000))
            os.link(f"{at}/file", f"{at}/x/y/link")
            write(f"{path}/d/four", b"%d" % turn)
            write(f"{path}/f.tmp", b"t")
            os.unlink(f"{path}/f.tmp")
            os.rename(f"{at}/file", f"{path}/f")
            os.rename(f"{path}/f", f"{path}/g-link")
            os.mkdir(f"{path}/f")
            os.rmdir(f"{path}/f")
            os.symlink("x", f"{path}/f")
            os.unlink(f"{path}/f")
            os.truncate(f"{path}/g", turn % 9000)
            os.mkfifo(f"{at}/fifo")
            os.rename(f"{at}/x", f"{at}/moved")
            shutil.rmtree(at)
    finally:
        os._exit(1)


def _tree(rig: Rig, layers: list[Layer]) -> dict[bytes, Any]:
    with rig.view(layers) as view:
        return dict(snapshot(view.path))


def _by_hand(before: dict[bytes, Any], after: dict[bytes, Any]) -> list[str]:
    found = []
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            found.append((path, "A"))
        elif path in after:
            one, two = before[path], after[path]
            # What was two names of one file and is so no more shows in the other name's content.
            if one._replace(same=b"") != two._replace(same=b""):
                found.append((path, "M"))
        elif path.rpartition(b"/")[0] in after or b"/" not in path:
            found.append((path, "D"))
    return [f"{letter} {os.fsdecode(path)}" for path, letter in found]


def _durable(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _tars_differ(tars: list[bytes]) -> str:
    """Which members distinguish the first two tars that differ."""
    one, two = next((a, b) for a in tars for b in tars if a != b)
    lists = []
    for tar_bytes in (one, two):
        with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as archive:
            lists.append(
                [str(sorted(member.get_info().items())) + str(member.pax_headers) for member in archive]
            )
    only = [[line for line in mine if line not in theirs] for mine, theirs in (lists, lists[::-1])]
    return f"only in one: {only[0][:5]}; only in the other: {only[1][:5]}"
