"""What comes back: the head of an answer, its body in pieces, and the time that either may take."""

from __future__ import annotations

import http.client
import io
import socket
import time
from functools import partial
from typing import Any

from ...errors import RegistryError
from .origin import Origin, explained, named

IDLE_TIMEOUT = 60.0  # seconds without a byte
PATIENCE = 60.0  # seconds for an answer's head, for a small body, and for each MIN_PROGRESS of a large one
MIN_PROGRESS = 64 << 10  # bytes
_SMALL = 64 << 10


class Response:
    """An answer whose body has not been read. Read it to its end, or `close` it, before the next request."""

    def __init__(
        self,
        raw: http.client.HTTPResponse,
        connection: http.client.HTTPConnection,
        origin: Origin,
        deadline: Deadline,
        patience: float,
        home: bool = True,
    ) -> None:
        self.home = home  # the registry itself answered, not where it led to
        self.raw = raw
        self._deadline = deadline
        self._patience = patience
        self.status = raw.status
        self.origin = origin
        self._connection = connection

    def header(self, name: str) -> str | None:
        """The header's value; several of one name are joined by commas, as RFC 9110 §5.3 reads them."""
        values = self.raw.headers.get_all(name)
        return ", ".join(values) if values else None

    def read(self, limit: int) -> bytes | None:
        """The whole body, None if it is longer than ``limit`` bytes (the connection is closed then).

        It has to be there in `PATIENCE`.
        """
        with explained(self.origin):
            self._deadline.allow(self._patience)
            body = self._some(limit + 1)
            short = self.raw.length  # what Content-Length promised and did not come
        if len(body) > limit:
            self.close()
            return None
        if short:
            self.close()
            raise RegistryError(f"{named(self.origin)} closed the connection in the middle of an answer")
        return body

    def _some(self, count: int) -> bytes:
        """At most ``count`` bytes of the body. Not by http.client's own ``read``: of a chunk that says it has -1 bytes
        that takes all there is, without end."""
        body = bytearray()
        buffer = memoryview(bytearray(min(count, _SMALL)))
        while len(body) < count:
            got = self.raw.readinto(buffer[: count - len(body)])
            if not got:
                break
            body += buffer[:got]
        return bytes(body)

    def readinto(self, buffer: memoryview) -> int:
        """Up to ``len(buffer)`` bytes of the body; 0 at its end, or where the connection ended early.

        Slower than `MIN_PROGRESS` each `PATIENCE` is an error. The time between two calls does not count.
        """
        with explained(self.origin):
            self._deadline.allow(self._patience * max(1.0, len(buffer) / MIN_PROGRESS))
            return self.raw.readinto(buffer)

    def discard(self) -> None:
        """Be done with the answer; the connection is kept if only little of the body is left."""
        self.read(_SMALL)

    def close(self) -> None:
        """Be done with the answer and its connection."""
        self.raw.close()
        self._connection.close()


class Deadline:
    """Until when reads may wait. A server that sends a byte now and then never meets a socket's timeout, and
    one that sends interim answers or trailers without end is read inside one call of http.client."""

    def __init__(self, seconds: float, idle: float = IDLE_TIMEOUT) -> None:
        self._idle = idle
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Start anew: ``seconds`` from now."""
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, at most ``idle``. Raises TimeoutError where there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, self._idle)


class _TimedReader(io.RawIOBase):
    """A socket's bytes, under a deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)  # counted by the socket, which stays open as long
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._socket.settimeout(self._deadline.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, deadline: Deadline, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock, deadline))


def head_of(connection: http.client.HTTPConnection, deadline: Deadline) -> http.client.HTTPResponse:
    """The head of the answer to a request that was sent."""
    connection.response_class = partial(_TimedResponse, deadline)  # type: ignore[assignment]
    return connection.getresponse()
