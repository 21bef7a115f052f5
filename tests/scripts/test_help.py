"""Every command explains itself."""

from __future__ import annotations

import pytest

from .conftest import ROOT, Script


@pytest.mark.parametrize("name", ["quickstart", "test", "bench", "make-images", "registry"])
def test_help_begins_with_the_usage_and_says_more_than_that(script: Script, name: str) -> None:
    done = script(name, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: scripts/{name}")
    assert len(done.stdout.splitlines()) > 5


@pytest.mark.parametrize("name", ["quickstart", "bench", "registry"])
def test_a_word_that_a_script_does_not_know_is_refused_with_the_usage(script: Script, name: str) -> None:
    done = script(name, "--no-such-option")
    assert done.returncode == 2
    assert "Usage:" in done.stderr


def test_the_continuous_integration_runs_the_one_test_script() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1:] == ['exec "$(dirname "${BASH_SOURCE[0]}")/../scripts/test"']
