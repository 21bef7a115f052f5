"""Processes: clone3(2), prctl(2), capset(2), setfsuid(2), close_range(2). On the path of `run`."""

from __future__ import annotations

import ctypes
import os
import signal

from .syscall import function, libc, syscall

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLOSE_RANGE_CLOEXEC = 4

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4

_CAPABILITY_VERSION_3 = 0x20080522


class _CloneArgs(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in [
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        ]
    )


def clone3(flags: int) -> tuple[int, int]:
    """Fork into new namespaces: (pid, pidfd) in the parent, (0, -1) in the child.

    The caller must have one thread only. The child runs on as a copy of this interpreter and must leave
    with execve or os._exit.
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=signal.SIGCHLD)
    pid = syscall("clone3", ctypes.byref(args), ctypes.sizeof(args))
    return pid, pidfd.value


def start_time(pid: int) -> str:
    """When the process started, in clock ticks since boot (man proc_pid_stat): with the pid, its identity until the
    next boot, as pids are used again. Raises ProcessLookupError."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except FileNotFoundError:
        raise ProcessLookupError(3, "No such process", f"/proc/{pid}") from None


def pidfd_of(pid: int, started: str) -> int | None:
    """A pidfd (pidfd_open(2)) of the process that had ``pid`` and `start_time` ``started``; None once it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        if start_time(pid) == started:
            return pidfd
    except ProcessLookupError:
        pass
    os.close(pidfd)
    return None


def unshare(flags: int) -> None:
    function("unshare", flags)


def setns(fd: int, nstype: int = 0) -> None:
    """Join the namespace of ``fd`` (or, with a pidfd, the namespaces ``nstype`` names)."""
    syscall("setns", fd, nstype)


def set_pdeathsig(sig: int) -> None:
    """Send this process ``sig`` when its parent *thread* ends.

    The kernel forgets it when the process changes its effective or file-system ids, or executes a setuid
    or capability-bearing file (man PR_SET_PDEATHSIG).
    """
    function("prctl", _PR_SET_PDEATHSIG, sig, 0, 0, 0)


def set_child_subreaper(on: bool) -> None:
    """Whether orphans among this process's descendants become its children, not init's."""
    function("prctl", _PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0)


def set_no_new_privs() -> None:
    function("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def drop_bounding(capability: int) -> None:
    """Drop one capability from the bounding set. EINVAL: the kernel has no such capability."""
    function("prctl", _PR_CAPBSET_DROP, capability, 0, 0, 0)


def raise_ambient(capability: int) -> None:
    function("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)


def clear_ambient() -> None:
    function("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set this thread's three sets, each a bit mask of capability numbers (man capset)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    low, high = 0xFFFFFFFF, 32
    data = (ctypes.c_uint32 * 6)(
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> high,
        permitted >> high,
        inheritable >> high,
    )
    syscall("capset", header, data)


def capget() -> tuple[int, int, int]:
    """This thread's (effective, permitted, inheritable) sets as bit masks."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    syscall("capget", header, data)
    return (data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32)


def setfsids(uid: int, gid: int) -> tuple[int, int]:
    """Set the ids that file-system checks use; returns the previous pair. The calls themselves never fail,
    so what was set is read back (man setfsuid, BUGS)."""
    previous_gid = libc.setfsgid(ctypes.c_uint(gid))
    previous_uid = libc.setfsuid(ctypes.c_uint(uid))
    no_change = ctypes.c_uint(0xFFFFFFFF)
    if (
        libc.setfsuid(no_change) != ctypes.c_int(uid).value
        or libc.setfsgid(no_change) != ctypes.c_int(gid).value
    ):
        raise PermissionError(1, f"setfsuid({uid}), setfsgid({gid}) had no effect")
    return previous_uid & 0xFFFFFFFF, previous_gid & 0xFFFFFFFF


def cloexec_from(first: int) -> None:
    """Mark every fd from ``first`` on close-on-exec, the inherited ones too (CVE-2024-21626)."""
    syscall("close_range", first, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)


def close_from(first: int) -> None:
    """Close every fd from ``first`` on, whoever opened it."""
    syscall("close_range", first, 0xFFFFFFFF, 0)


def sethostname(name: str) -> None:
    raw = os.fsencode(name)
    function("sethostname", raw, len(raw))


def setdomainname(name: str) -> None:
    raw = os.fsencode(name)
    function("setdomainname", raw, len(raw))
