"""SIGKILL of pyrun at random moments: the host stays clean, the store tells the truth, pyrun works again.

Moments are random, the seed is printed; PYRUN_TEST_SEED repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from support.pyrun import Pyrun, mounts_below, processes, tree_digest, wait_for

SEED = int(os.environ.get("PYRUN_TEST_SEED", time.time_ns() % 1_000_000))


def _kill_at_random_moment(process: subprocess.Popen[bytes], longest: float, moments: random.Random) -> None:
    time.sleep(moments.uniform(0, longest))
    process.kill()
    process.wait(20)


def _cgroups() -> set[str]:
    """pyrun's cgroups; other engines on the machine come and go with theirs."""
    return {str(path) for path in Path("/sys/fs/cgroup").glob("**/") if "pyrun" in str(path)}


def _rounds(pyrun: Pyrun, rounds: int, options: list[str]) -> None:
    moments = random.Random(SEED)
    print(f"PYRUN_TEST_SEED={SEED}")
    cgroups = _cgroups()
    layers = tree_digest(pyrun.root / "layers")
    began = time.monotonic()
    pyrun.sh("sleep 0.2")
    longest = (time.monotonic() - began) * 1.1
    for number in range(rounds):
        marker = f"3{SEED:06d}{number:04d}"
        process = pyrun.start(
            "run", *options, "busybox", "sleep", marker, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _kill_at_random_moment(process, longest, moments)
        # PDEATHSIG ends the container; the next command ends what that missed, and clears up.
        listed = pyrun.ok("ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Status}}").splitlines()
        wait_for(lambda marker=marker: not processes(marker), f"the processes of round {number} are gone", 5)
        assert mounts_below(pyrun.root) == []
        staging = os.listdir(pyrun.root / "staging")
        assert staging == [], f"round {number}"
        assert sorted(line.split()[0] for line in listed) == sorted(os.listdir(pyrun.root / "containers"))
        assert not any(" Up " in line for line in listed)
        if "--rm" in options:
            assert listed == [], f"round {number}"
        for line in listed:
            pyrun.ok("rm", line.split()[0])
        assert pyrun.records() == [], f"round {number}"
    assert pyrun.sh("echo works") == "works\n"
    assert tree_digest(pyrun.root / "layers") == layers
    assert _cgroups() == cgroups


@pytest.mark.parametrize(
    "options", [["--rm"], [], ["--rm", "-v", "/v", "--network", "host"]], ids=["rm", "kept", "volume"]
)
def test_run_killed_at_random_moments(pyrun: Pyrun, options: list[str]) -> None:
    _rounds(pyrun, 12, options)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("options", [["--rm"], []], ids=["rm", "kept"])
def test_run_killed_at_a_hundred_random_moments(pyrun: Pyrun, options: list[str]) -> None:
    _rounds(pyrun, 100, options)


def _pull_rounds(empty: Pyrun, rounds: int) -> None:
    moments = random.Random(SEED)
    print(f"PYRUN_TEST_SEED={SEED}")
    began = time.monotonic()
    empty.ok("pull", "redis")
    longest = (time.monotonic() - began) * 1.1
    wanted = tree_digest(empty.root / "layers")
    empty.ok("rmi", "redis")
    for number in range(rounds):
        process = empty.start("pull", "redis", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _kill_at_random_moment(process, longest, moments)
        wait_for(lambda: not processes(str(empty.root)), f"the workers of round {number} are gone", 5)
        names = empty.ok("images", "--format", "{{.Repository}}").split()
        if names:
            # The truth: an image that is listed is whole, and runs.
            assert names == ["redis"]
            empty.ok("run", "--rm", "--pull", "never", "--entrypoint", "true", "redis")
            empty.ok("rmi", "redis")
        assert mounts_below(empty.root) == []
    empty.ok("pull", "redis")
    for name in ("staging", "ingest"):
        assert os.listdir(empty.root / name) == []
    assert [
        key
        for key, value in tree_digest(empty.root / "layers").items()
        if wanted.get(key) != value
        and key.rpartition("/")[2] not in ("meta.json", "notes.json")
        and "/.unsynced/" not in key
        and value[7]
    ] == []
    empty.ok("run", "--rm", "--entrypoint", "true", "redis")


@pytest.mark.timeout(240)
def test_pull_killed_at_random_moments(empty: Pyrun) -> None:
    _pull_rounds(empty, 12)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_pull_killed_at_a_hundred_random_moments(empty: Pyrun) -> None:
    _pull_rounds(empty, 100)


def test_what_pdeathsig_missed_is_ended_by_the_next_command(pyrun: Pyrun) -> None:
    """The signal is forgotten when the entrypoint changes its user, as redis' does (man PR_SET_PDEATHSIG)."""
    marker = f"4{SEED:06d}77"
    process = pyrun.start(
        "run", "--name", "orphan", "--entrypoint", "sh", "redis", "-c",
        f"exec setpriv --reuid=redis --regid=redis --clear-groups sleep {marker}",
    )  # fmt: skip
    pid = int(wait_for(lambda: processes(f"sleep\0{marker}"), "the container's sleep runs")[0])
    process.kill()
    process.wait(20)
    time.sleep(0.2)
    assert os.path.exists(f"/proc/{pid}"), "this test is about a process that outlives pyrun"
    out = pyrun.ok("ps", "-a", "--format", "{{.Names}} {{.Status}}")
    assert out.startswith("orphan Exited (137)")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the killed process is reaped")
    state = json.loads(pyrun.ok("inspect", "orphan"))[0]["State"]
    assert state["Error"]
    pyrun.ok("rm", "orphan")


def test_a_reused_pid_is_not_killed(pyrun: Pyrun) -> None:
    """A record whose pid belongs to somebody else by now must not cost that process its life."""
    process = pyrun.start("run", "--name", "gone", "busybox", "sleep", "100")
    pid = pyrun.pid_of("gone")
    process.kill()
    process.wait(20)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the container is gone")
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        (state_file,) = pyrun.root.glob("containers/*/state.json")
        state = json.loads(state_file.read_text())
        state["pid"] = bystander.pid  # as if the kernel had given the number to it
        state_file.write_text(json.dumps(state))
        assert pyrun.ok("ps", "-a", "--format", "{{.Status}}").startswith("Exited (137)")
        assert bystander.poll() is None
        pyrun.ok("rm", "gone")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_stopped_pyrun_is_not_taken_for_dead(pyrun: Pyrun) -> None:
    process = pyrun.start("run", "--rm", "--name", "paused", "busybox", "sleep", "100")
    pid = pyrun.pid_of("paused")
    process.send_signal(signal.SIGSTOP)
    try:
        assert pyrun.ok("ps", "--format", "{{.Names}}").strip() == "paused"
        assert os.path.exists(f"/proc/{pid}")
    finally:
        process.send_signal(signal.SIGCONT)
        pyrun.ok("rm", "-f", "paused")
        process.wait(20)


def test_after_a_reboot_nothing_is_shown_as_running(pyrun: Pyrun) -> None:
    """The state directory is empty after a boot, and the boot id another; the record still says running."""
    process = pyrun.start("run", "--name", "rebooted", "busybox", "sleep", "100")
    pid = pyrun.pid_of("rebooted")
    process.kill()
    process.wait(20)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the container is gone")
    for marker in (pyrun.state / "running").iterdir():
        marker.unlink()
    (state_file,) = pyrun.root.glob("containers/*/state.json")
    state = json.loads(state_file.read_text())
    state["boot"], state["pid"], state["pid_start"] = "another-boot", os.getpid(), "0"
    state_file.write_text(json.dumps(state))
    assert pyrun.ok("ps", "-q") == ""
    assert pyrun.ok("ps", "-a", "--format", "{{.Status}}").startswith("Exited")
    pyrun.ok("rm", "rebooted")
