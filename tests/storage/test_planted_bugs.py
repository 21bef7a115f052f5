"""The conformance suite finds bugs: a broken driver fails the cases that say what is wrong with it, and the sound
driver that it is made of passes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from broken_drivers import PLANTED

from pyrun.storage.contract import Driver

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts"),
    pytest.mark.timeout(300),  # the one run that all of them look at
]

SOUND = sorted({driver.__base__ for driver in PLANTED}, key=lambda driver: driver.__name__)
TO_RUN = PLANTED | {
    sound: tuple(sorted({n for driver in PLANTED if driver.__base__ is sound for n in PLANTED[driver]}))
    for sound in SOUND
}

# A mount that a driver leaves on the host goes with the mount namespace. ONLY: the numbers of the cases to run.
CONFTEST = """
import re
from pyrun.kernel import mount as m
from pyrun.kernel.process import CLONE_NEWNS, unshare

def pytest_configure(config):
    unshare(CLONE_NEWNS)
    m.mount(None, b"/", None, m.MS_REC | m.MS_PRIVATE)

def number(item):
    return int(re.search(r"test_(\\d+)", item.name).group(1))

def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if not item.cls.only or number(item) in item.cls.only]
    items.sort(key=lambda item: (item.cls.__name__, number(item)))
"""
MODULE = """
from pyrun.testing import StorageConformance
from {module} import {name}

class Test{name}(StorageConformance):
    driver = {name}
    must_work = True
    only = {only}
"""


def failures(
    place: Path, cases: dict[type[Driver], tuple[int, ...]], *options: str, seconds: int
) -> tuple[set[tuple[str, int]], set[tuple[str, int]], str]:
    """Run the ``cases`` of each driver, all where there are none, in a pytest of its own: the (driver, number) of
    those that passed and failed, and all that it said."""
    (place / "conftest.py").write_text(CONFTEST)
    for driver, only in cases.items():
        (place / f"test_{driver.__name__}.py").write_text(
            MODULE.format(module=driver.__module__, name=driver.__name__, only=only)
        )
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-rpfE", "--tb=short", "-p", "no:cacheprovider"),
            *("--rootdir", str(place), "--basetemp", str(place / "tmp"), "--timeout=100"),
            *options,
            str(place),
        ],
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": os.path.dirname(__file__),
            "PYRUN_CONFORMANCE_ROOT": str(place / "stores"),
        },
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    said = run.stdout + run.stderr
    assert run.returncode in (0, 1), said
    found: dict[str, set[tuple[str, int]]] = {"PASSED": set(), "FAILED": set(), "ERROR": set()}
    for how, driver_name, number in re.findall(
        r"^(PASSED|FAILED|ERROR) \S*::Test(\w+)::test_(\d+)", run.stdout, re.MULTILINE
    ):
        found[how].add((driver_name, int(number)))
    return found["PASSED"], found["FAILED"] | found["ERROR"], said


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pyrun-planted-", dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def result(place: Path) -> tuple[set[tuple[str, int]], set[tuple[str, int]], str]:
    return failures(place, TO_RUN, seconds=280)


@pytest.mark.parametrize("driver", PLANTED, ids=lambda driver: driver.__name__)
def test_a_broken_driver_fails_the_cases_that_name_its_bug(
    driver: type[Driver], result: tuple[set[tuple[str, int]], set[tuple[str, int]], str]
) -> None:
    _, failed, said = result
    found = {number for name, number in failed if name == driver.__name__}
    assert found == set(PLANTED[driver]), said


@pytest.mark.parametrize("sound", SOUND, ids=lambda driver: driver.__name__)
def test_a_sound_driver_passes_those_cases(
    sound: type[Driver], result: tuple[set[tuple[str, int]], set[tuple[str, int]], str]
) -> None:
    passed, failed, said = result
    assert [number for name, number in failed if name == sound.__name__] == [], said
    assert {number for name, number in passed if name == sound.__name__} == set(TO_RUN[sound]), said


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize("driver", PLANTED, ids=lambda driver: driver.__name__)
def test_the_suite_as_a_whole_fails_a_broken_driver(driver: type[Driver]) -> None:
    with tempfile.TemporaryDirectory(prefix="pyrun-planted-", dir="/var/tmp") as directory:
        _, failed, said = failures(Path(directory), {driver: ()}, "-x", seconds=390)
        assert failed, f"the suite takes {driver.__name__} for sound: {said[-3000:]}"
