"""Many containers over one image at the same time, and sudden deaths among them: no leak, no corruption.

Moments are random, the seed is printed; PYRUN_TEST_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from test_conformance import _BTRFS, _FUSE, DRIVERS, btrfs

from pyrun.storage import failpoints
from pyrun.storage.contract import Layer
from pyrun.testing.children import Child, gate, gather, run
from pyrun.testing.fixtures import StoreFixtures, descriptors
from pyrun.testing.rig import Rig
from pyrun.testing.soundness import LOWER, UPPER, assert_shown, assert_sound, image, nothing_left, shown

__all__ = ["btrfs"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

AT_ONCE = 20
SEED = int(os.environ.get("PYRUN_TEST_SEED", time.time_ns() % 1_000_000))
# Where a worker may die, beside any other moment.
POINTS = (*failpoints.PREPARE, *failpoints.MOUNT, *failpoints.REMOVE)


class Containers(StoreFixtures):
    """``workers`` containers in all, of which about a third die."""

    must_work = True
    workers = 40

    @pytest.fixture
    def above(self, base: Path) -> str:
        return str(base)

    @pytest.mark.timeout(300)
    def test_containers_over_one_image_die_at_random_moments(self, rig: Rig) -> None:
        print(f"PYRUN_TEST_SEED={SEED}")
        moments = random.Random(SEED)
        stack = image(rig)
        wanted = shown(rig, stack)
        before = descriptors()
        began = time.monotonic()
        run(lambda: self.live(rig, stack, -1, "")).result()
        longest = (time.monotonic() - began) * 3
        died = 0
        with nothing_left(rig.root):
            waiting = list(range(self.workers))
            living: list[tuple[Child, bool, float]] = []
            while waiting or living:
                while waiting and len(living) < AT_ONCE:
                    number = waiting.pop()
                    fate = moments.choice(["lives", "lives", "lives", "lives", "killed", "reaches"])
                    point = moments.choice(POINTS) if fate == "reaches" else ""
                    death = time.monotonic() + moments.uniform(0, longest)
                    child = Child(partial(self.live, rig, stack, number, point))
                    living.append((child, fate != "lives", death if fate == "killed" else 0))
                time.sleep(0.002)
                for entry in list(living):
                    child, doomed, death = entry
                    if death and time.monotonic() > death:
                        child.kill()
                    if child.ended():
                        living.remove(entry)
                        outcome = child.wait()
                        died += outcome.signal == signal.SIGKILL
                        assert outcome.ok or (doomed and outcome.signal == signal.SIGKILL), str(outcome)
                        # Everybody clears up after the dead while others live and die.
                        if outcome.signal:
                            rig.sweep()
        assert died, "nobody died"
        rig.sweep()
        assert_sound(rig)
        assert_shown(rig, stack, wanted)
        assert descriptors() == before
        # Containers that died after they were placed are whole: they mount, and go.
        for name in os.listdir(f"{rig.root}/containers"):
            with rig.rootfs(stack, f"{rig.root}/containers/{name}/rw") as root:
                assert os.path.exists(f"{root.path}/etc/motd")
            rig.discard(f"{rig.root}/containers/{name}/rw")
        self.live(rig, stack, -2, "")
        assert_sound(rig)

    def live(self, rig: Rig, stack: list[Layer], number: int, point: str) -> None:
        """Prepare, mount, use, remove; with ``point`` die there."""

        def armed(reached: str) -> None:
            if reached == point:
                os.kill(os.getpid(), signal.SIGKILL)

        if point:
            failpoints.armed = armed
        rw = rig.prepare(stack)
        with rig.rootfs(stack, rw) as root:
            with open(f"{root.path}/etc/motd", "a") as file:
                file.write(f"container {number}\n")
            os.unlink(f"{root.path}/var/new")
            with open(f"{root.path}/etc/motd") as file:
                assert file.read() == f"hello\ncontainer {number}\n"
            assert os.listdir(f"{root.path}/var") == []
        rig.discard(rw)

    @pytest.mark.timeout(300)
    def test_layers_made_and_removed_by_many_that_die(self, rig: Rig) -> None:
        """Everybody ingests the same two blobs, some remove the upper layer, some die in the midst."""
        print(f"PYRUN_TEST_SEED={SEED}")
        moments = random.Random(SEED)
        base = rig.ingest(LOWER)
        top = rig.ingest(UPPER, base)
        wanted = shown(rig, rig.layers.mended([base, top]))
        points = (*failpoints.INGEST, *failpoints.REMOVE)

        def work(removes: bool, point: str) -> None:
            def armed(reached: str) -> None:
                if reached == point:
                    os.kill(os.getpid(), signal.SIGKILL)

            if point:
                failpoints.armed = armed
            start.wait()
            if removes:
                rig.layers.remove(top.id)
            made = rig.ingest(UPPER, base)
            assert made.id == top.id

        for _ in range(max(self.workers // AT_ONCE, 1)):
            with nothing_left(rig.root), gate() as start:
                children = []
                for _ in range(AT_ONCE):
                    removes, point = moments.random() < 0.3, moments.choice([*points, "", "", ""])
                    children.append(Child(partial(work, removes, point)))
                start.open()
                outcomes = gather(children)
            for outcome in outcomes:
                assert outcome.ok or outcome.signal == signal.SIGKILL, str(outcome)
            rig.sweep()
            assert_sound(rig)
            assert_shown(rig, rig.layers.mended([base, rig.ingest(UPPER, base)]), wanted)
            assert_sound(rig)


class TestOverlay(Containers):
    driver = DRIVERS["overlay"]
    workers = 200


class TestErofs(Containers):
    driver = DRIVERS["erofs"]


class TestFuseOverlayfs(Containers):
    pytestmark = _FUSE
    driver = DRIVERS["fuse-overlayfs"]


@pytest.mark.long
class TestVfs(Containers):
    driver = DRIVERS["vfs"]


@pytest.mark.long
class TestBtrfs(Containers):
    pytestmark = _BTRFS
    driver = DRIVERS["btrfs"]

    @pytest.fixture
    def above(self, btrfs: str) -> str:
        return btrfs


@pytest.mark.long
class TestOverlayThoroughly(TestOverlay):
    workers = 3000


@pytest.mark.long
class TestErofsThoroughly(TestErofs):
    workers = 500


@pytest.mark.long
class TestFuseOverlayfsThoroughly(TestFuseOverlayfs):
    workers = 500


@pytest.mark.long
class TestVfsThoroughly(TestVfs):
    workers = 500


@pytest.mark.long
class TestBtrfsThoroughly(TestBtrfs):
    workers = 500
