"""Commands timed in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .footprint import busy


def wait_for_quiet(bound: float) -> float:
    """Wait, ``bound`` seconds at most, until a sixth of a core or less is busy; seconds waited."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < bound:
        before = busy()
        time.sleep(0.12)
        if busy() - before <= 0.02:
            break
    return waited


def adopt_orphans() -> None:
    """Become the parent of what contenders leave behind (PR_SET_CHILD_SUBREAPER); `run_once` reaps it.

    podman waits for conmon, which it has orphaned, to be gone: where pid 1 reaps late, up to 20 s.
    """
    pr_set_child_subreaper = 36  # <linux/prctl.h>
    if ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@dataclass
class Contender:
    """A command under measurement. ``seconds`` has one wall-clock time a round, warm-up left out."""

    name: str
    version: str
    command: list[str]
    environ: Mapping[str, str]
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Failed(Exception):
    """A contender's command did not exit with 0; what it printed is in the message."""


def run_once(contender: Contender) -> float:
    """Wall-clock seconds from spawn to exit, stdin and stdout at /dev/null. Raises `Failed`."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    errors = os.memfd_create("stderr", os.MFD_CLOEXEC)
    moves = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, errors, 2)]
    try:
        began = time.perf_counter()
        pid = os.posix_spawnp(contender.command[0], contender.command, contender.environ, file_actions=moves)
        ended, wait_status = os.wait()
        while ended != pid:
            ended, wait_status = os.wait()
        status = os.waitstatus_to_exitcode(wait_status)
        seconds = time.perf_counter() - began
        if status:
            said = os.pread(errors, 2000, 0).decode(errors="replace").strip()
            raise Failed(f"{contender.name} exited with {status}: {said or 'no message'}")
    finally:
        os.close(null)
        os.close(errors)
    return seconds


def round_robin(
    contenders: Sequence[Contender], rounds: int, bound: float, tell: Callable[[int], None]
) -> float:
    """Time every contender once a round, after one round of warm-up; seconds spent waiting for quiet.

    At most ``bound`` seconds are waited before each run. ``tell`` gets the number of each finished round.
    """
    waited = 0.0
    for number in range(rounds + 1):
        for contender in contenders:
            waited += wait_for_quiet(bound)
            seconds = run_once(contender)
            if number:
                contender.seconds.append(seconds)
            # Engines leave helpers that clean up; they must not run into the next contender's time.
            time.sleep(0.1)
        tell(number)
    return waited
