"""Where a request goes: scheme, host and port; and what it means when nothing comes back from there."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from urllib.parse import SplitResult, urlsplit

from ...errors import RegistryError
from ..printable import printable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Origin = tuple[str, str, int]  # scheme, host, port

# Where clouds keep what their machines know of themselves, keys among it, beside 169.254.169.254: EC2 and Google's by
# IPv6, Alibaba's, Azure's, Oracle's.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
)

NETWORK_HINT = "Check the network, and the mirrors in registries.conf."
PLAIN_HINT = "Plain HTTP is spoken to loopback, and to hosts that registries.conf marks insecure = true."


def is_loopback(host: str) -> bool:
    """Whether ``host[:port]`` names this machine's loopback, by address or as "localhost"."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def named(origin: Origin) -> str:
    """``host:port`` for a message, without the port that the scheme implies."""
    scheme, host, port = origin
    host = f"[{host}]" if ":" in host else host
    return printable(host if port == {"http": 80, "https": 443}[scheme] else f"{host}:{port}", 300)


def address(origin: Origin, target: str) -> str:
    """The URL of ``target`` (a path and query) at ``origin``, as a request to a proxy has it."""
    scheme, host, port = origin
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{target}"


def parsed(url: str) -> tuple[Origin, str]:
    """(origin, path and query) of an http or https URL without user and password. Raises `RegistryError`."""
    try:
        parts: SplitResult = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        port, host = None, None
    else:
        if parts.scheme in ("http", "https") and host and not parts.username and not parts.password:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            return (parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme]), target
    raise RegistryError(f"{printable(url, 300)!r} is not an address that can be fetched")


def is_inward(address: Address) -> bool:
    """Whether an address is of this machine or of its link, or where its cloud keeps its metadata."""
    return address.is_loopback or address.is_link_local or address.is_unspecified or address in _METADATA


class explained:  # noqa: N801  (reads as a word in a with statement)
    """Turns the errors of sockets, TLS and HTTP into a `RegistryError` that names the host."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, (OSError, http.client.HTTPException, ValueError)):
            return
        host = named(self.origin)
        hint = NETWORK_HINT
        if isinstance(error, socket.gaierror):
            why = f"its name can't be resolved ({error.strerror})"
        elif isinstance(error, ssl.SSLCertVerificationError):
            why = f"its certificate can't be verified: {error.verify_message}"
            hint = (
                f"Put its CA's certificate into /etc/containers/certs.d/{host}/ca.crt, or for yourself into"
                f" ~/.config/containers/certs.d/{host}/ca.crt; or mark it insecure = true in registries.conf."
            )
        elif isinstance(error, ssl.SSLError) and "ALERT" in str(error.reason) and "CERT" in str(error.reason):
            why = f"it wants another client certificate ({error.reason.lower().replace('_', ' ')})"
            hint = f"Put it into /etc/containers/certs.d/{host} as client.cert and client.key."
        elif isinstance(error, ssl.SSLError):
            why, hint = f"TLS failed: {error.reason or error}", PLAIN_HINT
        elif isinstance(error, TimeoutError):
            why = "it does not answer in time"
        elif isinstance(error, http.client.HTTPException):
            why = f"its answer is not HTTP: {type(error).__name__} {printable(str(error), 200)}".rstrip()
        elif isinstance(error, OSError):
            why = (error.strerror or str(error)).lower()
        else:
            why = printable(str(error), 200)
        raise RegistryError(f"registry {host} can't be reached: {why}", hint=hint) from error
