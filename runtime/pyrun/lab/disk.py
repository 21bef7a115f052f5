"""A fresh file system for each measurement.

On an old ext4, unpacking right after a deletion takes many times as long (it avoids inodes that were just freed),
so nothing measured on one says anything. As root each round gets a new file system in a sparse file, mounted by a
loop device with direct I/O, so that the file's own pages are not cached a second time.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time

from ..errors import StorageError, Unsupported
from ..kernel import mount as m

# How each is made and mounted: no inode tables written in the background while something is measured.
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
}
_OPTIONS = {"ext4": "noinit_itable", "btrfs": "", "xfs": ""}
_PACKAGES = {"ext4": "e2fsprogs", "btrfs": "btrfs-progs", "xfs": "xfsprogs"}
KINDS = tuple(_MAKE)
_BYTES = 16 << 30
_PATIENCE = 10.0  # seconds in which what keeps a file system busy must have gone


class Disk:
    """A context manager: a new file system of ``kind`` at ``path``, kept in a file in ``directory``. Mounted in the
    caller's mount namespace, which should be a private one."""

    def __init__(self, directory: str, kind: str) -> None:
        self.kind = kind
        self.image = f"{directory}/disk.img"
        self.path = f"{directory}/disk"

    def __enter__(self) -> Disk:
        with open(self.image, "wb") as file:
            file.truncate(_BYTES)
        try:
            _run(*_MAKE[self.kind], self.image)
            os.mkdir(self.path)
            self.mount()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        if os.path.ismount(self.path):
            self.unmount()
        if os.path.exists(self.path):
            os.rmdir(self.path)
        os.unlink(self.image)

    def mount(self) -> None:
        options = ["-o", _OPTIONS[self.kind]] if _OPTIONS[self.kind] else []
        device = _run("losetup", "--find", "--show", "--direct-io=on", self.image).strip()
        try:
            _run("mount", "-t", self.kind, *options, device, self.path)
        finally:
            _run("losetup", "--detach", device)  # with the last mount: also when this process is killed

    def unmount(self) -> None:
        """Write everything out and forget it: afterwards nothing of the file system is in memory. Raises
        `StorageError` where something keeps it busy."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                m.umount(self.path, 0)
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    m.umount(self.path)
                    raise StorageError(
                        f"the file system of a measurement can't be unmounted: {error.strerror}",
                        hint="A process of the driver still uses it.",
                    ) from error
            time.sleep(0.05)


def require(kind: str) -> None:
    """Raises `Unsupported` where such a file system can't be made here."""
    for program in (_MAKE[kind][0], "losetup", "mount"):
        if _find(program) is None:
            package = _PACKAGES[kind] if program.startswith("mkfs") else "mount"
            raise Unsupported(
                f"a fresh {kind} needs {program}, which is not installed",
                hint=f"Install the package {package}, or choose another with --fs.",
            )


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _run(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [_find(program) or program, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )
    if done.returncode:
        raise StorageError(
            f"{program} failed: {done.stderr.strip() or f'exit code {done.returncode}'}",
            hint="--fs none measures in a directory, as it is.",
        )
    return done.stdout
