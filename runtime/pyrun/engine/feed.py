"""Bytes that are written in one thread and read, chunk by chunk, in another."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

_CHUNK = 1 << 20
_CHUNKS = 4  # that wait at most


class _Abandoned(Exception):
    """The writer gave up."""


class Feed(Generic[T]):
    """Runs ``work`` in a thread, with an iterable of what is written here; `result` is what it returns.

    A context manager: leaving it without `result` makes the iterable raise, and waits for the thread's end. What
    ``work`` raises is raised by `write` or `result`. The thread begins with the first chunk.
    """

    def __init__(self, work: Callable[[Iterable[bytes]], T]) -> None:
        self._work = work
        self._queue: queue.Queue[bytes | None] = queue.Queue(_CHUNKS)
        self._gathered = bytearray()
        self._thread: threading.Thread | None = None
        self._abandoned = False
        self._done: list[T] = []
        self._error: BaseException | None = None

    def write(self, data: bytes) -> None:
        self._gathered += data
        if len(self._gathered) >= _CHUNK:
            self._pass_on()

    def result(self) -> T:
        """No more is to come: what ``work`` made of it."""
        if self._gathered:
            self._pass_on()
        self._put(None)
        assert self._thread is not None
        self._thread.join()
        self._raise()
        return self._done[0]

    def __enter__(self) -> Feed[T]:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._abandoned = True
            while self._thread.is_alive():
                try:
                    self._queue.put(None, timeout=0.05)
                except queue.Full:
                    continue
                self._thread.join()

    def _pass_on(self) -> None:
        self._put(bytes(self._gathered))
        self._gathered.clear()

    def _put(self, chunk: bytes | None) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        while True:
            self._raise()
            try:
                self._queue.put(chunk, timeout=0.05)
                return
            except queue.Full:
                continue

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._done.append(self._work(self._chunks()))
        except BaseException as error:
            self._error = error

    def _chunks(self) -> Iterator[bytes]:
        while True:
            chunk = self._queue.get()
            if self._abandoned:
                raise _Abandoned
            if chunk is None:
                return
            yield chunk
