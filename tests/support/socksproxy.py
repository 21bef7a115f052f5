"""A SOCKS 5 proxy that knows one host by every name, its ``backend``."""

from __future__ import annotations

import json
import socket
import socketserver
from pathlib import Path
from typing import cast

from .serving import Served, relay


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = cast("_Server", self.server)
        version, count = self.rfile.read(2)
        methods = self.rfile.read(count)
        wanted = 2 if server.user else 0
        if version != 5 or wanted not in methods:
            self.wfile.write(b"\x05\xff")
            return
        self.wfile.write(bytes([5, wanted]))
        if server.user:
            name = self.rfile.read(self.rfile.read(2)[1])
            password = self.rfile.read(self.rfile.read(1)[0])
            right = f"{name.decode()}:{password.decode()}" == server.user
            self.wfile.write(bytes([1, not right]))
            if not right:
                return
        assert self.rfile.read(4) == b"\x05\x01\x00\x03"
        host = self.rfile.read(self.rfile.read(1)[0]).decode()
        port = int.from_bytes(self.rfile.read(2), "big")
        with open(server.log, "a") as log:
            log.write(json.dumps([host, port]) + "\n")
        try:
            name_, _, number = server.backend.partition(":")
            upstream = socket.create_connection((name_, int(number)), 10)
        except OSError:
            self.wfile.write(b"\x05\x05\x00\x01" + bytes(6))
            return
        self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
        with upstream:
            relay(self.connection, upstream)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    backend: str
    user: str
    log: Path

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class SocksProxy(Served):
    """A context manager. ``user`` "name:password": who may use it."""

    def __init__(self, directory: Path, backend: str, user: str = "") -> None:
        self.log = directory / "socks"
        self.log.touch()
        super().__init__(_Server(("127.0.0.1", 0), _Handler))
        self._server.backend = backend
        self._server.user = user
        self._server.log = self.log

    def requests(self) -> list[tuple[str, int]]:
        """(host, port) of each connection asked for."""
        return [tuple(json.loads(line)) for line in self.log.read_text().splitlines()]
