"""Loop devices: a file as a read-only block device (man loop).

They are attached with autoclear: the kernel frees one when its last user has closed it, a mount included, so
nothing is left of them whoever dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

_GET_FREE = 0x4C82  # LOOP_CTL_GET_FREE
_CONFIGURE = 0x4C0A  # since Linux 5.8
_GET_STATUS64 = 0x4C05
_READ_ONLY, _AUTOCLEAR = 1, 4

# lo_device lo_inode lo_rdevice lo_offset lo_sizelimit lo_number (encryption) lo_flags lo_file_name ...
_INFO = struct.Struct("=QQQQQIIII64s64s32s16s")
_CONFIG = struct.Struct(f"=II{_INFO.size}s64s")
_TRIES = 64


def attach(file: int, name: str = "") -> int:
    """A loop device of the open regular ``file``, as an fd to keep open until something else uses the device.

    One that another process attached to this very file is shared; so are then the file systems mounted from it,
    and their page cache. ``name`` is shown by losetup. Raises OSError; ENOENT or ENODEV where the kernel or
    this machine has no loop devices.
    """
    found = find(file)
    if found is not None:
        return found
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, _READ_ONLY | _AUTOCLEAR, os.fsencode(name)[:63], b"", b"", b"")
    config = _CONFIG.pack(file, 0, info, b"")
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _GET_FREE)
            device = os.open(path(number), os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _CONFIGURE, bytearray(config))
                return device
            except OSError as error:
                os.close(device)
                # Somebody else took the free one, or holds it exclusively at this moment.
                if error.errno != errno.EBUSY:
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "loop: no free device, however often asked")


def find(file: int) -> int | None:
    """An fd of a loop device that shows the whole of the open ``file``, read-only, and frees itself; or None."""
    wanted = os.fstat(file)
    try:
        names = os.listdir("/sys/block")
    except FileNotFoundError:
        return None
    for name in names:
        if not name.startswith("loop") or not os.path.exists(f"/sys/block/{name}/loop"):
            continue
        try:
            device = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        # Asked while it is open, for an open device is not freed.
        if _shows(device, wanted):
            return device
        os.close(device)
    return None


def path(number: int) -> str:
    return f"/dev/loop{number}"


def _shows(device: int, wanted: os.stat_result) -> bool:
    buffer = bytearray(_INFO.size)
    try:
        fcntl.ioctl(device, _GET_STATUS64, buffer)
    except OSError:
        return False  # it shows nothing
    where, inode, _, offset, limit, _, _, _, flags, *_ = _INFO.unpack(buffer)
    return (where, inode, offset, limit) == (_encoded(wanted.st_dev), wanted.st_ino, 0, 0) and flags & (
        _READ_ONLY | _AUTOCLEAR
    ) == _READ_ONLY | _AUTOCLEAR


def _encoded(device: int) -> int:
    """A device number as the kernel tells it to user space (new_encode_dev in linux/kdev_t.h)."""
    major, minor = os.major(device), os.minor(device)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
