"""The main job: one command, and a real redis answers a real client."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .conftest import Script


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: as it is run here")
def test_quickstart_shows_a_redis_that_answers_and_leaves_nothing_behind(script: Script) -> None:
    cache = Path(os.environ.get("PYRUN_CACHE") or Path.home() / ".cache" / "pyrun-quickstart")
    before = {path.name for path in cache.glob("run.*")}
    done = script("quickstart", "--local")
    assert done.returncode == 0, done.stdout + done.stderr
    words = [line.strip() for line in done.stdout.splitlines()]
    assert "PONG" in words
    assert any("pyrun " in word and " run " in word and " redis " in word for word in words)
    assert words[words.index("PONG") + 1 :].count("hello from a container") == 1
    assert any(word.startswith("driver:") for word in words)
    assert len([word for word in words if word.startswith("layer:")]) >= 3
    assert "pyrun run ended with exit code 0" in done.stdout
    assert {path.name for path in cache.glob("run.*")} == before
    assert str(cache) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
