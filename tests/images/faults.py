"""A server that misbehaves as no registry can be made to. It runs in a process of its own, on loopback."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, cast

from support.registry import OCI_MANIFEST, sha256
from support.serving import Served, Server


class Request(BaseHTTPRequestHandler):
    """One request, handed to the test's function: ``answer(request)``."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server = cast("_Server", self.server)
        with open(server.log, "a") as log:
            headers = {name.lower(): value for name, value in self.headers.items()}
            log.write(json.dumps([self.command, self.path, headers]) + "\n")
        if self.path == "/v2/":
            (server.base or Request.reply_ok)(self)
        else:
            server.answer(self)

    do_HEAD = do_GET  # noqa: N815

    def reply_ok(self) -> None:
        self.reply(200)

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("content_length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def document(self, body: bytes | dict[str, Any], media_type: str = OCI_MANIFEST) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.reply(200, data, content_type=media_type, docker_content_digest=sha256(data))

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(Server):
    answer: Callable[[Request], None]
    base: Callable[[Request], None] | None  # the answer to /v2/; None: 200
    log: str


class FaultServer(Served):
    """Answers requests by ``answer``, but those for /v2/ by ``base``; what was asked is written to ``log``."""

    def __init__(
        self,
        answer: Callable[[Request], None],
        log: str,
        *,
        tls: tuple[str, str] | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
        base: Callable[[Request], None] | None = None,
    ) -> None:
        super().__init__(_Server((address, port), Request), tls=tls)
        self._server.base = base
        self._server.answer = answer
        self._server.log = log
        self._log = log
        open(log, "w").close()

    def requests(self) -> list[tuple[str, str, dict[str, str]]]:
        """(method, path, headers by lowercase name) of every request."""
        with open(self._log) as log:
            return [tuple(json.loads(line)) for line in log]


def closed_port() -> int:
    """A port on loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
