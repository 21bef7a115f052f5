"""A server that misbehaves as no registry can be made to. It runs in a process of its own, on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from support.registry import OCI_MANIFEST, sha256


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


class _Server(ThreadingHTTPServer):
    answer: Callable[[Request], None]
    base: Callable[[Request], None] | None  # the answer to /v2/; None: 200
    log: str

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client hanging up is what many tests are about


class FaultServer:
    """A context manager; ``host`` is its address, ``requests()`` what it was asked so far."""

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
        self._server = _Server((address, port), Request)
        self._server.base = base
        self._server.answer = answer
        self._server.log = log
        self._log = log
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.host = f"{address}:{self.port}"
        self._pid = 0

    def __enter__(self) -> FaultServer:
        open(self._log, "w").close()
        self._pid = os.fork()
        if not self._pid:
            try:
                sys.stderr = open(os.devnull, "w")
                self._server.serve_forever()
            finally:
                os._exit(1)
        self._server.socket.close()
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def requests(self) -> list[tuple[str, str, dict[str, str]]]:
        """(method, path, headers by lowercase name) of every request."""
        with open(self._log) as log:
            return [tuple(json.loads(line)) for line in log]


def closed_port() -> int:
    """A port on loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
