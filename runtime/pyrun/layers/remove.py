"""Remove a directory tree that may be hostile: any depth, any names, any modes.

On the path of `run --rm`: the standard library's os only. Every step is relative to the fd of a directory
inside the tree, opened O_NOFOLLOW, so no symbolic link is followed, however the tree
changes meanwhile. Mount points are never crossed: what is mounted in the tree is not part of it.
"""

from __future__ import annotations

import os
import stat
from errno import EACCES, EBUSY, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, EPERM, EXDEV

from ..errors import KernelError
from ..kernel.openat2 import RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2
from .names import shown

_O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_RESOLVE = RESOLVE_NO_XDEV | RESOLVE_NO_SYMLINKS

# Open fds are bounded by this: a directory that lies deeper is moved up before it is entered.
_DEPTH = 64
# Subdirectories remembered of one directory before they are dealt with.
_BATCH = 4096


def remove_tree(path: str) -> None:
    """Remove the file or directory tree ``path``. A missing path is success. Not atomic: after an error some
    of it is gone; calling again goes on. The last component of ``path`` is not followed if it is a symbolic
    link; those before it are the caller's to trust.

    Unreadable directories are made accessible where the caller owns them. Raises `KernelError` naming the
    path, for one where an immutable flag (chattr +i) or a mount stands in the way.
    """
    parent, base = os.path.split(path.rstrip("/"))
    try:
        dirfd = os.open(
            parent or ("/" if path.startswith("/") else "."), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        )
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise _failed(path, error) from error
    try:
        remove_at(dirfd, os.fsencode(base))
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        os.close(dirfd)


def remove_at(dirfd: int, name: bytes | str) -> None:
    """`remove_tree` for ``name`` beneath ``dirfd``. Raises OSError; its ``filename`` is the path below
    ``dirfd`` (as bytes)."""
    name = os.fsencode(name)
    try:
        os.unlink(name, dir_fd=dirfd)
        return
    except FileNotFoundError:
        return
    except OSError as error:
        # POSIX lets unlink of a directory be EPERM; Linux says EISDIR. An immutable file is EPERM too.
        if error.errno not in (EISDIR, EPERM, EACCES):
            raise
        if error.errno != EISDIR and not _is_directory(dirfd, name):
            raise
    frames: list[_Directory] = []
    try:
        _remove_directories(dirfd, name, frames)
    except OSError as error:
        below = [frame.name for frame in frames]
        # Listing names a directory by its descriptor, a number; it is the last of those that are open.
        if isinstance(error.filename, str | bytes) and os.fsencode(error.filename) not in below[-1:]:
            below.append(os.fsencode(error.filename))
        error.filename = b"/".join(below)
        raise
    finally:
        for frame in frames:
            os.close(frame.fd)


class _Directory:
    """One that is being emptied: its fd, its name in the one before, and subdirectories still to do."""

    __slots__ = ("fd", "name", "pending", "scanned")

    def __init__(self, fd: int, name: bytes) -> None:
        self.fd = fd
        self.name = name
        self.pending: list[str] = []
        self.scanned = False


def _remove_directories(dirfd: int, name: bytes, frames: list[_Directory]) -> None:
    frames.append(_Directory(_enter(dirfd, name), name))
    moved = 0
    while frames:
        frame = frames[-1]
        if frame.pending:
            child = frame.pending.pop()
            if len(frames) < _DEPTH:
                fd = _enter(frame.fd, child)
                frames.append(_Directory(fd, os.fsencode(child)))
            else:
                moved = _move_up(frame.fd, child, frames[0].fd, moved)
            continue
        if not frame.scanned:
            frame.pending = _unlink_files(frame.fd)
            frame.scanned = True
            continue
        above = frames[-2].fd if len(frames) > 1 else dirfd
        try:
            os.rmdir(frame.name, dir_fd=above)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (ENOTEMPTY, EEXIST):
                raise
            frame.scanned = False  # a batch was not all, or something was moved here
            continue
        frames.pop()
        os.close(frame.fd)


def _unlink_files(fd: int) -> list[str]:
    """Unlink what is not a directory; names of at most `_BATCH` directories."""
    directories: list[str] = []
    with os.scandir(fd) as found:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
                if len(directories) == _BATCH:
                    break
                continue
            try:
                os.unlink(entry.name, dir_fd=fd)
            except FileNotFoundError:
                pass
    return directories


def _enter(dirfd: int, name: bytes | str) -> int:
    """Open a directory for emptying it; one that lacks its owner's permissions gets them."""
    try:
        fd = openat2(dirfd, name, _O_DIRECTORY, resolve=_RESOLVE)
    except PermissionError as error:
        if error.errno != EACCES:
            raise
        _make_accessible(dirfd, name)
        fd = openat2(dirfd, name, _O_DIRECTORY, resolve=_RESOLVE)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        try:
            os.fchmod(fd, 0o700)
        except PermissionError:
            pass  # another's: removing may work all the same, by capability
    return fd


def _make_accessible(dirfd: int, name: bytes | str) -> None:
    """Mode 0700 for the directory ``name``. An O_PATH fd pins it, so that no symbolic link put in its place
    is followed; fchmod refuses such an fd."""
    fd = openat2(dirfd, name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, resolve=_RESOLVE)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)


def _move_up(fd: int, name: str, top: int, moved: int) -> int:
    """Rename the directory ``name`` into the tree's top directory, under a name that is free there. ``moved``
    counts such names; returns the new count."""
    accessible = False
    while True:
        moved += 1
        try:
            os.rename(name, f".{moved}", src_dir_fd=fd, dst_dir_fd=top)
            return moved
        except FileNotFoundError:
            return moved
        except OSError as error:
            if error.errno in (EEXIST, ENOTEMPTY, ENOTDIR):
                continue
            if error.errno != EACCES or accessible:
                raise
            # To move a directory is to write its "..".
            _make_accessible(fd, name)
            accessible = True


def _is_directory(dirfd: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(name, dir_fd=dirfd).st_mode)


def _failed(path: str, error: OSError) -> KernelError:
    below = error.filename
    where = shown(os.fsencode(below)) if below is not None else shown(os.fsencode(path))
    hint = ""
    if error.errno == EPERM:
        hint = "A file with an immutable or append-only flag: see lsattr, and take it off with chattr -i -a."
    elif error.errno in (EBUSY, EXDEV):
        hint = "Something is mounted there: see findmnt, and unmount it."
    return KernelError(
        f"can't remove {path}: {where}: {error.strerror}",
        errno=error.errno or 0,
        syscall="unlinkat",
        path=path,
        hint=hint,
    )
