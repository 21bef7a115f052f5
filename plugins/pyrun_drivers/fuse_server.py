"""A FUSE mount served by a fuse-overlayfs process that lives as long as the mount, in words of the kernel.

The mount is made first, by the engine, and detached: /dev/fuse is opened, the file system configured with it, and
the open device handed to the server as ``/dev/fd/3``, which libfuse 3.3 and later takes in place of a mountpoint.
So there is no mountpoint, no fusermount and no moment at which the mount is there and not served: what is asked
before the server runs, waits. When the last reference to the mount goes, the server reads ENODEV and ends; when the
server ends, everything on the mount fails with ENOTCONN. Nothing else ties the two together.

What a server sees: a mount namespace of its own, in which a small tmpfs holds a read-only clone of each layer,
called 0, 1, 2, ... from the top, and one clone of the writable directory. Names are that short so that the list of
layers fits one argument, and needs no escapes, whatever the store's path looks like.

A container in a user namespace of its own gets idmapped clones, and the server a user namespace too: one that maps
just the container's ids, each *to its own number*. The container's own namespace would not do. If it owned the
mount, the engine could not look into it (fuse_allow_current_process in fs/fuse/dir.c), which it must to find users,
to compare and to commit; and if it only held the server, then the server would speak of ids, in ACLs and file
capabilities too, by other numbers than the mount takes. So it has no power over any id but the container's, and its
capabilities count for nothing outside.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import time

from pyrun.errors import StorageError
from pyrun.kernel import mount as m
from pyrun.kernel import process as p
from pyrun.kernel.userns import IdMap, read_map, write_maps
from pyrun.storage.locks import lock_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

DEVICE = "/dev/fuse"

# The server's capabilities, in its user namespace (man capabilities): CHOWN, DAC_OVERRIDE, FOWNER, FSETID,
# SYS_ADMIN (for trusted.* attributes), MKNOD, SETFCAP.
_CAPABILITIES = (0, 1, 3, 4, 21, 27, 31)
# Where the tmpfs hides something that the server needs nothing of; in its own mount namespace only.
_PLACES = ("/sys", "/mnt", "/run", "/tmp")
_PATIENCE = 10.0  # seconds that a predecessor on the same writable directory may take to end
_FUSE_FD = 3
_O_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Server:
    """A running server process: ``pid`` and, as pids are used again, when it started in clock ticks."""

    __slots__ = ("pid", "started")

    def __init__(self, pid: int, started: str) -> None:
        self.pid = pid
        self.started = started

    def open(self) -> int | None:
        """A pidfd of it, or None where it has ended."""
        return p.pidfd_of(self.pid, self.started)

    def ended(self) -> bool:
        fd = self.open()
        if fd is None:
            return True
        try:
            return bool(select.select([fd], [], [], 0)[0])
        finally:
            os.close(fd)


def mount_id(fd: int) -> int:
    """The number of the mount that ``fd`` lies on. Asks the kernel alone, so it works with a dead server."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key == "mnt_id":
                return int(value)
    raise OSError(errno.ENOENT, f"no mnt_id in /proc/self/fdinfo/{fd}")


def maps_of(userns: int) -> tuple[list[IdMap], list[IdMap]]:
    """The uid and gid maps of the user namespace ``userns``, an fd: as the engine's namespace numbers them."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            p.set_pdeathsig(signal.SIGKILL)
            p.setns(userns, p.CLONE_NEWUSER)
            theirs.send(b"1")
            theirs.recv(1)
        finally:
            os._exit(0)
    try:
        theirs.close()
        if not ours.recv(1):
            raise OSError(errno.EPERM, "setns: the kernel lets nobody into the container's user namespace")
        return read_map(f"/proc/{pid}/uid_map"), read_map(f"/proc/{pid}/gid_map")
    finally:
        # A word, not the socket's end: children of other threads may hold copies of it.
        try:
            ours.send(b"1")
        except OSError:
            pass  # it has ended
        ours.close()
        os.waitpid(pid, 0)


class Overlay:
    """What a server is to serve.

    program  the server's path
    root     an absolute directory; the others are relative to it, and free of symbolic links
    lowers   top to bottom; may be empty
    rw       holds "upper" and "work"; None makes a mount that refuses writes
    options  further options of fuse-overlayfs, e.g. ["volatile"]
    """

    __slots__ = ("covers", "lowers", "options", "program", "root", "rw")

    def __init__(
        self, program: str, root: str, lowers: Sequence[str], rw: str | None, options: Sequence[str] = ()
    ) -> None:
        self.program = program
        self.root = root
        self.lowers = lowers
        self.rw = rw
        self.options = options
        self.covers: list[tuple[int, bytes]] = []

    @property
    def arguments(self) -> list[str]:
        lowers = ":".join(map(str, range(len(self.lowers)))) or "empty"
        options = [f"lowerdir={lowers}", *self.options]
        if self.rw is not None:
            options += ["upperdir=rw/upper", "workdir=rw/work"]
        # By its first word, ps tells whose server it is.
        title = f"{os.path.basename(self.program)} of {self.root}/{self.rw or 'layers'}"
        return [title, "-f", "-o", ",".join(options), f"/dev/fd/{_FUSE_FD}"]


def serve(
    overlay: Overlay, idmap: int | None, covers: Callable[[], list[tuple[int, bytes]]]
) -> tuple[int, Server]:
    """Mount ``overlay``, shown through the user namespace ``idmap`` if given: (detached mount, its server).

    ``covers`` is called when no other server is about on ``rw``; waits up to ten seconds for one to end. It returns
    (number of a lower layer, name of a directory in it) of what the server is to find empty. The server answers when
    this returns. Raises OSError, or `StorageError` with what the server said.
    """
    lock = _lock(f"{overlay.root}/{overlay.rw}") if overlay.rw is not None else -1
    device = mount = errors = -1
    try:
        overlay.covers = covers()
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
        mount = _mount(device, m.MOUNT_ATTR_RDONLY if overlay.rw is None else 0)
        server, errors = _start(overlay, idmap, device, lock)
        # Without this end, the server's is the last one: its death ends what follows.
        os.close(device)
        device = -1
        try:
            os.stat(mount)
        except OSError as error:
            said = _said(errors)
            raise StorageError(
                f"{overlay.program} ended before it served the mount: {said or error.strerror}",
                hint="pyrun storage doctor tries the driver and tells what is wrong with it.",
            ) from error
        return mount, server
    except BaseException:
        if mount >= 0:
            os.close(mount)
        raise
    finally:
        for fd in (device, lock, errors):
            if fd >= 0:
                os.close(fd)


def _lock(rw: str) -> int:
    """The lock of ``rw``, which the server inherits and so holds to its end. It empties the work directory when it
    starts, and may still remove files there when its mount is gone already; two would take away each other's."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        fd = lock_directory(rw)
        if fd is not None:
            return fd
        if time.monotonic() > deadline:
            raise StorageError(
                f"another fuse-overlayfs still serves {rw}",
                hint="A writable directory can be mounted once at a time. Stop what uses it, and try again.",
            )
        time.sleep(0.005)


def _mount(device: int, attributes: int) -> int:
    context = m.FsContext("fuse")
    try:
        context.string("source", "fuse-overlayfs")
        context.string("subtype", "fuse-overlayfs")
        context.string("fd", str(device))
        context.string("rootmode", "40000")
        context.string("user_id", "0")
        context.string("group_id", "0")
        context.flag("allow_other")
        context.flag("default_permissions")
        context.create()
        return context.mount(attributes)
    finally:
        context.close()


def _start(overlay: Overlay, idmap: int | None, device: int, lock: int) -> tuple[Server, int]:
    """Start the server; (it, the reading end of its standard error). Returns once it is about to be executed."""
    maps = maps_of(idmap) if idmap is not None else None
    errors, errors_write = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        middle = os.fork()
        if middle == 0:
            # The server is a grandchild: it may outlive the engine, and whoever embeds the engine has no
            # child that ends at a time of its own.
            try:
                ours.close()
                os.setsid()
                if os.fork() == 0:
                    _become(overlay, idmap, maps, device, lock, errors_write, theirs)
            finally:
                os._exit(0)
        os.close(errors_write)
        errors_write = -1
        theirs.close()
        os.waitpid(middle, 0)
        said = _receive(ours)
        if not said:
            raise OSError(errno.ECHILD, "the process that becomes the server died")
        pid = int(said)
        server = Server(pid, p.start_time(pid))
        if maps is not None:
            uids, gids = ([IdMap(i.outside, i.outside, i.count) for i in part] for part in maps)
            write_maps(pid, uids, gids)
        ours.send(b"go")
        _receive(ours)
        return server, errors
    except BaseException:
        os.close(errors)
        raise
    finally:
        ours.close()
        theirs.close()
        if errors_write >= 0:
            os.close(errors_write)


def _receive(sock: socket.socket) -> bytes:
    """The child's next message, b"" at the socket's end. Raises the OSError that it tells."""
    said = sock.recv(4096)
    if said.startswith(b"!"):
        number, _, text = said[1:].decode(errors="replace").partition(" ")
        raise OSError(int(number), text)
    return said


def _said(errors: int) -> str:
    """What the server wrote to standard error, without what it always writes; waits a second for its end."""
    said = b""
    deadline = time.monotonic() + 1
    while len(said) < 65536 and (left := deadline - time.monotonic()) > 0:
        if not select.select([errors], [], [], left)[0]:
            break
        chunk = os.read(errors, 4096)
        if not chunk:
            break
        said += chunk
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith("unknown argument ignored"))


# --- in the child


def _become(
    overlay: Overlay,
    idmap: int | None,
    maps: tuple[list[IdMap], list[IdMap]] | None,
    device: int,
    lock: int,
    errors: int,
    sock: socket.socket,
) -> NoReturn:
    """Turn this process into the server."""
    try:
        _reset_signals()
        p.unshare(p.CLONE_NEWNS)
        # A slave: what the host unmounts is not held here.
        m.mount(None, b"/", None, m.MS_REC | m.MS_SLAVE)
        owner = _outside(maps)
        _attach(overlay, idmap, owner)
        if maps is not None:
            p.unshare(p.CLONE_NEWUSER)
        sock.send(str(os.getpid()).encode())
        if not sock.recv(2):
            os._exit(1)  # the engine is gone
        _drop_privileges(owner, namespaced=maps is not None)
        _arrange(device, lock, errors)
        os.execve(overlay.program, overlay.arguments, {"PATH": "/usr/bin:/bin", "LC_ALL": "C"})
    except OSError as error:
        sock.send(f"!{error.errno or errno.EIO} {error.strerror or error}".encode())
    except BaseException as error:
        sock.send(f"!{errno.EIO} {error!r}".encode())
    finally:
        os._exit(1)


def _reset_signals() -> None:
    """The default of every signal that Python or the caller ignores, and an empty mask: both survive execve."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                continue
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _outside(maps: tuple[list[IdMap], list[IdMap]] | None) -> tuple[int, int]:
    """The numbers of the namespace's root user and group: what is made without an owner belongs to them."""
    if maps is None:
        return 0, 0
    found = []
    for part in maps:
        root = next((i.outside for i in part if i.inside == 0), None)
        if root is None:
            raise OSError(errno.EINVAL, "the container's user namespace has no root")
        found.append(root)
    return found[0], found[1]


def _attach(overlay: Overlay, idmap: int | None, owner: tuple[int, int]) -> None:
    """Make the tmpfs with the clones, and change into it."""
    root = os.open(overlay.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    program = os.path.realpath(overlay.program)
    place = next(place for place in _PLACES if os.path.isdir(place) and not program.startswith(f"{place}/"))
    attributes = m.MOUNT_ATTR_NOSUID | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC
    tmpfs = m.new_mount("tmpfs", {"mode": "0755", "size": "1m"}, attributes=attributes)
    # The store may lie below that place; it is reached by the fd.
    m.move_mount(tmpfs, m.AT_FDCWD, place)
    os.close(tmpfs)
    os.chdir(place)
    for number, lower in enumerate(overlay.lowers):
        _clone(root, lower, str(number), idmap, m.MOUNT_ATTR_RDONLY)
    if not overlay.lowers:
        _empty("empty", owner)
    for count, (number, name) in enumerate(overlay.covers):
        # Each an own one: the server tells directories apart by their inodes.
        _empty(f"empty{count}", owner)
        _cover(str(number), name, f"empty{count}")
    if overlay.rw is not None:
        _clone(root, overlay.rw, "rw", idmap, 0)
    os.close(root)


def _clone(root: int, source: str, name: str, idmap: int | None, attributes: int) -> None:
    os.mkdir(name, 0o755)
    tree = m.open_tree(root, source, follow=False)
    try:
        if idmap is not None:
            m.idmap(tree, idmap)
        m.mount_setattr(tree, set=attributes | m.MOUNT_ATTR_NODEV | m.MOUNT_ATTR_NOEXEC)
        m.move_mount(tree, m.AT_FDCWD, name)
    finally:
        os.close(tree)


def _empty(name: str, owner: tuple[int, int]) -> None:
    os.mkdir(name, 0o755)
    os.chown(name, *owner)


def _cover(layer: str, name: bytes, empty: str) -> None:
    """Mount the directory ``empty`` over the directory ``name`` of ``layer``, if it isn't covered already."""
    fd = os.open(layer, _O_DIRECTORY)
    try:
        for part in name.split(b"/"):
            try:
                below = os.open(part, _O_DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                return  # what it is in was covered
            os.close(fd)
            fd = below
        tree = m.open_tree(m.AT_FDCWD, empty)
        m.move_mount(tree, fd)
        os.close(tree)
    finally:
        os.close(fd)


def _drop_privileges(owner: tuple[int, int], *, namespaced: bool) -> None:
    """Keep the few capabilities, of the namespace that this process is in, across execve."""
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    for number in range(last + 1):
        if number not in _CAPABILITIES:
            p.drop_bounding(number)
    if namespaced:
        os.setgroups([])
        os.setresgid(owner[1], owner[1], owner[1])
        os.setresuid(owner[0], owner[0], owner[0])
    mask = sum(1 << number for number in _CAPABILITIES)
    p.capset(mask, mask, mask)
    if namespaced:
        # Its number is not 0, so execve gives it nothing by itself.
        for number in _CAPABILITIES:
            p.raise_ambient(number)
    p.set_no_new_privs()


def _arrange(device: int, lock: int, errors: int) -> None:
    """Standard streams, the device and the lock in their places; everything else closes on execve."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    wanted = [null, null, errors, device, *([lock] if lock >= 0 else [])]
    # First out of the way of each other.
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in wanted]
    for number, fd in enumerate(moved):
        os.dup2(fd, number)
    p.cloexec_from(len(moved))
