"""Small file systems that a case may fill, break, or cut the power of. In a mount namespace of the case's own.

A disk is a tmpfs, or a file mounted by a loop device that the kernel frees with the mount.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PyrunError, StorageError
from ..kernel import mount as m
from ..storage.contract import Driver
from .rig import Rig, Unusable

MiB = 1 << 20
# The least bytes that mkfs makes each of, and how: no space for root alone, no inode tables made later on.
_MAKE: dict[str, tuple[int, list[str]]] = {
    "ext4": (16 * MiB, ["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
    "btrfs": (128 * MiB, ["mkfs.btrfs", "-q"]),
    "xfs": (320 * MiB, ["mkfs.xfs", "-q"]),
}
KINDS = ("tmpfs", "ext4", "btrfs", "xfs")
LOOP_KINDS = ("ext4", "btrfs", "xfs")


class NoDisk(StorageError):
    """None of the file systems can be made here with the driver working on it; the message says why."""


class Disk:
    """A mounted file system.

    kind    as /proc/filesystems calls it
    path    where it is mounted
    image   the file that it is in; "" for a tmpfs
    """

    def __init__(self, kind: str, path: str, image: str) -> None:
        self.kind = kind
        self.path = path
        self.image = image

    def unmount(self) -> None:
        m.umount(self.path)

    def copy(self, target: str) -> None:
        """What the disk would hold if the power went now: the image's bytes, without those that only memory has.

        A copy takes a moment, in which the kernel may write: it is made again until the image was the same
        before and after it. Raises `StorageError` for an image that never rests.
        """
        for _ in range(50):
            copy_file(self.image, target)
            if _same(self.image, target):
                return
        raise StorageError(f"the image {self.image} is being written all the time")


def make(kind: str, path: str, size: int, image: str, options: str = "") -> Disk:
    """A new, empty file system of at least ``size`` bytes, mounted on the directory ``path``. ``options`` as for
    mount(8). Raises `NoDisk`."""
    if kind == "tmpfs":
        try:
            m.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, f"size={size},mode=755".encode())
        except OSError as error:
            raise NoDisk(f"tmpfs: {error.strerror}") from error
        return Disk(kind, path, "")
    least, command = _MAKE[kind]
    with open(image, "wb") as file:
        file.truncate(max(size, least))
    _run([*command, image])
    return attach(kind, path, image, options)


def attach(kind: str, path: str, image: str, options: str = "") -> Disk:
    """Mount the file ``image``, which holds a file system. Raises `NoDisk`."""
    _run(["mount", "-t", kind, "-o", ",".join(filter(None, ("loop", options))), image, path])
    return Disk(kind, path, image)


def fitting(
    driver: type[Driver],
    options: Mapping[str, Any],
    path: str,
    size: int,
    kinds: Sequence[str] = KINDS,
) -> Disk:
    """A small file system on ``path`` (made if missing; an image is put beside it) of the first of ``kinds`` on
    which the driver works. Raises `NoDisk` with every kind's reason."""
    os.makedirs(path, exist_ok=True)
    reasons = []
    for kind in kinds:
        try:
            disk = make(kind, path, size, f"{path}.{kind}")
        except NoDisk as error:
            reasons.append(error.message)
            continue
        try:
            Rig(driver, f"{path}/probe", options).close()
        except (Unusable, PyrunError) as error:
            reasons.append(f"{kind}: {error.message}")
            disk.unmount()
            continue
        shutil.rmtree(f"{path}/probe")
        return disk
    raise NoDisk(f"no small file system for the driver {driver.name}: {'; '.join(reasons)}")


def fill(path: str, leave: int = 0) -> None:
    """Append to the file ``path`` until its file system is full but for ``leave`` bytes, as df counts them."""
    with open(path, "ab", buffering=0) as file:
        for size in (MiB, 64 << 10, 4 << 10):
            chunk = os.urandom(size)  # a file system that compresses must not
            while True:
                st = os.fstatvfs(file.fileno())
                if st.f_bavail * st.f_frsize < leave + size:
                    break
                try:
                    written = file.write(chunk)
                    os.fsync(file.fileno())
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break
                if not written:
                    break


def copy_file(source: str, target: str) -> None:
    """Copy a sparse file, and its holes as holes."""
    with open(source, "rb", buffering=0) as one, open(target, "wb", buffering=0) as two:
        size = os.fstat(one.fileno()).st_size
        two.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(one.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            end = os.lseek(one.fileno(), at, os.SEEK_HOLE)
            while at < end:
                data = os.pread(one.fileno(), min(end - at, MiB), at)
                at += os.pwrite(two.fileno(), data, at)


def _same(one: str, two: str) -> bool:
    with open(one, "rb", buffering=0) as first, open(two, "rb", buffering=0) as second:
        while True:
            data = first.read(MiB)
            if data != second.read(MiB):
                return False
            if not data:
                return True


def _run(command: list[str]) -> None:
    path = os.environ.get("PATH", os.defpath)
    program = shutil.which(command[0], path=f"{path}:/usr/sbin:/sbin")
    if program is None:
        raise NoDisk(f"{command[0]} is not installed")
    done = subprocess.run([program, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise NoDisk(f"{command[0]}: {said[-1]}")
