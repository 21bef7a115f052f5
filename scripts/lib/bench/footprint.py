"""What a run costs beside its time: processor seconds of the whole machine, memory of all its processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_INTERVAL = 0.05  # seconds between two looks at memory


def busy() -> float:
    """CPU seconds that this machine has spent on anything but idling (proc(5), /proc/stat)."""
    with open("/proc/stat", encoding="ascii") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, stat.readline().split()[1:])
    return (user + nice + system + irq + softirq) / _TICKS


def cpu_of(pid: int) -> float:
    """CPU seconds that a process has used so far; 0 where there is none (proc(5), /proc/PID/stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def descendants(pid: int) -> Iterator[int]:
    """Every process below ``pid``, which adopts orphans."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    waiting = list(children.get(pid, ()))
    while waiting:
        child = waiting.pop()
        yield child
        waiting += children.get(child, ())


def proportional(pid: int) -> int:
    """Bytes of memory that a process answers for: pages it shares count in parts (proc(5), smaps_rollup, Pss)."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


class PeakMemory:
    """A context manager that looks at all descendants of this process ten times or more a second. ``peak``: the
    largest sum of their proportional set sizes, in bytes. Looking takes time: nothing is timed meanwhile."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = os.getpid()
        while not self._stop.wait(_INTERVAL):
            self.peak = max(self.peak, sum(proportional(pid) for pid in descendants(me)))
