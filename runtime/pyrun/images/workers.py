"""Jobs in forked processes: a crash, a memory limit or a changed umask stays in the one that has it.

The caller must have one thread. A worker dies with its parent (PR_SET_PDEATHSIG), ignores Ctrl-C (the
terminal sends it to the whole process group; the parent decides), and reports over a pipe.
"""

from __future__ import annotations

import json
import os
import select
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .. import errors
from ..errors import PyrunError, StorageError
from ..kernel.files import write_all
from ..kernel.process import set_pdeathsig
from ..layers import confined
from .content import out_of_space

Report = Callable[[str, int, int], None]  # status, current, total


class Job:
    """``name`` stands in messages; ``work`` runs in the worker and may raise."""

    def __init__(self, name: str, work: Callable[[Report], None]) -> None:
        self.name = name
        self.work = work


class _Worker:
    def __init__(self, number: int, job: Job, pid: int, fd: int, lifeline: int) -> None:
        self.number = number
        self.job = job
        self.pid = pid
        self.fd = fd
        self.lifeline = lifeline  # ends when the worker and its confined child are gone
        self.pending = b""
        self.failure: PyrunError | None = None


def run(
    jobs: Sequence[Job],
    *,
    at_once: int,
    reported: Callable[[int, str, int, int], None],
    finished: Callable[[int], None],
) -> None:
    """Run every job, ``at_once`` of them at a time, in order of start.

    ``reported(job number, status, current, total)`` and ``finished(job number)`` are called here in the
    parent. The first failure ends the other workers and is raised as the worker raised it; whatever ends
    this call early (Ctrl-C too), no worker outlives it.
    """
    running: dict[int, _Worker] = {}  # by the descriptor of its pipe
    waiting = list(enumerate(jobs))[::-1]
    poll = select.poll()
    try:
        while running or waiting:
            while waiting and len(running) < at_once:
                number, job = waiting.pop()
                worker = _start(number, job)
                running[worker.fd] = worker
                poll.register(worker.fd, select.POLLIN)
            for fd, _ in poll.poll():
                worker = running[fd]
                data = os.read(fd, 65536)
                if data:
                    _receive(worker, data, reported)
                    continue
                poll.unregister(fd)
                _reap(worker)
                del running[fd]
                if worker.failure:
                    raise worker.failure
                finished(worker.number)
    finally:
        _end(list(running.values()))


def _start(number: int, job: Job) -> _Worker:
    parent = os.getpid()
    reader, writer = os.pipe()
    lifeline, held = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        os.close(held)
        return _Worker(number, job, pid, reader, lifeline)
    confined.lifeline = held
    _work(job, writer, parent)


def _work(job: Job, fd: int, parent: int) -> NoReturn:
    """The worker's whole life."""

    def send(message: list[Any]) -> None:
        write_all(fd, json.dumps(message).encode() + b"\n")

    code = 1
    try:
        set_pdeathsig(signal.SIGKILL)
        if os.getppid() == parent:  # else the parent died before the line above
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            job.work(lambda status, current, total: send(["progress", status, current, total]))
            code = 0
    except PyrunError as error:
        send(["error", type(error).__name__, error.message, error.hint])
    except OSError as error:
        problem = out_of_space(error, str(error.filename or job.name))
        send(["error", "StorageError", problem.message, problem.hint])
    except BaseException as error:
        send(["crash", f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error))])
    finally:
        # Nothing of the parent's may be flushed or run a second time here.
        os._exit(code)


def _receive(worker: _Worker, data: bytes, reported: Callable[[int, str, int, int], None]) -> None:
    *lines, worker.pending = (worker.pending + data).split(b"\n")
    for line in lines:
        kind, *rest = json.loads(line)
        if kind == "progress":
            reported(worker.number, *rest)
        elif kind == "error":
            name, message, hint = rest
            worker.failure = getattr(errors, name, StorageError)(message, hint=hint)
        else:
            worker.failure = StorageError(
                f"{worker.job.name} failed: {rest[0]}", hint="That is a defect of pyrun."
            )
            worker.failure.add_note(rest[1])


def _reap(worker: _Worker) -> None:
    os.close(worker.fd)
    os.close(worker.lifeline)
    _, status = os.waitpid(worker.pid, 0)
    if status and worker.failure is None:
        if os.WIFSIGNALED(status):
            how = f"was ended by {signal.Signals(os.WTERMSIG(status)).name}"
            hint = "SIGKILL often means that memory ran out."
        else:
            how, hint = f"exited with {os.waitstatus_to_exitcode(status)}", ""
        worker.failure = StorageError(f"the process that fetched {worker.job.name} {how}", hint=hint)


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
    for worker in workers:
        os.close(worker.fd)
        os.waitpid(worker.pid, 0)
        # Its confined child dies with it, a moment later: until then it may go on writing.
        poll = select.poll()
        poll.register(worker.lifeline, select.POLLIN)
        while poll.poll(10_000) and os.read(worker.lifeline, 65536):
            pass
        os.close(worker.lifeline)
