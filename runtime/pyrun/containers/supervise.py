"""Foreground supervision: serves a container's streams, forwards signals, waits for the end. On the path of `run`."""

from __future__ import annotations

import os
import select
import signal
import termios
import time

from ..sandbox import console
from .streams import Pipes, Pump

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..sandbox.box import Box

# Not passed on: what can't be caught, what concerns this process itself, and what stops it as a job.
_KEPT = {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGURG,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCONT,
    signal.SIGWINCH,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGTRAP,
}


class RawTerminal:
    """While entered, the caller's terminal passes every key through; restored on the way out."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.saved: list[Any] | None = None

    def __enter__(self) -> RawTerminal:
        try:
            self.saved = termios.tcgetattr(self.fd)
        except termios.error:
            return self
        self.set()
        return self

    def set(self) -> None:
        if self.saved is None:
            return
        raw = [*self.saved[:6], list(self.saved[6])]
        raw[0] &= ~(
            termios.IGNBRK
            | termios.BRKINT
            | termios.PARMRK
            | termios.ISTRIP
            | termios.INLCR
            | termios.IGNCR
            | termios.ICRNL
            | termios.IXON
        )
        raw[1] &= ~termios.OPOST
        raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        self._apply(termios.TCSANOW, raw)

    def __exit__(self, *exc: object) -> None:
        if self.saved is not None:
            self._apply(termios.TCSADRAIN, self.saved)

    def _apply(self, when: int, attributes: list[Any]) -> None:
        try:
            termios.tcsetattr(self.fd, when, attributes)
        except termios.error:
            pass  # the window was closed meanwhile


class Signals:
    """While entered, signals to this process are the container's.

    Before there is a container, they end the start. While it runs (`serve`), they go to its first process. Once
    that has ended, one ends the wait for whoever does not read the last output, and none disturbs the clean-up.
    """

    def __init__(self) -> None:
        self.box: Box | None = None
        self.master = -1
        self.raw: RawTerminal | None = None
        self.draining = False
        self.saved: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in signal.valid_signals() - _KEPT:
            # One that the caller ignores (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._handle(number, self._forward)
        return self

    def _handle(self, number: int, handler: Callable[[int, object], None]) -> None:
        try:
            self.saved.setdefault(number, signal.signal(number, handler))
        except (OSError, ValueError):
            pass  # one that libc keeps for itself, or not the main thread

    def serve(self, box: Box, master: int, raw: RawTerminal | None) -> None:
        self.box, self.master, self.raw = box, master, raw
        if master >= 0:
            self._handle(signal.SIGWINCH, self._resize)
            self._handle(signal.SIGCONT, self._continue)
            self._resize(0, None)  # it may have changed before there was somebody to tell

    def ended(self) -> None:
        """The first process is no more; from now on a signal ends `draining`."""
        self.draining = True

    def drained(self) -> None:
        self.draining = False

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.saved.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _forward(self, number: int, frame: object) -> None:
        if self.box is None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        if self.draining:
            raise StopDraining
        try:
            signal.pidfd_send_signal(self.box.pidfd, number)
        except OSError:
            pass  # it has just ended

    def _resize(self, number: int, frame: object) -> None:
        size = console.get_size(0) or console.get_size(1)
        if size:
            try:
                console.set_size(self.master, size)
            except OSError:
                pass

    def _continue(self, number: int, frame: object) -> None:
        # Somebody stopped and continued this process; the shell has put the terminal back in between.
        if self.raw:
            self.raw.set()
        self._resize(number, frame)


class StopDraining(BaseException):
    """Nobody waits for the rest of the output."""


class Errand:
    """What the supervisor sees to once the container has run for ``after`` seconds: ``work`` runs in a thread of its
    own, for it may wait for the disk."""

    def __init__(self, after: float, work: Callable[[], None]) -> None:
        self._due = time.monotonic() + after
        self._work: Callable[[], None] | None = work

    def left(self) -> int | None:
        """Milliseconds until it is due; None once it was run."""
        return max(0, int(1000 * (self._due - time.monotonic()))) if self._work else None

    def run_if_due(self) -> None:
        if self._work and time.monotonic() >= self._due:
            import threading

            threading.Thread(target=self._work, daemon=True).start()
            self._work = None


class ServerDied(Exception):
    """The process that serves the container's root file system ended before the container did."""


def supervise(
    box: Box,
    pipes: Pipes | None,
    master: int,
    signals: Signals,
    *,
    interactive: bool,
    server: int = -1,
    errand: Errand | None = None,
) -> tuple[int, str]:
    """Serve the container until its first process ends and all its output is passed on.

    ``server`` is the pidfd of the process that serves its root file system, or -1. When that ends first, the
    container is killed, for nothing in it can read a file any more, and `ServerDied` raised.

    Returns its exit code, and why some of its output could not be written, or "".
    """
    if master >= 0:
        code = _serve_terminal(box, master, signals, interactive=interactive, server=server, errand=errand)
        return code, ""
    assert pipes is not None
    ours, pipes.ours = pipes.ours, []
    for fd in ours:
        if fd >= 0:
            os.set_blocking(fd, False)
    outputs = [Pump(ours[1], 1, own_source=True), Pump(ours[2], 2, own_source=True)]
    pumps = list(outputs)
    if interactive:
        pumps.append(Pump(0, ours[0], own_target=True))
    signals.serve(box, -1, None)
    try:
        code = _serve(box, pumps, outputs, signals, server=server, errand=errand)
    finally:
        for pump in pumps:
            if not pump.done:
                pump.finish()
    return code, next(
        (
            f"can't write the container's standard {name}: {pump.error.strerror}"
            for pump, name in zip(outputs, ("output", "error"), strict=True)
            if pump.error
        ),
        "",
    )


def _serve_terminal(
    box: Box, master: int, signals: Signals, *, interactive: bool, server: int, errand: Errand | None
) -> int:
    os.set_blocking(master, False)
    # With an end of the engine's own, the terminal lives on when the program closes its ends for a while.
    held = console.open_peer(master)
    outputs = [Pump(master, 1)]
    pumps = list(outputs)
    raw = None
    try:
        if not interactive:
            signals.serve(box, master, None)
            return _serve(box, pumps, outputs, signals, held, server, errand)
        pumps.append(Pump(0, master))
        with RawTerminal(0) as raw:
            signals.serve(box, master, raw)
            return _serve(box, pumps, outputs, signals, held, server, errand)
    finally:
        signals.raw = None


def _serve(
    box: Box,
    pumps: list[Pump],
    outputs: list[Pump],
    signals: Signals,
    held: int = -1,
    server: int = -1,
    errand: Errand | None = None,
) -> int:
    """``held`` is closed when the first process has ended."""
    died = False
    try:
        while True:
            poll = select.poll()
            poll.register(box.pidfd, select.POLLIN)
            if server >= 0:
                poll.register(server, select.POLLIN)
            waiting: dict[int, list[Pump]] = {}
            events: dict[int, int] = {}
            for pump in pumps:
                if not pump.done:
                    fd, event = pump.waits_for
                    events[fd] = events.get(fd, 0) | event
                    waiting.setdefault(fd, []).append(pump)
            for fd, event in events.items():
                poll.register(fd, event)
            ready = poll.poll(errand.left() if errand else None)
            if errand:
                errand.run_if_due()
            for fd, _ in ready:
                for pump in waiting.get(fd, ()):
                    pump.turn()
            died = any(fd == server for fd, _ in ready)
            if died:
                box.kill()
            if died or any(fd == box.pidfd for fd, _ in ready):
                break
    finally:
        if held >= 0:
            os.close(held)
    code = box.wait()
    try:
        signals.ended()
        _drain(outputs)
    except StopDraining:
        pass
    finally:
        signals.drained()
    if died:
        raise ServerDied
    return code


def _drain(outputs: list[Pump]) -> None:
    """Pass on what the container wrote: it is in the pipes by now, and whoever could write more is dead."""
    for pump in outputs:
        while not pump.done:
            fd, event = pump.waits_for
            poll = select.poll()
            poll.register(fd, event)
            if not poll.poll(None if pump.full else 0):
                break
            pump.turn()
