"""Pulls that are killed, race each other, or run out of disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyrun.errors import StorageError
from pyrun.images.workers import Job, Report, run
from support.pyrun import wait_for
from support.registry import Registry, tar

from .conftest import Engine

PULL = """
import sys
from pathlib import Path
from images.conftest import Engine
from pyrun.errors import PyrunError
root, conf, name = sys.argv[1:]
def progress(step):
    print(step.status, flush=True)
try:
    print("ID", Engine(Path(root), Path(conf)).pull(name, progress=progress).image.id, flush=True)
except PyrunError as error:
    print(type(error).__name__, error.message, flush=True)
    sys.exit(3)
except KeyboardInterrupt:
    sys.exit(130)
"""


def command(engine: Engine, name: str) -> list[str]:
    return [sys.executable, "-c", PULL, str(engine.root), str(engine.conf), name]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}


def start(engine: Engine, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command(engine, name), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def gone(pid: int) -> bool:
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def big_layers(count: int = 3, size: int = 12_000_000) -> list[bytes]:
    return [tar({f"f{n}": random.randbytes(size)}) for n in range(count)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_pull_that_is_ended_leaves_no_process_and_no_image_and_the_next_one_works(
    engine: Engine, registry: Registry, repository: str, how: signal.Signals
) -> None:
    pushed = registry.push_image(repository, "1", big_layers(), compression=("plain",))
    pull = start(engine, f"{repository}:1")
    assert pull.stdout is not None
    while "Downloading" not in pull.stdout.readline():
        assert pull.poll() is None
    workers = children(pull.pid)
    assert workers
    pull.send_signal(how)
    pull.wait(10)
    assert all(gone(worker) for worker in workers)
    pull.stdout.close()
    assert engine.images.list() == []

    def swept() -> bool:
        # A process whose first thread is a zombie has its files open until the last thread is gone.
        engine.content.sweep(kept=0)
        return os.listdir(engine.root / "ingest") == []

    wait_for(swept, "what the workers were writing can be swept")
    assert engine.pull(f"{repository}:1").image.id == pushed.config_digest


def test_kills_at_random_moments_never_leave_a_half_made_image(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(
        repository, "1", big_layers(3, 3_000_000), compression=("gzip", "zstd", "plain")
    )
    for _ in range(8):
        pull = start(engine, f"{repository}:1")
        time.sleep(random.uniform(0.1, 0.6))
        pull.kill()
        pull.communicate()
        for image in engine.images.list():
            assert [engine.content.has(layer.digest) for layer in image.layers] == [True] * 3
            assert all(engine.layers.find(layer.diff_id) for layer in image.layers)
    assert engine.pull(f"{repository}:1").image.id == pushed.config_digest
    assert os.listdir(engine.root / "ingest") == []


def test_pulls_of_one_image_at_once_share_the_work(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(
        repository, "1", big_layers(3, 3_000_000), compression=("gzip", "zstd", "plain")
    )
    pulls = [start(engine, f"{repository}:1") for _ in range(3)]
    outputs = [pull.communicate(timeout=60)[0] for pull in pulls]
    for pull, output in zip(pulls, outputs, strict=True):
        assert pull.returncode == 0, output
        assert f"ID {pushed.config_digest}" in output
    assert len(engine.images.list()) == 1
    assert engine.partial() == []


def test_a_full_disk_is_said_in_words_and_keeps_nothing_half_made(
    engine: Engine, registry: Registry, repository: str, tmp_path: Path
) -> None:
    registry.push_image(repository, "1", big_layers(2, 6_000_000), compression=("plain",))
    mountpoint = tmp_path / "small"
    mountpoint.mkdir()
    # In a mount namespace of its own: what it mounts is gone with it.
    script = (
        'mount -t tmpfs -o size=8m tmpfs "$1" || exit 9; shift; '
        '"$@"; code=$?; cd "$(dirname "$0")"; '
        'find "$0" -path "*/staging/*" -o -path "*/images/*"; exit $code'
    )
    arguments = command(engine, f"{repository}:1")
    arguments[3] = str(mountpoint / "store")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, str(mountpoint / "store"), str(mountpoint), *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr + done.stdout
    *steps, error = [line for line in done.stdout.splitlines() if not line.startswith("/")]
    assert steps
    assert "no space left" in error.lower()
    assert [line for line in done.stdout.splitlines() if line.startswith("/")] == []


def test_a_root_that_can_not_be_written_is_named(engine: Engine, registry: Registry, repository: str) -> None:
    registry.push_image(repository, "1", [tar({"a": b"1"})])
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(engine.root), *command(engine, f"{repository}:1")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("StorageError")
    assert str(engine.root) in done.stdout


# --- workers


def test_the_first_failure_ends_the_other_workers() -> None:
    def sleep(report: Report) -> None:
        report("asleep", os.getpid(), 0)
        time.sleep(60)

    def fail(report: Report) -> None:
        time.sleep(0.1)
        raise StorageError("it broke", hint="mend it")

    pids: list[int] = []
    began = time.monotonic()
    with pytest.raises(StorageError) as caught:
        run(
            [Job("a", sleep), Job("b", sleep), Job("c", fail)],
            at_once=3,
            reported=lambda number, status, current, total: pids.append(current),
            finished=lambda number: None,
        )
    assert (caught.value.message, caught.value.hint) == ("it broke", "mend it")
    assert time.monotonic() - began < 10
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda report: os.kill(os.getpid(), signal.SIGKILL), "ended by SIGKILL"),
        (lambda report: os._exit(7), "exited with 7"),
        (lambda report: 1 / 0, "ZeroDivisionError"),
        (lambda report: open("/nonexistent/file"), "/nonexistent/file"),
    ],
)
def test_a_worker_that_crashes_is_an_error_with_its_layers_name(work: object, says: str) -> None:
    with pytest.raises(StorageError, match=says) as caught:
        run(
            [Job("layer abc", work)],  # type: ignore[arg-type]
            at_once=1,
            reported=lambda *step: None,
            finished=lambda number: None,
        )
    assert "layer abc" in caught.value.message or "/nonexistent" in caught.value.message


def test_no_more_workers_run_at_once_than_asked_for() -> None:
    running: set[int] = set()
    most = 0

    def work(report: Report) -> None:
        report("began", 0, 0)
        time.sleep(0.05)

    def reported(number: int, status: str, current: int, total: int) -> None:
        nonlocal most
        running.add(number)
        most = max(most, len(running))

    run([Job(str(n), work) for n in range(6)], at_once=2, reported=reported, finished=running.discard)
    assert most == 2
