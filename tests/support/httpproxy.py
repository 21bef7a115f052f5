"""An HTTP proxy: CONNECT for TLS, absolute addresses for plain HTTP. It knows one host by every name, its ``backend``,
so that names which don't exist lead there."""

from __future__ import annotations

import base64
import json
import socket
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from .serving import Served, Server, relay


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self) -> None:
        upstream = self._upstream(self.path)
        if upstream is None:
            return
        self.send_response(200, "Connection established")
        self.end_headers()
        self._relay(upstream)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        upstream = self._upstream(parts.netloc)
        if upstream is None:
            return
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"{self.command} {path} HTTP/1.1"]
        lines += [f"{k}: {v}" for k, v in self.headers.items() if not k.lower().startswith("proxy-")]
        upstream.sendall(("\r\n".join([*lines, "Connection: close"]) + "\r\n\r\n").encode())
        self._relay(upstream)

    do_HEAD = do_GET  # noqa: N815

    def _upstream(self, target: str) -> socket.socket | None:
        server = cast("_Server", self.server)
        given = self.headers.get("Proxy-Authorization") or ""
        with open(server.log, "a") as log:
            log.write(json.dumps([self.command, target, given, self.headers.get("Authorization")]) + "\n")
        if server.expected and given != server.expected:
            self.send_response(407)
            self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        if not server.backend:
            self.send_response(403, "Not through here")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        host, _, port = server.backend.partition(":")
        return socket.create_connection((host, int(port)), 10)

    def _relay(self, upstream: socket.socket) -> None:
        self.close_connection = True
        with upstream:
            relay(self.connection, upstream)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(Server):
    backend: str
    expected: str
    log: Path


class HttpProxy(Served):
    """A context manager. ``backend`` "": everything is refused; ``user`` "name:password": who may use it."""

    def __init__(self, directory: Path, backend: str, user: str = "") -> None:
        self.log = directory / "proxied"
        self.log.touch()
        super().__init__(_Server(("127.0.0.1", 0), _Handler))
        self._server.backend = backend
        self._server.expected = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        self._server.log = self.log

    def requests(self) -> list[tuple[str, str, str, str | None]]:
        """(method, target, Proxy-Authorization, Authorization) of each."""
        return [tuple(json.loads(line)) for line in self.log.read_text().splitlines()]
