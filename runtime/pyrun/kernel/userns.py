"""User namespaces: id maps, and namespaces made only to be held by fd (for idmapped mounts).

On the path of `run`.
"""

from __future__ import annotations

import errno
import os
import signal

from .process import CLONE_NEWUSER, set_pdeathsig, unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class IdMap:
    """One extent of a map: ids ``inside..inside+count-1`` are ``outside..`` in the parent namespace."""

    __slots__ = ("count", "inside", "outside")

    def __init__(self, inside: int, outside: int, count: int) -> None:
        self.inside = inside
        self.outside = outside
        self.count = count

    def __repr__(self) -> str:
        return f"IdMap({self.inside}, {self.outside}, {self.count})"


def map_text(maps: Sequence[IdMap]) -> str:
    """The lines that /proc/PID/uid_map takes (man user_namespaces)."""
    return "".join(f"{m.inside} {m.outside} {m.count}\n" for m in maps)


def read_map(path: str) -> list[IdMap]:
    """Parse /proc/PID/uid_map or gid_map."""
    with open(path) as file:
        return [IdMap(*map(int, line.split())) for line in file]


def write_maps(pid: int, uids: Sequence[IdMap], gids: Sequence[IdMap]) -> None:
    """Write the maps of ``pid``'s user namespace. Needs CAP_SETUID and CAP_SETGID in the parent namespace."""
    for name, maps in (("uid_map", uids), ("gid_map", gids)):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, map_text(maps).encode())
        finally:
            os.close(fd)


def translate(maps: Sequence[IdMap], inside: int) -> int | None:
    """The parent's id for ``inside``, or None where it is unmapped."""
    for m in maps:
        if m.inside <= inside < m.inside + m.count:
            return m.outside + inside - m.inside
    return None


def hold(uids: Sequence[IdMap], gids: Sequence[IdMap]) -> int:
    """A new user namespace with these maps and no process in it, as an fd."""
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    # fork, not clone3: the caller may have threads here, and libc's fork leaves its locks usable.
    pid = os.fork()
    if pid == 0:
        try:
            set_pdeathsig(signal.SIGKILL)
            try:
                unshare(CLONE_NEWUSER)
            except OSError:
                os.write(ready_write, b"0")
            else:
                os.write(ready_write, b"1")
                # Words, not the end of a pipe: children of other threads may hold copies of its ends.
                os.read(go_read, 1)
        finally:
            os._exit(0)
    os.close(ready_write)
    try:
        if os.read(ready_read, 1) != b"1":
            raise OSError(errno.EPERM, "unshare: the kernel refuses a new user namespace")
        write_maps(pid, uids, gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.write(go_write, b"1")
        os.close(go_write)
        os.close(go_read)  # open until now, so that the write can't fail
        os.waitpid(pid, 0)
