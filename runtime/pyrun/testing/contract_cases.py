"""Cases of section A: what the contract promises of every driver (`pyrun.storage.contract`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from errno import EROFS
from typing import Any, ClassVar

import pytest

from ..errors import PyrunError, TooManyLayers, UsageError
from ..kernel import mount as m
from ..storage.contract import API, Caps, Driver, Env, Layer, Verdict, typed_options
from ..storage.layers import chain_id
from .apart import apart, tmpfs
from .oracle import changed, merged
from .rig import Rig, environment
from .tars import Dir, File, Symlink, Whiteout, tar
from .trees import difference, snapshot

_UNLIMITED = 128  # layers that a driver without a limit must stack
_TRIED = 600  # layers past which a declared limit is not tried: they take their time
_PROBING = 10.0  # seconds for a probe on a machine that has much else to do

BASE = tar(Dir("d", 0o1777), File("d/f", b"base"), File("f", b"text"), Symlink("l", "f"))


class ContractCases:
    """Cases that need the fixtures ``rig`` and ``place`` and the attributes of `StoreFixtures`."""

    driver: ClassVar[type[Driver]]
    options: ClassVar[Mapping[str, Any]]

    def test_01_a_probe_gives_a_verdict_wherever_it_is_asked(self, rig: Rig, place: str) -> None:
        here = rig.env
        file = f"{place}/file"
        with open(file, "w"):
            pass
        tried = [
            here,
            Env(f"{place}/missing"),
            Env(file),
            Env("/proc/self"),
            Env("/dev/null/below"),
            Env(here.root, userns=not here.userns),
            Env(here.root, userns=True, single_uid=True),
        ]
        before = snapshot(place)
        for env in tried:
            began = time.monotonic()
            verdict = self.driver.probe(env, rig.options)
            assert time.monotonic() - began < _PROBING
            _assert_sound(verdict)
            assert os.listdir(f"{place}/staging") == []
        assert not os.path.lexists(f"{place}/missing")
        # A probe may keep an empty directory for later, but nothing of what it tried.
        made = {name: node.kind for name, node in snapshot(place).items() if name not in before}
        assert set(made.values()) <= {"dir"}, made

    def test_01a_a_probe_without_privileges_gives_a_verdict(self, rig: Rig) -> None:
        if rig.env.single_uid:
            return  # there is nobody else
        ids = 65534

        def probe() -> None:
            os.setgroups([])
            os.setresgid(ids, ids, ids)
            os.setresuid(ids, ids, ids)
            verdict = self.driver.probe(Env(rig.root, userns=rig.env.userns), rig.options)
            _assert_sound(verdict)
            assert not verdict.ok, "a store that nobody may write is said to be usable"

        apart(probe, mounts=False)

    def test_01b_a_probe_says_the_same_again(self, rig: Rig) -> None:
        again = self.driver.probe(rig.env, rig.options)
        assert (again.ok, again.why, again.caps.as_dict(), again.found) == (
            rig.verdict.ok,
            rig.verdict.why,
            rig.verdict.caps.as_dict(),
            rig.verdict.found,
        )
        # The engine keeps it in a file and hands it to a driver made later.
        kept = json.loads(json.dumps(rig.verdict.found))
        later = Verdict(True, rig.verdict.why, "", Caps(**rig.verdict.caps.as_dict()), kept)
        layers = rig.stack(BASE)
        fd = self.driver(environment(rig.root), rig.options, later).mount(layers, None)
        try:
            with open(os.open("f", os.O_RDONLY, dir_fd=fd)) as file:
                assert file.read() == "text"
        finally:
            os.close(fd)

    def test_01c_the_class_says_what_it_is(self) -> None:
        assert self.driver.api == API
        assert self.driver.name.replace("-", "").replace("_", "").isalnum()
        assert isinstance(self.driver.version(), str)
        for name, default in self.driver.Options.items():
            assert name.replace("_", "").isalnum(), name
            if isinstance(default, tuple):
                assert default, f"{name} has no words to choose from"
                assert {type(word) for word in default} == {str}, name
            else:
                assert type(default) in (bool, int, str), name

    @pytest.mark.parametrize("state", ["read-only", "full", "without inodes"])
    def test_02_a_probe_on_a_disk_that_takes_nothing_gives_a_verdict(
        self, rig: Rig, place: str, state: str
    ) -> None:
        root = f"{place}/other"
        os.mkdir(root)

        def probe() -> None:
            if state == "read-only":
                # The very file system that the store is on.
                Rig(self.driver, root, self.options).close()
                tree = m.open_tree(m.AT_FDCWD, root)
                m.mount_setattr(tree, set=m.MOUNT_ATTR_RDONLY)
                m.move_mount(tree, m.AT_FDCWD, root)
                os.close(tree)
            else:
                tmpfs(root, "size=256k" if state == "full" else "size=16m,nr_inodes=12")
                with contextlib.suppress(PyrunError):
                    # Where it works on a tmpfs, it has made its directories.
                    Rig(self.driver, root, self.options).close()
                os.makedirs(f"{root}/staging", exist_ok=True)
                _fill(root)
            before = snapshot(root)
            verdict = self.driver.probe(environment(root), rig.options)
            _assert_sound(verdict)
            assert not verdict.ok, f"usable on a disk that is {state}: {verdict.why}"
            assert difference(snapshot(root), before) == ""

        apart(probe)
        assert os.listdir(root) == [] or state == "read-only"

    def test_03_an_unknown_option_is_refused_with_the_valid_ones(self, rig: Rig) -> None:
        with pytest.raises(UsageError, match="no-such-option") as refused:
            Rig(self.driver, f"{rig.root}/other", {"no-such-option": True})
        for name in self.driver.Options or ["none"]:
            assert name in refused.value.hint
        for name, default in self.driver.Options.items():
            for value in default if isinstance(default, tuple) else (default,):
                given = str(value).lower() if isinstance(value, bool) else str(value)
                assert typed_options(self.driver, {name: given})[name] == value
            with pytest.raises(UsageError, match=name):
                typed_options(self.driver, {name: []})

    def test_04_a_mount_is_a_directory_that_nobody_else_sees(self, rig: Rig) -> None:
        layers = rig.stack(BASE)
        apart(lambda: self._seen_by_nobody(rig, layers))

    def _seen_by_nobody(self, rig: Rig, layers: list[Layer]) -> None:
        # In a mount namespace of its own: what others mount meanwhile is none of the case's business.
        before = _mountinfo()
        for rw in (None, rig.prepare(layers)):
            fd = rig.driver.mount(layers, rw)
            try:
                assert stat.S_ISDIR(os.fstat(fd).st_mode)
                assert not os.get_inheritable(fd), "the descriptor is not close-on-exec"
                assert _mountinfo() == before
                assert sorted(os.listdir(f"/proc/self/fd/{fd}")) == ["d", "f", "l"]
            finally:
                os.close(fd)
            if rw:
                rig.discard(rw)
        assert _mountinfo() == before

    def test_04a_a_mount_can_be_attached_in_another_namespace(self, rig: Rig) -> None:
        layers = rig.stack(BASE)
        target = f"{rig.root}/target"
        os.mkdir(target)
        apart(lambda: self._attached_elsewhere(rig, layers, target))
        assert os.listdir(target) == []

    def _attached_elsewhere(self, rig: Rig, layers: list[Layer], target: str) -> None:
        before = _mountinfo()
        with rig.rootfs(layers) as root:

            def attach() -> None:
                m.move_mount(root.fd, m.AT_FDCWD, target)
                os.close(root.fd)
                with open(f"{target}/d/f", "a") as file:
                    file.write(" and more")
                os.chdir(target)
                os.chroot(".")
                assert sorted(os.listdir("/")) == ["d", "f", "l"]
                with open("/l") as file:
                    assert file.read() == "text"

            apart(attach)
            with open(f"{root.path}/d/f") as file:
                assert file.read() == "base and more"
        assert _mountinfo() == before

    def test_04b_many_views_stand_beside_a_rootfs(self, rig: Rig) -> None:
        layers = rig.stack(BASE)
        with contextlib.ExitStack() as mounts:
            root = mounts.enter_context(rig.rootfs(layers))
            views = [mounts.enter_context(rig.view(layers)) for _ in range(20)]
            with open(f"{root.path}/f", "w") as file:
                file.write("changed")
            os.unlink(f"{root.path}/d/f")
            for view in views:
                with open(f"{view.path}/f") as file:
                    assert file.read() == "text"
                assert os.listdir(f"{view.path}/d") == ["f"]

    def test_05_an_empty_stack_is_an_empty_root(self, rig: Rig) -> None:
        rw = rig.prepare([])
        previous = os.umask(0o077)
        try:
            other = rig.prepare([])  # whatever the umask is
        finally:
            os.umask(previous)
        with contextlib.ExitStack() as mounts:
            views = [rig.view([]), rig.rootfs([], rw), rig.rootfs([], other)]
            for root in [mounts.enter_context(view) for view in views]:
                assert os.listdir(root.path) == []
                found = os.fstat(root.fd)
                assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 0, 0)
        rig.discard(rw)
        rig.discard(other)

    def test_05a_a_rootfs_without_layers_keeps_what_is_written(self, rig: Rig) -> None:
        def work(root: str) -> None:
            os.mkdir(f"{root}/d", 0o755)
            with open(f"{root}/d/f", "w") as file:
                file.write("text")

        assert set(changed(rig, work)) == {b"", b"d", b"d/f"}

    def test_06_a_file_of_a_layer_is_seen_through_a_writable_rootfs(self, rig: Rig) -> None:
        with rig.rootfs(rig.stack(BASE)) as root:
            with open(f"{root.path}/d/f") as file:
                assert file.read() == "base"
            assert os.readlink(f"{root.path}/l") == "f"
            assert stat.S_IMODE(os.stat(f"{root.path}/d").st_mode) == 0o1777
        merged(rig, BASE)

    def test_06a_a_write_leaves_the_layer_as_it_was(self, rig: Rig) -> None:
        layers = rig.stack(BASE)
        with rig.view(layers) as view:
            before = snapshot(view.path, directory_times=True)
        with rig.rootfs(layers) as root:
            with open(f"{root.path}/f", "w") as file:
                file.write("changed")
            os.unlink(f"{root.path}/d/f")
            os.chmod(f"{root.path}/d", 0o700)
            os.symlink("x", f"{root.path}/new")
            os.chmod(root.path, 0o700)
        with rig.view(layers) as view:
            assert difference(snapshot(view.path, directory_times=True), before) == ""

    def test_07_a_view_refuses_writes(self, rig: Rig) -> None:
        for layers in (rig.stack(BASE), rig.stack(BASE, tar(File("more"))), []):
            with rig.view(layers) as view:
                before = snapshot(view.path, directory_times=True)
                attempts: list[Callable[[], object]] = [
                    lambda at=view.path: os.open(f"{at}/new", os.O_CREAT | os.O_WRONLY),  # type: ignore[misc]
                    lambda at=view.path: os.mkdir(f"{at}/new"),  # type: ignore[misc]
                    lambda at=view.path: os.symlink("x", f"{at}/new"),  # type: ignore[misc]
                    lambda at=view.path: os.mkfifo(f"{at}/new"),  # type: ignore[misc]
                    lambda at=view.path: os.chmod(at, 0o700),  # type: ignore[misc]
                ]
                if layers:
                    attempts += [
                        lambda at=view.path: os.open(f"{at}/f", os.O_WRONLY),  # type: ignore[misc]
                        lambda at=view.path: os.truncate(f"{at}/f", 1),  # type: ignore[misc]
                        lambda at=view.path: os.unlink(f"{at}/f"),  # type: ignore[misc]
                        lambda at=view.path: os.rename(f"{at}/f", f"{at}/g"),  # type: ignore[misc]
                        lambda at=view.path: os.link(f"{at}/f", f"{at}/g"),  # type: ignore[misc]
                        lambda at=view.path: os.chmod(f"{at}/f", 0o600),  # type: ignore[misc]
                        lambda at=view.path: os.chown(f"{at}/f", 0, 0),  # type: ignore[misc]
                        lambda at=view.path: os.utime(f"{at}/f"),  # type: ignore[misc]
                        lambda at=view.path: os.setxattr(f"{at}/f", "user.a", b"b"),  # type: ignore[misc]
                        lambda at=view.path: os.unlink(f"{at}/d/f"),  # type: ignore[misc]
                    ]
                for attempt in attempts:
                    with pytest.raises(OSError) as refused:
                        attempt()
                    assert refused.value.errno == EROFS
                assert difference(snapshot(view.path, directory_times=True), before) == ""

    def test_08_layers_show_the_same_in_whatever_order_they_were_ingested(self, rig: Rig) -> None:
        tars = [BASE, tar(Whiteout("f"), File("d/g", b"2")), tar(Dir("d", 0o700), File("x"), Whiteout("d/f"))]
        expected = merged(rig, *tars)
        if rig.caps.chained:
            # A layer needs its parent, which may have other children, made before or after.
            for other in (tar(File("other")), tar(Whiteout("d"))):
                merged(rig, tars[0], other)
            assert merged(rig, *tars) == expected
            return
        for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            for key in list(rig.layers.keys()):
                rig.layers.remove(key)
            for number in order:
                rig.ingest(tars[number])
            assert merged(rig, *tars) == expected

    def test_09_a_layers_id_tells_what_its_content_depends_on(self, rig: Rig) -> None:
        one, two, top = tar(File("one")), tar(File("two")), tar(File("top"))
        over = [rig.stack(base, top) for base in (one, two)]
        bases, tops = [stack[0] for stack in over], [stack[-1] for stack in over]
        with rig.view([tops[0]]) as view:
            alone = sorted(os.listdir(view.path))
        if rig.caps.chained:
            diff_ids = [_diff_id(top), _diff_id(top)]
            assert [t.id for t in tops] == [chain_id(b.id, d) for b, d in zip(bases, diff_ids, strict=True)]
            assert tops[0].path != tops[1].path
            assert alone == ["one", "top"], "chained is claimed, yet a layer has not its parent's content"
        else:
            assert [t.id for t in tops] == [_diff_id(top)] * 2
            assert tops[0].path == tops[1].path
            assert alone == ["top"]
        for stack, names in zip(over, (["one", "top"], ["top", "two"]), strict=True):
            with rig.view(stack) as view:
                assert sorted(os.listdir(view.path)) == names

    def test_10_what_is_gone_can_be_removed_again(self, rig: Rig) -> None:
        layers = rig.stack(BASE)
        rw = rig.prepare(layers)
        with rig.rootfs(layers, rw) as root, open(f"{root.path}/f", "w") as file:
            file.write("changed")
        for path in (rw, layers[0].path):
            for _ in range(2):
                rig.driver.remove(path)
                assert not os.path.lexists(path)
        rig.driver.remove(f"{rig.root}/containers/never")
        rig.driver.remove(f"{rig.root}/containers/never/rw")

    def test_10a_what_is_half_made_can_be_removed(self, rig: Rig) -> None:
        layers = rig.stack(BASE)

        # Cut down to each of its parts in turn, as a death in the middle may leave it.
        def writable() -> str:
            return rig.prepare(layers)

        def layer() -> str:
            return rig.ingest(tar(File(os.urandom(8).hex()))).path

        for make in (writable, layer):
            parts = sorted(os.listdir(make()))
            for part in parts:
                path = make()
                for other in parts:
                    if other != part:
                        rig.driver.remove(f"{path}/{other}")
                        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                            os.unlink(f"{path}/{other}")
                rig.driver.remove(path)
                assert not os.path.lexists(path)
        empty = f"{rig.root}/staging/{rig.driver.name}.half"
        os.mkdir(empty)
        rig.driver.remove(empty)
        assert not os.path.lexists(empty)

    def test_11_removing_a_layer_leaves_the_others(self, rig: Rig) -> None:
        base = rig.ingest(BASE)
        first, second = (rig.ingest(tar(File(name)), base) for name in ("first", "second"))
        rig.layers.remove(first.id)
        assert rig.layers.find(first.id) is None
        with rig.rootfs([base, second]) as root:
            assert sorted(os.listdir(root.path)) == ["d", "f", "l", "second"]
        # And again: it comes back as it was.
        with rig.rootfs([base, rig.ingest(tar(File("first")), base)]) as root:
            assert sorted(os.listdir(root.path)) == ["d", "f", "first", "l"]

    def test_11a_removing_a_rootfs_leaves_layers_and_other_rootfs(self, rig: Rig) -> None:
        layers = rig.stack(BASE)
        gone, stays = rig.prepare(layers), rig.prepare(layers)
        for rw in (gone, stays):
            with rig.rootfs(layers, rw) as root:
                os.unlink(f"{root.path}/f")
                os.mkdir(f"{root.path}/mine")
        rig.discard(gone)
        assert not os.path.lexists(gone)
        with rig.rootfs(layers, stays) as root:
            assert sorted(os.listdir(root.path)) == ["d", "l", "mine"]
        with rig.view(layers) as view:
            assert sorted(os.listdir(view.path)) == ["d", "f", "l"]
        rig.discard(stays)

    def test_12_the_declared_number_of_layers_stacks_and_one_more_is_refused(self, rig: Rig) -> None:
        limit = rig.caps.max_layers
        count = min(limit or _UNLIMITED, _TRIED)
        made = [rig.ingest(tar(File("bottom", b"b")))]
        for number in range(1, count):
            members = File(f"{number % 8}", b"%d" % number), File("top", b"%d" % number)
            made.append(rig.ingest(tar(*members), made[-1]))
        names = {f"{number % 8}": b"%d" % number for number in range(1, count)}
        expected = {"top": b"%d" % (count - 1), **names, "bottom": b"b"}
        rw = rig.prepare(made)
        for mounted in (rig.view(made), rig.rootfs(made, rw)):
            with mounted as root:
                assert {name: _content(f"{root.path}/{name}") for name in os.listdir(root.path)} == expected
        rig.discard(rw)
        if limit is None or count < limit:
            return
        more = [*made, rig.ingest(tar(File("more")), made[-1])]
        with pytest.raises(TooManyLayers, match=rf"\b{limit}\b") as refused, rig.view(more):
            pass
        assert refused.value.hint
        with pytest.raises(TooManyLayers, match=rf"\b{limit}\b"), rig.rootfs(more):
            pass

    def test_13_a_layer_may_be_listed_twice(self, rig: Rig) -> None:
        twice, between = tar(File("f", b"twice"), Dir("d"), File("d/in")), tar(File("f", b"b"), Whiteout("d"))
        for tars in ([twice, twice], [twice, between, twice], [between, twice, twice, between]):
            try:
                merged(rig, *tars)
            except PyrunError as refused:
                if "twice" not in str(refused):
                    raise

    @pytest.mark.parametrize(
        "name", ["colon:comma,back\\slash", "new\nline", "sp ace 'q\" %41 $x", "ü", "-o,x=y"]
    )
    def test_14_a_store_may_lie_at_a_path_of_any_characters(self, rig: Rig, name: str) -> None:
        apart(lambda: self._works_at(f"{rig.root}/{name}/{name}"), seconds=110)

    def test_14a_a_store_may_lie_at_a_long_path(self, rig: Rig) -> None:
        apart(lambda: self._works_at("/".join([rig.root, *["l" * 200] * 5])), seconds=110)

    def _works_at(self, root: str) -> None:
        before = _mountinfo()
        with Rig(self.driver, root, self.options) as rig:
            merged(rig, BASE, tar(Whiteout("f"), File("d/g")))
            changed(rig, lambda at: os.unlink(f"{at}/d/f"), BASE, tar(File("over")))
        assert _mountinfo() == before
        assert os.listdir(f"{root}/staging") == []


def _diff_id(tar_bytes: bytes) -> str:
    """The diff_id of a tar."""
    return f"sha256:{hashlib.sha256(tar_bytes).hexdigest()}"


def _assert_sound(verdict: Verdict) -> None:
    assert isinstance(verdict, Verdict)
    assert isinstance(verdict.ok, bool)
    assert isinstance(verdict.why, str)
    assert verdict.why.strip(), "a verdict without a reason"
    assert "\n" not in verdict.why.strip()
    assert isinstance(verdict.fix, str)
    assert isinstance(verdict.caps, Caps)
    assert json.loads(json.dumps(verdict.found)) == verdict.found


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _mountinfo() -> list[bytes]:
    with open("/proc/self/mountinfo", "rb") as file:
        return file.read().splitlines()


def _fill(root: str) -> None:
    """Use up a small tmpfs: its blocks, or its inodes."""
    for number in range(1000):
        try:
            with open(f"{root}/fill{number}", "wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    if os.statvfs(root).f_bavail > 1000:
                        break  # inodes are what is scarce here
        except OSError:
            return
