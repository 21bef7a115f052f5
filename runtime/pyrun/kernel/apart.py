"""A mount made by a short-lived child in a mount namespace of its own. On the path of `run` on older kernels.

What is attached there to make the mount goes with the child; only the detached mount's fd comes back.
"""

from __future__ import annotations

import os
import socket

from . import mount as m
from .process import CLONE_NEWNS, setns, unshare

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def mounted_apart(make: Callable[[], int], what: str) -> int:
    """The fd that ``make`` returns in the child, close-on-exec. ``make`` may mount what it likes, and change the
    working directory; of the caller's threads, none but this one exists there.

    Raises the OSError that ``make`` raised, or one that says that the child, named by ``what``, died.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            try:
                unshare(CLONE_NEWNS)
                m.mount(None, b"/", None, m.MS_REC | m.MS_PRIVATE)
                socket.send_fds(theirs, [b"0"], [make()])
            except OSError as error:
                theirs.send(f"{error.errno or 5} {error.strerror}".encode())
        finally:
            os._exit(0)
    theirs.close()
    return _received(ours, pid, f"{what} died")


def root_mount_of(pidfd: int) -> int:
    """A detached, read-only clone of the mount that is the root of the mount namespace of the process ``pidfd``,
    without what is mounted in it.

    Only a process in that namespace may clone its mounts (open_tree(2), EINVAL), so a child joins it. There the
    names of files are that process's: the child opens nothing, imports nothing, and leaves by os._exit
    (CVE-2019-14271). Raises OSError: EINVAL where that namespace's owner has less power than who mounted there.
    """
    import array

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            try:
                setns(pidfd, CLONE_NEWNS)
                fd = m.open_tree(m.AT_FDCWD, "/")
                m.mount_setattr(fd, set=m.MOUNT_ATTR_RDONLY)
                rights = array.array("i", [fd])
                theirs.sendmsg([b"0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            except OSError as error:
                theirs.send(b"%d" % (error.errno or 5))
        finally:
            os._exit(0)
    theirs.close()
    return _received(ours, pid)


def _received(ours: socket.socket, pid: int, died: str = "") -> int:
    """The fd that the child ``pid`` sends, which ends then. Raises the OSError that it tells instead, by number and
    perhaps words; ``died`` stands for the words of one that says nothing."""
    try:
        answer, fds, _, _ = socket.recv_fds(ours, 4096, 1)
    finally:
        ours.close()
        os.waitpid(pid, 0)
    if fds:
        os.set_inheritable(fds[0], False)
        return fds[0]
    said, _, text = answer.decode(errors="replace").partition(" ")
    number = int(said or 5)
    raise OSError(number, text or died or os.strerror(number))
