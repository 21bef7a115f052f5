"""How the conformance suite tells what it found: refusals, declared flaws, and what a case leaves behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

_REFUSING = """
class Mine(DRIVER):
    name = "mine"
    @classmethod
    def probe(cls, env, options):
        return Verdict(False, "the moon is full", "Wait a night.")
"""
_FLAWED = """
class Mine(DRIVER):
    name = "mine"
    @classmethod
    def probe(cls, env, options):
        verdict = super().probe(env, options)
        verdict.found["flaws"] = {"05": "an empty stack has a name in it", "14[-o,x=y]": "no options"}
        return verdict
"""
_WRONG = """
    def prepare(self, layers, dest, size=None):
        super().prepare(layers, dest, size)
        if not layers:
            open(f"{dest}/fs/leftover", "w").close()
"""
_LEAVING = """
import subprocess
class Mine(DRIVER):
    name = "mine"
    def remove(self, path):
        super().remove(path)
        if WHAT == "descriptor":
            self.kept = os.open("/dev/null", os.O_RDONLY)
            KEPT.append(self.kept)
        elif WHAT == "child":
            KEPT.append(subprocess.Popen(["sleep", "60"]))
    def prepare(self, layers, dest, size=None):
        super().prepare(layers, dest, size)
        if WHAT == "staging":
            os.makedirs(f"{self.env.root}/staging/mine.left", exist_ok=True)
KEPT = []
WHAT = "%s"
import atexit
atexit.register(lambda: [kept.kill() for kept in KEPT if not isinstance(kept, int)])
"""


def run(base: Path, driver: str, cases: str, suite: str = "") -> tuple[int, str]:
    """Run the author's file with ``driver`` in place of vfs; pytest's exit code and what it said."""
    place = base / f"suite-{os.urandom(4).hex()}"
    place.mkdir()
    (place / "test_mine.py").write_text(
        "import os\nfrom pyrun.storage.contract import Verdict\nfrom pyrun.testing import StorageConformance\n"
        f"from pyrun_drivers.vfs import VfsDriver as DRIVER\n{driver}\n"
        f"class TestMine(StorageConformance):\n    driver = Mine\n    root = {str(place / 'stores')!r}\n{suite}\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-ra",
        "-p",
        "no:cacheprovider",
        "-k",
        cases,
        "--rootdir=.",
    ]
    done = subprocess.run([*command, "test_mine.py"], cwd=place, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout


def test_where_the_probe_refuses_cases_are_skipped_with_its_reason_and_what_to_do(base: Path) -> None:
    code, said = run(base, _REFUSING, "not test_01c")
    assert code == 0, said
    assert "mine: the moon is full (Wait a night.)" in said
    assert re.search(r"^\d+ skipped, 1 deselected", said, re.MULTILINE), said


def test_where_it_must_work_a_refusal_fails_with_its_reason(base: Path) -> None:
    code, said = run(base, _REFUSING, "test_15 or test_05", "    must_work = True")
    assert code == 1
    assert "mine: the moon is full (Wait a night.)" in said
    assert "Traceback" not in said


def test_a_declared_flaw_is_expected_and_told(base: Path) -> None:
    code, said = run(base, _FLAWED + _WRONG, "test_05_ or test_15_")
    assert code == 0, said
    assert "declared: an empty stack has a name in it" in said
    assert "1 passed" in said
    assert "1 xfailed" in said


def test_a_declared_flaw_that_is_none_fails(base: Path) -> None:
    code, said = run(base, _FLAWED, "test_05_ or test_14_")
    assert code == 1
    assert "[XPASS(strict)] declared: an empty stack has a name in it" in said
    assert "[XPASS(strict)] declared: no options" in said
    assert "2 failed, 4 passed" in said, said


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("descriptor", "file descriptors were left open"),
        ("child", "child processes were left"),
        ("staging", "entries were left in the staging directory"),
    ],
)
def test_what_a_case_leaves_behind_is_an_error(base: Path, what: str, words: str) -> None:
    code, said = run(base, _LEAVING % what, "test_15_")
    assert code == 1
    assert words in said
    assert "1 passed" in said
    assert "1 error" in said


def test_the_authors_three_lines_are_enough(base: Path) -> None:
    code, said = run(base, "class Mine(DRIVER):\n    name = 'mine'\n", "test_0")
    assert code == 0, said
    assert not re.search(r"warning|failed|error", said, re.IGNORECASE)
