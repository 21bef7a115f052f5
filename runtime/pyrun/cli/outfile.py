"""Files that commands write: whole under their name, or not at all."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import PyrunError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_BUFFER = 1 << 20


@contextmanager
def written(path: str | None, what: str) -> Iterator[BinaryIO]:
    """A file to write ``what`` to: ``path``, or standard output where that is None or "-".

    A regular file appears under its name, in place of one that was there, when all of it is on disk; after an error
    nothing has changed. What is no regular file (a pipe, /dev/null) is written as it is. Raises `PyrunError`: for a
    terminal, to which no archive is written, and for what the system refuses.
    """
    if path is None or path == "-":
        yield from _standard_output(what)
        return
    try:
        found = os.stat(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _failed(path, error) from error
    else:
        if stat.S_ISDIR(found.st_mode):
            raise PyrunError(f"can't write {what} to {path}: it is a directory", hint="Name a file: -o FILE.")
        if not stat.S_ISREG(found.st_mode):
            yield from _existing(path)
            return
    yield from _replaced(os.path.realpath(path))


def _standard_output(what: str) -> Iterator[BinaryIO]:
    if sys.stdout is None:
        raise PyrunError("can't write the output: standard output is closed")
    if os.isatty(1):
        raise PyrunError(
            f"not writing {what} to a terminal", hint="Name a file (-o FILE), or redirect standard output."
        )
    sys.stdout.flush()
    with _told("standard output"), open(1, "wb", buffering=_BUFFER, closefd=False) as file:
        yield file


def _existing(path: str) -> Iterator[BinaryIO]:
    with _told(path), open(path, "wb", buffering=_BUFFER) as file:
        yield file


def _replaced(path: str) -> Iterator[BinaryIO]:
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name[:200]}.{os.urandom(6).hex()}.tmp"
    with _told(path):
        # As open(2) would make it: by the caller's umask.
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            with open(fd, "wb", buffering=_BUFFER) as file:
                yield file
                file.flush()
                os.fsync(fd)
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise


@contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _failed(path, error) from error


def _failed(path: str, error: OSError) -> PyrunError:
    return PyrunError(f"can't write {path}: {error.strerror}", hint="Nothing was put there.")
