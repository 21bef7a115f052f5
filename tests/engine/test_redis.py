"""The main job: a real redis as its image says, and real clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pyrun import Pyrun, wait_for


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _cli(port: int, *words: str) -> str:
    done = subprocess.run(
        ["redis-cli", "-h", "127.0.0.1", "-p", str(port), *words], capture_output=True, text=True, timeout=20
    )
    return done.stdout.strip()


@pytest.fixture
def redis(pyrun: Pyrun) -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = _free_port()
    process = pyrun.start(
        "run", "--name", "redis", "--network", "host", "redis", "--bind", "127.0.0.1", "--port", str(port),
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: _cli(port, "PING") == "PONG", "redis answers")
        yield process, port
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
        pyrun("rm", "-f", "redis")


def test_redis_answers_keeps_data_in_its_volume_and_ends_on_sigterm(
    pyrun: Pyrun, redis: tuple[subprocess.Popen[str], int]
) -> None:
    process, port = redis
    assert _cli(port, "SET", "key", "value") == "OK"
    assert _cli(port, "GET", "key") == "value"
    assert _cli(port, "SAVE") == "OK"
    details = json.loads(pyrun.ok("inspect", "redis"))[0]
    (volume,) = details["Mounts"]
    assert volume["Destination"] == "/data"
    assert Path(volume["Source"], "dump.rdb").exists()
    # The entrypoint changed to the user redis: an id of the container's range, not the host's.
    pid = details["State"]["Pid"]
    assert os.stat(f"/proc/{pid}").st_uid > 0x70000000
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert pyrun.ok("ps", "-a", "--format", "{{.Names}} {{.Status}}").startswith("redis Exited (0)")


def test_redis_benchmark_runs_against_it(redis: tuple[subprocess.Popen[str], int]) -> None:
    _, port = redis
    done = subprocess.run(
        ["redis-benchmark", "-h", "127.0.0.1", "-p", str(port), "-n", "5000", "-t", "set,get", "-q"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.count("requests per second") == 2


def test_a_program_in_place_of_the_images_own(pyrun: Pyrun) -> None:
    out = pyrun.ok("run", "--rm", "redis", "redis-cli", "--version")
    assert out.startswith("redis-cli 7")
    assert pyrun.ok("run", "--rm", "redis", "redis-server", "--version").startswith("Redis server v=")
    assert pyrun.ok("run", "--rm", "redis", "sh", "-c", "id -u; pwd").split() == ["0", "/data"]
