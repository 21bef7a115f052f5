"""A generator that runs in a thread, read as a file."""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Callable, Generator

MAX_WAITING = 8  # pieces of at most 1 MiB between producer and reader

# Called with a function that tells whether output is still wanted.
Producer = Callable[[Callable[[], bool]], Generator[bytes, None, None]]


class ThreadedReader(io.RawIOBase):
    """The bytes that ``produce`` yields, made in a thread a bounded queue ahead of the reader.

    The producer's exception is raised by the read that reaches it; b"" means that it ended without one.
    Closing early closes the generator, and waits for that.
    """

    def __init__(self, produce: Producer) -> None:
        super().__init__()
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(MAX_WAITING)
        self._piece = memoryview(b"")
        self._discarding = False
        self._stopped = False
        self._end: BaseException | bool = False  # True: ended well
        self._thread = threading.Thread(target=self._run, args=(produce,), daemon=True)
        self._thread.start()

    def _run(self, produce: Producer) -> None:
        end: BaseException | None = None
        source = produce(lambda: self._discarding)
        try:
            for piece in source:
                if self._stopped:
                    break
                self._queue.put(piece)
        except BaseException as error:
            end = error
        finally:
            source.close()
        self._queue.put(end)

    def _next(self) -> bool:
        """Wait for the next piece; False at the end."""
        if isinstance(self._end, BaseException):
            raise self._end
        if self._end:
            return False
        item = self._queue.get()
        if isinstance(item, bytes):
            self._piece = memoryview(item)
            return True
        self._end = True if item is None else item
        self._thread.join()
        return self._next()

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        """At most ``size`` bytes, fewer where that saves a copy; everything for -1. b"" at the end."""
        if size is None or size < 0:
            return self.readall()
        while not self._piece:
            if not self._next():
                return b""
        taken, self._piece = self._piece[:size], self._piece[size:]
        if not self._piece and isinstance(taken.obj, bytes) and len(taken) == len(taken.obj):
            return taken.obj
        return bytes(taken)

    def readinto(self, buffer: object, /) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._piece:
            if not self._next():
                return 0
        count = min(len(target), len(self._piece))
        target[:count], self._piece = self._piece[:count], self._piece[count:]
        return count

    def drain(self) -> None:
        """Read to the end for the sake of its checks."""
        self._piece = memoryview(b"")
        while self._next():
            pass
        self._piece = memoryview(b"")

    def discard(self) -> None:
        """Let the producer finish without output: what it still finds out is raised."""
        self._discarding = True
        self.drain()

    def close(self) -> None:
        if not self.closed and self._end is False:
            self._stopped = True
            while isinstance(self._queue.get(), bytes):
                pass
            self._end = True
            self._thread.join()
        super().close()
