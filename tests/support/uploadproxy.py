"""A proxy in front of a real registry that gets in the way of uploads.

    with UploadProxy(registry.host, tmp_path / "log", Rule(cut(1000), "PATCH|PUT", times=1)) as proxy:
        ...                       # the first upload's connection is reset after 1,000 bytes of it
        proxy.requests()          # what was asked: method, path, headers, bytes of the body

It runs in a process of its own, on loopback. A rule's act sees a request before the registry does, and may answer it
itself (True), or have the answer changed on its way back (`Exchange.edits`).
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast
from urllib.parse import SplitResult, urlsplit

from .serving import Served, Server

PIECE = 64 << 10


class Exchange(BaseHTTPRequestHandler):
    """One request. ``edits`` are made to the headers of the registry's answer: a name to a value, or to None."""

    protocol_version = "HTTP/1.1"

    def handle_one(self) -> None:
        self.edits: dict[str, str | None] = {}
        self.taken = 0  # bytes of the body that were read
        server = cast("_Server", self.server)
        self.asked: str | None = self.path
        server.renew(self)
        try:
            for rule in server.rules:
                if rule.takes(f"{self.command} {self.path}") and rule.act(self):
                    return
            self.forward()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        finally:
            self.note()

    def note(self) -> None:
        """Write down what was asked, before it is answered."""
        if self.asked is not None:
            entry = [self.command, self.asked, dict(self.headers.items()), self.taken]
            cast("_Server", self.server).note(entry)
            self.asked = None

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one  # noqa: N815

    @property
    def length(self) -> int:
        return int(self.headers.get("Content-Length") or 0)

    def body(self, most: int | None = None) -> bytes:
        """Read (what is left of) the body, ``most`` bytes at most."""
        left = self.length - self.taken
        wanted = left if most is None else min(left, most)
        data = self.rfile.read(wanted)
        self.taken += len(data)
        if len(data) < wanted:
            raise ConnectionError
        return data

    def forward(self) -> None:
        """Hand the request to the registry, and its answer back."""
        registry = http.client.HTTPConnection(cast("_Server", self.server).registry, timeout=30)
        try:
            # With this proxy's Host, so that the registry's Locations lead here.
            registry.request(self.command, self.path, self.body() or None, dict(self.headers.items()))
            answer = registry.getresponse()
            data = answer.read()
            self.note()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding") and name.lower() not in self.edits:
                    self.send_header(name, value)
            for name, edited in self.edits.items():
                if edited is not None:
                    self.send_header(name, edited)
            self.end_headers()
            self.wfile.write(data)
        finally:
            registry.close()

    def reply(self, status: int, body: bytes = b"", **headers: str) -> bool:
        self.note()
        self.send_response_only(status)
        for name, value in {"content_length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def reset(self) -> None:
        """End the connection with a RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


Act = Callable[[Exchange], bool]


@dataclass
class Rule:
    """``act`` on requests whose "METHOD path" holds the regular expression ``match``: ``times`` of them (None: all),
    after the first ``after``. It returns True where it answered."""

    act: Act
    match: str = ""
    times: int | None = None
    after: int = 0
    seen: int = field(default=0, init=False)
    lock: Any = field(default_factory=threading.Lock, init=False)

    def takes(self, line: str) -> bool:
        if not re.search(self.match, line):
            return False
        with self.lock:
            self.seen += 1
            return self.seen > self.after and (self.times is None or self.seen <= self.after + self.times)


def answer(status: int, body: bytes = b"", **headers: str) -> Act:
    """Answer instead of the registry, once the body was read."""

    def act(exchange: Exchange) -> bool:
        exchange.body()
        return exchange.reply(status, body, **headers)

    return act


def edit(**headers: str | None) -> Act:
    """Change headers of the registry's answer."""

    def act(exchange: Exchange) -> bool:
        exchange.edits.update({name.replace("_", "-").lower(): value for name, value in headers.items()})
        return False

    return act


def cut(count: int) -> Act:
    """Reset the connection after ``count`` bytes of the body. The registry has them: this is one that takes an upload
    up again, which distribution's does not where a request broke in its middle (`lose`)."""

    def act(exchange: Exchange) -> bool:
        server = cast("_Server", exchange.server)
        data = exchange.body(count)
        path = exchange.path.replace("&digest=", "?digest=").partition("?digest=")[0]
        registry = http.client.HTTPConnection(server.registry, timeout=30)
        kind = "application/octet-stream"
        registry.request("PATCH", path, data, {"Content-Type": kind, "Host": exchange.headers["Host"]})
        answer = registry.getresponse()
        answer.read()
        registry.close()
        with server.lock:
            server.places[_upload(path)] = urlsplit(answer.getheader("Location") or "")
        exchange.reset()
        return True

    return act


def lose(count: int) -> Act:
    """Let ``count`` bytes of the body through to the registry, then reset both connections."""

    def act(exchange: Exchange) -> bool:
        name, _, port = cast("_Server", exchange.server).registry.rpartition(":")
        with socket.create_connection((name, int(port)), timeout=30) as registry:
            lines = [f"{exchange.command} {exchange.path} HTTP/1.1"]
            lines += [f"{name}: {value}" for name, value in exchange.headers.items()]
            registry.sendall("\r\n".join([*lines, "", ""]).encode() + exchange.body(count))
            time.sleep(0.2)  # for the registry to write it down
        exchange.reset()
        return True

    return act


def _upload(path: str) -> str:
    """The id of the upload that a path is about, "" for none."""
    _, found, rest = path.partition("/uploads/")
    return rest.partition("?")[0] if found else ""


def too_large(limit: int, *, read: bool) -> Act:
    """413 for bodies above ``limit``; ``read``: once the body was read, else at once, and the connection closed."""

    def act(exchange: Exchange) -> bool:
        if exchange.length <= limit:
            return False
        if read:
            exchange.body()
        exchange.reply(413, b"<html>too large</html>", **({} if read else {"connection": "close"}))
        if not read:
            exchange.close_connection = True
            time.sleep(0.2)
        return True

    return act


def slow(seconds: float) -> Act:
    """Wait before each piece of the body is read."""

    def act(exchange: Exchange) -> bool:
        if exchange.length:
            time.sleep(seconds)
        return False

    return act


def no_mounts(exchange: Exchange) -> bool:
    """As a registry that knows no mounts: what asks for one begins an upload."""
    exchange.path = exchange.path.partition("?")[0]
    return False


def least(count: int) -> Act:
    """A registry that names the least size of a chunk."""
    return edit(OCI_Chunk_Min_Length=str(count))


class Tokens:
    """Ask for a token, of which each is good for ``uses`` requests. ``/token`` gives them out."""

    def __init__(self, uses: int) -> None:
        self.uses = uses
        self.number = itertools.count(1)
        self.left: dict[str, int] = {}
        self.lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> bool:
        if exchange.path.startswith("/token"):
            with self.lock:
                token = f"token-{next(self.number)}"
                self.left[token] = self.uses
            return exchange.reply(200, json.dumps({"token": token}).encode())
        token = (exchange.headers.get("Authorization") or "").removeprefix("Bearer ")
        with self.lock:
            good = self.left.get(token, 0) > 0
            if good:
                self.left[token] -= 1
        if good:
            return False
        exchange.body()
        host = exchange.headers["Host"]
        challenge = f'Bearer realm="http://{host}/token",service="test",scope="repository:x:pull"'
        return exchange.reply(401, b'{"errors":[{"code":"UNAUTHORIZED"}]}', WWW_Authenticate=challenge)


class _Server(Server):
    registry: str
    rules: list[Rule]
    log: str
    lock: threading.Lock
    places: dict[str, SplitResult]  # of uploads that `cut` took a part of: where they are now

    def renew(self, exchange: Exchange) -> None:
        """Distribution's places hold how much it has; the one that the client knows does not, after a `cut`."""
        with self.lock:
            place = self.places.get(_upload(exchange.path))
            if place is not None and exchange.command in ("GET", "DELETE"):
                exchange.path = f"{place.path}?{place.query}"
            elif place is not None:
                del self.places[_upload(exchange.path)]  # it was told the new one

    def note(self, entry: list[Any]) -> None:
        with self.lock, open(self.log, "a") as log:
            log.write(json.dumps(entry) + "\n")


@dataclass
class Seen:
    """A request: ``headers`` by lowercase name, ``taken`` bytes of its body that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    taken: int


class UploadProxy(Served):
    """In front of ``registry``, "HOST:PORT"; what was asked is written to ``log``."""

    def __init__(self, registry: str, log: Path, *rules: Rule, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(_Server(("127.0.0.1", 0), Exchange), tls=tls)
        self._server.registry = registry
        self._server.rules = list(rules)
        self._server.log = str(log)
        self._server.lock = threading.Lock()
        self._server.places = {}
        self._log = log
        log.write_text("")

    def requests(self, match: str = "") -> list[Seen]:
        """The requests whose "METHOD path" holds ``match``, in the order in which they were done with."""
        found = []
        for line in self._log.read_text().splitlines():
            method, path, headers, taken = json.loads(line)
            if re.search(match, f"{method} {path}"):
                found.append(Seen(method, path, {k.lower(): v for k, v in headers.items()}, taken))
        return found
