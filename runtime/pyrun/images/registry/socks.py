"""SOCKS version 5 (RFC 1928), with a user name and password where the proxy wants them (RFC 1929)."""

from __future__ import annotations

import socket
import time

_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}


class SocksError(Exception):
    """The proxy refused, or does not speak the protocol. ``credentials``: those it got, or got none, are why."""

    def __init__(self, message: str, *, credentials: bool = False) -> None:
        super().__init__(message)
        self.credentials = credentials


def connect(sock: socket.socket, host: str, port: int, user: tuple[str, str] | None, timeout: float) -> None:
    """Have the proxy at the other end of ``sock`` connect to ``host``, whose name it resolves. In ``timeout`` seconds.

    Raises `SocksError`, OSError.
    """
    end = time.monotonic() + timeout

    def read(count: int) -> bytes:
        data = b""
        while len(data) < count:
            sock.settimeout(max(end - time.monotonic(), 0.001))
            more = sock.recv(count - len(data))
            if not more:
                raise SocksError("it closed the connection")
            data += more
        return data

    methods = b"\x00\x02" if user else b"\x00"
    sock.sendall(bytes([5, len(methods)]) + methods)
    version, method = read(2)
    if version != 5:
        raise SocksError("it does not speak SOCKS 5")
    if method == 2 and user:
        name, password = (text.encode() for text in user)
        if not 0 < len(name) < 256 or len(password) > 255:
            raise SocksError("its user name or password is too long", credentials=True)
        sock.sendall(bytes([1, len(name)]) + name + bytes([len(password)]) + password)
        if read(2)[1]:
            raise SocksError("refused", credentials=True)
    elif method:
        raise SocksError("refused", credentials=True)
    target = host.encode("idna") if not host.isascii() else host.encode()
    if len(target) > 255:
        raise SocksError("the host's name is too long")
    sock.sendall(b"\x05\x01\x00\x03" + bytes([len(target)]) + target + port.to_bytes(2, "big"))
    _, reply, _, kind = read(4)
    if reply:
        raise SocksError(_REPLIES.get(reply, f"reply {reply}"))
    if kind not in (1, 3, 4):
        raise SocksError("it does not speak SOCKS 5")
    read({1: 4, 4: 16}.get(kind) or read(1)[0])
    read(2)
    sock.settimeout(timeout)
