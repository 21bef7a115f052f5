"""Forked processes for cases in which somebody dies: they run a function, report what came of it, and can be
killed at any moment, by a failpoint or from outside.

A fork, not a new program: the child has whatever driver class the test has, wherever it is defined.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ..errors import PyrunError
from ..kernel import mount as m
from ..kernel.process import CLONE_NEWNS, set_pdeathsig, unshare
from ..storage import failpoints


class Outcome:
    """What came of a child.

    signal   the number of the signal that ended it, or 0
    value    what the function returned (as JSON has it), where it returned
    kind     the name of the exception's class, where it raised; "" where it did not
    error    the exception's text
    clear    it raised one of the errors that a driver or the engine may raise: `PyrunError` or OSError
    trace    its traceback
    """

    def __init__(self, status: int, report: dict[str, Any]) -> None:
        self.signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        self.code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        self.value: Any = report.get("value")
        self.kind: str = report.get("kind", "")
        self.error: str = report.get("error", "")
        self.clear: bool = report.get("clear", False)
        self.trace: str = report.get("trace", "")

    @property
    def ok(self) -> bool:
        return not self.signal and self.code == 0

    def result(self) -> Any:
        """``value``. Raises AssertionError, with the child's traceback, where there is none."""
        assert self.ok, str(self)
        return self.value

    def __str__(self) -> str:
        if self.signal:
            return f"the child was ended by {signal.Signals(self.signal).name}"
        return self.trace or f"the child ended with {self.code}"


class Child:
    """A forked process that runs ``work`` and nothing of the program's rest. It dies with its parent, and by
    itself ``seconds`` after it began.

    ``fd`` is its pidfd. ``mounts``: it has a mount namespace of its own. Who makes one must `wait` for it.
    """

    def __init__(self, work: Callable[[], Any], *, mounts: bool = False, seconds: float = 60) -> None:
        self._report = os.memfd_create("outcome", os.MFD_CLOEXEC)
        self._deadline = time.monotonic() + seconds + 5
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            _run(work, self._report, parent, mounts, seconds)
        self.fd = os.pidfd_open(self.pid)
        self.outcome: Outcome | None = None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal; one that is dead already gets none."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.fd, number)

    def ended(self, seconds: float = 0) -> bool:
        """Whether it has ended, or does within ``seconds``."""
        return self.outcome is not None or bool(select.select([self.fd], [], [], seconds)[0])

    def wait(self) -> Outcome:
        """What came of it, once it ended. One that outlives its time is killed, and that is an AssertionError."""
        if self.outcome is None:
            hung = not self.ended(max(self._deadline - time.monotonic(), 0))
            if hung:
                self.kill()
                # Not even SIGKILL ends a process that sleeps in the kernel; then it is left behind.
                assert self.ended(10), f"process {self.pid} hangs in the kernel and can't be killed"
            _, status = os.waitpid(self.pid, 0)
            os.close(self.fd)
            content = os.pread(self._report, 1 << 20, 0)
            os.close(self._report)
            self.outcome = Outcome(status, json.loads(content) if content else {})
            assert not hung, "the child did not end in its time"
            assert self.outcome.signal != signal.SIGALRM, "the child did not end in its time"
        return self.outcome


def _run(work: Callable[[], Any], report: int, parent: int, mounts: bool, seconds: float) -> NoReturn:
    code = 1
    try:
        # The test framework's own timers are not inherited, its handlers are.
        for number in (signal.SIGALRM, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        set_pdeathsig(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        said: dict[str, Any]
        try:
            if mounts:
                private_mounts()
            said = {"value": work()}
            code = 0
        except BaseException as error:
            said = {
                "kind": type(error).__name__,
                "error": str(error),
                "clear": isinstance(error, PyrunError | OSError),
                "trace": traceback.format_exc()[-20000:],
            }
        # By a call that is made nowhere else: `pyrun.testing.strace` lets the others fail.
        os.pwritev(report, [json.dumps(said).encode()], 0)
    finally:
        os._exit(code)


def private_mounts() -> None:
    """Give this process a mount namespace, from which nothing gets out."""
    unshare(CLONE_NEWNS)
    m.mount(None, b"/", None, m.MS_REC | m.MS_PRIVATE)


def run(work: Callable[[], Any], *, mounts: bool = False, seconds: float = 60) -> Outcome:
    """What came of ``work`` in a child; see `Child`."""
    return Child(work, mounts=mounts, seconds=seconds).wait()


def killed_at(name: str, work: Callable[[], Any], *, count: int = 1, seconds: float = 60) -> Outcome:
    """What came of ``work`` in a child that kills itself when it reaches the failpoint ``name`` for the
    ``count``-th time."""

    def doomed() -> Any:
        left = count

        def armed(reached: str) -> None:
            nonlocal left
            if reached == name:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        failpoints.armed = armed
        return work()

    return run(doomed, seconds=seconds)


class Gate:
    """Lets processes wait for a word, all of them until the same moment; whoever has it may give it."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def wait(self) -> None:
        """Until somebody opens the gate."""
        select.select([self._read], [], [])

    def wait_for(self, child: Child) -> None:
        """Until ``child`` opens the gate. Raises AssertionError where it ends instead."""
        select.select([self._read, child.fd], [], [], 60)
        assert select.select([self._read], [], [], 0)[0], str(child.wait())

    def open(self) -> None:
        os.write(self._write, b"1")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@contextlib.contextmanager
def gate() -> Iterator[Gate]:
    made = Gate()
    try:
        yield made
    finally:
        made.close()


def gather(children: list[Child]) -> list[Outcome]:
    """What came of each; all are waited for, whatever comes of one."""
    outcomes = []
    problems = []
    for child in children:
        try:
            outcomes.append(child.wait())
        except AssertionError as problem:
            problems.append(str(problem))
    assert not problems, "; ".join(problems)
    return outcomes
