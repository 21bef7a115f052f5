"""Signals to pyrun reach the container's first process; the program starts with a clean slate."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from support.pyrun import Pyrun, wait_for


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_a_signal_is_passed_on(pyrun: Pyrun, name: str) -> None:
    script = f"trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.05; done"
    process = pyrun.start("run", "--rm", "busybox", "sh", "-c", script, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.stdout.read() == f"got {name}\n"
    assert process.wait(20) == 9


def test_a_first_process_without_a_handler_ignores_sigterm_as_under_docker(pyrun: Pyrun) -> None:
    process = pyrun.start("run", "--rm", "--name", "deaf", "busybox", "sleep", "1.5")
    pyrun.pid_of("deaf")
    process.terminate()
    time.sleep(0.3)
    assert process.poll() is None
    assert process.wait(20) == 0


def test_ignored_signals_and_the_mask_are_not_inherited(pyrun: Pyrun) -> None:
    wrapper = "import signal,os,sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    wrapper += (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); os.execv(sys.argv[1], sys.argv[1:])"
    )
    import sys

    argv = pyrun.argv("run", "--rm", "busybox", "grep", "Sig[BI]", "/proc/self/status")
    done = subprocess.run(
        [sys.executable, "-c", wrapper, *argv], capture_output=True, text=True, env=pyrun.env
    )
    states = {line.split()[0]: int(line.split()[1], 16) for line in done.stdout.splitlines()}
    assert states["SigBlk:"] == 0
    assert states["SigIgn:"] == 0


def test_ctrl_c_in_a_pull_ends_it_without_a_traceback_and_leaves_nothing(empty: Pyrun) -> None:
    process = empty.start("pull", "redis", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert empty.ok("images", "-q") == ""
    wait_for(lambda: not empty.records(), "staging is empty")
