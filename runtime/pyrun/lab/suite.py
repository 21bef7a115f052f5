"""The conformance suite against an installed driver: ``pyrun storage test``.

The suite runs in pytest, in a child process, on a directory of its own that is removed afterwards. The child's
only test module is a file that subclasses the suite's classes for the driver, as an author's own would.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import NotFound, StorageError, Unsupported
from ..kernel import mount as m
from ..kernel.process import CLONE_NEWNS, unshare
from ..layers.remove import remove_tree
from ..storage.contract import Driver, Env, typed_options
from ..storage.guard import verdict_of
from ..storage.plugins import Plugins
from ..storage.store import ORDER, make_directories
from .child import call

# Driver, options, root, whether it must work, whether at full length.
Subject = tuple[type[Driver], Mapping[str, Any], str, bool, bool]

_NEEDED = ("pytest", "hypothesis")
_SECONDS = 600  # for one case, where pytest-timeout is installed
_MODULE = """\
from pyrun.lab.suite import subject
from pyrun.testing.conformance import StorageConformance

class Test{title}(StorageConformance):
    driver, options, root, must_work, long = subject()
"""
_CHAOS = """
from pyrun.testing.chaos import StorageChaos

class Test{title}Chaos(StorageChaos):
    driver, options, root, must_work, long = subject()
"""
_subject: Subject | None = None


class Outcome:
    """How the suite went: numbers of cases, and ``code``, pytest's exit status (0 passed, 1 failed, 2 interrupted,
    5 nothing selected). ``flawed``: cases that failed as the driver's probe declares."""

    def __init__(self, name: str, code: int, passed: int, failed: int, skipped: int, flawed: int = 0) -> None:
        self.name = name
        self.code = code
        self.passed = passed
        self.failed = failed
        self.skipped = skipped
        self.flawed = flawed

    def __str__(self) -> str:
        counts = f"{self.name}: {self.passed} passed, {self.failed} failed, {self.skipped} skipped"
        return f"{counts}, {self.flawed} with declared flaws" if self.flawed else counts


def subject() -> Subject:
    """What the generated classes test."""
    assert _subject is not None
    return _subject


def find(name: str) -> type[Driver]:
    """The class of the installed driver ``name``. Raises `NotFound`, which lists those there are, or
    `StorageError` with the reason why it is broken."""
    plugins = Plugins()
    found = plugins.drivers()
    for driver in found:
        if driver.name == name and driver.driver is not None:
            return driver.driver
    for driver in found:
        if driver.name == name:
            raise StorageError(
                f"the storage driver {name} is broken: {driver.broken}", hint="Reinstall or mend it."
            )
    if plugins.excluded(name):
        raise NotFound(f"the storage driver {name} is left out by PYRUN_PLUGINS")
    sound = ", ".join(sorted(driver.name for driver in found if driver.driver))
    raise NotFound(f"there is no storage driver {name}", hint=f"Installed drivers: {sound or 'none'}.")


def installed() -> list[type[Driver]]:
    """Every sound driver's class, usable here or not: in the order in which a new store would take them, then by
    name."""

    def place(driver: type[Driver]) -> tuple[int, str]:
        return (ORDER.index(driver.name) if driver.name in ORDER else len(ORDER), driver.name)

    return sorted((found.driver for found in Plugins().drivers() if found.driver), key=place)


def run(
    name: str,
    env: Env,
    options: Mapping[str, Any] | None = None,
    *,
    chaos: bool = False,
    long: bool = False,
    arguments: Sequence[str] = (),
) -> Outcome:
    """Run the suite, or what ``arguments`` (of pytest) select of it; pytest writes to this process' streams.

    env    where and as whom: a directory is made below its root, and removed
    chaos  the cases that kill and break things, too
    long   full sizes and rounds

    Raises `Unsupported` where pytest is missing or the driver's probe refuses the root, and as `find`.
    """
    missing = [module for module in _NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        raise Unsupported(
            f"the conformance suite needs {' and '.join(missing)}", hint="pip install 'pyrun[testing]'"
        )
    driver = find(name)
    given = typed_options(driver, options or {})
    place = tempfile.mkdtemp(prefix=".conformance-", dir=env.root)
    try:
        _probe(driver, Env(f"{place}/probe", userns=env.userns, single_uid=env.single_uid), given)
        what = (driver, given, f"{place}/stores", True, long)
        return Outcome(driver.name, **call(lambda: _pytest(what, place, chaos, arguments)))
    finally:
        remove_tree(place)


def _probe(driver: type[Driver], env: Env, options: Mapping[str, Any]) -> None:
    """Refuse what can't work here before pytest says it once a case."""
    make_directories(env.root)
    verdict = verdict_of(driver, env, options)
    if not verdict.ok:
        raise Unsupported(
            f"the storage driver {driver.name} can't be used here: {verdict.why}", hint=verdict.fix
        )


def _pytest(what: Subject, place: str, chaos: bool, arguments: Sequence[str]) -> dict[str, int]:
    import pytest

    global _subject
    _subject = what
    # What others mount meanwhile is none of the cases' business.
    unshare(CLONE_NEWNS)
    m.mount(None, b"/", None, m.MS_REC | m.MS_PRIVATE)
    # A driver's name may have dashes; a class's may not.
    title = "".join(part.capitalize() for part in what[0].name.replace("_", "-").split("-"))
    with open(f"{place}/test_{title.lower()}.py", "w") as file:
        file.write((_MODULE + (_CHAOS if chaos else "")).format(title=title))
    # A configuration of its own: the caller's directory may have one that says something else.
    with open(f"{place}/pytest.ini", "w") as file:
        file.write("[pytest]\n")
    fixed = ["-p", "no:cacheprovider", "-c", f"{place}/pytest.ini", "--rootdir", place]
    if importlib.util.find_spec("pytest_timeout") is not None:
        fixed += ["--timeout", str(_SECONDS)]
    sys.dont_write_bytecode = True
    os.chdir(place)
    tally = _Tally()
    code = pytest.main([*fixed, *arguments, place], plugins=[tally])
    return {"code": int(code), **tally.counts}


class _Tally:
    """A pytest plugin that counts cases by outcome; an error in a fixture is a failure."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "skipped": 0, "flawed": 0}
        self._failed: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            if report.nodeid not in self._failed:
                self._failed.add(report.nodeid)
                self.counts["failed"] += 1
                if report.when == "teardown":
                    self.counts["passed"] -= 1
        elif report.when == "call" or report.skipped:
            self.counts["flawed" if hasattr(report, "wasxfail") else report.outcome] += 1

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.counts["failed"] += 1
