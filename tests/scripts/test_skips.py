"""The plugin that makes an unexpected skip a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

TESTS = """\
import pytest
def test_that_passes(): pass
@pytest.mark.skip(reason="needs a moon")
def test_that_is_skipped(): pass
"""


def run(folder: Path, expected: str, tests: str = TESTS) -> tuple[int, str, str]:
    """pytest over ``tests`` in a process of its own: exit status, output, counts."""
    (folder / "test_it.py").write_text(tests, encoding="utf-8")
    (folder / "expected").write_text(expected, encoding="utf-8")
    arguments = [
        "-p",
        "pytest_skips",
        "--expected-skips",
        "expected",
        "--counts",
        "counts",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments, "--rootdir", str(folder), str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts" / "lib")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    counts = folder / "counts"
    return done.returncode, done.stdout + done.stderr, counts.read_text().strip() if counts.exists() else ""


def test_a_skip_that_nobody_expects_fails_the_run_and_is_named(tmp_path: Path) -> None:
    status, output, counts = run(tmp_path, "always  needs a star*\n")
    assert (status, counts) == (1, "1 1 0")
    assert "NOT EXPECTED: test_it.py::test_that_is_skipped: needs a moon" in output


def test_a_skip_is_fine_where_a_line_with_a_true_probe_matches_it(tmp_path: Path) -> None:
    status, output, counts = run(tmp_path, "# a word\n\n!command:no-such-program  needs a m*\n")
    assert (status, counts) == (0, "1 0 1")
    assert "expected: test_it.py::test_that_is_skipped: needs a moon" in output


@pytest.mark.parametrize(
    "probe",
    [
        "!always",
        "command:no-such-program",
        "always,kernel:99.0",
        "path:/no/such/file",
        "filesystem:moon",
        "!filesystem:proc",
    ],
)
def test_a_matching_line_does_not_count_where_its_probe_is_false(tmp_path: Path, probe: str) -> None:
    status, _, counts = run(tmp_path, f"{probe}  needs a moon\n")
    assert (status, counts) == (1, "1 1 0")


def test_a_whole_module_that_is_skipped_is_judged_too(tmp_path: Path) -> None:
    tests = 'import pytest\npytest.skip("needs a moon", allow_module_level=True)\n'
    status, output, counts = run(tmp_path, "always needs a star\n", tests)
    assert status != 0
    assert counts == "0 1 0"
    assert "NOT EXPECTED" in output


def test_failures_and_broken_fixtures_are_counted(tmp_path: Path) -> None:
    tests = "def test_one(): assert 0\ndef test_two(no_such_fixture): pass\ndef test_three(): pass\n"
    status, _, counts = run(tmp_path, "", tests)
    assert (status, counts) == (1, "1 2 0")


@pytest.mark.parametrize("line", ["moonlight needs a moon", "always", "kernel:six needs a moon"])
def test_a_line_that_means_nothing_is_refused(tmp_path: Path, line: str) -> None:
    status, output, _ = run(tmp_path, line + "\n")
    assert status == 4
    assert "expected:" in output


def test_the_projects_own_list_can_be_read() -> None:
    import pytest_skips

    text = (ROOT / "tests" / "expected-skips.txt").read_text(encoding="utf-8")
    assert pytest_skips.expectations(text)
