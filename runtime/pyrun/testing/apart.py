"""Code that runs in a forked child, in a mount namespace of its own: for cases that mount or break things."""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable

from ..kernel import mount as m
from ..kernel.process import CLONE_NEWNS, set_pdeathsig, unshare


def apart(work: Callable[[], object], *, mounts: bool = True, seconds: float = 60) -> None:
    """Run ``work`` in a child process and wait for it; what it raises is raised here as AssertionError, with the
    child's traceback. ``mounts``: the child has a mount namespace, which ends with it. The child is killed
    after ``seconds``."""
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(read)
            set_pdeathsig(signal.SIGKILL)
            if mounts:
                unshare(CLONE_NEWNS)
                m.mount(None, b"/", None, m.MS_REC | m.MS_PRIVATE)
            work()
            status = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode(errors="replace")[-60000:])
        finally:
            os._exit(status)
    os.close(write)
    said = b""
    try:
        pidfd = os.pidfd_open(pid)
        try:
            if not select.select([pidfd], [], [], seconds)[0]:
                os.kill(pid, signal.SIGKILL)
        finally:
            os.close(pidfd)
        # A pipe holds 64 KiB, so the child has never waited for us; others may hold its end open.
        os.set_blocking(read, False)
        try:
            said = os.read(read, 65536)
        except BlockingIOError:
            pass
    finally:
        os.close(read)
        _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        raise AssertionError(said.decode(errors="replace") or f"the child ended with {code}")


def tmpfs(path: str, options: str) -> None:
    """Mount a tmpfs on ``path``, e.g. with "size=1m". In the child of `apart`."""
    m.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, options.encode())
