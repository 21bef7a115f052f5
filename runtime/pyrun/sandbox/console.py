"""The container's terminal, by fd only (CVE-2025-52565). On the path of `run`."""

from __future__ import annotations

import fcntl
import os
import struct
import termios

from ..errors import ContainerError
from ..kernel import mount as m
from . import rootfs

_TIOCGPTPEER = 0x5441
_TIOCSPTLCK = 0x40045431


def open_pair(root: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """(master, slave) of a new pseudo-terminal from the devpts instance of the container.

    TIOCGPTPEER opens the peer of the master itself, so no path is walked that the image could have
    arranged (man ioctl_tty). ``size`` is (rows, columns).
    """
    master = rootfs.open_in(root, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY, symlinks=False)
    try:
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = open_peer(master)
        if size:
            set_size(master, size)
        return master, slave
    except OSError as error:
        os.close(master)
        raise ContainerError(f"can't open a terminal in the container: {error.strerror}") from error


def open_peer(master: int) -> int:
    """Another fd of the terminal whose master is ``master``."""
    return fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)


def bind(root: int, slave: int) -> None:
    """Make the terminal /dev/console too, as the spec wants where process.terminal is set."""
    clone = m.open_tree(slave, "")
    rootfs.attach(root, clone, "/dev/console")
    os.close(clone)


def take(slave: int) -> None:
    """Make ``slave`` this session's controlling terminal and fds 0, 1, 2. The caller is session leader."""
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in range(3):
        os.dup2(slave, fd)


def set_size(fd: int, size: tuple[int, int]) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def get_size(fd: int) -> tuple[int, int] | None:
    """(rows, columns) of the terminal ``fd``, or None where it is not one."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return None
    return rows, columns
