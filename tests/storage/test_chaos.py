"""Death, full and broken disks, power cuts: what drivers and the engine make of them.

The cases about drivers are `pyrun.testing.chaos`'; all of them run on overlay, some on the others. Then the engine is
killed at every failpoint of a pull, of a container's life and of garbage collection; afterwards `pyrun system check`
finds no damage, and the same command succeeds.
"""

from __future__ import annotations

import functools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_check import check, repaired
from test_conformance import _BTRFS, _FUSE, DRIVERS, btrfs

from pyrun.containers.options import ContainerOptions
from pyrun.engine import Engine
from pyrun.storage import failpoints
from pyrun.testing import StorageChaos, disks
from pyrun.testing.children import Outcome, run
from support.pyrun import Pyrun, mounts_below, processes, wait_for
from support.registry import Registry, tar

__all__ = ["btrfs"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")


class _OnDisk(StorageChaos):
    must_work = True

    @pytest.fixture
    def above(self, base: Path) -> str:
        return str(base)


def later(case: Callable[..., None]) -> Callable[..., None]:
    """``case``, left to long runs."""

    @functools.wraps(case)
    def copy(*args: Any, **more: Any) -> None:
        case(*args, **more)

    copy.pytestmark = [*getattr(case, "pytestmark", ()), pytest.mark.long.mark]  # type: ignore[attr-defined]
    return copy


class _Briefly(_OnDisk):
    """Death is what these drivers see in their conformance tests, too: case 65."""

    some = 2
    test_killed_at_failpoint = later(StorageChaos.test_killed_at_failpoint)
    test_a_layer_whose_maker_dies_is_made_by_who_waits_for_it = later(
        StorageChaos.test_a_layer_whose_maker_dies_is_made_by_who_waits_for_it
    )
    test_killed_in_system_calls = later(StorageChaos.test_killed_in_system_calls)
    test_a_disk_that_fills_up = later(StorageChaos.test_a_disk_that_fills_up)


class TestOverlay(_OnDisk):
    driver = DRIVERS["overlay"]


class TestErofs(_Briefly):
    driver = DRIVERS["erofs"]


class TestFuseOverlayfs(_Briefly):
    pytestmark = _FUSE
    driver = DRIVERS["fuse-overlayfs"]


@pytest.mark.long
class TestVfs(_Briefly):
    driver = DRIVERS["vfs"]


@pytest.mark.long
class TestBtrfs(_Briefly):
    pytestmark = _BTRFS
    driver = DRIVERS["btrfs"]

    @pytest.fixture
    def above(self, btrfs: str) -> str:
        return btrfs


@pytest.mark.long
@pytest.mark.timeout(3600)
class TestOverlayThoroughly(TestOverlay):
    long = True


# --- the engine


def killed(pyrun: Pyrun, name: str, work: Callable[[Engine], object], *, worker: bool = False) -> Outcome:
    """What came of ``work`` in a process in which the engine dies at the failpoint ``name``, or with ``worker``
    only the process that reached it."""

    def doomed() -> None:
        os.environ.update(pyrun.env)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        engine = os.getpid()

        def armed(reached: str) -> None:
            if reached == name:
                if not worker:
                    os.kill(engine, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        failpoints.armed = armed
        work(Engine(str(pyrun.root), str(pyrun.state)))

    return run(doomed)


def harm(pyrun: Pyrun) -> list[dict[str, str]]:
    """What `system check` finds that is more than a leftover."""
    return [problem for problem in check(pyrun) if problem["Harm"] != "false"]


def layers_of(pyrun: Pyrun) -> list[str]:
    return [path.name for path in (pyrun.root / "layers/overlay").iterdir() if path.name[0] != "."]


def sound_after(pyrun: Pyrun, outcome: Outcome) -> None:
    """The engine was killed, and harmed nothing."""
    assert outcome.signal == signal.SIGKILL, f"the failpoint was not reached: {outcome}"
    wait_for(lambda: not processes(str(pyrun.root)), "the processes of the dead engine are gone", 10)
    assert harm(pyrun) == []
    assert mounts_below(pyrun.root) == []


def clean(pyrun: Pyrun) -> None:
    """A later command cleared up: no leftover but what `system check --repair` says it is, and removes."""
    assert os.listdir(pyrun.root / "staging") == []
    repaired(pyrun)


@pytest.fixture
def three(registry: Registry) -> str:
    """The name of an image of three layers, which are unpacked at the same time."""
    layers = [tar({f"dir{n}/{m}": b"%d" % m * 2000 for m in range(30)}) for n in range(3)]
    registry.push_image("chaos/three", "latest", layers)
    return "chaos/three"


@pytest.mark.parametrize(
    ("name", "worker"), [*((name, False) for name in failpoints.INGEST), ("ingest.made", True)]
)
def test_a_pull_killed_at(name: str, worker: bool, empty: Pyrun, three: str) -> None:
    outcome = killed(empty, name, lambda engine: engine.pull(three), worker=worker)
    if worker:
        assert outcome.kind == "StorageError", str(outcome)
        assert harm(empty) == []
    else:
        sound_after(empty, outcome)
    assert empty.ok("images", "-q") == ""
    empty.ok("pull", "-q", three)
    clean(empty)
    assert len(layers_of(empty)) == 3
    assert check(empty, "--deep", code=0) == []


@pytest.mark.parametrize("name", [*failpoints.PREPARE, *failpoints.MOUNT, *failpoints.REMOVE])
def test_a_run_killed_at(name: str, fresh: Pyrun) -> None:
    def work(engine: Engine) -> None:
        engine.run("busybox", ["true"], ContainerOptions(rm=True))

    sound_after(fresh, killed(fresh, name, work))
    assert fresh.sh("echo works") == "works\n"
    fresh.ok("ps", "-a")
    assert fresh.records() == []
    clean(fresh)


@pytest.mark.parametrize("name", failpoints.REMOVE)
def test_a_removal_of_a_container_killed_at(name: str, fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "doomed", "busybox", "true")
    sound_after(fresh, killed(fresh, name, lambda engine: engine.remove_container("doomed")))
    fresh("rm", "doomed")
    assert fresh.ok("ps", "-aq") == ""
    assert fresh.records() == []
    clean(fresh)
    fresh.ok("run", "--rm", "--name", "doomed", "busybox", "true")


@pytest.mark.parametrize("name", [*failpoints.GC, *failpoints.REMOVE])
def test_a_removal_of_an_image_killed_at(name: str, fresh: Pyrun) -> None:
    sound_after(fresh, killed(fresh, name, lambda engine: engine.remove_image("busybox")))
    fresh("rmi", "busybox")
    assert fresh.ok("images", "-q") == ""
    fresh.ok("pull", "-q", "busybox")
    assert fresh.sh("echo works") == "works\n"
    clean(fresh)
    # What the dead one had left to collect goes with the next collection.
    fresh.ok("rmi", "busybox")
    repaired(fresh)
    assert layers_of(fresh) == []


@pytest.fixture
def powerless(empty: Pyrun) -> Iterator[Pyrun]:
    """The command with a store on a disk of its own, which is mounted in children only."""
    empty.root.mkdir()
    yield empty
    empty.root.rmdir()


@pytest.mark.parametrize(
    "when",
    [
        "after a pull",
        *(pytest.param(name, marks=pytest.mark.long) for name in failpoints.INGEST[:-1]),
        failpoints.INGEST[-1],
    ],
)
def test_the_power_fails(when: str, powerless: Pyrun) -> None:
    """A loop file is copied under the store, and the copy mounted in its place, as of another boot."""
    images = powerless.root.parent

    def before() -> None:
        os.environ.update(powerless.env)
        disk = disks.make("ext4", str(powerless.root), 128 << 20, f"{images}/disk")
        if when == "after a pull":
            powerless.ok("pull", "-q", "busybox")
            disk.copy(f"{images}/cut")
            return

        def armed(reached: str) -> None:
            if reached == when:
                disk.copy(f"{images}/cut")

        failpoints.armed = armed
        Engine(str(powerless.root), str(powerless.state)).pull("busybox")

    def after() -> None:
        disks.attach("ext4", str(powerless.root), f"{images}/cut")
        boot = images / "boot_id"
        boot.write_text("00000000-0000-4000-8000-000000000000\n")
        # What lies on /proc keeps a user namespace from having its own; hence --userns=host below.
        subprocess.run(["mount", "--bind", boot, "/proc/sys/kernel/random/boot_id"], check=True)
        assert harm(powerless) == []
        if when == "after a pull":
            assert powerless.sh("echo works", "--pull", "never", "--userns=host") == "works\n"
        else:
            assert powerless.ok("images", "-q") == ""
        powerless.ok("pull", "-q", "busybox")
        assert powerless.sh("echo works", "--pull", "never", "--userns=host") == "works\n"
        clean(powerless)

    run(before, mounts=True).result()
    run(after, mounts=True).result()
    for name in ("disk", "cut", "boot_id"):
        (images / name).unlink()
