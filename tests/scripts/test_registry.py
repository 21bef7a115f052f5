"""scripts/registry starts one registry on loopback and ends that one only."""

from __future__ import annotations

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Script


@pytest.fixture
def folder(tmp_path: Path, script: Script) -> Iterator[str]:
    yield str(tmp_path)
    script("registry", "down", PYRUN_REGISTRY=str(tmp_path))


def test_up_prints_an_address_that_answers_and_down_takes_it_away(script: Script, folder: str) -> None:
    up = script("registry", "up", PYRUN_REGISTRY=folder)
    address = up.stdout.strip()
    assert up.returncode == 0, up.stderr
    assert address.startswith("127.0.0.1:")
    with urllib.request.urlopen(f"http://{address}/v2/", timeout=5) as answer:
        assert answer.status == 200
    status = script("registry", "status", PYRUN_REGISTRY=folder)
    assert (status.returncode, status.stdout.strip()) == (0, address)

    assert script("registry", "down", PYRUN_REGISTRY=folder).returncode == 0
    assert script("registry", "status", PYRUN_REGISTRY=folder).returncode == 3
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{address}/v2/", timeout=5)


def test_a_second_up_leaves_the_first_registry_running(script: Script, folder: str) -> None:
    first = script("registry", "up", PYRUN_REGISTRY=folder).stdout
    pid = Path(folder, "pid").read_text(encoding="ascii")
    assert script("registry", "up", PYRUN_REGISTRY=folder).stdout == first
    assert Path(folder, "pid").read_text(encoding="ascii") == pid


def test_down_twice_is_no_error(script: Script, folder: str) -> None:
    assert script("registry", "down", PYRUN_REGISTRY=folder).returncode == 0
    assert script("registry", "down", PYRUN_REGISTRY=folder).returncode == 0


def test_down_spares_a_process_that_took_over_the_recorded_pid(script: Script, folder: str) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        try:
            # The right pid with a start time that is not its own: what pid reuse looks like.
            Path(folder, "pid").write_text(f"{bystander.pid} 1\n", encoding="ascii")
            assert script("registry", "down", PYRUN_REGISTRY=folder).returncode == 0
            assert bystander.poll() is None
        finally:
            os.kill(bystander.pid, signal.SIGKILL)


def test_a_port_that_is_taken_is_refused_by_its_number(script: Script, folder: str, tmp_path: Path) -> None:
    port = script("registry", "up", PYRUN_REGISTRY=folder).stdout.strip().rpartition(":")[2]
    other = str(tmp_path / "other")
    second = script("registry", "up", "--port", port, PYRUN_REGISTRY=other)
    assert second.returncode == 1
    assert f"port {port} is taken" in second.stderr
    assert script("registry", "status", PYRUN_REGISTRY=folder).returncode == 0
