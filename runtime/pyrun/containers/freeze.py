"""Stopping all processes of a running container while its files are read.

There is no cgroup of the container to freeze. So each process of its pid namespace, and of those below it, gets
SIGSTOP, until none is left that runs; afterwards those that were not stopped before get SIGCONT. Parents are stopped
before their children and go on after them, so that a shell does not see its jobs stop. What the processes can notice:
the time that passed; and a parent that asks for it (SA_NOCLDSTOP unset) gets a SIGCHLD.

A process of its own does that, in a session of its own: when the one that asked dies, the socket's end lets the
container go on.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import time
from errno import EPERM
from typing import TYPE_CHECKING

from ..errors import ContainerError

if TYPE_CHECKING:
    from types import TracebackType

_SECONDS = 10.0  # until the last process stands; one that waits for a disk may take a while
_NS_GET_PARENT = 0xB702  # linux/nsfs.h
_LEVELS = 32  # how deep pid namespaces nest (MAX_PID_NS_LEVEL)
_STOPPED = b"Tt"
_ENDED = b"ZXx"

_Member = tuple[int, int]  # start time and pid of a process


class Frozen:
    """While entered, no process of the container whose first one is ``pid`` runs. ``pidfd`` is that process, too.

    Raises `ContainerError` on entry where some process doesn't stop; all go on then. A container that has ended
    is as good as stopped.
    """

    def __init__(self, pid: int, pidfd: int, name: str) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._name = name
        self._socket: socket.socket | None = None
        self._helper = 0

    def __enter__(self) -> Frozen:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A copy of this interpreter: the caller may have threads, and libc's fork leaves its locks usable.
        self._helper = os.fork()
        if self._helper == 0:
            try:
                ours.close()
                _serve(theirs, self._pid, self._pidfd)
            finally:
                os._exit(0)
        theirs.close()
        self._socket = ours
        try:
            answer = ours.recv(4096).decode(errors="replace")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        if answer != "stopped":
            self.__exit__(None, None, None)
            raise ContainerError(
                f"the container {self._name} can't be paused: {answer or 'the process that pauses it died'}",
                hint="Try again, or read it while it runs: --pause=false.",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._helper:
            os.waitpid(self._helper, 0)
            self._helper = 0


def _serve(sock: socket.socket, pid: int, pidfd: int) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a descriptor a process
    stopped: dict[_Member, int] = {}  # pidfds, in the order in which they were stopped
    try:
        try:
            why = _stop(pid, pidfd, stopped)
            sock.send(why.encode() or b"stopped")
            if not why:
                sock.recv(1)
        except OSError as error:
            sock.send((error.strerror or str(error)).encode())
    finally:
        for fd in reversed(stopped.values()):
            _send(fd, signal.SIGCONT)


def _stop(pid: int, first: int, stopped: dict[_Member, int]) -> str:
    """Stop every process of the namespace of ``pid``; their pidfds in ``stopped``. Why that failed, or ""."""
    try:
        with open(f"/proc/{pid}/ns/pid", "rb") as file:
            found = os.fstat(file.fileno())
    except FileNotFoundError:
        return ""
    if _ended(first):
        return ""  # what was found may be another process's
    namespace = (found.st_dev, found.st_ino)
    give_up = time.monotonic() + _SECONDS
    known: set[_Member] = set()
    while True:
        # All at once: those that are stopped later let those before go on, if they like (SIGCONT).
        for fd in stopped.values():
            _send(fd, signal.SIGSTOP)
        more = sorted(_members(namespace, known))
        known.update(more)
        running = [_stop_one(member, namespace, stopped) for member in more]
        awake = [member for member in known if not _stands(member)]
        for member in awake:
            _stop_one(member, namespace, stopped)
        # Twice: what was made while the others were looked for is found by looking again.
        if not any(running) and not awake:
            if _ended(first) or not _members(namespace, known):
                return ""
        elif time.monotonic() > give_up:
            return "some of its processes don't stop"
        else:
            time.sleep(0.001)


def _members(namespace: tuple[int, int], known: set[_Member]) -> list[_Member]:
    """The processes in the namespace that are not known yet."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            number = int(name)
            stat = _stat(f"/proc/{name}/stat")
            if stat is None or (stat[1], number) in known or stat[0] in _ENDED:
                continue
            if _is_in(number, namespace):
                found.append((stat[1], number))
    return found


def _stop_one(member: _Member, namespace: tuple[int, int], stopped: dict[_Member, int]) -> bool:
    """Send SIGSTOP to a process that is not stopped; whether it was, for the first time."""
    if member in stopped:
        return False
    number = member[1]
    try:
        fd = os.pidfd_open(number)
    except OSError:
        return False
    stat = _stat(f"/proc/{number}/stat")
    # Asked after the pidfd was opened, and the process still lives: it is the one that the pidfd is of.
    if stat is None or stat[0] in _STOPPED + _ENDED or not _is_in(number, namespace) or _ended(fd):
        os.close(fd)
        return False
    stopped[member] = fd
    _send(fd, signal.SIGSTOP)
    return True


def _stands(member: _Member) -> bool:
    """Whether no thread of the process runs, or there is no such process any more."""
    start, number = member
    if (_stat(f"/proc/{number}/stat") or (b"", 0))[1] != start:
        return True
    try:
        threads = os.listdir(f"/proc/{number}/task")
    except OSError:
        return True
    states = [_stat(f"/proc/{number}/task/{thread}/stat") for thread in threads]
    return all(stat is None or stat[0] in _STOPPED + _ENDED for stat in states)


def _stat(path: str) -> tuple[bytes, int] | None:
    """State and start time (clock ticks since boot) of a process or thread; None where it is no more."""
    try:
        with open(path, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (fields[0], int(fields[19])) if len(fields) > 19 else None


def _is_in(number: int, namespace: tuple[int, int]) -> bool:
    """Whether the process is in the pid namespace or one below it."""
    try:
        fd = os.open(f"/proc/{number}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        for _ in range(_LEVELS):
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) == namespace:
                return True
            try:
                above = fcntl.ioctl(fd, _NS_GET_PARENT)
            except OSError as error:
                if error.errno != EPERM:
                    raise
                return False  # above this process's own
            os.close(fd)
            fd = above
        return False
    finally:
        os.close(fd)


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _send(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass  # it has ended
