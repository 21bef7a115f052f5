"""The fixtures of the conformance suite: a fresh store for each case, and nothing left of it afterwards."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from ..layers.remove import remove_tree
from ..storage.contract import Driver, Verdict
from .rig import Rig, Unusable

_PATIENCE = 5.0  # seconds in which a server process must have gone after its mount


class StoreFixtures:
    """What a subclass sets is described at `pyrun.testing.conformance.StorageConformance`."""

    driver: ClassVar[type[Driver]]
    options: ClassVar[Mapping[str, Any]] = {}
    root: ClassVar[str] = os.environ.get("PYRUN_CONFORMANCE_ROOT", "")
    must_work: ClassVar[bool] = False
    long: ClassVar[bool] = os.environ.get("PYRUN_CONFORMANCE_LONG", "") not in ("", "0")

    @pytest.fixture
    def above(self, tmp_path_factory: pytest.TempPathFactory) -> str:
        """The directory below which the stores lie: ``root``, unless a subclass has its own idea."""
        return self.root or str(tmp_path_factory.getbasetemp())

    @pytest.fixture
    def place(self, above: str) -> Iterator[str]:
        """A directory for one store, not made yet; removed afterwards, with nothing mounted below it."""
        mine = not os.path.lexists(above)
        os.makedirs(above, exist_ok=True)
        place = os.path.join(os.path.realpath(above), f"store-{os.urandom(6).hex()}")
        yield place
        mounts = mounts_below(place)
        try:
            remove_tree(place)
            if mine:
                os.rmdir(above)
        finally:
            assert mounts == [], f"mounts were left in this mount namespace: {mounts}"

    @pytest.fixture
    def rig(self, place: str, request: pytest.FixtureRequest) -> Iterator[Rig]:
        """The driver on a fresh store. Afterwards nothing may be left: no staging entry, descriptor, child
        process or mount."""
        fds, children = descriptors(), child_processes()
        key = self._key(place)
        try:
            rig = Rig(self.driver, place, self.options, verdict=_verdicts.get(key))
            _verdicts[key] = rig.verdict
        except Unusable as unusable:
            reason = unusable.message + (f" ({unusable.hint})" if unusable.hint else "")
            if self.must_work:
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        flaw = _flaw(rig.verdict, request.node)
        if flaw:
            request.node.add_marker(pytest.mark.xfail(reason=f"declared: {flaw}", strict=True))
        yield rig
        staged = os.listdir(f"{rig.root}/staging")
        rig.close()
        del rig
        gc.collect()
        assert staged == [], f"entries were left in the staging directory: {staged}"
        deadline = time.monotonic() + _PATIENCE
        while child_processes() - children and time.monotonic() < deadline:
            time.sleep(0.01)
        assert child_processes() - children == set(), "child processes were left"
        left = {fd: what for fd, what in descriptors().items() if fds.get(fd) != what}
        assert left == {}, f"file descriptors were left open: {left}"

    def _key(self, place: str) -> tuple[object, ...]:
        """What a verdict depends on, as the engine's cache of them has it."""
        device = os.stat(os.path.dirname(place)).st_dev
        with open("/proc/self/uid_map") as file:
            options = tuple(sorted(self.options.items()))
            return (self.driver, self.driver.version(), options, device, os.geteuid(), file.read())


# One probe of a driver for all cases, as in the engine; case 1 tries the probe itself.
_verdicts: dict[tuple[object, ...], Verdict] = {}


def _flaw(verdict: Verdict, item: pytest.Function) -> str:
    """What the driver declares to be wrong with a case, "22a" or one of its parameters, "22a[x]"; "" if nothing."""
    number = (item.originalname or item.name).split("_")[1]
    flaws: Mapping[str, str] = verdict.found.get("flaws", {})
    with_parameter = number + item.name.removeprefix(item.originalname or item.name)
    return flaws.get(with_parameter, "") or flaws.get(number, "")


def descriptors() -> dict[int, str]:
    """What this process has open: number and target."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listdir used
    return found


def child_processes() -> set[int]:
    """Children of this process, those that ended and were not waited for included."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                found.update(map(int, file.read().split()))
        except FileNotFoundError:
            continue
    return found


def mounts_below(path: str) -> list[str]:
    """Mount points at or below ``path`` in this mount namespace, as /proc/self/mountinfo has them."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = [line.split()[4] for line in file]
    escaped = b"".join(
        b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in os.fsencode(path)
    )
    return [os.fsdecode(p) for p in points if p == escaped or p.startswith(escaped + b"/")]
