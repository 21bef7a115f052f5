"""The mount API: fsopen(2), fsconfig(2), fsmount(2), open_tree(2), mount_setattr(2), move_mount(2), ...

On the path of `run`. All fds made here are close-on-exec.
"""

from __future__ import annotations

import ctypes
import os
import struct

from .syscall import function, syscall

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08
MOUNT_ATTR__ATIME = 0x70
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_SET_FD = 5
_FSCONFIG_CMD_CREATE = 6


def open_tree(
    dirfd: int, path: bytes | str, *, clone: bool = True, recursive: bool = False, follow: bool = True
) -> int:
    """An fd of the mount tree at ``path`` ("": ``dirfd`` itself); with ``clone`` a detached copy of it."""
    flags = OPEN_TREE_CLOEXEC | AT_NO_AUTOMOUNT
    if clone:
        flags |= OPEN_TREE_CLONE
    if recursive:
        flags |= AT_RECURSIVE
    if not follow:
        flags |= AT_SYMLINK_NOFOLLOW
    if not path:
        flags |= AT_EMPTY_PATH
    return syscall("open_tree", dirfd, os.fsencode(path), flags, path=path or None)


def move_mount(mount: int, dirfd: int, path: bytes | str = b"") -> None:
    """Attach the detached mount ``mount`` at ``path``; an empty path means onto ``dirfd`` itself."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    syscall("move_mount", mount, b"", dirfd, os.fsencode(path), flags, path=path or None)


def mount_setattr(
    mount: int,
    *,
    set: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns: int = 0,
    recursive: bool = False,
) -> None:
    """Change a mount's attributes: MOUNT_ATTR_* bits, propagation (MS_PRIVATE, ...), or idmap by ``userns``.

    Atomic: with ``recursive`` either the whole tree changes or none of it.
    """
    attr = struct.pack("QQQQ", set, clear, propagation, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    syscall("mount_setattr", mount, b"", flags, attr, len(attr))


def idmap(mount: int, userns: int, *, recursive: bool = False) -> None:
    """Let ``mount``, a detached clone, show the owners of files through the user namespace ``userns``."""
    mount_setattr(mount, set=MOUNT_ATTR_IDMAP, userns=userns, recursive=recursive)


class FsContext:
    """A file system being configured: fsopen(2), then options, then `create`. Close with `close`."""

    __slots__ = ("fd", "fstype")

    def __init__(self, fstype: str) -> None:
        self.fstype = fstype
        self.fd = syscall("fsopen", fstype.encode(), FSOPEN_CLOEXEC, path=fstype)

    def flag(self, key: str) -> None:
        self._config(_FSCONFIG_SET_FLAG, key, None, 0)

    def string(self, key: str, value: str | bytes) -> None:
        self._config(_FSCONFIG_SET_STRING, key, os.fsencode(value), 0)

    def file(self, key: str, fd: int) -> None:
        self._config(_FSCONFIG_SET_FD, key, None, fd)

    def create(self) -> None:
        self._config(_FSCONFIG_CMD_CREATE, None, None, 0)

    def mount(self, attributes: int = 0) -> int:
        """The detached mount of the created file system, with MOUNT_ATTR_* attributes."""
        return syscall("fsmount", self.fd, FSMOUNT_CLOEXEC, attributes)

    def close(self) -> None:
        os.close(self.fd)

    def _config(self, command: int, key: str | None, value: bytes | None, aux: int) -> None:
        try:
            syscall("fsconfig", self.fd, command, key.encode() if key else None, value, aux)
        except OSError as error:
            what = f"{self.fstype} {key}={value!r}" if key else f"create {self.fstype}"
            text = f"fsconfig {what}: {os.strerror(error.errno or 0)}"
            said = self.messages()
            raise OSError(error.errno, f"{text} ({said})" if said else text) from None

    def messages(self) -> str:
        """What the kernel logged about this context, "; " between lines; often nothing."""
        lines = []
        for _ in range(32):
            try:
                line = os.read(self.fd, 4096)
            except OSError:
                break
            lines.append(line.decode(errors="replace").strip())
        return "; ".join(lines)


def new_mount(
    fstype: str, options: dict[str, str | None] | None = None, *, attributes: int = 0, source: str = ""
) -> int:
    """A detached mount of a new ``fstype`` instance. An option whose value is None is a flag."""
    context = FsContext(fstype)
    try:
        if source:
            context.string("source", source)
        for key, value in (options or {}).items():
            if value is None:
                context.flag(key)
            else:
                context.string(key, value)
        context.create()
        return context.mount(attributes)
    finally:
        context.close()


def mount(
    source: bytes | None, target: bytes, fstype: bytes | None, flags: int, data: bytes | None = None
) -> None:
    """mount(2), for what the new API can't do on older kernels, and for propagation."""
    function("mount", source, target, fstype, flags, data, path=target)


def umount(target: bytes | str, flags: int = MNT_DETACH) -> None:
    function("umount2", os.fsencode(target), flags, path=target)


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    syscall("pivot_root", new_root, put_old, path=new_root)


def fstatfs_type(fd: int) -> int:
    """The f_type of the file system that ``fd`` lies on (man statfs, the *_MAGIC constants)."""
    buffer = ctypes.create_string_buffer(256)
    function("fstatfs", fd, ctypes.cast(buffer, ctypes.c_void_p))
    return int(struct.unpack_from("l", buffer)[0])


def syncfs(fd: int) -> None:
    """Write the file system of ``fd`` out to its device."""
    syscall("syncfs", fd)
