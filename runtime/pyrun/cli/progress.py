"""A pull as it happens: in docker's words, a line a layer redrawn in place or a line a change of state; or as events.

The events of ``--progress json`` are objects, one a line:

    {"id": "7", "status": "Pulling from library/redis"}
    {"id": "aaaaaaaaaaaa", "status": "Downloading", "current": 1048576, "total": 29124801}
    {"status": "Downloaded newer image", "reference": "docker.io/library/redis:7", "digest": "sha256:...",
     "image": "sha256:...", "newer": true}

``id`` is a layer's first 12 digits, or the tag or digest in the first event; it is missing in a message about no layer.
``current`` and ``total`` are bytes, while they mean something. The last event of an image has its repository digest
and its ID. An error is no event: it goes to standard error as ever.
"""

from __future__ import annotations

import os
import threading
import time

from ..errors import UsageError
from .escape import printable
from .output import flush, json_text, write
from .units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    from ..images.record import Progress, PullResult

_REDRAW_SECONDS = 0.1
# The states whose bytes mean something to look at.
_COUNTED = ("Downloading", "Extracting", "Loading layer", "Pushing")
_BAR = (10, 50)  # the narrowest and the widest


class PullDisplay:
    """Prints `Progress` to ``stream``. May be called from several threads: layers download side by side.

    On a terminal every layer has a line of its own that changes in place; elsewhere a line is printed
    when a layer's state changes, and none while bytes merely count up. ``terminal`` None: as ``stream`` is.
    """

    words = True  # what frames it is for people, too

    def __init__(self, stream: TextIO, terminal: bool | None = None) -> None:
        self.stream = stream
        self.terminal = stream.isatty() if terminal is None else terminal
        self.lines: dict[str, int] = {}  # layer → its line, counted from the first
        self.height = 0
        self.status: dict[str, str] = {}
        self.drawn: dict[str, float] = {}
        self.lock = threading.Lock()

    def __call__(self, step: Progress) -> None:
        with self.lock:
            self._show(step)

    def restart(self) -> None:
        """What follows is about another image: its layers get lines of their own."""
        with self.lock:
            self.lines.clear()
            self.status.clear()

    def finish(self, result: PullResult, status: str) -> None:
        """For people the caller's lines say it."""

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


class EventDisplay:
    """Prints `Progress` as JSON to standard output; see the module."""

    words = False

    def __init__(self) -> None:
        self.status: dict[str, str] = {}
        self.told: dict[str, float] = {}
        self.lock = threading.Lock()

    def __call__(self, step: Progress) -> None:
        now = time.monotonic()
        with self.lock:
            if self.status.get(step.id) == step.status and now - self.told[step.id] < _REDRAW_SECONDS:
                return
            self.status[step.id], self.told[step.id] = step.status, now
            event: dict[str, object] = {"id": step.id} if step.id else {}
            event["status"] = step.status
            if step.total:
                event.update(current=step.current, total=step.total)
            self._write(event)

    def restart(self) -> None:
        self.status.clear()

    def finish(self, result: PullResult, status: str) -> None:
        image = result.image
        self._write(
            {
                "status": status,
                "reference": image.reference,
                "digest": image.digest,
                "image": image.id,
                "newer": result.newer,
            }
        )
        self.restart()

    def _write(self, event: dict[str, object]) -> None:
        write(json_text(event) + "\n")
        flush()


Display = PullDisplay | EventDisplay


def display_of(kind: str, stream: TextIO | None) -> Display | None:
    """The display for ``--progress``; None: nothing is shown. Raises `UsageError`."""
    if kind not in ("auto", "json", "none", "plain", "tty"):
        raise UsageError(f"--progress {kind}: no such kind", hint="auto, json, none, plain or tty.")
    if kind == "none" or stream is None:
        return None
    if kind == "json":
        return EventDisplay()
    return PullDisplay(stream, None if kind == "auto" else kind == "tty")


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
