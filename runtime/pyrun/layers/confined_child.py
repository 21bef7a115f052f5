"""The child's side of `pyrun.layers.confined`: what happens between its birth and its answer."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NoReturn

from ..errors import LayerError, PyrunError
from ..kernel import process as p
from ..kernel.files import write_all
from . import confinement
from .confinement import Confinement
from .stream import ThreadedReader

Buffer = bytes | bytearray | memoryview
Transform = Callable[[Iterator[Buffer]], Iterator[bytes]]
Work = Callable[[ThreadedReader, int], Any]

# Where its descriptors are: the compressed bytes, its answer, its directory, the plain bytes if they are asked for,
# and what nobody reads but whose end tells that it is gone.
DATA, REPLY, ROOT, PLAIN, LIFELINE = 3, 4, 5, 6, 7
CHUNK = 256 << 10  # bytes a read
MESSAGE = 4096  # characters of an error


def live(
    fds: Sequence[int],
    confined: Confinement,
    transform: Transform,
    work: Work,
    keep: Sequence[str],
) -> NoReturn:
    """The child's whole life."""
    code = 1
    try:
        gc.freeze()  # what is the parent's is never torn down here: its descriptors' numbers are given out again
        found: dict[str, Any]
        try:
            confinement.settle_signals()
            _take(fds)
            root = confined.enter(ROOT)
            confined.drop(keep, root)
            gate = _Gate()
            stream = ThreadedReader(lambda discarding: gate.behind(transform))
            confined.seal()
            gate.open()
            value = work(stream, root)
            stream.drain()
            found = {"value": value}
        except PyrunError as error:
            found = {
                "error": type(error).__name__,
                "message": error.message[:MESSAGE],
                "hint": error.hint[:MESSAGE],
            }
        except MemoryError:
            found = {"memory": True}
        except BaseException as error:
            trace = "".join(traceback.format_exception(error))
            found = {"crash": f"{type(error).__name__}: {error}"[:MESSAGE], "trace": trace[-2 * MESSAGE :]}
        found["missing"] = confined.missing
        write_all(REPLY, json.dumps(found).encode())
        code = 0
    finally:
        # Nothing of the parent's may be flushed or run a second time here.
        os._exit(code)


def _take(given: Sequence[int]) -> None:
    """The descriptors at their places, /dev/null at the standard ones, and no others."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    # The places of those that are not there are taken by /dev/null.
    fds = [fd if fd >= 0 else null for fd in given]
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 64) for fd in fds]
    standard = [fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, 64) for _ in range(3)]
    for place, fd in enumerate([*standard, *high]):
        os.dup2(fd, place, inheritable=False)
    p.close_from(len(standard) + len(high))


def _warm() -> None:
    """What Python loads at first use, while it can: once, for all children."""
    b"".decode("utf-8", "backslashreplace")
    "\1".encode("unicode_escape").decode("ascii")
    b"".decode("latin-1")
    json.dumps({"a": ["\udcff"]})
    try:
        raise LayerError("")
    except LayerError as error:
        traceback.format_exception(error)


_warm()


class _Gate:
    """Holds the thread, which has to exist before the last system call that could make one."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    def behind(self, transform: Transform) -> Generator[bytes, None, None]:
        self._open.wait()
        yield from transform(_received())


def _received() -> Iterator[Buffer]:
    """What comes through the pipe; a buffer is overwritten once the next is asked for."""
    buffer = memoryview(bytearray(CHUNK))
    with open(DATA, "rb", buffering=0, closefd=False) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]
