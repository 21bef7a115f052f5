"""Which host ids a rootful container's user namespace gets. On the path of `run`.

Every container gets 65,536 ids of its own, so that no two containers, and no user of the host, share one: a
user whose subuid range overlapped could signal the container's processes. Slots lie between 0x70000000 and
0x7ffe0000, which systemd's table of id ranges leaves unused; a slot is passed over when /etc/subuid,
/etc/subgid or a login id lies in it. Nothing on disk is owned by these ids (mounts are idmapped), so a slot
is free again as soon as its container has ended.
"""

from __future__ import annotations

import fcntl
import os
import struct

from ..errors import StorageError, Unsupported
from ..kernel.userns import read_map

SIZE = 65536
FIRST = 0x70000000
LAST = 0x7FFE0000

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class IdRange:
    """A claimed slot: ids ``base .. base + SIZE - 1``. ``close`` frees it; so does the end of the process."""

    __slots__ = ("_fd", "base")

    def __init__(self, base: int, fd: int) -> None:
        self.base = base
        self._fd = fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def taken_ranges() -> list[tuple[int, int]]:
    """[first, end) of every subordinate range and every login id on the host at or above FIRST."""
    taken = []
    for path in ("/etc/subuid", "/etc/subgid"):
        for fields in _lines(path):
            if len(fields) == 3 and fields[1].isdecimal() and fields[2].isdecimal():
                taken.append((int(fields[1]), int(fields[1]) + int(fields[2])))
    for path in ("/etc/passwd", "/etc/group"):
        for fields in _lines(path):
            if len(fields) > 2 and fields[2].isdecimal():
                taken.append((int(fields[2]), int(fields[2]) + 1))
    return [extent for extent in taken if extent[1] > FIRST]


def _lines(path: str) -> Iterator[list[str]]:
    try:
        with open(path, errors="replace") as file:
            for line in file:
                yield line.strip().split(":")
    except OSError:
        return


def claim(directory: str, start: int) -> IdRange:
    """Claim a free slot, trying from number ``start`` (any int) on.

    The claim is a lock on one byte a slot of ``directory``/id-ranges: an open-file-description lock, which
    the kernel drops when the holder dies (man fcntl, "Open file description locks").
    """
    try:
        fd = os.open(f"{directory}/id-ranges", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"can't write below {directory}: {error.strerror}",
            hint="Free some space, or choose another --state.",
        ) from error
    try:
        slots = list(_slots(taken_ranges()))
        for number in range(len(slots)):
            slot = slots[(start + number) % len(slots)]
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, slot // SIZE, 1, 0)
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
            except (BlockingIOError, PermissionError):
                continue
            return IdRange(slot, fd)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise Unsupported(
        "no free range of 65,536 user ids is left for the container",
        hint="Run with --userns=host, or give this machine or outer container a larger id map.",
    )


def _slots(taken: Iterable[tuple[int, int]]) -> Iterator[int]:
    """The first id of every usable slot: inside this process's own id maps, and overlapping nobody."""
    taken = list(taken)
    for first in range(FIRST, LAST, SIZE):
        end = first + SIZE
        if not any(first < other_end and start < end for start, other_end in taken) and _mapped(first, end):
            yield first


_own: list[list[tuple[int, int]]] = []


def _mapped(first: int, end: int) -> bool:
    """Whether this process's own user namespace, in which it may be root of a container, has these ids."""
    if not _own:
        for path in ("/proc/self/uid_map", "/proc/self/gid_map"):
            _own.append([(m.inside, m.inside + m.count) for m in read_map(path)])
    return all(any(start <= first and end <= stop for start, stop in extents) for extents in _own)
