"""Chaos for storage drivers: death at every moment, system calls that fail, disks that fill up, break or lose power.

from pyrun.testing import StorageChaos

class TestMyChaos(StorageChaos):
    driver = MyDriver

Attributes as of `pyrun.testing.StorageConformance`. After each blow the store must be sound once a later process has
cleared up, as every command does first; whatever was reported as done is there and right; and the same thing, tried
again, succeeds. Needs root for loop devices, and strace(1); what is missing is skipped.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

# Failed assertions are explained as those of test modules are; before the modules are imported.
pytest.register_assert_rewrite(
    *(f"pyrun.testing.{name}" for name in ("fault_cases", "fixtures", "soundness"))
)

from ..errors import PyrunError  # noqa: E402
from ..storage import failpoints, layers  # noqa: E402
from . import disks  # noqa: E402
from .children import Child, Outcome, gate, killed_at, run  # noqa: E402
from .fault_cases import MiB, fill_and_recover  # noqa: E402
from .fixtures import StoreFixtures  # noqa: E402
from .rig import Rig  # noqa: E402
from .soundness import (  # noqa: E402
    CONTENT,
    LOWER,
    UPPER,
    assert_shown,
    assert_sound,
    image,
    nothing_left,
    shown,
    write,
)
from .strace import Injection, NoStrace, calls, traced  # noqa: E402

if TYPE_CHECKING:
    from ..storage.contract import Layer
    from .trees import Node

OPERATIONS = ("ingest", "prepare", "mount", "commit", "remove")

# What changes a disk or makes a mount, and what reads on the way to that.
CALLS = tuple(
    "openat mkdir mkdirat rename renameat renameat2 link linkat symlink symlinkat mknod mknodat unlink unlinkat "
    "rmdir write pwrite64 ftruncate fallocate copy_file_range sendfile fsync fdatasync syncfs chmod fchmod "
    "fchmodat chown fchown lchown fchownat utimensat setxattr lsetxattr fsetxattr ioctl flock read getdents64 "
    "fsopen fsconfig fsmount open_tree move_mount mount mount_setattr".split()
)
ERRORS = ("EIO", "ENOSPC")
_EVERY = 8  # with `long`, a call is tried at its first and last so many moments


class Stage:
    """A store with an image, on which one operation is tried again and again.

    base    the image's lower layer; the upper one is made by "ingest" and there for the others
    wanted  what the image shows
    """

    def __init__(self, rig: Rig, operation: str) -> None:
        self.rig = rig
        self.operation = operation
        stack = image(rig)
        self.base = stack[0]
        self.wanted: dict[bytes, Node] = shown(rig, stack)
        # All that is loaded on the way is loaded now; and what committing gives is known.
        self.committed = len(self.commit(self.begin_commit(stack)))
        rig.layers.sync()
        self.clear()

    def stack(self) -> list[Layer]:
        """The image's layers, made where they are missing."""
        return self.rig.layers.mended([self.base, self.rig.ingest(UPPER, self.base)])

    def clear(self) -> None:
        """Take away what the operation made, and what it works on."""
        for name in os.listdir(f"{self.rig.root}/containers"):
            self.rig.discard(f"{self.rig.root}/containers/{name}/rw")
        for key in list(self.rig.layers.keys()):
            if key != self.base.id:
                self.rig.layers.remove(key)

    def before(self) -> Any:
        """What the operation works on. For "commit" in the process that does it: it holds a mount."""
        if self.operation == "ingest":
            return None
        stack = self.stack()
        if self.operation == "prepare":
            return stack
        rw = self.rig.prepare(stack)
        if self.operation == "commit":
            return self.begin_commit(stack, rw)
        return stack, rw

    def do(self, made: Any) -> Any:
        """The operation, on what `before` made."""
        if self.operation == "ingest":
            self.stack()
            self.rig.layers.sync()
        elif self.operation == "prepare":
            self.rig.prepare(made)
        elif self.operation == "mount":
            stack, rw = made
            with self.rig.rootfs(stack, rw) as root:
                assert sorted(os.listdir(root.path)) == ["etc", "tmp", "usr", "var"]
        elif self.operation == "commit":
            return len(self.commit(made))
        else:
            stack, rw = made
            self.rig.discard(rw)
            for layer in reversed(stack[1:]):
                self.rig.layers.remove(layer.id)
        return None

    def begin_commit(self, stack: Sequence[Layer], rw: str = "") -> Any:
        rw = rw or self.rig.prepare(stack)
        write(self.rig, stack, rw)
        manager = self.rig.rootfs(stack, rw)
        return manager, manager.__enter__()

    def commit(self, made: Any) -> bytes:
        manager, root = made
        try:
            tar: bytes = root.commit()
            return tar
        finally:
            manager.__exit__(None, None, None)

    def check(self, outcome: Outcome) -> None:
        """The operation ended so, or was ended. What must hold now does, and it succeeds when tried again."""
        if outcome.kind:
            assert outcome.clear, f"an error that users can't read:\n{outcome}"
            assert outcome.error.strip(), "an error without words"
        after = Rig(type(self.rig.driver), self.rig.root, self.rig.options)
        after.sweep()
        assert_sound(after)
        if outcome.ok:
            self.check_done(outcome)
        stack = self.stack()
        assert_shown(after, stack, self.wanted)
        for name in os.listdir(f"{self.rig.root}/containers"):
            write(after, stack, f"{self.rig.root}/containers/{name}/rw")
        self.clear()
        self.do(self.before())
        assert_sound(after)
        self.clear()

    def check_done(self, outcome: Outcome) -> None:
        """The operation said that it succeeded: it did."""
        keys, containers = list(self.rig.layers.keys()), os.listdir(f"{self.rig.root}/containers")
        if self.operation == "ingest":
            assert len(keys) > 1
            assert_shown(self.rig, self.stack(), self.wanted)
        elif self.operation == "prepare":
            assert len(containers) == 1
        elif self.operation == "commit":
            assert outcome.value == self.committed, "the commit lacks something"
        elif self.operation == "remove":
            assert (keys, containers) == ([self.base.id], [])


class ChaosCases:
    """Cases that need the fixture ``rig``.

    file_systems  kinds of file systems in a loop file to try, for the cases that break one; the first on which
                  the driver works is taken (with ``long`` also all others where disks fill up)
    some          of how many system calls of an operation failures are tried, where not ``long``
    """

    long: ClassVar[bool]
    file_systems: ClassVar[Sequence[str]] = disks.LOOP_KINDS
    some: ClassVar[int] = 4

    # --- death

    @pytest.mark.parametrize("name", [n for n in failpoints.ALL if n not in failpoints.GC])
    def test_killed_at_failpoint(self, rig: Rig, name: str) -> None:
        stage = Stage(rig, name.partition(".")[0])
        count = 0
        while True:
            count += 1
            with nothing_left(rig.root):
                outcome = killed_at(name, lambda: stage.do(stage.before()), count=count)
            assert outcome.ok or outcome.signal == signal.SIGKILL, str(outcome)
            stage.check(outcome)
            if outcome.ok:
                break
            assert count < 100, f"{name} is reached without end"
        assert count > 1, f"{name} was never reached"

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_killed_in_system_calls(self, rig: Rig, operation: str) -> None:
        for injection in self._injections(stage := Stage(rig, operation), ("signal=KILL",)):
            with _described(injection):
                stage.check(self._traced(stage, injection))

    @pytest.mark.parametrize("name", failpoints.INGEST)
    def test_a_layer_whose_maker_dies_is_made_by_who_waits_for_it(self, rig: Rig, name: str) -> None:
        stage = Stage(rig, "ingest")
        with nothing_left(rig.root), gate() as there, gate() as never, gate() as waits:

            def victim() -> None:
                def armed(reached: str) -> None:
                    if reached == name:
                        there.open()
                        never.wait()

                failpoints.armed = armed
                rig.ingest(UPPER, stage.base)

            def heir() -> str:
                waits.open()
                return rig.ingest(UPPER, stage.base).path

            first = Child(victim)
            there.wait_for(first)
            second = Child(heir)
            waits.wait_for(second)
            time.sleep(0.05)  # it waits for the lock by now, or will find it free: both must work
            first.kill()
            assert first.wait().signal == signal.SIGKILL
            outcome = second.wait()
            outcome.result()
        stage.check(outcome)

    # --- system calls that fail

    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_failing_system_calls(self, rig: Rig, operation: str) -> None:
        stage = Stage(rig, operation)
        for injection in self._injections(stage, tuple(f"error={name}" for name in ERRORS)):
            with _described(injection):
                stage.check(self._traced(stage, injection))

    def _injections(self, stage: Stage, actions: Sequence[str]) -> list[Injection]:
        """The calls that the operation makes, at some of their moments: with ``long`` all of them at nearly all,
        with each of ``actions``; else a few at one, the first, middle or last, with one of them."""
        try:
            with nothing_left(stage.rig.root):
                counts = calls(stage.do, CALLS, before=stage.before)
        except NoStrace as reason:
            pytest.skip(str(reason))
        stage.clear()
        found = []
        made = [(call, count) for call, count in counts.items() if count]
        assert made, "the operation makes no system call that counts"
        if not self.long:
            made = made[:: -(-len(made) // self.some)]
        for number, (call, count) in enumerate(made):
            moments = range(1, count + 1)
            if self.long:
                some = sorted({*moments[:_EVERY], *moments[-_EVERY:]})
                found += [Injection(call, action, when) for action in actions for when in some]
            else:
                when = (1, (count + 1) // 2, count)[number % 3]
                found.append(Injection(call, actions[number % len(actions)], when))
        return found

    def _traced(self, stage: Stage, injection: Injection) -> Outcome:
        with nothing_left(stage.rig.root):
            return traced(stage.do, injection, before=stage.before, seconds=30)

    # --- disks

    def test_a_disk_that_fills_up(self, rig: Rig) -> None:
        kinds = self.file_systems if self.long else [self._kind(rig)]
        for kind in kinds:

            def work(kind: str = kind) -> None:
                with _small(rig, [kind], 64 * MiB) as disk:
                    small = Rig(type(rig.driver), f"{disk.path}/store", rig.options)
                    fill_and_recover(small, f"{disk.path}/filler")
                    small.close()

            if kind == self._kind(rig) or self._works_on(rig, kind):
                with nothing_left(rig.root):
                    run(work, mounts=True, seconds=110).result()

    @pytest.mark.parametrize("left", [0.0, 0.5], ids=["nothing is left of", "half is left of"])
    def test_a_disk_that_breaks(self, rig: Rig, left: float) -> None:
        """The loop file is truncated under the mount, and can't grow again: reads and writes give EIO."""
        kind = self._kind(rig)

        def work() -> list[str]:
            room = f"{rig.root}/room"
            os.mkdir(room)
            size = 160 * MiB if kind == "btrfs" else 400 * MiB if kind == "xfs" else 64 * MiB
            disks.make("tmpfs", room, size + 8 * MiB, "")
            with _small(rig, [kind], size, room) as disk:
                small = Rig(type(rig.driver), f"{disk.path}/store", rig.options)
                stack = image(small)
                rw = small.prepare(stack)
                small.layers.sync()
                disk.unmount()  # so that nothing is in memory
                disks.attach(kind, disk.path, disk.image)
                small = Rig(type(rig.driver), f"{disk.path}/store", rig.options)
                os.truncate(disk.image, int(size * left) & ~4095)
                disks.fill(f"{room}/filler")
                return _use_broken(small, stack, rw)

        with nothing_left(rig.root):
            done = run(work, mounts=True, seconds=60).result()
        assert "ingest" not in done, "a layer was reported as made durable on a broken disk"

    @pytest.mark.parametrize("journal", [False, True], ids=["at every moment", "after a journal commit"])
    def test_a_power_cut(self, rig: Rig, journal: bool) -> None:
        """The loop file is copied while it is mounted, and the copy mounted. After a journal commit the names of
        files are on the disk and their content is not."""
        kind = self._kind(rig)
        if journal and kind != "ext4":
            journal = False  # others commit names and content together
        images = f"{rig.root}/cuts"
        os.mkdir(images)

        def live() -> None:
            with _small(rig, [kind], 64 * MiB, options="commit=1" if kind == "ext4" else "") as disk:
                _live_until_cuts(
                    Rig(type(rig.driver), f"{disk.path}/store", rig.options), disk, images, journal
                )

        with nothing_left(rig.root):
            run(live, mounts=True, seconds=100).result()
        cuts = sorted(os.listdir(images))
        assert len(cuts) >= (1 if journal else len(failpoints.INGEST) + len(failpoints.PREPARE))

        def wake(cut: str) -> None:
            place = f"{rig.root}/small"
            disks.attach(kind, place, f"{images}/{cut}")
            _wake_after_cut(Rig(type(rig.driver), f"{place}/store", rig.options), cut)

        for cut in cuts:
            with _described(cut), nothing_left(rig.root):
                run(partial(wake, cut), mounts=True, seconds=60).result()
            os.unlink(f"{images}/{cut}")

    def _kind(self, rig: Rig) -> str:
        """The first kind of disk on which the driver works; skips where there is none."""
        for kind in self.file_systems:
            if self._works_on(rig, kind):
                return kind
        pytest.skip(f"no file system in a loop file on which {rig.driver.name} works: {self._reasons[-1]}")

    def _works_on(self, rig: Rig, kind: str) -> bool:
        def work() -> str:
            try:
                with _small(rig, [kind], 64 * MiB) as disk:
                    return disk.kind
            except disks.NoDisk as error:
                return f"!{error.message}"

        known = f"{type(rig.driver).__qualname__} {kind}"
        if known not in self._works:
            found = str(run(work, mounts=True).result())
            self._works[known] = not found.startswith("!")
            self._reasons.append(found)
        return self._works[known]

    _works: ClassVar[dict[str, bool]] = {}
    _reasons: ClassVar[list[str]] = []


class StorageChaos(StoreFixtures, ChaosCases):
    """Set ``driver`` in a subclass; its name must start with "Test" for pytest to collect it."""


@contextlib.contextmanager
def _described(what: object) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"with {what}")
        raise


@contextlib.contextmanager
def _small(
    rig: Rig, kinds: Sequence[str], size: int, above: str = "", options: str = ""
) -> Iterator[disks.Disk]:
    """A disk below the rig's root, or ``above``; gone afterwards, with its image."""
    path = f"{above or rig.root}/small"
    try:
        disk = disks.fitting(type(rig.driver), rig.options, path, size, kinds)
        if options:
            disk.unmount()
            disk = disks.attach(disk.kind, path, disk.image, options)
        yield disk
        with contextlib.suppress(OSError):
            disk.unmount()
    finally:
        for kind in disks.LOOP_KINDS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}.{kind}")


def _use_broken(rig: Rig, stack: Sequence[Layer], rw: str) -> list[str]:
    """Use a store whose disk is gone. The names of what succeeded: nothing wrong is read, nothing hangs, and what
    fails says so."""

    def read() -> None:
        with rig.view(stack) as view:
            for name, content in (("usr/bin/tool", CONTENT), ("var/new", CONTENT[:5000])):
                with open(f"{view.path}/{name}", "rb") as file:
                    assert file.read() == content, "a broken disk was read, and gave something else"

    def ingest() -> None:
        rig.ingest(_other(), stack[0])
        rig.layers.sync()

    steps: dict[str, Callable[[], object]] = {
        "read": read,
        "prepare": lambda: rig.prepare(stack),
        "ingest": ingest,
        "write": lambda: write(rig, stack, rw),
        "discard": lambda: rig.discard(rw),
        "sweep": rig.sweep,
        "probe": lambda: type(rig.driver).probe(rig.env, rig.options),
    }
    done = []
    for name, step in steps.items():
        try:
            step()
            done.append(name)
        except (OSError, PyrunError) as error:
            if not str(error).strip():
                raise
    return done


def _other() -> bytes:
    from .tars import Dir, File, tar

    return tar(Dir("other"), *(File(f"other/{n}", os.urandom(100_000)) for n in range(20)))


def _live_until_cuts(rig: Rig, disk: disks.Disk, images: str, journal: bool) -> None:
    """Work in a store, and copy its disk to ``images`` at every failpoint; with ``journal`` once only, when the
    file system has written its journal and not yet the content."""
    reached: dict[str, int] = {}

    def cut(name: str) -> None:
        reached[name] = reached.get(name, 0) + 1
        if journal:
            if name == "ingest.placed":
                time.sleep(1.6)
                disk.copy(f"{images}/{name}.{reached[name]}")
        elif reached[name] == 1 and name not in (*failpoints.MOUNT, *failpoints.COMMIT):  # they write nothing
            disk.copy(f"{images}/{name}.{reached[name]}")

    base = rig.ingest(LOWER)
    rig.layers.sync()
    failpoints.armed = cut
    stack = rig.layers.mended([base, rig.ingest(UPPER, base)])
    rw = rig.prepare(stack)
    write(rig, stack, rw)
    rig.discard(rw)
    if not journal:
        rig.layers.sync()
        disk.copy(f"{images}/synced")


def _wake_after_cut(rig: Rig, cut: str) -> None:
    """The power is back. What was made durable is there; what was not is made again."""
    layers.boot_id = lambda: "the boot after the power cut"
    rig.sweep()
    base = rig.layers.find(_id(LOWER))
    assert base is not None, "a layer that was synced is lost"
    if cut == "synced":
        assert rig.layers.find(_top(rig, base)), "a layer that was synced is lost"
    else:
        assert rig.layers.find(_top(rig, base)) is None, "a layer that was not synced is taken for whole"
    assert_sound(rig, power_cut=True)
    stack = rig.layers.mended([base, rig.ingest(UPPER, base)])
    with rig.view(stack) as view, open(f"{view.path}/usr/bin/tool", "rb") as file:
        assert file.read() == CONTENT
    with rig.view(stack) as view, open(f"{view.path}/var/new", "rb") as file:
        assert file.read() == CONTENT[:5000]
    for name in os.listdir(f"{rig.root}/containers"):
        # A container is as durable as its record, which the engine syncs; here it may be anything, but removable.
        with contextlib.suppress(OSError, PyrunError):
            write(rig, stack, f"{rig.root}/containers/{name}/rw")
        rig.discard(f"{rig.root}/containers/{name}/rw")
    rw = rig.prepare(stack)
    write(rig, stack, rw)
    rig.discard(rw)
    assert_sound(rig)


def _id(tar: bytes) -> str:
    from ..storage.tarblob import TarBlob

    return TarBlob(tar).diff_id


def _top(rig: Rig, base: Layer) -> str:
    return layers.chain_id(base.id, _id(UPPER)) if rig.layers.chained else _id(UPPER)
