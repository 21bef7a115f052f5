"""Where `pyrun.images.archives.save` writes to: a tar on a descriptor, a tar that replaces a file, a directory.

The same members give the same bytes: they come in order of their names, owned by root, of the year 1970. A file or
directory appears under its name only when it is complete and on disk; one that was there is replaced by one rename.

The place may be in a directory of somebody else's: it is found once, and held by a descriptor.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from ...errors import PyrunError, UsageError
from ...kernel.files import write_all

_DIRECTORY = 0o755
_FILE = 0o644
PRIVATE = 0o600
_BLOCK = 512
_LINKS = 40  # as the kernel has it
_O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

Pieces = Iterable[bytes | memoryview]


class Outlet(Protocol):
    def directory(self, name: str) -> None: ...

    def file(self, name: str, size: int, pieces: Pieces) -> None:
        """``pieces`` are ``size`` bytes together; what they raise passes through."""


class TarOutlet:
    """A tar (ustar, with GNU's extensions for long names and large sizes) on the descriptor ``fd``; ``what`` names it
    in messages."""

    def __init__(self, fd: int, what: str) -> None:
        self._fd = fd
        self._what = what

    def directory(self, name: str) -> None:
        self._header(name + "/", 0, tarfile.DIRTYPE, _DIRECTORY)

    def file(self, name: str, size: int, pieces: Pieces) -> None:
        self._header(name, size, tarfile.REGTYPE, _FILE)
        for piece in pieces:
            self._write(piece)
        self._write(bytes(-size % _BLOCK))

    def finish(self) -> None:
        """The two blocks of zeros that end a tar."""
        self._write(bytes(2 * _BLOCK))

    def _header(self, name: str, size: int, kind: bytes, mode: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.mode = size, kind, mode
        self._write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))

    def _write(self, data: bytes | memoryview) -> None:
        with words(self._what):
            write_all(self._fd, data)


class DirectoryOutlet:
    """The members as files below the directory ``fd``; ``path`` names it in messages."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    def directory(self, name: str) -> None:
        made = ""
        for part in name.split("/"):
            made = f"{made}/{part}" if made else part
            with words(f"{self._path}/{made}"), suppress(FileExistsError):
                os.mkdir(made, _DIRECTORY, dir_fd=self._fd)

    def file(self, name: str, size: int, pieces: Pieces) -> None:
        path = f"{self._path}/{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, _FILE, dir_fd=self._fd)
            try:
                for piece in pieces:
                    write_all(fd, piece)
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise _unwritable(path, error) from error


@contextmanager
def tar_at(path: str) -> Iterator[TarOutlet]:
    """A tar that becomes the file ``path``, as `file_at` has it."""
    with file_at(path, hint="Name a file, or write a directory: --format oci-dir.") as fd:
        outlet = TarOutlet(fd, path)
        yield outlet
        outlet.finish()


@contextmanager
def file_at(path: str, *, mode: int = _FILE, hint: str = "Name a file.") -> Iterator[int]:
    """A descriptor whose file becomes ``path`` when the block ends without an error; until then what was there stays.
    Where ``path`` is no regular file (a pipe, /dev/stdout) it is written to. ``mode`` is that of a new file, less the
    umask; ``hint`` is for a directory.

    What others may have put at ``path``, in /tmp say, has no say: a symbolic link of somebody else's is refused, and
    the mode of somebody else's file isn't taken over.
    """
    try:
        special = not stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError as error:
        raise _unwritable(path, error) from error  # fs.protected_symlinks, perhaps (man proc_sys_fs)
    except OSError:
        special = False
    if special and os.path.isdir(path):
        raise UsageError(f"{path} is a directory", hint=hint)
    if special:
        with words(path):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                raise PyrunError(f"{path} was replaced while it was opened")
            yield fd
        finally:
            os.close(fd)
        return
    with _place(path) as (parent, name), _replacing(parent, name, mode, path) as fd:
        yield fd


@contextmanager
def directory_at(path: str) -> Iterator[DirectoryOutlet]:
    """A directory that becomes ``path``, which must be empty or not be there, when the block ends without an
    error."""
    with _place(path) as (parent, name):
        if not _is_free(parent, name):
            raise UsageError(
                f"{path} is there already", hint="Name a directory that is empty or does not exist."
            )
        working = f".{name[:200]}.{os.urandom(6).hex()}"
        with words(path):
            os.mkdir(working, 0o700, dir_fd=parent)
        fd = -1
        try:
            with words(path):
                fd = os.open(working, _O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
                if os.fstat(fd).st_uid != os.geteuid():
                    raise PermissionError(
                        errno.EPERM, os.strerror(errno.EPERM)
                    )  # whose is the one around it?
            yield DirectoryOutlet(fd, path)
            with words(path):
                os.fchmod(fd, _DIRECTORY & ~_umask())
                os.rename(working, name, src_dir_fd=parent, dst_dir_fd=parent)
                os.fsync(parent)
        except BaseException:
            shutil.rmtree(working, ignore_errors=True, dir_fd=parent)
            raise
        finally:
            if fd >= 0:
                os.close(fd)


def _is_free(parent: int, name: str) -> bool:
    """Whether there is nothing, or an empty directory."""
    try:
        fd = os.open(name, _O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        return error.errno == errno.ENOENT
    try:
        return not os.listdir(fd)
    finally:
        os.close(fd)


@contextmanager
def _place(path: str) -> Iterator[tuple[int, str]]:
    """(descriptor of a directory, name in it) that ``path`` stands for. Links at its end are followed where they are
    the user's own or root's; nothing can be exchanged on the way from here on. Raises `PyrunError`."""
    above, name = os.path.split(path.rstrip("/") or "/")
    if name in ("", ".", ".."):
        above, name = os.path.split(os.path.realpath(path))
    fd = -1
    try:
        with words(path):
            fd = os.open(above or ".", _O_DIRECTORY)
            for _ in range(_LINKS):
                try:
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    break
                if not stat.S_ISLNK(found.st_mode):
                    break
                if not _trusted(found.st_uid):
                    raise PyrunError(
                        f"{path} is a symbolic link of another user's, who chose where it leads",
                        hint="Name a file that isn't one, best in a directory of your own.",
                    )
                above, name = os.path.split(os.readlink(name, dir_fd=fd))
                following = os.open(above or ".", _O_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = following
            else:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        yield fd, name
    finally:
        if fd >= 0:
            os.close(fd)


def _trusted(owner: int) -> bool:
    """Whether a link of ``owner``'s is followed. In a user namespace root's look like everybody else's; there it is an
    ordinary user who could be led astray, and fs.protected_symlinks guards him."""
    if owner in (0, os.geteuid()):
        return True
    with open("/proc/self/uid_map", encoding="ascii") as file:
        mapped = sum(int(line.split()[2]) for line in file)
    with open("/proc/sys/fs/overflowuid", encoding="ascii") as file:
        return mapped < 0xFFFFFFFF and owner == int(file.read())


@contextmanager
def _replacing(parent: int, name: str, mode: int, path: str) -> Iterator[int]:
    """A descriptor whose file becomes ``name`` in the directory ``parent``. It has no name while it is written, where
    the file system can do that (O_TMPFILE, man open): then nothing is left even by SIGKILL."""
    working = f".{name[:200]}.{os.urandom(6).hex()}"
    named = False
    with words(path):
        mode &= ~_umask()
        with suppress(FileNotFoundError):
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if found.st_uid == os.geteuid():
                mode = found.st_mode & 0o777
        try:
            fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fd = os.open(working, flags, 0o600, dir_fd=parent)
            named = True
    try:
        yield fd
        with words(path):
            os.fchmod(fd, mode)
            os.fsync(fd)
            if not named:
                # Given a directory, Python calls linkat with AT_SYMLINK_FOLLOW, which this needs (man open).
                os.link(f"/proc/self/fd/{fd}", working, dst_dir_fd=parent, follow_symlinks=True)
                named = True
            os.rename(working, name, src_dir_fd=parent, dst_dir_fd=parent)
            named = False
            os.fsync(parent)
    finally:
        os.close(fd)
        if named:
            with suppress(OSError):
                os.unlink(working, dir_fd=parent)


@contextmanager
def words(path: str) -> Iterator[None]:
    """What writing ``path`` raises becomes a `PyrunError`, but for BrokenPipeError: nobody reads on."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(what: str, error: OSError) -> PyrunError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return PyrunError(f"no space left for {what}", hint="Nothing of it was kept. Free some space.")
    return PyrunError(f"{what} can't be written: {error.strerror}", hint="Nothing of it was kept.")


def _umask() -> int:
    """This process's, without changing it (man proc_pid_status)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022
