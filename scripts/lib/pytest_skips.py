"""pytest plugin of scripts/test: a skip counts as a failure unless this machine is expected to cause it.

``--expected-skips FILE`` holds lines of ``PROBE  REASON``: a skip whose reason matches the glob REASON is
expected where PROBE holds. Probes, each negated by a leading "!", several joined by ",":

    always            on every machine
    root              the tests run as uid 0
    command:NAME      NAME is on PATH
    path:FILE         FILE exists
    kernel:X.Y        the kernel is X.Y or later
    filesystem:NAME   /proc/filesystems lists NAME

``--counts FILE`` gets "PASSED FAILED SKIPPED" at the end.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
from pathlib import Path

import pytest


def holds(probe: str) -> bool:
    """Whether ``probe`` is true of this machine. Raises ValueError for one that does not exist."""
    return all(_one(part.removeprefix("!")) is not part.startswith("!") for part in probe.split(","))


def _one(probe: str) -> bool:
    kind, _, value = probe.partition(":")
    if probe == "always":
        return True
    if probe == "root":
        return os.geteuid() == 0
    if kind == "command" and value:
        return shutil.which(value) is not None
    if kind == "path" and value:
        return os.path.exists(value)
    if kind == "kernel" and re.fullmatch(r"\d+\.\d+", value):
        here = re.findall(r"\d+", os.uname().release)
        return (int(here[0]), int(here[1])) >= tuple(int(part) for part in value.split("."))
    if kind == "filesystem" and value:
        listed = Path("/proc/filesystems").read_text(encoding="ascii").splitlines()
        return value in (line.split()[-1] for line in listed)
    raise ValueError(f"no such probe: {probe!r}")


def expectations(text: str) -> list[tuple[str, str]]:
    """(probe, glob) of each line. Raises ValueError for a line that is not one."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        probe, _, glob = line.partition(" ")
        if not glob.strip():
            raise ValueError(f"line {number}: a probe and a reason belong on it")
        holds(probe)
        found.append((probe, glob.strip()))
    return found


class Skips:
    """Counts the tests, and judges each skip."""

    def __init__(self, expected: list[tuple[str, str]], counts: str | None) -> None:
        self.expected = expected
        self.counts = counts
        self.passed = self.failed = 0
        self.skips: list[tuple[str, str, bool]] = []

    def _skip(self, where: str, report: pytest.TestReport | pytest.CollectReport) -> None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        fine = any(fnmatch.fnmatchcase(reason, glob) and holds(probe) for probe, glob in self.expected)
        self.skips.append((where, reason, fine))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._skip(report.nodeid, report)
        elif report.failed:
            self.failed += 1
        elif report.when == "call":
            self.passed += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._skip(report.nodeid, report)
        elif report.failed:
            self.failed += 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        unexpected = sum(not fine for _, _, fine in self.skips)
        if unexpected and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.counts:
            text = f"{self.passed} {self.failed + unexpected} {len(self.skips) - unexpected}\n"
            Path(self.counts).write_text(text, encoding="ascii")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.skips:
            return
        terminalreporter.section("skips")
        for where, reason, fine in sorted(self.skips):
            terminalreporter.line(f"{'expected' if fine else 'NOT EXPECTED'}: {where}: {reason}")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("expected skips")
    group.addoption(
        "--expected-skips", metavar="FILE", help="skips that are no failure: lines of PROBE REASON-GLOB"
    )
    group.addoption("--counts", metavar="FILE", help="write PASSED FAILED SKIPPED here")


def pytest_configure(config: pytest.Config) -> None:
    listed = config.getoption("expected_skips")
    try:
        expected = expectations(Path(listed).read_text(encoding="utf-8")) if listed else []
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"{listed}: {error}") from error
    config.pluginmanager.register(Skips(expected, config.getoption("counts")), "pyrun-skips")
