"""Mounts of EROFS layers: one file system for each layer, however many containers stand on it. On the path of `run`.

Every mount of an image anew would read its files into the page cache once more; a clone of a mount shares it. So
whoever mounts a layer keeps that mount for as long as it lives, and further mounts are clones of it. Other
processes find it by a file in ``layers/erofs/.mounts``, whose lock tells that its writer lives, and clone it by
way of /proc/PID/fd. No daemon, no mount point, and nothing that a crash could leave but a small file, which the
next to look removes.

Cloning a detached mount needs about Linux 6.15. Before that a layer's two files become loop devices, of which the
kernel mounts one file system, however often it is asked, in whatever process.
"""

from __future__ import annotations

import fcntl
import os

from pyrun.kernel import mount as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

INDEX, TAR = "index.erofs", "layer.tar"
FILE, LOOP = "file", "loop"

_MAGIC = 0xE0F5E1E2
_O_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# A process may have 1,024 descriptors, and an image 500 layers: of more than these it keeps no mounts.
_KEPT = 64
_LOOKED_AT = 256
_number = 0


def mount(path: str, backing: str, *, directio: bool = False) -> int:
    """A new detached mount of the layer in the directory ``path``, read by FILE or by LOOP devices.

    The files are named by fd: a path of more than 255 bytes is too long for fsconfig(2).
    """
    index = os.open(f"{path}/{INDEX}", _O_READ)
    tar = -1
    try:
        tar = os.open(f"{path}/{TAR}", _O_READ)
        if backing == LOOP:
            from pyrun.kernel import loop

            for fd, name in ((index, INDEX), (tar, TAR)):
                device = loop.attach(fd, f"pyrun {name}")
                os.dup2(device, fd, inheritable=False)
                os.close(device)
        options: dict[str, str | None] = {"ro": None, "device": f"/proc/self/fd/{tar}"}
        if directio:
            options["directio"] = None
        return m.new_mount("erofs", options, source=f"/proc/self/fd/{index}")
    finally:
        os.close(index)
        if tar >= 0:
            os.close(tar)


def can_clone(mount: int) -> bool:
    """Whether the kernel clones a detached mount, found as another process would find it."""
    try:
        os.close(m.open_tree(m.AT_FDCWD, f"/proc/self/fd/{mount}"))
    except OSError:
        return False
    return True


class Mounts:
    """The layers that this process has mounted.

    place  directory of the files by which processes tell each other of their mounts; made if missing
    found  of the probe: "backing", "directio", "clones"
    """

    def __init__(self, place: str, found: dict[str, object]) -> None:
        from _thread import allocate_lock

        self._place = place
        self._backing = str(found["backing"])
        self._directio = bool(found["directio"])
        self._clones = bool(found["clones"])
        # By path of a layer: our mount of it, and which index it is a mount of.
        self._kept: dict[str, tuple[int, str]] = {}
        self._lock = allocate_lock()
        self._told = -1  # our locked file of `place`, by which others find the kept mounts
        self._told_by = self._told_as = 0

    def open(self, path: str) -> int:
        """A detached mount of the layer ``path`` that nobody else has, as an fd the caller owns."""
        if not self._clones:
            with _Alone(self._place):
                return mount(path, self._backing, directio=self._directio)
        with self._lock:
            now = _identity(path)
            kept = self._kept.get(path)
            if kept is not None:
                if kept[1] == now:
                    return m.open_tree(kept[0], "")
                # The layer was removed, or damaged, and made again.
                os.close(self._kept.pop(path)[0])
            with _Alone(self._place):
                made = self._of_others(path, now)
                if made is None:
                    made = mount(path, self._backing, directio=self._directio)
                if len(self._kept) >= _KEPT:
                    return made
                try:
                    clone = m.open_tree(made, "")
                except OSError:
                    os.close(made)
                    raise
                self._kept[path] = made, now
                self._tell("" if kept else path)
                return clone

    def forget_removed(self) -> None:
        """Let go of layers that are not there any more, so that their space is free."""
        with self._lock:
            gone = [path for path in self._kept if not os.path.exists(f"{path}/{INDEX}")]
            for path in gone:
                os.close(self._kept.pop(path)[0])
            if gone:
                self._tell()

    def close(self) -> None:
        """Let go of all. Mounts that were given out are not concerned."""
        with self._lock:
            for fd, _ in self._kept.values():
                os.close(fd)
            self._kept.clear()
            self._tell()

    __del__ = close

    # --- other processes

    def _tell(self, added: str = "") -> None:
        """Write which mounts we keep, one a line: fd, device, and which index of which layer. ``added``: the
        path of the only new one."""
        global _number
        if self._told_by != os.getpid():
            # A forked child's copy of the file is its parent's.
            if self._told >= 0:
                os.close(self._told)
            self._told = -1
        if not self._kept:
            if self._told >= 0:
                _unlink(self._path())
                os.close(self._told)
                self._told = -1
            return
        try:
            if self._told < 0:
                _number += 1
                self._told_by, self._told_as = os.getpid(), _number
                for file in os.listdir(self._place)[:_LOOKED_AT]:
                    self._read(file)
                self._told = _locked(self._path())
                added = ""
            if added:
                os.write(self._told, self._line(added))
            else:
                os.ftruncate(self._told, 0)
                os.write(self._told, b"".join(map(self._line, self._kept)))
        except OSError:
            # A full disk, say. The layer is mounted; others mount it for themselves.
            pass

    def _line(self, path: str) -> bytes:
        fd, identity = self._kept[path]
        return f"{fd} {os.fstat(fd).st_dev}/{identity}/{os.path.basename(path)}\n".encode()

    def _path(self) -> str:
        return f"{self._place}/{self._told_by}.{self._told_as}"

    def _of_others(self, path: str, identity: str) -> int | None:
        """A clone of a living process's mount of the layer ``path``."""
        for pid, fd, device in self._others(f"{identity}/{os.path.basename(path)}"):
            try:
                found = os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                # What the number means now, in case that it is another file's already.
                if os.fstat(found).st_dev == device and m.fstatfs_type(found) & 0xFFFFFFFF == _MAGIC:
                    return m.open_tree(found, "")
            except OSError:
                continue
            finally:
                os.close(found)
        return None

    def _others(self, layer: str) -> Iterator[tuple[int, int, int]]:
        """(pid, fd, device) of mounts of ``layer``, an index's identity and a name."""
        try:
            found = os.listdir(self._place)
        except FileNotFoundError:
            return
        for file in found[:_LOOKED_AT]:
            pid = file.partition(".")[0]
            for line in self._read(file).splitlines():
                numbers, _, what = line.partition("/")
                words = [pid, *numbers.split()]
                if what == layer and len(words) == 3 and all(word.isdecimal() for word in words):
                    yield int(pid), int(words[1]), int(words[2])

    def _read(self, file: str) -> str:
        """What a living process tells in ``file``; one of a dead process is removed."""
        path = f"{self._place}/{file}"
        try:
            fd = os.open(path, _O_READ)
        except OSError:
            return ""
        try:
            if not _unlocked(fd):
                return os.read(fd, 1 << 16).decode(errors="replace")
        finally:
            os.close(fd)
        _unlink(path)
        return ""


class _Alone:
    """While entered, no other process looks for a mount and finds none: of two that start at once, the second
    gets the first one's. Without a place to lock, on a full disk, each goes its own way."""

    __slots__ = ("_fd", "_place")

    def __init__(self, place: str) -> None:
        self._place = place
        self._fd = -1

    def __enter__(self) -> None:
        try:
            os.makedirs(self._place, mode=0o700, exist_ok=True)
            self._fd = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            # Said outright: a child that was forked meanwhile has a copy of the descriptor.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)


def _identity(path: str) -> str:
    """Which index lies in the directory ``path``."""
    found = os.stat(f"{path}/{INDEX}")
    return f"{found.st_ino}.{found.st_mtime_ns}"


def _locked(path: str) -> int:
    """The file ``path``, made and locked; whoever looks meanwhile may take it for a dead process's."""
    while True:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _unlocked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
