"""A proxy in front of a real registry that does to its answers what no registry can be made to do.

    with FaultProxy(registry.host, tmp_path / "log", [Fault(reset_after(1000), "/blobs/", times=1)]) as proxy:
        ...                                     # the first blob breaks off after 1,000 bytes
        proxy.blob_bytes()                      # what was sent of blobs, in all
        proxy.requests()                        # what was asked, and how it was answered

It runs in a process of its own, on loopback (or on ``address``), and counts what leaves it: bytes of bodies, not what
the client read of them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

from .serving import Served, Server

PIECE = 64 << 10  # bytes a write


@dataclass
class Answer:
    """The registry's, before it is sent. ``headers`` in order; ``body`` of a GET, b"" of a HEAD."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def set(self, name: str, *values: str) -> None:
        """Replace the header by as many as there are ``values``."""
        kept = [(key, value) for key, value in self.headers if key.lower() != name.lower()]
        self.headers = kept + [(name, value) for value in values]


class Cut(Exception):
    """The rest of the answer is not sent."""


@dataclass
class Exchange:
    """One request on its way: change ``answer``, or send by yourself and raise `Cut`."""

    handler: BaseHTTPRequestHandler
    answer: Answer
    sent: int = 0
    head: bool = False

    @property
    def path(self) -> str:
        return self.handler.path

    def start(self) -> None:
        """Send status and headers as they are."""
        if not self.head:
            self.head = True
            self.handler.send_response_only(self.answer.status)
            for name, value in self.answer.headers:
                self.handler.send_header(name, value)
            self.handler.end_headers()

    def send(self, data: bytes) -> None:
        """Send bytes of a body."""
        self.start()
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            self.handler.wfile.write(piece)
            self.sent += len(piece)

    def reset(self) -> None:
        """End the connection as a crash would: with a RST."""
        with contextlib.suppress(OSError):
            self.handler.wfile.flush()
            time.sleep(
                0.05
            )  # what was sent should arrive: a reset throws away what lies in the client's buffer
            sock = self.handler.connection
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Cut


Act = Callable[[Exchange], None]


@dataclass
class Fault:
    """``act`` on the answers to requests whose "METHOD path" holds the regular expression ``match``: ``times`` of
    them (None: all), after the first ``after``."""

    act: Act
    match: str = ""
    times: int | None = None
    after: int = 0
    seen: int = field(default=0, init=False)

    def takes(self, line: str) -> bool:
        if not re.search(self.match, line):
            return False
        self.seen += 1
        return self.seen > self.after and (self.times is None or self.seen <= self.after + self.times)


@dataclass
class Seen:
    """A request as it came, and what went out for it. Header names in lowercase."""

    method: str
    path: str
    headers: dict[str, str]
    status: int
    sent: int


# --- faults


def reset_after(count: int) -> Act:
    def act(exchange: Exchange) -> None:
        exchange.send(exchange.answer.body[:count])
        exchange.reset()

    return act


def close_after(count: int) -> Act:
    """End the connection in good order, though Content-Length promised more."""

    def act(exchange: Exchange) -> None:
        exchange.send(exchange.answer.body[:count])
        raise Cut

    return act


def stall_after(count: int, seconds: float) -> Act:
    def act(exchange: Exchange) -> None:
        exchange.send(exchange.answer.body[:count])
        time.sleep(seconds)
        raise Cut

    return act


def drip(size: int, pause: float) -> Act:
    """The whole body, ``size`` bytes at a time."""

    def act(exchange: Exchange) -> None:
        body = exchange.answer.body
        for at in range(0, len(body), size):
            exchange.send(body[at : at + size])
            time.sleep(pause)
        raise Cut

    return act


def extra(data: bytes, *, length: bool = True) -> Act:
    """More behind the body; Content-Length counts it, or is missing."""

    def act(exchange: Exchange) -> None:
        exchange.answer.body += data
        exchange.answer.set("Content-Length", *([str(len(exchange.answer.body))] if length else []))
        exchange.send(exchange.answer.body)
        raise Cut

    return act


def truncate(count: int, *, length: bool = True) -> Act:
    """Less; Content-Length is true, or missing."""

    def act(exchange: Exchange) -> None:
        exchange.answer.body = exchange.answer.body[:count]
        exchange.answer.set("Content-Length", *([str(len(exchange.answer.body))] if length else []))
        exchange.send(exchange.answer.body)
        raise Cut

    return act


def flip(at: int) -> Act:
    """One bit of the byte ``at`` of what is sent; negative: from its end."""

    def act(exchange: Exchange) -> None:
        body = bytearray(exchange.answer.body)
        body[at] ^= 0x40
        exchange.answer.body = bytes(body)

    return act


def header(name: str, *values: str) -> Act:
    """Replace a header by ``values``; without any, leave it out."""
    return lambda exchange: exchange.answer.set(name, *values)


def status(code: int, body: bytes = b"", **headers: str) -> Act:
    """Another answer altogether."""

    def act(exchange: Exchange) -> None:
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        exchange.answer = Answer(code, [*named, ("Content-Length", str(len(body)))], body)

    return act


def redirect(location: str, code: int = 307) -> Act:
    """``location`` may hold {path}."""

    def act(exchange: Exchange) -> None:
        where = location.replace("{path}", exchange.path)
        exchange.answer = Answer(code, [("Location", where), ("Content-Length", "0")], b"")

    return act


def document(body: bytes, media_type: str | None = None) -> Act:
    """Another body, with its own length and digest."""

    def act(exchange: Exchange) -> None:
        import hashlib

        exchange.answer.status = 200
        exchange.answer.body = body if exchange.handler.command == "GET" else b""
        exchange.answer.set("Content-Length", str(len(body)))
        exchange.answer.set("Docker-Content-Digest", "sha256:" + hashlib.sha256(body).hexdigest())
        if media_type is not None:
            exchange.answer.set("Content-Type", media_type)

    return act


def endless(piece: bytes = bytes(PIECE)) -> Act:
    """A body without a length and without an end (bounded at 1 GiB, for a client that never stops)."""

    def act(exchange: Exchange) -> None:
        exchange.answer.set("Content-Length")
        exchange.send(exchange.answer.body)
        for _ in range((1 << 30) // len(piece)):
            exchange.send(piece)
        raise Cut

    return act


def raw(data: bytes) -> Act:
    """These bytes instead of an answer."""

    def act(exchange: Exchange) -> None:
        exchange.handler.wfile.write(data)
        raise Cut

    return act


def whole(exchange: Exchange) -> None:
    """Ignore Range."""
    handler = cast("_Handler", exchange.handler)
    exchange.answer = handler.upstream(drop=("range",))


def both(*acts: Act) -> Act:
    def act(exchange: Exchange) -> None:
        for one in acts:
            one(exchange)

    return act


# --- the server


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast("_Server", self.server)
        server.note(None)
        exchange = Exchange(self, self.upstream())
        line = f"{self.command} {self.path}"
        with server.lock:
            acts = [fault.act for fault in server.faults if fault.takes(line)]
        try:
            for act in acts:
                act(exchange)
            exchange.start()
            if self.command == "GET":
                exchange.send(exchange.answer.body)
        except (Cut, OSError):
            self.close_connection = True
        finally:
            seen = [
                self.command, self.path, {name.lower(): value for name, value in self.headers.items()},
                exchange.answer.status, exchange.sent,
            ]  # fmt: skip
            server.note(seen)

    do_HEAD = do_GET  # noqa: N815

    def upstream(self, drop: Sequence[str] = ()) -> Answer:
        server = cast("_Server", self.server)
        skipped = {"host", "connection", *drop}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skipped}
        connection = http.client.HTTPConnection(server.upstream, timeout=30)
        try:
            connection.request(self.command, self.path, headers=headers)
            answer = connection.getresponse()
            named = [
                (k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")
            ]
            return Answer(answer.status, named, answer.read())
        except (OSError, http.client.HTTPException):
            return Answer(502, [("Content-Length", "0")], b"")
        finally:
            connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(Server):
    upstream: str
    faults: Sequence[Fault]
    log: str
    lock: threading.Lock

    def note(self, seen: list[Any] | None) -> None:
        """Write down a finished request; None: that one began."""
        with self.lock, open(self.log, "a") as log:
            log.write(json.dumps(seen) + "\n")


class FaultProxy(Served):
    """In front of ``upstream``, "HOST:PORT"; what was asked is written to ``log``."""

    def __init__(
        self,
        upstream: str,
        log: str | Path,
        faults: Sequence[Fault] = (),
        *,
        tls: tuple[str, str] | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        super().__init__(_Server((address, port), _Handler), tls=tls)
        self._server.upstream = upstream
        self._server.faults = faults
        self._server.log = self._log = str(log)
        self._server.lock = threading.Lock()
        open(log, "w").close()

    def requests(self, match: str = "") -> list[Seen]:
        """Every finished request but those for /v2/ itself, whose "METHOD path" holds ``match``."""
        return [
            seen
            for seen in self._all()
            if seen.path != "/v2/" and re.search(match, f"{seen.method} {seen.path}")
        ]

    def blob_bytes(self) -> int:
        """Bytes that were sent of blobs."""
        return sum(seen.sent for seen in self.requests("GET .*/blobs/"))

    def _all(self) -> Iterator[Seen]:
        for _ in range(200):
            with open(self._log) as log:
                lines = [json.loads(line) for line in log]
            seen = [Seen(*line) for line in lines if line is not None]
            if 2 * len(seen) == len(lines):
                break
            time.sleep(0.01)  # the client may be done with an answer before its sender is
        return iter(seen)
