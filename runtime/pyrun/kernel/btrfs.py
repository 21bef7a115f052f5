"""btrfs subvolumes: make, snapshot, protect, limit, delete (man btrfs-ioctl; linux/btrfs.h).

A subvolume is named by the fd of the directory it lies in and its name there, at most 255 bytes and one path
component, so that no path is walked. All calls raise OSError.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from errno import EINVAL, ENAMETOOLONG

SUPER_MAGIC = 0x9123683E
# The inode number of the root directory of every subvolume (BTRFS_FIRST_FREE_OBJECTID).
ROOT_INODE = 256

_NAME_MAX = 255  # BTRFS_NAME_LEN
_RDONLY = 1 << 1  # BTRFS_SUBVOL_RDONLY
_MAX_EXCL = 1 << 1  # BTRFS_QGROUP_LIMIT_MAX_EXCL

# struct btrfs_ioctl_vol_args: fd, name; _v2: fd, transid, flags, 32 unused bytes, name. Both of 4096 bytes.
_ARGS = struct.Struct("=q4088s")
_ARGS_V2 = struct.Struct("=qQQ32x4040s")
_INO_LOOKUP_ARGS = struct.Struct("=QQ4080s")  # treeid, objectid, name
# qgroupid; flags, max_rfer, max_excl, rsv_rfer, rsv_excl
_LIMIT_ARGS = struct.Struct("=QQQQQQ")
_QGROUP_ARGS = struct.Struct("=QQ")  # create, qgroupid


def _code(number: int, size: int, direction: int = 1) -> int:
    """_IOW (1), _IOR (2) or _IOWR (3) of btrfs's magic 0x94. All architectures that Python's users meet share
    this layout (asm-generic/ioctl.h)."""
    return direction << 30 | size << 16 | 0x94 << 8 | number


_SNAP_DESTROY = _code(15, _ARGS.size)
_INO_LOOKUP = _code(18, _INO_LOOKUP_ARGS.size, 3)
_SNAP_CREATE_V2 = _code(23, _ARGS_V2.size)
_SUBVOL_CREATE_V2 = _code(24, _ARGS_V2.size)
_SUBVOL_GETFLAGS = _code(25, 8, 2)
_SUBVOL_SETFLAGS = _code(26, 8)
_QGROUP_CREATE = _code(42, _QGROUP_ARGS.size)
_QGROUP_LIMIT = _code(43, _LIMIT_ARGS.size, 2)


def create(dirfd: int, name: str) -> None:
    """An empty subvolume. Its root directory is the caller's, 0777 less the umask."""
    _call(dirfd, _SUBVOL_CREATE_V2, _ARGS_V2.pack(0, 0, 0, _checked(os.fsencode(name))))


def snapshot(source: int, dirfd: int, name: str) -> None:
    """A writable snapshot of the subvolume whose root directory is ``source``. Subvolumes within it are empty
    directories there."""
    _call(dirfd, _SNAP_CREATE_V2, _ARGS_V2.pack(source, 0, 0, _checked(os.fsencode(name))))


def destroy(dirfd: int, name: bytes) -> None:
    """Delete a subvolume with all its content; its space comes back in the background.

    ENOTEMPTY: another lies in it. EPERM: an ordinary user's may not be deleted so, unless the file system is
    mounted with user_subvol_rm_allowed; emptied, it goes by rmdir(2) since Linux 4.18.
    """
    _call(dirfd, _SNAP_DESTROY, _ARGS.pack(0, _checked(name)))


def is_subvolume(found: os.stat_result) -> bool:
    """Whether what was found *on btrfs* is the root of a subvolume."""
    return found.st_ino == ROOT_INODE and stat.S_ISDIR(found.st_mode)


def set_readonly(root: int, on: bool) -> None:
    """Protect the subvolume with the root directory ``root`` from every change, or no longer."""
    (now,) = struct.unpack("=Q", _call(root, _SUBVOL_GETFLAGS, bytes(8)))
    wanted = now | _RDONLY if on else now & ~_RDONLY
    if wanted != now:
        _call(root, _SUBVOL_SETFLAGS, struct.pack("=Q", wanted))


def subvolume_id(fd: int) -> int:
    """The id of the subvolume that ``fd`` lies in; its quota group is 0/id."""
    return int(_INO_LOOKUP_ARGS.unpack(_call(fd, _INO_LOOKUP, _INO_LOOKUP_ARGS.pack(0, ROOT_INODE, b"")))[0])


def limit(fd: int, size: int) -> None:
    """Let the subvolume that ``fd`` lies in have at most ``size`` bytes that it shares with no other; past it,
    writes fail with EDQUOT. ENOTCONN (EINVAL before Linux 5.9): quotas are not enabled. Needs CAP_SYS_ADMIN."""
    _call(fd, _QGROUP_LIMIT, _LIMIT_ARGS.pack(0, _MAX_EXCL, 0, size, 0, 0))


def forget_quota(fd: int, subvolume: int) -> None:
    """Delete the quota group of a subvolume that is gone, on the file system of ``fd``."""
    _call(fd, _QGROUP_CREATE, _QGROUP_ARGS.pack(0, subvolume))


def _call(fd: int, request: int, args: bytes) -> bytearray:
    # A bytearray, for of an immutable argument fcntl takes 1 KiB at most.
    buffer = bytearray(args)
    fcntl.ioctl(fd, request, buffer)
    return buffer


def _checked(name: bytes) -> bytes:
    # The kernel stops at a NUL byte, and takes some of these for a name.
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(EINVAL, "not the name of a subvolume", os.fsdecode(name))
    if len(name) > _NAME_MAX:
        raise OSError(ENAMETOOLONG, os.strerror(ENAMETOOLONG), os.fsdecode(name))
    return name
