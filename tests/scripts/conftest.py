"""The scripts under test, called as a person calls them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "lib"))

Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def script() -> Script:
    """Run scripts/NAME with arguments and extra environment; never fails by itself."""

    def call(name: str, *arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "scripts" / name), *map(str, arguments)],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def layout() -> Path:
    """The OCI layout that scripts/test had made, or the cached one."""
    given = os.environ.get("PYRUN_TEST_IMAGES")
    if given:
        return Path(given)
    made = subprocess.run(
        [str(ROOT / "scripts" / "make-images")], capture_output=True, text=True, timeout=110, check=True
    )
    return Path(made.stdout.split("\n")[0])
