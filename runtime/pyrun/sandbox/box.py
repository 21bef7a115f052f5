"""Box: the engine's side of a container's first process. On the path of `run`.

One clone3(2) makes the process and all its namespaces. The process then waits on a socket: nothing of the
container exists yet, and if the engine dies now, the socket's end makes the process leave. So whatever must
be on record before the container lives (its pid) can be written between `Box` and `Box.start`.
"""

from __future__ import annotations

import array
import gc
import marshal
import os
import signal
import socket
import sys

from ..errors import CommandNotExecutable, CommandNotFound, ContainerError, PyrunError, Unsupported
from ..kernel import process as p
from ..kernel.userns import IdMap, translate, write_maps
from . import init, mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_FLAGS = {
    "cgroup": p.CLONE_NEWCGROUP,
    "ipc": p.CLONE_NEWIPC,
    "mount": p.CLONE_NEWNS,
    "network": p.CLONE_NEWNET,
    "pid": p.CLONE_NEWPID,
    "user": p.CLONE_NEWUSER,
    "uts": p.CLONE_NEWUTS,
}
_MAX_MESSAGE = 4 << 20
_MAX_FDS = 250  # SCM_MAX_FD is 253


def _maps(entries: Sequence[dict[str, int]]) -> list[IdMap]:
    return [IdMap(e["containerID"], e["hostID"], e["size"]) for e in entries]


class Box:
    """A process waiting in the namespaces that ``spec["linux"]`` asks for.

    pid, pidfd  of the container's first process, as the engine sees it
    userns      fd of its user namespace, or -1 where it shares the engine's
    nodes       whether the engine may make device nodes; else the host's are bound

    Raises `Unsupported` where the kernel refuses the namespaces. `close` (or leaving the ``with`` block)
    kills a process that has not been waited for, and closes what is open.
    """

    __slots__ = ("_reaped", "nodes", "owner", "pid", "pidfd", "sock", "spec", "userns")

    def __init__(self, spec: dict[str, Any], *, nodes: bool) -> None:
        linux = spec["linux"]
        flags = 0
        for namespace in linux["namespaces"]:
            kind = namespace["type"]
            if kind not in _FLAGS or "path" in namespace:
                raise Unsupported(f"can't give a container the namespace {namespace!r}")
            flags |= _FLAGS[kind]
        if not flags & p.CLONE_NEWNS or not flags & p.CLONE_NEWPID:
            raise Unsupported("a container needs a mount and a pid namespace of its own")
        if len(os.listdir("/proc/self/task")) > 1:
            # A copy of one thread finds the interpreter's and libc's locks as the others left them.
            raise Unsupported("a container can't be started from a process that has several threads")
        self.spec = spec
        self.nodes = nodes
        self.owner = (0, 0)
        self.userns = -1
        self._reaped = False
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        # The child must not run finalizers, nor a collection over pages that it shares with the engine.
        gc.freeze()
        enabled = gc.isenabled()
        gc.disable()
        try:
            self.pid, self.pidfd = p.clone3(flags)
        except OSError as error:
            self.sock.close()
            theirs.close()
            raise Unsupported(
                f"the kernel refuses the container's namespaces: {error.strerror}", hint=_why_no_namespaces()
            ) from error
        if self.pid == 0:
            init.main(theirs, self.sock, new_userns=bool(flags & p.CLONE_NEWUSER))
        if enabled:
            gc.enable()
        gc.unfreeze()
        theirs.close()
        try:
            if flags & p.CLONE_NEWUSER:
                uids, gids = _maps(linux["uidMappings"]), _maps(linux["gidMappings"])
                write_maps(self.pid, uids, gids)
                self.userns = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                self.owner = (translate(uids, 0) or 0, translate(gids, 0) or 0)
        except OSError as error:
            self.close()
            raise Unsupported(
                f"can't map the ids of the container's user namespace: {error.strerror}",
                hint='Run with --userns=host, or set userns = "host" under [run] in the configuration.',
            ) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Box:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def host_ids(self, uid: int, gid: int) -> tuple[int, int]:
        """The engine's view of the container's ``uid`` and ``gid``. Raises `ContainerError` where unmapped."""
        linux = self.spec["linux"]
        if self.userns < 0:
            return uid, gid
        mapped = []
        for kind, key, number in (("user", "uidMappings", uid), ("group", "gidMappings", gid)):
            outside = translate(_maps(linux[key]), number)
            if outside is None:
                count = sum(entry["size"] for entry in linux[key])
                raise ContainerError(
                    f"the {kind} id {number} is outside the container's user namespace, which has {count} ids",
                    hint="Use a smaller one, or run with --userns=host.",
                )
            mapped.append(outside)
        return mapped[0], mapped[1]

    def start(
        self, rootfs: int, stdio: Sequence[int | None] = (), terminal_size: tuple[int, int] | None = None
    ) -> int:
        """Fill the namespaces by the spec and execute its process; returns once execve has succeeded.

        rootfs  a detached mount; stays the caller's
        stdio   the three fds for the process (None: the container's own /dev/null), or nothing where
                ``process.terminal`` is set
        Returns the terminal's master fd, or -1.

        Raises `CommandNotFound`, `CommandNotExecutable`, or `ContainerError` with the step that failed; the
        process is dead by then.
        """
        prepared = mounts.prepare(self.spec, self.userns, self.owner, nodes=self.nodes)
        try:
            given = [fd for fd in stdio if fd is not None]
            fds = [rootfs, *given, *prepared.values()]
            payload = marshal.dumps(
                {
                    "spec": self.spec,
                    "stdio": [fd is not None for fd in stdio],
                    "prepared": list(prepared),
                    "size": terminal_size,
                    "nodes": self.nodes,
                }
            )
            if len(payload) > _MAX_MESSAGE:
                raise ContainerError(
                    f"the container's arguments and environment are too large ({len(payload)} bytes)"
                )
            if len(fds) > _MAX_FDS:
                raise ContainerError(
                    f"the container has too many mounts ({len(prepared)}; {_MAX_FDS - 4} work)"
                )
            header = len(payload).to_bytes(4, "little") + len(fds).to_bytes(4, "little")
            try:
                self.sock.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
                self.sock.sendall(payload)
            except OSError as error:
                raise ContainerError(f"the container's first process died early: {error.strerror}") from error
        finally:
            for fd in prepared.values():
                os.close(fd)
        return self._outcome()

    def _outcome(self) -> int:
        """Wait for "ready" and then the socket's end, which execve causes; or for the reason of a failure."""
        said, fds, _, _ = socket.recv_fds(self.sock, 65536, 1)
        master = fds[0] if fds else -1
        if master >= 0:
            os.set_inheritable(master, False)
        while chunk := self.sock.recv(65536):
            said += chunk
        said = said.removeprefix(init.TERMINAL)
        if said == init.READY:
            return master
        if master >= 0:
            os.close(master)
        if not said:
            raise ContainerError("the container's first process was killed before it could start")
        kind, message, hint = marshal.loads(said.removeprefix(init.READY))
        errors: dict[str, type[PyrunError]] = {
            "not found": CommandNotFound,
            "not executable": CommandNotExecutable,
            "unsupported": Unsupported,
        }
        raise errors.get(kind, ContainerError)(message, hint=hint)

    def kill(self) -> None:
        """SIGKILL the first process, and with it everything in its pid namespace."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self) -> int:
        """Wait for the end of the first process: its exit code, or 128 + the signal that killed it."""
        result = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
        assert result is not None
        self._reaped = True
        return result.si_status if result.si_code == os.CLD_EXITED else 128 + result.si_status

    def close(self) -> None:
        """Release all fds; a process that still lives is ended and reaped."""
        self.sock.close()
        if self.pidfd >= 0:
            if not self._reaped:
                self.kill()
                try:
                    self.wait()
                except ChildProcessError:
                    pass
            os.close(self.pidfd)
            self.pidfd = -1
        if self.userns >= 0:
            os.close(self.userns)
            self.userns = -1


def _why_no_namespaces() -> str:
    try:
        with open("/proc/sys/user/max_user_namespaces") as file:
            if int(file.read()) == 0:
                return "User namespaces are off: sysctl user.max_user_namespaces=15000, or use --userns=host."
    except (OSError, ValueError):
        pass
    return "A seccomp filter or security module around this process may forbid it; try --userns=host."
