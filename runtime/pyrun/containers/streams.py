"""Bytes between the caller and a container: pipes, and pumps that move what comes. On the path of `run`.

The container never gets the caller's own fds: a terminal could be written into (TIOCSTI), and a program that
opens /dev/stdout could not open a file of the caller's. It gets pipes, or a terminal of its own, and pumps
move the bytes; between pipes by splice(2), without copying them.
"""

from __future__ import annotations

import errno
import os
import select
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CHUNK = 1 << 20
_SPLICE_F_NONBLOCK = 2
_FIFO_ATOMIC = 4096  # PIPE_BUF: what fits whenever poll(2) says that a pipe is writable


class Pipes:
    """The pipes between the engine and a container without a terminal.

    ``theirs`` are the container's fds 0, 1, 2, where None is its own null device (stdin without
    ``interactive``); ``ours`` the engine's ends.
    """

    def __init__(self, owner: tuple[int, int], *, interactive: bool) -> None:
        self.ours: list[int] = [-1, -1, -1]
        self.theirs: list[int | None] = [None]
        if interactive:
            self.theirs[0], self.ours[0] = os.pipe()
        for number in (1, 2):
            self.ours[number], write = os.pipe()
            self.theirs.append(write)
        # Programs open /dev/stdout and /dev/stderr, that is /proc/self/fd/1, as their own user.
        for fd in self.theirs:
            if fd is not None:
                os.fchown(fd, *owner)

    def close_theirs(self) -> None:
        for fd in self.theirs:
            if fd is not None:
                os.close(fd)
        self.theirs = []

    def close(self) -> None:
        self.close_theirs()
        for fd in self.ours:
            if fd >= 0:
                os.close(fd)
        self.ours = []


class Pump:
    """Moves bytes one way. Waits for the source, then, if the target is full, for the target.

    ``error`` is why the target could not be written, unless its reader simply went away.
    """

    __slots__ = (
        "buffer",
        "chunk",
        "done",
        "error",
        "full",
        "own_source",
        "own_target",
        "send",
        "source",
        "splices",
        "target",
    )

    def __init__(
        self, source: int, target: int, *, own_source: bool = False, own_target: bool = False
    ) -> None:
        self.source = source
        self.target = target
        self.own_source = own_source  # close it when the target goes away, so that the writer learns of it
        self.own_target = own_target  # close it at the source's end, so that the reader sees the end
        self.buffer = memoryview(b"")
        self.full = False
        self.done = False
        self.error: OSError | None = None
        modes = [os.fstat(fd).st_mode for fd in (source, target)]
        socket_target = stat.S_ISSOCK(modes[1])
        # splice(2) would wait for room in a socket, whatever its flags say, and does not work on terminals.
        self.splices = (
            any(map(stat.S_ISFIFO, modes)) and not any(map(stat.S_ISCHR, modes)) and not socket_target
        )
        self.send = _nonblocking_send(target) if socket_target else os.write
        waits = stat.S_ISFIFO(modes[1]) or os.isatty(target)
        self.chunk = _FIFO_ATOMIC if waits else _CHUNK

    @property
    def waits_for(self) -> tuple[int, int]:
        return (self.target, select.POLLOUT) if self.full else (self.source, select.POLLIN)

    def turn(self) -> bool:
        """Move what can be moved without waiting; False where nothing moved."""
        try:
            if self.splices:
                return self._splice()
            return self._copy()
        except BlockingIOError:
            self.full = not self.full or bool(self.buffer)
            return False
        except OSError as error:
            if error.errno == errno.EINVAL and self.splices:
                self.splices = False  # an O_APPEND file, or a file system without splice
                return True
            if error.errno != errno.EPIPE:
                self.error = error
            self.finish()
            return False

    def _splice(self) -> bool:
        moved = os.splice(self.source, self.target, _CHUNK, flags=_SPLICE_F_NONBLOCK)
        if not moved:
            self.finish()
        self.full = False
        return bool(moved)

    def _copy(self) -> bool:
        if not self.buffer:
            try:
                data = os.read(self.source, 65536)
            except BlockingIOError:
                raise
            except OSError:
                data = b""  # EIO: every other end of a terminal is closed
            if not data:
                self.finish()
                return False
            self.buffer = memoryview(data)
            self.full = True
            if not select.select((), (self.target,), (), 0)[1]:
                return True
        self.buffer = self.buffer[self.send(self.target, self.buffer[: self.chunk]) :]
        self.full = bool(self.buffer)
        return True

    def finish(self) -> None:
        self.done = True
        for fd, own in ((self.source, self.own_source), (self.target, self.own_target)):
            if own:
                os.close(fd)
        self.own_source = self.own_target = False


def _nonblocking_send(target: int) -> Callable[[int, Any], int]:
    """send(2) that never waits, on a socket that the caller's other users may have left blocking."""
    import socket

    def send(fd: int, data: Any) -> int:
        with socket.socket(fileno=os.dup(fd)) as connection:
            return connection.send(data, socket.MSG_DONTWAIT)

    return send
