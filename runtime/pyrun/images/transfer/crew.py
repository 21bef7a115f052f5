"""Blobs on their way side by side, in threads: what waits for the network has no use for a process of its own."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from ..record import Progress
from ..registry.client import RegistryClient

Report = Callable[[str, int, int], None]  # status, current, total
# Client of the thread, report, set when all is given up → the last status.
Work = Callable[[RegistryClient, Report, threading.Event], str]

INTERVAL = 0.1  # seconds between two reports of one state
GRACE = 1.0  # seconds that threads get to end by themselves after a failure or Ctrl-C
LINGER = 5.0  # seconds they get then, without the connections that they waited for, to tidy up


@dataclass(frozen=True, slots=True)
class Task:
    """``id`` names it in reports; "" for none."""

    id: str
    work: Work


def run(
    tasks: Sequence[Task], client: RegistryClient, *, at_once: int, progress: Callable[[Progress], None]
) -> None:
    """Do every task, ``at_once`` of them at a time, in order of start; each thread with a twin of ``client``.

    ``progress``, and the client's ``notice``, are called here. The first failure gives up the others and is
    raised; whatever ends this call early, Ctrl-C too, lets the threads have some seconds (`GRACE`, `LINGER`)
    to ask the registry to forget what it got.
    """
    waiting = deque(tasks)
    events: SimpleQueue[tuple[str, Any]] = SimpleQueue()
    stop = threading.Event()
    members = [client.twin() for _ in range(min(at_once, len(tasks)))]
    threads = []
    for member in members:
        member.notice = lambda text: events.put(("notice", text))
        threads.append(threading.Thread(target=_work, args=(waiting, member, events, stop), daemon=True))
    left = len(tasks)
    try:
        for thread in threads:
            thread.start()
        while left:
            kind, what = events.get()
            if kind == "failed":
                raise what
            if kind == "notice":
                client.notice(what)
            elif kind == "progress":
                progress(what)
            else:
                left -= 1
    finally:
        if left:
            stop.set()
            # What is short ends by itself, and an upload whose place is known can be taken back.
            _join(threads, GRACE)
            for member in members:
                member.abort()
        _join(threads, LINGER)
        for member in members:
            member.close()


def _join(threads: Sequence[threading.Thread], seconds: float) -> None:
    """Wait for them, ``seconds`` at most in all."""
    until = time.monotonic() + seconds
    for thread in threads:
        if thread.ident is not None:
            thread.join(max(0.0, until - time.monotonic()))


def _work(
    waiting: deque[Task], client: RegistryClient, events: SimpleQueue[tuple[str, Any]], stop: threading.Event
) -> None:
    """A thread's whole life."""
    while not stop.is_set():
        try:
            task = waiting.popleft()
        except IndexError:
            return
        try:
            status = task.work(client, _sparse(task.id, events), stop)
        except BaseException as error:
            events.put(("failed", error))
            return
        if task.id:
            events.put(("progress", Progress(task.id, status)))
        events.put(("done", None))


def _sparse(id: str, events: SimpleQueue[tuple[str, Any]]) -> Report:
    """Reports become events, not more of one state than anybody can look at."""
    last, when = "", 0.0

    def report(status: str, current: int, total: int) -> None:
        nonlocal last, when
        now = time.monotonic()
        if id and (status != last or now - when >= INTERVAL or current == total):
            last, when = status, now
            events.put(("progress", Progress(id, status, current, total)))

    return report
