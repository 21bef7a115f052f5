"""How many examples a fuzzer tries: enough for a minute in all, twenty times as many with ``scripts/test --long``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "layers"))

import rounds


def pytest_configure(config: pytest.Config) -> None:
    # What scripts/test --long hands to pytest; without it the tests marked long are left out.
    if "long or" in str(config.getoption("markexpr")):
        rounds.factor = 20
