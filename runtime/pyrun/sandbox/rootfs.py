"""Inside the new root: finding mount targets, attaching, hiding, and pivot_root. On the path of `run`.

Runs in the container's first process, over a rootfs that somebody else filled. Targets are opened by
openat2(2) within the root, never named by a string that was checked before (CVE-2021-30465, CVE-2019-19921,
CVE-2023-27561); missing ones are made on directory fds (CVE-2024-45310).
"""

from __future__ import annotations

import os
import stat

from ..errors import ContainerError
from ..kernel import mount as m
from ..kernel.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_LINKS = 40  # as the kernel's own limit on symlinks in one walk (man path_resolution)
_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


def open_in(root: int, path: str, flags: int = os.O_PATH, *, symlinks: bool = True) -> int:
    """Open ``path`` as a process chrooted to ``root`` would, without magic links."""
    return openat2(root, path or "/", flags, 0, _IN_ROOT if symlinks else _IN_ROOT | RESOLVE_NO_SYMLINKS)


def make_directories(root: int, path: str, mode: int = 0o755) -> int:
    """Open the directory ``path`` within ``root``, making what is missing; an O_PATH fd."""
    return _ensure(root, path, lambda parent, name: os.mkdir(name, mode, dir_fd=parent))


def make_file(root: int, path: str) -> int:
    """Open the file ``path`` within ``root``, making it, and its directories, where missing; an O_PATH fd."""

    def create(parent: int, name: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o644, dir_fd=parent))

    return _ensure(root, path, create)


def _ensure(root: int, path: str, create: Callable[[int, str], None]) -> int:
    if ".." in path.split("/"):
        raise ContainerError(f"the path {path!r} inside the container has a '..' component")
    try:
        for _ in range(_MAX_LINKS):
            try:
                return open_in(root, path)
            except FileNotFoundError:
                following = _make_missing(root, path, create)
            if following is None:
                continue
            path = following
        raise OSError(40, os.strerror(40))
    except OSError as error:
        raise ContainerError(f"can't make {path!r} inside the container: {error.strerror}") from error


def _make_missing(root: int, path: str, create: Callable[[int, str], None]) -> str | None:
    """Make the components of ``path`` that are missing, each on the fd of the one before; resolved within
    the root, so that symlinks of the image lead where they would lead inside the container.

    Stops at a dangling symlink, and returns the path that it stands for.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    current = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        for depth, name in enumerate(parts, 1):
            prefix = "/".join(parts[:depth])
            try:
                following = open_in(root, prefix)
            except FileNotFoundError:
                try:
                    if depth == len(parts):
                        create(current, name)
                    else:
                        os.mkdir(name, 0o755, dir_fd=current)
                except FileExistsError:
                    target = os.readlink(name, dir_fd=current)
                    above = "" if target.startswith("/") else "/".join(parts[: depth - 1])
                    return "/".join((above, target, *parts[depth:]))
                following = open_in(root, prefix)
            os.close(current)
            current = following
        return None
    finally:
        os.close(current)


def attach(root: int, mount: int, path: str, *, symlinks: bool = True) -> None:
    """Attach the detached ``mount`` at ``path``, a directory or a file as the mount's own root is."""
    is_directory = stat.S_ISDIR(os.stat(mount).st_mode)
    if symlinks:
        target = make_directories(root, path) if is_directory else make_file(root, path)
    else:
        os.close(make_directories(root, path))
        target = open_in(root, path, symlinks=False)
    try:
        if stat.S_ISDIR(os.stat(target).st_mode) != is_directory:
            kinds = ("a file", "a directory")
            raise ContainerError(f"can't mount {kinds[is_directory]} onto {kinds[not is_directory]}: {path}")
        m.move_mount(mount, target)
    finally:
        os.close(target)


def mask(root: int, paths: list[str]) -> None:
    """Hide each path that exists: a directory under an empty read-only tmpfs, a file under /dev/null.

    The null device is opened once and must be the character device 1:3 (CVE-2025-31133).
    """
    null = -1
    try:
        for path in paths:
            try:
                target = open_in(root, path, symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            try:
                if stat.S_ISDIR(os.stat(target).st_mode):
                    cover = m.new_mount("tmpfs", {"size": "0"}, attributes=m.MOUNT_ATTR_RDONLY)
                else:
                    if null < 0:
                        null = _null_device(root)
                    cover = m.open_tree(null, "")
                m.move_mount(cover, target)
                os.close(cover)
            finally:
                os.close(target)
    finally:
        if null >= 0:
            os.close(null)


def null_device() -> int:
    """/dev/null of the root that this process is in, opened for reading and writing."""
    checked = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        null = _null_device(checked)
    finally:
        os.close(checked)
    try:
        return os.open(f"/proc/self/fd/{null}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(null)


def _null_device(root: int) -> int:
    null = open_in(root, "/dev/null", symlinks=False)
    found = os.stat(null)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        os.close(null)
        raise ContainerError("/dev/null inside the container is not the null device; not starting")
    return null


def make_readonly(root: int, paths: list[str]) -> None:
    """Cover each path that exists with a read-only clone of itself."""
    for path in paths:
        try:
            target = open_in(root, path, symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            cover = m.open_tree(target, "", recursive=True)
            m.mount_setattr(cover, set=m.MOUNT_ATTR_RDONLY, recursive=True)
            m.move_mount(cover, target)
            os.close(cover)
        finally:
            os.close(target)


def enter(root: int) -> None:
    """Make ``root``, an attached mount, this process's root, and let go of the old tree.

    pivot_root(".", ".") stacks the old root on the new one, from where it is detached (man pivot_root).
    """
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchdir(root)
        m.pivot_root(b".", b".")
        os.fchdir(old)
        m.mount(None, b".", None, m.MS_REC | m.MS_PRIVATE)
        m.umount(".", m.MNT_DETACH)
    finally:
        os.close(old)
    os.chdir("/")
