"""Proxies, as the environment names them: HTTP_PROXY, HTTPS_PROXY and NO_PROXY, or the same in lower case. They speak
HTTP (``http://HOST:PORT``) or SOCKS 5 (``socks5://HOST:PORT``).

NO_PROXY is a list with commas of host names (with what lies below them), ``.domain`` (only what lies below), addresses,
networks as ``10.0.0.0/8``, each with ``:port`` at will; ``*`` is everything. Loopback is never asked for by way of a
proxy. These are the rules of Go's x/net/http/httpproxy, which docker and podman follow.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
import time
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from ...errors import ConfigError, RegistryError
from ..printable import printable

MAX_HEAD = 16 << 10  # bytes of a proxy's answer to CONNECT


@dataclass(frozen=True, slots=True)
class Proxy:
    """``variable`` is where the environment names it; ``user`` name and password, None where it needs none."""

    host: str
    port: int
    variable: str
    socks: bool = False
    user: tuple[str, str] | None = field(default=None, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return printable(f"{host}:{self.port}", 300)

    @property
    def headers(self) -> dict[str, str]:
        """What a request to an HTTP proxy needs beside its own."""
        if self.user is None:
            return {}
        pair = base64.b64encode(":".join(self.user).encode()).decode("ascii")
        return {"Proxy-Authorization": f"Basic {pair}"}

    def connect(self, timeout: float) -> socket.socket:
        """A connection to the proxy. Raises `RegistryError`."""
        try:
            return socket.create_connection((self.host, self.port), timeout)
        except OSError as error:
            if isinstance(error, TimeoutError):
                why = "it does not answer in time"
            elif isinstance(error, socket.gaierror):
                why = f"its name can't be resolved ({error.strerror})"
            else:
                why = (error.strerror or str(error)).lower()
            raise RegistryError(
                f"the proxy {self} can't be reached: {why}", hint=f"{self.variable} names it."
            ) from error

    def tunnel(self, host: str, port: int, timeout: float) -> socket.socket:
        """A connection through the proxy to ``host``, over which TLS can be spoken. Raises `RegistryError`."""
        sock = self.connect(timeout)
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if self.socks:
                self._socks(sock, host, port, target, timeout)
                return sock
            lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
            lines += [f"{name}: {value}" for name, value in self.headers.items()]
            head = self._ask(sock, ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), timeout)
            words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
            status = words[1] if len(words) > 1 and words[0].startswith("HTTP/") else ""
            if status != "200":
                raise self.refused(int(status) if status.isdecimal() else 0, target, " ".join(words))
            return sock
        except BaseException:
            sock.close()
            raise

    def _socks(self, sock: socket.socket, host: str, port: int, target: str, timeout: float) -> None:
        from . import socks

        try:
            socks.connect(sock, host, port, self.user, timeout)
        except socks.SocksError as error:
            raise self.refused(407 if error.credentials else 0, target, str(error)) from None
        except OSError as error:
            raise self._broken(error) from error

    def _broken(self, error: OSError) -> RegistryError:
        why = (
            "it does not answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
        )
        return RegistryError(f"the proxy {self} does not connect: {why}", hint=f"{self.variable} names it.")

    def _ask(self, sock: socket.socket, request: bytes, timeout: float) -> bytes:
        head = bytearray()
        end = time.monotonic() + timeout
        try:
            sock.sendall(request)
            # A byte at a time: what follows the head belongs to TLS.
            while not head.endswith(b"\r\n\r\n"):
                sock.settimeout(max(end - time.monotonic(), 0.001))
                byte = sock.recv(1)
                if not byte or len(head) > MAX_HEAD:
                    break
                head += byte
        except OSError as error:
            raise self._broken(error) from error
        sock.settimeout(timeout)
        return bytes(head)

    def refused(self, status: int, target: str, said: str = "") -> RegistryError:
        """The error for an answer of the proxy's own."""
        if status == 407:
            what = "refuses the credentials" if self.user else "wants credentials"
            return RegistryError(
                f"the proxy {self} {what}",
                hint=f"{self.variable} may have them: http://USER:PASSWORD@HOST:PORT",
            )
        return RegistryError(
            f"the proxy {self} does not connect to {target}" + (f": {printable(said, 200)}" if said else ""),
            hint=f"{self.variable} names it; NO_PROXY names what is reached without.",
        )


class Proxies:
    """The environment's, as it is now. Raises `ConfigError` where a variable makes no sense."""

    def __init__(self) -> None:
        self._by_scheme = {scheme: _proxy(f"{scheme}_proxy") for scheme in ("http", "https")}
        self._exceptions = [
            part.strip().lower() for part in _variable("no_proxy")[1].split(",") if part.strip()
        ]

    def choose(self, scheme: str, host: str, port: int) -> Proxy | None:
        """The proxy for an address; None where it is reached directly."""
        proxy = self._by_scheme[scheme]
        if proxy is None or self._direct(host.lower().rstrip("."), port):
            return None
        return proxy

    def _direct(self, host: str, port: int) -> bool:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            address = None
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(_matches(entry, host, address, port) for entry in self._exceptions)


def _matches(
    entry: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int
) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
        return address is not None and address.version == network.version and address in network
    if entry.startswith("["):
        name, _, rest = entry[1:].partition("]")
        number = rest.removeprefix(":")
    elif entry.count(":") == 1:
        name, _, number = entry.partition(":")
    else:
        name, number = entry, ""
    if number and number != str(port):
        return False
    try:
        return ipaddress.ip_address(name) == address
    except ValueError:
        pass  # a name
    if address is not None:
        return False
    name = name.removeprefix("*").rstrip(".")
    if name.startswith("."):
        return host.endswith(name)
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _variable(name: str) -> tuple[str, str]:
    for variable in (name.upper(), name):
        value = os.environ.get(variable, "").strip()
        if value:
            return variable, value
    return name.upper(), ""


def _proxy(name: str) -> Proxy | None:
    variable, value = _variable(name)
    if not value:
        return None
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    # The value may hold a password, so it is not quoted.
    if not host:
        raise ConfigError(f"{variable} is not the address of a proxy", hint="Write http://HOST:PORT.")
    if parts.scheme not in ("http", "socks5", "socks5h"):
        raise ConfigError(
            f"{variable} names a proxy that is spoken to by {printable(parts.scheme, 20)}",
            hint="http://HOST:PORT and socks5://HOST:PORT are. What goes through to a registry is TLS all the same.",
        )
    user = None
    if parts.username is not None:
        user = unquote(parts.username), unquote(parts.password or "")
    socks = parts.scheme != "http"
    return Proxy(host, port or (1080 if socks else 80), variable, socks, user)
