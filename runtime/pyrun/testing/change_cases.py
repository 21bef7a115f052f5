"""Cases of section D: changes, commit, usage.

What a driver tells of a container's changes is compared with the operations that were done, written out name by
name; what a commit stores is compared with what the container showed.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Sequence
from typing import Any

import pytest

from ..kernel.process import CLONE_NEWUSER, set_pdeathsig, setns
from ..kernel.userns import IdMap, hold
from ..storage.contract import Change, Layer
from .apart import apart
from .operations import (
    DIRECTORY_RENAMED,
    LOWER,
    MERGED,
    OPERATIONS,
    OWNERS,
    REVERTED,
    much,
    owned,
    stamp_all,
    write,
)
from .rig import Rig
from .tars import Dir, File, Opaque, tar
from .trees import snapshot
from .twins import twins


def told(changes: Sequence[Change]) -> list[str]:
    """Changes in the form of the tables of `operations`, sorted by name.

    The order in which a driver tells them must have a directory before what is in it, and each name once.
    """
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

    @pytest.mark.parametrize("what", [*OPERATIONS, *OWNERS, "directory renamed"])
    def test_55_changes_are_the_operations_that_were_done(self, rig: Rig, what: str) -> None:
        if what in OWNERS and rig.env.single_uid:
            pytest.skip("this user namespace maps a single ID")
        if what == "directory renamed" and not rig.caps.rename_dir:
            pytest.skip("the driver can't rename directories of a layer, as it declares")
        operation, expected = {**OPERATIONS, **OWNERS, "directory renamed": DIRECTORY_RENAMED}[what]
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

    @pytest.mark.parametrize("what", REVERTED)
    def test_56_what_was_undone_is_no_change(self, rig: Rig, what: str) -> None:
        with twins(rig, LOWER, MERGED) as pair:
            pair.both(REVERTED[what])
            assert told(pair.root.changes()) == []
            pair.remount()
            assert told(pair.root.changes()) == []

    def test_57_a_committed_container_is_the_same_tree_as_an_image(self, rig: Rig) -> None:
        with twins(rig, LOWER, MERGED, tar(Opaque("e"), Dir("e"), File("e/x"))) as pair:
            pair.both(much, not rig.env.userns, not rig.env.single_uid)
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
                much(root.path, not rig.env.userns, not rig.env.single_uid)
                stamp_all(root.path)
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
            owned(root.path)
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
                    owned(root.path)

                apart(work, mounts=False)
                assert os.stat(f"{root.path}/d/own").st_uid == base + 3
                assert told(root.changes()) == [
                    "M d", "M d/own", "A d/private", "A e/link", "A e/new", "M f", "A f2"
                ]  # fmt: skip
                mapped = root.commit(owner=inside)
        finally:
            os.close(namespace)
        assert mapped == plain, _tars_differ([plain, mapped])


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
