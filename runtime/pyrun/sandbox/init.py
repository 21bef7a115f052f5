"""The container's first process, from clone3 to execve. On the path of `run`.

A copy of the engine's interpreter in new namespaces. It must import nothing from here on (after pivot_root
that would read the *container's* files), and leaves only by execve or os._exit. Every step that fails is
told to the engine over the socket, in words.

The order is runc's where the two differ in nothing: wait for the id maps, mounts, terminal, pivot_root,
hostname, masked paths, working directory, capabilities, identity, execve (facts of the runtime spec:
config-linux, "User namespace mappings" come first because everything after needs a mapped root).
"""

from __future__ import annotations

import errno
import marshal
import os
import signal
import socket

from ..errors import ContainerError, PyrunError, Unsupported
from ..kernel import mount as m
from ..kernel import process as p
from . import capabilities, console, mounts, rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

READY = b"ready"
TERMINAL = b"terminal"


class _ExecError(Exception):
    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        self.message = message


def main(sock: socket.socket, engines: socket.socket, *, new_userns: bool) -> NoReturn:
    """Run in the child of clone3; never returns."""
    try:
        engines.close()
        _reset_signals()
        # Death of the engine ends this process; lost again at each change of identity, hence repeated.
        p.set_pdeathsig(signal.SIGKILL)
        message, fds = _receive(sock)
        if new_userns:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            p.set_pdeathsig(signal.SIGKILL)
        _run(sock, message, fds)
    except _ExecError as error:
        _tell(sock, error.kind, error.message, "")
    except Unsupported as error:
        _tell(sock, "unsupported", error.message, error.hint)
    except PyrunError as error:
        _tell(sock, "failed", error.message, error.hint)
    except OSError as error:
        _tell(sock, "failed", f"can't set up the container: {error}", "")
    except BaseException as error:
        _tell(sock, "failed", f"internal error in the container's set-up: {error!r}", "")
    finally:
        os._exit(1)


def _tell(sock: socket.socket, kind: str, message: str, hint: str) -> None:
    try:
        sock.sendall(marshal.dumps((kind, message, hint)))
    except OSError:
        pass


def _reset_signals() -> None:
    """Give the program the default of every signal: Python ignores SIGPIPE and SIGXFSZ, the engine handles
    others, and ignored signals and the mask survive execve (man signal)."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is not signal.SIG_DFL:
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                pass
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    header, fds, _, _ = socket.recv_fds(sock, 8, 253)
    if len(header) < 8:
        os._exit(1)  # the engine is gone, or gave up
    size = int.from_bytes(header[:4], "little")
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(min(size - len(data), 1 << 20))
        if not chunk:
            os._exit(1)
        data += chunk
    return marshal.loads(data), fds


def _run(sock: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    spec = message["spec"]
    process, linux = spec["process"], spec["linux"]
    given = 1 + sum(message["stdio"])
    root_mount, stdio, prepared = fds[0], fds[1:given], fds[given:]
    last_cap = capabilities.last_known()
    os.setsid()

    # Nothing mounted here reaches the host; what the host unmounts is released here too.
    m.mount(None, b"/", None, m.MS_REC | m.MS_SLAVE)
    m.move_mount(root_mount, m.AT_FDCWD, "/")
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_mount)

    os.umask(0)
    mounts.realise(root, spec, dict(zip(message["prepared"], prepared, strict=True)), nodes=message["nodes"])
    uid, gid = process["user"]["uid"], process["user"]["gid"]
    slave = -1
    if process.get("terminal"):
        master, slave = console.open_pair(root, message["size"])
        os.fchown(slave, uid, -1)
        console.bind(root, slave)
        socket.send_fds(sock, [TERMINAL], [master])
        os.close(master)
    rootfs.make_readonly(root, linux.get("readonlyPaths", []))
    rootfs.mask(root, linux.get("maskedPaths", []))
    _make_workdir(root, process["cwd"])
    if spec["root"].get("readonly"):
        m.mount_setattr(root_mount, set=m.MOUNT_ATTR_RDONLY)
    os.close(root_mount)
    rootfs.enter(root)
    os.close(root)

    if any(namespace["type"] == "uts" for namespace in linux["namespaces"]) and spec.get("hostname"):
        p.sethostname(spec["hostname"])
    _enter_workdir(process["cwd"])
    if slave >= 0:
        console.take(slave)
    else:
        for number, is_given in enumerate(message["stdio"]):
            # Not the host's null device: with the host's ids, root here could change that one's mode.
            fd = stdio.pop(0) if is_given else rootfs.null_device()
            os.dup2(fd, number)
    p.cloexec_from(3)
    os.umask(process["user"].get("umask", 0o022))

    capabilities.drop_bounding(process["capabilities"]["bounding"], last_cap)
    capabilities.keep_across_setuid()
    os.setgroups(process["user"].get("additionalGids", []))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    capabilities.set_sets(process["capabilities"])
    if process.get("noNewPrivileges"):
        p.set_no_new_privs()
    p.set_pdeathsig(signal.SIGKILL)
    sock.sendall(READY)  # fails if the engine died before the signal was armed
    _execute(process)


def _make_workdir(root: int, cwd: str) -> None:
    """The working directory, made where the image has none, as docker does."""
    try:
        os.close(rootfs.make_directories(root, cwd))
    except FileExistsError:
        raise ContainerError(f"the working directory {cwd} is not a directory") from None


def _enter_workdir(cwd: str) -> None:
    """chdir, and make sure that it led somewhere inside the root (CVE-2024-21626)."""
    try:
        os.chdir(cwd)
    except OSError as error:
        raise ContainerError(f"can't enter the working directory {cwd}: {error.strerror}") from error
    if not os.getcwd().startswith("/"):
        raise ContainerError(f"the working directory {cwd} lies outside the container's root")


def _execute(process: dict[str, Any]) -> NoReturn:
    """execve of args[0], found along the PATH of the *container's* environment where it has no slash."""
    args, environment = process["args"], dict(item.split("=", 1) for item in process["env"])
    name = args[0]
    if "/" in name:
        candidates = [name]
    else:
        path = environment.get("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        candidates = [f"{directory or '.'}/{name}" for directory in path.split(":")]
    denied = ""
    for candidate in candidates:
        try:
            os.execve(candidate, args, environment)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                if os.path.exists(candidate):
                    raise _ExecError(
                        "not found",
                        f"{candidate}: the interpreter or loader that it names is not in the container",
                    ) from None
                continue
            denied = f"{candidate}: {error.strerror}"
            if error.errno == errno.EACCES and os.path.isdir(candidate):
                denied = f"{candidate}: is a directory"
            elif error.errno == errno.ENOEXEC:
                denied = f"{candidate}: not a program for this machine, and it has no #! line"
    if denied:
        raise _ExecError("not executable", f"can't execute {denied}")
    where = "no such file in the container" if "/" in name else "not found in the container's PATH"
    raise _ExecError("not found", f"{name}: {where}")
