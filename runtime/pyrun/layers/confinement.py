"""What a process gives up before it reads what a stranger sent.

It is left with one directory, which is its root and all of its mount namespace; an empty network; no process that it
could name; the capabilities that its work needs; the system calls that unpacking makes; and limits. Each step is tried
by itself, because containers forbid some of them: what could not be had is told, never passed over.

Source: man pages namespaces, pivot_root, capabilities, seccomp, setrlimit.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterable
from functools import cache, partial

from ..kernel import landlock, seccomp
from ..kernel import mount as m
from ..kernel import process as p

NAMESPACES = {
    "mount": p.CLONE_NEWNS,
    "pid": p.CLONE_NEWPID,
    "network": p.CLONE_NEWNET,
    "ipc": p.CLONE_NEWIPC,
    "uts": p.CLONE_NEWUTS,
    "cgroup": p.CLONE_NEWCGROUP,
}
ALL_NAMESPACES = sum(NAMESPACES.values())

# linux/capability.h
CAPABILITIES = {
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "FSETID": 4,
    "SYS_ADMIN": 21,
    "MKNOD": 27,
    "SETFCAP": 31,
}
# What making files of any owner and kind takes; and for root also what is refused in a user namespace anyway:
# devices, and attributes called trusted.* or security.*, which are the administrator's.
UNPACKING = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP")
UNPACKING_AS_ROOT = (*UNPACKING, "MKNOD", "SYS_ADMIN")

# Each only lowered. Bytes of memory come on top of what the process had when it began.
MEMORY = 2 << 30
CPU = 6 * 3600  # seconds
LIMITS = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: 512,
    resource.RLIMIT_FSIZE: 2 << 40,
    resource.RLIMIT_CPU: CPU,
    resource.RLIMIT_MEMLOCK: 0,
    resource.RLIMIT_MSGQUEUE: 0,
}

# Made by the interpreter, libc, codecs, and the work itself. No call here makes a process, opens a socket, mounts, or
# reaches another process. Some architectures have only the older, some only the newer ones.
ALLOWED = """
    read pread64 readv write pwrite64 writev lseek _llseek close dup poll ppoll ppoll_time64
    open openat openat2 fstat fstat64 stat stat64 lstat lstat64 newfstatat fstatat64 statx fstatfs fstatfs64
    getdents64 getcwd chdir fchdir umask ftruncate ftruncate64 truncate fallocate copy_file_range
    mkdir mkdirat mknod mknodat link linkat symlink symlinkat readlink readlinkat
    unlink unlinkat rmdir rename renameat renameat2
    chown lchown fchown fchownat chown32 lchown32 fchown32 chmod fchmod fchmodat fchmodat2
    utimensat utimensat_time64 futimesat utimes
    setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
    removexattr lremovexattr fremovexattr setxattrat getxattrat listxattrat removexattrat
    brk munmap mremap madvise futex futex_time64 futex_waitv sched_yield sched_getaffinity
    rt_sigaction rt_sigprocmask rt_sigreturn sigreturn sigaltstack restart_syscall set_robust_list rseq
    clock_gettime clock_gettime64 gettimeofday clock_getres clock_getres_time64 nanosleep clock_nanosleep
    clock_nanosleep_time64 getrandom membarrier
    getpid gettid getuid geteuid getgid getegid getuid32 geteuid32 getgid32 getegid32
    exit exit_group cacheflush set_tls riscv_flush_icache
""".split()

# What no unpacking ever does, by mistake or otherwise: who calls one of these is not pyrun any more.
DEADLY = """
    execve execveat ptrace process_vm_readv process_vm_writev process_madvise pidfd_open pidfd_getfd
    pidfd_send_signal kcmp mount umount umount2 mount_setattr move_mount open_tree open_tree_attr fsopen fsconfig
    fsmount fspick pivot_root chroot setns unshare open_by_handle_at name_to_handle_at bpf perf_event_open
    userfaultfd io_uring_setup io_uring_enter io_uring_register init_module finit_module delete_module kexec_load
    kexec_file_load reboot swapon swapoff add_key request_key keyctl setuid setgid setreuid setregid setresuid
    setresgid setgroups setfsuid setfsgid capset personality modify_ldt iopl ioperm syslog acct quotactl quotactl_fd
""".split()

_EPERM = 1
_ENOSYS = 38
_PROT_EXEC = 4
# All that copying descriptors takes (asm-generic/fcntl.h, linux/fcntl.h): F_DUPFD, F_GETFD, F_SETFD, F_GETFL,
# F_DUPFD_CLOEXEC. F_SETOWN and F_SETSIG would have the kernel send any signal to any process of the same user.
_FCNTL = (0, 1, 2, 3, 1030)


@cache
def program(arch: str) -> bytes:
    """The seccomp filter for ``arch``: `ALLOWED`, death for `DEADLY`, EPERM for all the rest, ENOSYS for calls that
    the table doesn't know. Memory may be mapped, but never be made executable."""
    data_only = [
        seccomp.Rule(seccomp.ALLOW, [seccomp.Arg(2, "&", 0, _PROT_EXEC)]),
    ]
    # The kernel takes the command as 32 bits, whatever else is in the register.
    copying_only = [
        seccomp.Rule(seccomp.ALLOW, [seccomp.Arg(1, "&", command, 0xFFFFFFFF)]) for command in _FCNTL
    ]
    return seccomp.compiled(
        arch,
        {
            **seccomp.allow(ALLOWED),
            **{name: (seccomp.Rule(seccomp.KILL_PROCESS),) for name in DEADLY},
            **dict.fromkeys(("mmap", "mmap2", "mprotect"), data_only),
            **dict.fromkeys(("fcntl", "fcntl64"), copying_only),
            # There mmap takes a pointer to its arguments, which no filter can follow.
            **(seccomp.allow(["mmap"]) if arch == "s390x" else {}),
        },
        seccomp.errno_action(_EPERM),
        unknown=seccomp.errno_action(_ENOSYS),
    )


class Confinement:
    """The steps, in their order, in the process that is to be confined: `enter`, `drop`, then any thread that the
    work needs, then `seal`. ``missing`` tells, in words, what this kernel or container did not give."""

    def __init__(self, *, namespaces: bool, detached: bool, memory: int, refused: str = "") -> None:
        """``namespaces``: this process was born into its own; ``refused`` tells why not, if the kernel didn't want
        it. ``detached``: the directory is a detached mount; else
        none could be made, and it is one of the host's tree. ``memory``: bytes of address space in use, or 0."""
        self.missing: list[str] = []
        self._namespaces = namespaces
        self._refused = refused
        self._detached = detached
        self._memory = memory
        self._own_root = False
        self._arch = seccomp.native()

    def enter(self, tree: int) -> int:
        """Make the directory ``tree`` the root, and close it; an fd of the new root."""
        own_mounts = self._namespaces
        if not self._namespaces:
            for name, flag in NAMESPACES.items():
                if flag == p.CLONE_NEWPID:  # it would hold for children only
                    if self._refused:
                        self.missing.append(f"pid namespace: {self._refused}")
                    continue
                done = self._try(f"{name} namespace", partial(p.unshare, flag))
                own_mounts = own_mounts or (done and flag == p.CLONE_NEWNS)
        if not self._detached:
            self.missing.append("root of its own: the directory's mount can't be cloned")
        elif own_mounts:
            self._own_root = self._try("root of its own", lambda: self._pivot(tree))
        if not self._own_root:
            self._try("chroot", lambda: _chroot(tree))
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
        os.close(tree)
        return root

    def _pivot(self, tree: int) -> None:
        m.mount(None, b"/", None, m.MS_REC | m.MS_PRIVATE)
        attributes = m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC
        m.mount_setattr(tree, set=attributes, propagation=m.MS_PRIVATE)
        m.move_mount(tree, m.AT_FDCWD, b"/")
        os.fchdir(tree)
        # The old root is put over the new one, and taken off (man pivot_root, NOTES).
        m.pivot_root(b".", b".")
        m.umount(b".", m.MNT_DETACH)
        os.chdir("/")

    def drop(self, keep: Iterable[str], root: int) -> None:
        """Keep the capabilities ``keep`` of those that there are, and no others for good; set the limits. Where
        ``root`` is no root of its own, Landlock keeps it from the files of others."""
        kept = sum(1 << CAPABILITIES[name] for name in keep)
        _, permitted, _ = p.capget()
        p.clear_ambient()
        for number in range(64):
            try:
                p.drop_bounding(number)
            except OSError as error:
                # EINVAL: no such capability. EPERM: without CAP_SETPCAP there is nothing that could be dropped,
                # and with no_new_privs nothing that could come back.
                if error.errno in (_EPERM, 22):
                    break
                raise
        p.capset(permitted & kept, permitted & kept, 0)
        p.set_no_new_privs()
        if not self._own_root:
            self._try("landlock", lambda: landlock.confine_to(root))
        limits = dict(LIMITS)
        if self._memory and _wide():
            limits[resource.RLIMIT_AS] = self._memory + MEMORY
        for limit, most in limits.items():
            _lower(limit, most)

    def seal(self) -> None:
        """Nothing but `ALLOWED` from here on, for all threads; and no further ones."""
        _lower(resource.RLIMIT_NPROC, 0)
        if not self._arch:
            self.missing.append("seccomp: no table of this machine's system calls")
            return
        self._try("seccomp", lambda: seccomp.install(program(self._arch), all_threads=True))

    def _try(self, what: str, step: Callable[[], None]) -> bool:
        try:
            step()
            return True
        except OSError as error:
            self.missing.append(f"{what}: {os.strerror(error.errno or 0)}")
            return False


def settle_signals() -> None:
    """Die with the parent; leave Ctrl-C to it."""
    p.set_pdeathsig(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def address_space() -> int:
    """Bytes of address space of this process; 0 where /proc doesn't tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _wide() -> bool:
    return seccomp.native() not in ("i386", "arm", "")


def _chroot(tree: int) -> None:
    os.fchdir(tree)
    os.chroot(".")
    os.chdir("/")


def _lower(limit: int, most: int) -> None:
    _, hard = resource.getrlimit(limit)
    if hard == resource.RLIM_INFINITY or hard > most:
        resource.setrlimit(limit, (most, most))
    else:
        resource.setrlimit(limit, (hard, hard))
