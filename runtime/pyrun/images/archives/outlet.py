"""Where `pyrun.images.archives.save` writes to: a tar on a descriptor, a tar that replaces a file, a directory.

The same members give the same bytes: they come in order of their names, owned by root, of the year 1970. A file or
directory appears under its name only when it is complete and on disk; one that was there is replaced by one rename.
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
from ...kernel.files import sync_directory, write_all

_DIRECTORY = 0o755
_FILE = 0o644
_BLOCK = 512

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
    """The members as files below ``path``."""

    def __init__(self, path: str) -> None:
        self._path = path

    def directory(self, name: str) -> None:
        os.makedirs(f"{self._path}/{name}", mode=_DIRECTORY, exist_ok=True)

    def file(self, name: str, size: int, pieces: Pieces) -> None:
        path = f"{self._path}/{name}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE)
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
def file_at(path: str, *, hint: str = "Name a file.") -> Iterator[int]:
    """A descriptor whose file becomes ``path`` when the block ends without an error; until then what was there stays.
    Where ``path`` is no regular file (a pipe, /dev/stdout) it is written to. ``hint`` is for a directory."""
    try:
        special = not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        special = False
    if special and os.path.isdir(path):
        raise UsageError(f"{path} is a directory", hint=hint)
    if special:
        with words(path):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    with _replacing(os.path.realpath(path)) as fd:
        yield fd


@contextmanager
def directory_at(path: str) -> Iterator[DirectoryOutlet]:
    """A directory that becomes ``path``, which must be empty or not be there, when the block ends without an
    error."""
    path = os.path.realpath(path)
    if os.path.lexists(path) and (not os.path.isdir(path) or os.listdir(path)):
        raise UsageError(f"{path} is there already", hint="Name a directory that is empty or does not exist.")
    parent, name = os.path.split(path)
    working = f"{parent}/.{name[:200]}.{os.urandom(6).hex()}"
    with words(path):
        os.mkdir(working, 0o700)
    try:
        yield DirectoryOutlet(working)
        with words(path):
            os.chmod(working, _DIRECTORY & ~_umask())
            os.rename(working, path)
            sync_directory(parent)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


@contextmanager
def _replacing(path: str) -> Iterator[int]:
    """A descriptor whose file becomes ``path``. It has no name while it is written, where the file system can do
    that (O_TMPFILE, man open): then nothing is left even by SIGKILL."""
    parent, name = os.path.split(path)
    working = f"{parent}/.{name[:200]}.{os.urandom(6).hex()}"
    named = False
    with words(path):
        mode = _FILE & ~_umask()
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE(os.stat(path).st_mode)
        try:
            fd = os.open(parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            fd = os.open(working, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            named = True
    try:
        yield fd
        with words(path):
            os.fchmod(fd, mode)
            os.fsync(fd)
            if not named:
                # Given a directory, Python calls linkat with AT_SYMLINK_FOLLOW, which this needs (man open).
                os.link(f"/proc/self/fd/{fd}", working, src_dir_fd=fd, follow_symlinks=True)
                named = True
            os.rename(working, path)
            named = False
            sync_directory(parent)
    finally:
        os.close(fd)
        if named:
            with suppress(OSError):
                os.unlink(working)


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
