"""Servers on loopback that tests need: each in a process of its own, as the tests' process must have one thread."""

from __future__ import annotations

import os
import select
import signal
import socket
import socketserver
import ssl
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self


class Server(ThreadingHTTPServer):
    """One that does not mind when the client hangs up: that is what many tests are about."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class Served:
    """A context manager in which ``server`` answers at ``host``, "ADDRESS:PORT". ``tls``: (certificate, key)."""

    def __init__(
        self, server: socketserver.TCPServer, *, tls: tuple[str | Path, str | Path] | None = None
    ) -> None:
        self._server: Any = server
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        address, port = server.server_address[:2]
        self.port = int(port)
        self.host = f"{address!s}:{self.port}"
        self._pid = 0

    def __enter__(self) -> Self:
        self._pid = os.fork()
        if not self._pid:
            try:
                sys.stderr = open(os.devnull, "w")
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                self._server.serve_forever()
            finally:
                os._exit(1)
        self._server.socket.close()
        return self

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def relay(one: socket.socket, other: socket.socket) -> None:
    """Hand on what either says, until one has no more to say."""
    ends = {one: other, other: one}
    while True:
        for end in select.select(list(ends), [], [], 30)[0]:
            data = end.recv(65536)
            if not data:
                return
            ends[end].sendall(data)
