"""Running containers whose processes make it hard to read their files, or to stop them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrun.containers.freeze import Frozen
from support.pyrun import Pyrun, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@contextlib.contextmanager
def running(pyrun: Pyrun, script: str, *options: str) -> Iterator[int]:
    """A container "live" that runs ``script``, which says "up" and then reads; the pid of its first process."""
    process: subprocess.Popen[Any] = pyrun.start(
        "run", "-i", "--name", "live", *options, "busybox", "sh", "-c", script,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    try:
        line = process.stdout.readline()
        assert line == b"up\n", line
        yield pyrun.pid_of("live")
    finally:
        pyrun("rm", "-f", "live")
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=30)


def test_a_first_process_in_a_mount_namespace_of_its_own_is_told_or_read(pyrun: Pyrun) -> None:
    script = "echo >/mine; exec unshare -U -m -r sh -c 'mount -t tmpfs none /home; touch /home/hidden; echo up; read x'"
    with running(pyrun, script):
        done = pyrun("diff", "live")
        if done.returncode:
            assert "can't be reached" in done.stderr
            assert "Stop it first" in done.stderr
        else:
            assert done.stdout == "A /mine\n"


def test_a_first_process_that_changed_its_root_is_not_followed(pyrun: Pyrun) -> None:
    inner = """
        mount -t tmpfs none /home && cd /home && mkdir old bin && cp /bin/busybox bin/ &&
        bin/busybox pivot_root . old && echo up && read x
    """
    with running(pyrun, f"echo >/mine; exec unshare -U -m -r sh -c '{inner}'"):
        done = pyrun("export", "-o", "/dev/null", "live")
        assert done.returncode == 1
        assert "Stop it first" in done.stderr


def test_a_root_that_was_changed_without_a_namespace_does_not_matter(pyrun: Pyrun) -> None:
    script = "mkdir -p /jail/bin; cp /bin/busybox /jail/bin; exec chroot /jail /bin/busybox sh -c 'echo up; read x'"
    with running(pyrun, script):
        assert pyrun.ok("diff", "live").splitlines() == ["A /jail", "A /jail/bin", "A /jail/bin/busybox"]


def state(pid: int | str) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    pidfd = os.pidfd_open(pid)
    try:
        with Frozen(pid, pidfd, "live"):
            yield
    finally:
        os.close(pidfd)


def descendants(pid: int) -> list[int]:
    found = [pid]
    for number in found:
        for task in os.listdir(f"/proc/{number}/task"):
            found += map(int, Path(f"/proc/{number}/task/{task}/children").read_text().split())
    return found


def test_processes_of_inner_namespaces_stand_still_too(pyrun: Pyrun) -> None:
    with running(pyrun, "unshare -U -p -f sleep 1000 & sleep 0.5; echo up; read x") as pid:
        inner = [
            n
            for n in descendants(pid)
            if os.readlink(f"/proc/{n}/ns/pid") != os.readlink(f"/proc/{pid}/ns/pid")
        ]
        if not inner:
            pytest.skip("this kernel lets no container make namespaces")
        with frozen(pid):
            assert {state(number) for number in descendants(pid)} == {"T"}
        wait_for(lambda: {state(number) for number in descendants(pid)} == {"S"}, "they go on")


def test_processes_that_fork_all_the_time_are_caught(pyrun: Pyrun) -> None:
    forks = "i=0; while :; do i=$((i+1)); true & [ $((i % 20)) = 0 ] && wait; done"
    with running(pyrun, f"for n in 1 2 3 4; do ({forks}) & done; echo up; read x") as pid:
        for _ in range(5):
            with frozen(pid):
                first = sorted(descendants(pid))
                assert {state(number) for number in first} <= {"T", "Z"}
                subprocess.run(["sleep", "0.1"], check=True)
                assert sorted(descendants(pid)) == first
        assert state(pid) != "T"


def test_processes_that_let_each_other_go_on_are_caught(pyrun: Pyrun) -> None:
    """One that was stopped is continued by one that was not yet."""
    loop = "while :; do kill -CONT 2 3 4 5 6 7; done"
    with running(pyrun, f"for n in 1 2 3 4 5 6; do ({loop}) 2>/dev/null & done; echo up; read x") as pid:
        for _ in range(8):
            with frozen(pid):
                assert {state(number) for number in descendants(pid)} == {"T"}
        wait_for(lambda: "R" in {state(number) for number in descendants(pid)}, "they go on")


def test_a_job_of_a_shell_is_not_seen_to_stop(pyrun: Pyrun, tmp_path: Path) -> None:
    """A shell with jobs is told of each child that stops (waitpid, WUNTRACED)."""
    out = tmp_path / "out"
    out.mkdir()
    os.chmod(out, 0o777)
    script = "set -m; echo up; sleep 2; echo $? >/out/code; jobs >/out/jobs; echo end >/out/end; read x"
    with running(pyrun, script, "-v", f"{out}:/out") as pid:
        for _ in range(3):
            with frozen(pid):
                pass
        wait_for(lambda: (out / "end").exists(), "the job ends")
        assert (out / "code").read_text() == "0\n"
        assert (out / "jobs").read_text() == ""


def test_a_container_that_has_ended_is_as_good_as_stopped(pyrun: Pyrun) -> None:
    with running(pyrun, "echo up; read x") as pid:
        pidfd = os.pidfd_open(pid)
    with Frozen(pid, pidfd, "live"):
        pass
    os.close(pidfd)
