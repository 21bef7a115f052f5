"""A pull as it happens, in docker's words: a line a layer redrawn in place, or a line a change of state."""

from __future__ import annotations

import os
import threading
import time

from .escape import printable
from .units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from ..images.record import Progress

_REDRAW_SECONDS = 0.1
_COUNTED = ("Downloading", "Extracting", "Pushing")  # the states whose bytes mean something to look at
_BAR = (10, 50)  # the narrowest and the widest


class PullDisplay:
    """Prints `Progress` to ``stream``. May be called from several threads: layers download side by side.

    On a terminal every layer has a line of its own that changes in place; elsewhere a line is printed
    when a layer's state changes, and none while bytes merely count up.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.terminal = stream.isatty()
        self.lines: dict[str, int] = {}  # layer → its line, counted from the first
        self.height = 0
        self.status: dict[str, str] = {}
        self.drawn: dict[str, float] = {}
        self.lock = threading.Lock()

    def __call__(self, step: Progress) -> None:
        with self.lock:
            self._show(step)

    def _show(self, step: Progress) -> None:
        identifier = printable(step.id)
        status = printable(step.status)
        changed = self.status.get(identifier) != status
        self.status[identifier] = status
        if not identifier:
            self._line(status)
        elif not self.terminal:
            if changed:
                self._line(f"{identifier}: {status}")
        elif changed or time.monotonic() - self.drawn.get(identifier, 0.0) >= _REDRAW_SECONDS:
            self.drawn[identifier] = time.monotonic()
            self._draw(identifier, status, step.current, step.total)

    def _line(self, text: str) -> None:
        self.stream.write(text + "\n")
        self.stream.flush()
        self.height += 1

    def _draw(self, identifier: str, status: str, current: int, total: int) -> None:
        columns, rows = _window(self.stream)
        text = f"{identifier}: {status}"
        if status in _COUNTED:
            text += bar(current, total, columns - len(text) - 1)
        text = text[: columns - 1]
        line = self.lines.get(identifier)
        if line is None:
            self.lines[identifier] = self.height
            self._line(text)
            return
        up = self.height - line
        if up >= rows:
            return  # scrolled out of sight: the cursor can't get there
        # Up, to the first column, erase the line, write, and back down below the last line.
        self.stream.write(f"\x1b[{up}A\r\x1b[2K{text}\x1b[{up}B\r")
        self.stream.flush()


def bar(current: int, total: int, room: int) -> str:
    """``" [====>   ]  15.44MB/29.12MB"``, as wide as ``room`` columns allow between the two limits."""
    if total <= 0:
        return f"  {human_size(current, 4)}" if current > 0 else ""
    current = min(current, total)
    sizes = f"{human_size(current, 4)}/{human_size(total, 4)}"
    width = max(_BAR[0], min(_BAR[1], room - len(sizes) - 5))
    filled = width * current // total
    drawn = "=" * width if filled == width else ("=" * filled + ">").ljust(width)
    return f" [{drawn}]  {sizes}"


def _window(stream: TextIO) -> tuple[int, int]:
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except OSError:
        return 80, 24
    # A terminal that was never told its size says 0.
    return columns or 80, rows or 24
