"""System calls of a forked child that fail, or kill it, by strace(1): any call, any error, any moment."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ..errors import StorageError
from .children import Child, Gate, Outcome

T = TypeVar("T")

_SECONDS = 60
_INJECTED = re.compile(rb"^(?:\d+ +)?(\w+)\(")


class NoStrace(StorageError):
    """strace is missing, or may not trace here; the message says so."""


class Injection:
    """``action`` as strace has it ("error=EIO", "signal=KILL"), at the ``when``-th of ``call``."""

    def __init__(self, call: str, action: str, when: int) -> None:
        self.call = call
        self.action = action
        self.when = when

    def __str__(self) -> str:
        return f"{self.action} at {self.call} number {self.when}"


def traced(
    work: Callable[[T], Any],
    injection: Injection,
    *,
    before: Callable[[], T],
    seconds: float = _SECONDS,
) -> Outcome:
    """What came of ``work`` in a child in which ``injection`` happens. ``before`` is called first, without it,
    and ``work`` with its result. Raises `NoStrace`."""
    expression = f"inject={injection.call}:{injection.action}:when={injection.when}"
    return _trace(
        before, work, ["-o", "/dev/null", "-e", f"trace={injection.call}", "-e", expression], seconds
    )


def calls(
    work: Callable[[T], Any],
    names: Sequence[str],
    *,
    before: Callable[[], T],
    seconds: float = _SECONDS,
) -> dict[str, int]:
    """How often ``work`` (of the result of ``before``), which must succeed, makes each of the system calls
    ``names``; children of the child are counted, too. Names that this architecture does not have are never
    called. Raises `NoStrace`."""
    counts = dict.fromkeys(names, 0)
    with tempfile.NamedTemporaryFile(prefix="pyrun-calls-") as log:
        # A leading "?" makes strace pass over a call that there is none of.
        expression = "trace=" + ",".join(f"?{name}" for name in names)
        _trace(before, work, ["-o", log.name, "-e", expression], seconds).result()
        for line in log:
            found = _INJECTED.match(line)
            if found and found[1].decode() in counts:
                counts[found[1].decode()] += 1
    return counts


def _trace(before: Callable[[], T], work: Callable[[T], Any], options: list[str], seconds: float) -> Outcome:
    program = shutil.which("strace")
    if program is None:
        raise NoStrace("strace is not installed")

    ready = Gate()

    def both() -> Any:
        made = before()
        ready.open()
        _wait_for_tracer()
        return work(made)

    child = Child(both, seconds=seconds)
    tracer = None
    try:
        ready.wait_for(child)
        tracer = subprocess.Popen(
            [program, "-f", "-q", "-q", *options, "-p", str(child.pid)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        pidfd = os.pidfd_open(tracer.pid)
        try:
            select.select([child.fd, pidfd], [], [], seconds)
        finally:
            os.close(pidfd)
        if not child.ended(1):
            assert tracer.stderr is not None
            said = b"" if tracer.poll() is None else tracer.stderr.read()
            child.kill()
            child.wait()
            raise NoStrace(f"strace can't trace here: {said.decode(errors='replace').strip()}")
        return child.wait()
    finally:
        ready.close()
        if tracer is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                tracer.wait(5)
            if tracer.poll() is None:
                tracer.kill()
            tracer.wait()
            assert tracer.stderr is not None
            tracer.stderr.close()


def _wait_for_tracer() -> None:
    """In the child, until strace has it; by calls that nobody injects into."""
    fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    deadline = time.monotonic() + 20
    while b"TracerPid:\t0\n" in _status(fd):
        if time.monotonic() > deadline:
            raise StorageError("no tracer came")
        time.sleep(0.001)
    os.close(fd)


def _status(fd: int) -> bytes:
    content = bytearray(8192)
    return bytes(content[: os.preadv(fd, [content], 0)])
