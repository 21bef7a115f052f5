"""Work in a forked child: what it opens, mounts and changes of the process ends with it."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from ..errors import PyrunError, StorageError
from ..kernel.process import set_pdeathsig


def call(work: Callable[[], Any], *, seconds: float | None = None) -> Any:
    """What ``work`` returns (JSON values), run in a child process that this one waits for.

    Raises the child's `PyrunError` as `StorageError` with its words, and `StorageError` for a child that ends
    otherwise, or is killed after ``seconds``. The caller must have one thread.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(work, read, write)
    os.close(write)
    pidfd = os.pidfd_open(pid)
    try:
        said = _listen(read, pidfd, seconds)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(read)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if not said:
        raise StorageError(f"a process of its own ended with {code} before it was done")
    answer = json.loads(said)
    if "error" in answer:
        raise StorageError(answer["error"], hint=answer["hint"])
    return answer["result"]


def _child(work: Callable[[], Any], read: int, write: int) -> None:
    code = 1
    try:
        os.close(read)
        set_pdeathsig(signal.SIGKILL)
        try:
            answer = {"result": work()}
        except PyrunError as error:
            answer = {"error": error.message, "hint": error.hint}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "hint": ""}
        with open(write, "w") as pipe:
            json.dump(answer, pipe)
        sys.stdout.flush()
        sys.stderr.flush()
        code = 0
    finally:
        os._exit(code)


def _listen(read: int, pidfd: int, seconds: float | None) -> bytes:
    """Everything that comes through the pipe until the child ends; what it left running may keep the pipe open."""
    said = b""
    os.set_blocking(read, False)
    while True:
        ready = select.select([read, pidfd], [], [], seconds)[0]
        if not ready:
            raise StorageError(f"a measurement took longer than {seconds:.0f} s; it was ended")
        try:
            data = os.read(read, 1 << 16)
        except BlockingIOError:
            return said  # the child has ended
        if not data:
            return said
        said += data
