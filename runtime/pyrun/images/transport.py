"""HTTP to a registry, under a hostile registry's rules: what is connected to, followed and believed.

Plain HTTP is spoken only to loopback and to hosts that registries.conf calls insecure, and then it is tried
*first*: there is no step down from TLS to plain text after a failure, which someone on the way could cause.
TLS follows where plain HTTP finds no registry, on port 443 for a host without a port.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import socket
import ssl
import time
from copy import copy
from functools import partial
from typing import Any, BinaryIO
from urllib.parse import SplitResult, urljoin, urlsplit

from ..errors import RegistryError
from .printable import printable
from .proxy import Proxies, Proxy
from .tls import certificates

CONNECT_TIMEOUT = 15.0  # seconds
IDLE_TIMEOUT = 60.0  # seconds without a byte
PATIENCE = 60.0  # seconds for an answer's head, for a small body, and for each MIN_PROGRESS of a large one
MIN_PROGRESS = 64 << 10  # bytes
KEEPING = 5  # times the patience, for the answer to an upload
MAX_REDIRECTS = 10
BLOCK = 256 << 10  # bytes of a body that are sent at once
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_USER_AGENT = "pyrun"
_SMALL = 64 << 10

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Origin = tuple[str, str, int]  # scheme, host, port
Body = bytes | BinaryIO


class Response:
    """An answer whose body has not been read. Read it to its end, or `close` it, before the next request."""

    def __init__(
        self,
        raw: http.client.HTTPResponse,
        connection: http.client.HTTPConnection,
        origin: Origin,
        deadline: Deadline,
        patience: float,
        home: bool = True,
    ) -> None:
        self.home = home  # the registry itself answered, not where it led to
        self.raw = raw
        self._deadline = deadline
        self._patience = patience
        self.status = raw.status
        self.origin = origin
        self._connection = connection

    def header(self, name: str) -> str | None:
        """The header's value; several of one name are joined by commas, as RFC 9110 §5.3 reads them."""
        values = self.raw.headers.get_all(name)
        return ", ".join(values) if values else None

    def read(self, limit: int) -> bytes | None:
        """The whole body, None if it is longer than ``limit`` bytes (the connection is closed then).

        It has to be there in `PATIENCE`.
        """
        with _explained(self.origin):
            self._deadline.allow(self._patience)
            body = self.raw.read(limit + 1)
            short = self.raw.length  # what Content-Length promised and did not come
        if len(body) > limit:
            self.close()
            return None
        if short:
            self.close()
            raise RegistryError(f"{named(self.origin)} closed the connection in the middle of an answer")
        return body

    def readinto(self, buffer: memoryview) -> int:
        """Up to ``len(buffer)`` bytes of the body; 0 at its end, or where the connection ended early.

        Slower than `MIN_PROGRESS` each `PATIENCE` is an error. The time between two calls does not count.
        """
        with _explained(self.origin):
            self._deadline.allow(self._patience * max(1.0, len(buffer) / MIN_PROGRESS))
            return self.raw.readinto(buffer)

    def discard(self) -> None:
        """Be done with the answer; the connection is kept if only little of the body is left."""
        self.read(_SMALL)

    def close(self) -> None:
        """Be done with the answer and its connection."""
        self.raw.close()
        self._connection.close()


class Deadline:
    """Until when reads may wait. A server that sends a byte now and then never meets a socket's timeout, and
    one that sends interim answers or trailers without end is read inside one call of http.client."""

    def __init__(self, seconds: float, idle: float = IDLE_TIMEOUT) -> None:
        self._idle = idle
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Start anew: ``seconds`` from now."""
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, at most ``idle``. Raises TimeoutError where there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, self._idle)


class _TimedReader(io.RawIOBase):
    """A socket's bytes, under a deadline."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        super().__init__()
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)  # counted by the socket, which stays open as long
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._socket.settimeout(self._deadline.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, deadline: Deadline, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedReader(sock, deadline))


class Transport:
    """Requests to one registry and to where it redirects. Connections are kept; not safe across fork.

    insecure  plain HTTP, and at this host certificates that can't be verified, are allowed
    tls_only  no plain HTTP, although the host is loopback
    cert_dir  the directory of its CAs and client certificates (None: `pyrun.images.tls.certificates`). CAs hold for
              whatever the registry leads to, its token server for one; client certificates are shown to its host
    """

    def __init__(
        self,
        host: str,
        *,
        insecure: bool,
        tls_only: bool = False,
        cert_dir: str | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.host = host
        self.patience = patience
        self.insecure = insecure
        self.plain_allowed = insecure or (is_loopback(host) and not tls_only)
        self._cert_dir = cert_dir
        self._proxies: Proxies | None = None
        self._scheme = "" if self.plain_allowed else "https"
        self._connections: dict[Origin, http.client.HTTPConnection] = {}
        self._contexts: dict[tuple[bool, bool], ssl.SSLContext] = {}
        self._home: Address | None = None  # of the registry itself
        self._refusal = ""  # how plain HTTP was answered by what is no registry
        # Status and WWW-Authenticate of /v2/, where finding out the scheme has asked for it.
        self.base: tuple[int, str | None] | None = None

    def url(self, path: str) -> str:
        """``path`` at this registry, in the scheme it speaks; the first call may have to find that out."""
        return f"{self.scheme}://{self.host}{path}"

    @property
    def scheme(self) -> str:
        if not self._scheme:
            self._scheme = "http" if self._speaks_plain_http() else "https"
        return self._scheme

    def is_home(self, url: str) -> bool:
        """Whether ``url`` is at this registry: its scheme, host and port. Only such a one gets credentials."""
        return _parsed(url)[0] == self._origin(self.scheme)

    def close(self) -> None:
        """Close every connection; the next request opens new ones."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def twin(self) -> Transport:
        """This one for another thread: what it found out, and connections of its own."""
        _ = self.scheme
        twin = copy(self)
        twin._connections = {}
        return twin

    def abort(self) -> None:
        """From another thread: whatever waits for a byte on one of these connections fails now."""
        for connection in list(self._connections.values()):
            try:
                # Not the shutdown of ssl's class: after that, what the other thread sends would go out in the clear.
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
            except (OSError, TypeError):
                continue  # closed already, or not made yet

    def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: Body | None = None,
        *,
        follow: bool = True,
    ) -> Response:
        """Send, and ``follow`` up to ten redirects. Raises `RegistryError` for anything but an HTTP answer.

        ``body``: bytes, or a binary file that is sent from where it stands; "Content-Length" among the headers
        says how much. Where a redirect calls for it again, a file is sought back to where it stood; where the
        connection breaks, bytes may be sent again, and a file is not.

        Authorization is dropped as soon as scheme, host or port change. A redirect from https to http is
        refused, and so is anything that leads from elsewhere to loopback or a link-local address: a registry
        has no business with services of this machine or of its cloud (SSRF).
        """
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers}
        start = body.tell() if body is not None and not isinstance(body, bytes) else 0
        for _ in range(MAX_REDIRECTS + 1):
            origin, target = _parsed(url)
            if origin[0] == "http" and not self.plain_allowed:
                raise RegistryError(
                    f"{self.host} leads to {printable(url, 200)}, which is not https", hint=_PLAIN_HINT
                )
            response = self._send(method, origin, target, headers, body, start)
            location = response.header("Location")
            if not follow or response.status not in _REDIRECTS or not location:
                return response
            response.discard()
            try:
                url = urljoin(url, location)
            except ValueError:
                url = location  # refused by the next line
            following = _parsed(url)[0]
            if origin[0] == "https" and following[0] != "https":
                raise RegistryError(
                    f"{named(origin)} redirects from https to {printable(url, 200)}",
                    hint="That is never followed.",
                )
            if following != origin:
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
        raise RegistryError(f"{self.host} redirects more than {MAX_REDIRECTS} times")

    def _send(
        self,
        method: str,
        origin: Origin,
        target: str,
        headers: dict[str, str],
        body: Body | None,
        start: int,
    ) -> Response:
        proxy = self._proxy(origin)
        if proxy is not None and origin[0] == "http" and not proxy.socks:
            target, headers = _url(origin, target), {**headers, **proxy.headers}
        for attempt in (1, 2):
            with _explained(origin):
                connection, fresh = self._connected(origin)
                self._check_peer(origin, connection)
                try:
                    connection.sock.settimeout(IDLE_TIMEOUT)
                    if body is not None and not isinstance(body, bytes):
                        body.seek(start)
                    whole = _request(connection, method, target, body, headers)
                    deadline = Deadline(self.patience)
                    if body is not None and not isinstance(body, bytes):
                        # A registry may put a large blob away, in its own store's time, before it answers.
                        deadline = Deadline(self.patience * KEEPING, self.patience * KEEPING)
                    raw = _answer(connection, deadline)
                    if raw.status == 407 and proxy is not None:
                        connection.close()
                        raise proxy.refused(raw.status, named(origin))
                    if not whole and connection.sock is not None:
                        connection.sock.close()  # not for another request; the answer is still read from it
                        connection.sock = None
                    return Response(
                        raw, connection, origin, deadline, self.patience, origin == self._origin(origin[0])
                    )
                except (http.client.RemoteDisconnected, ConnectionError, http.client.CannotSendRequest):
                    # A kept connection may have been closed by the other side since; a fresh one may not. How much
                    # of a file got through is for the caller to find out.
                    connection.close()
                    if fresh or attempt == 2 or not (body is None or isinstance(body, bytes)):
                        raise
                except BaseException:
                    connection.close()
                    raise
        raise AssertionError("unreachable")

    def _connected(self, origin: Origin) -> tuple[http.client.HTTPConnection, bool]:
        kept = self._connections.get(origin)
        if kept is not None and kept.sock is not None:
            return kept, False
        scheme, host, port = origin
        proxy = self._proxy(origin)
        connection: http.client.HTTPConnection
        if scheme == "https":
            context = self._context(host)
            connection = http.client.HTTPSConnection(
                host, port, timeout=CONNECT_TIMEOUT, blocksize=BLOCK, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT, blocksize=BLOCK)
        connection.auto_open = 0  # which would go past the proxy
        try:
            if proxy is None:
                connection.connect()
            elif scheme == "https" or proxy.socks:
                tunnel = proxy.tunnel(host, port, CONNECT_TIMEOUT)
                secure = scheme == "https"
                connection.sock = context.wrap_socket(tunnel, server_hostname=host) if secure else tunnel
            else:
                connection.sock = proxy.connect(CONNECT_TIMEOUT)
        except ssl.SSLCertVerificationError:
            raise
        except ssl.SSLError as error:
            if not self._refusal or origin != self._origin("https"):
                raise
            raise RegistryError(
                f"{named(origin)} does not answer as a registry:"
                f" plain HTTP gives {self._refusal} for /v2/, and TLS fails ({error.reason or error})",
                hint="Check host and port. A registry answers /v2/ with status 200 or 401.",
            ) from error
        self._connections[origin] = connection
        return connection, True

    def _check_peer(self, origin: Origin, connection: http.client.HTTPConnection) -> None:
        """Refuse an address of this machine or link that a registry elsewhere led to."""
        if self._proxy(origin) is None:
            peer = _peer(connection)
        else:
            # The proxy knows where it is; what is written as an address can be told all the same.
            try:
                peer = ipaddress.ip_address(origin[1])
            except ValueError:
                return
        if origin == self._origin(origin[0]):
            self._home = peer
            return
        home = self._home
        if _inward(peer) and not (home and _inward(home) and home.is_loopback == peer.is_loopback):
            connection.close()
            raise RegistryError(
                f"{self.host} leads to {named(origin)}, an address of this machine or link ({peer})",
                hint="That is never followed from a registry elsewhere.",
            )

    def _origin(self, scheme: str) -> Origin:
        return _parsed(f"{scheme}://{self.host}/")[0]

    def _proxy(self, origin: Origin) -> Proxy | None:
        if self._proxies is None:
            self._proxies = Proxies()
        return self._proxies.choose(*origin)

    def _context(self, host: str) -> ssl.SSLContext:
        home = host == self._origin("https")[1]
        verify = not (self.insecure and home)
        context = self._contexts.get((verify, home))
        if context is None:
            found = certificates(self.host, self._cert_dir)
            context = self._contexts[verify, home] = found.context(verify=verify, client=home)
        return context

    def _speaks_plain_http(self) -> bool:
        """Whether a registry answers plain HTTP at this host, which is 200 or 401 to ``GET /v2/``, or the
        header that distribution sends. A TLS server answers 400, or not in HTTP; a web server redirects.

        Raises `RegistryError` where the host can't be reached, unless it has no port: then 443 is left to try.
        """
        origin, target = _parsed(f"http://{self.host}/v2/")
        connection = http.client.HTTPConnection(origin[1], origin[2], timeout=CONNECT_TIMEOUT)
        headers = {"User-Agent": _USER_AGENT}
        proxy = self._proxy(origin)
        if proxy is not None and not proxy.socks:
            target, headers = _url(origin, target), {**headers, **proxy.headers}
        try:
            try:
                with _explained(origin):
                    if proxy is None:
                        connection.connect()
                        self._home = _peer(connection)
                    elif proxy.socks:
                        connection.sock = proxy.tunnel(origin[1], origin[2], CONNECT_TIMEOUT)
                    else:
                        connection.sock = proxy.connect(CONNECT_TIMEOUT)
            except RegistryError:
                if urlsplit(f"//{self.host}").port is not None:
                    raise
                return False
            try:
                connection.request("GET", target, headers=headers)
                answer = _answer(connection, Deadline(self.patience))
            except TimeoutError:
                self._refusal = "no answer in time"
                return False
            except (http.client.HTTPException, OSError):
                return False
            if answer.status in (200, 401) or answer.headers.get("Docker-Distribution-Api-Version"):
                asked = answer.headers.get_all("WWW-Authenticate")
                self.base = (answer.status, ", ".join(asked) if asked else None)
                return True
            if answer.status == 407 and proxy is not None:
                raise proxy.refused(answer.status, named(origin))
            self._refusal = f"status {answer.status}"
            return False
        finally:
            connection.close()


_PLAIN_HINT = "Plain HTTP is spoken to loopback, and to hosts that registries.conf marks insecure = true."


def _request(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: Body | None,
    headers: dict[str, str],
) -> bool:
    """Send a request. False where the other side stopped reading its body: it may have said why (413), which only
    `_answer` can tell."""
    try:
        connection.request(method, target, body, headers)
    except (BrokenPipeError, ConnectionResetError):
        if body is None:
            raise
        return False
    return True


def _answer(connection: http.client.HTTPConnection, deadline: Deadline) -> http.client.HTTPResponse:
    """The head of the answer to a request that was sent."""
    connection.response_class = partial(_TimedResponse, deadline)  # type: ignore[assignment]
    return connection.getresponse()


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


def _url(origin: Origin, target: str) -> str:
    scheme, host, port = origin
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{target}"


def _parsed(url: str) -> tuple[Origin, str]:
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


def _peer(connection: http.client.HTTPConnection) -> Address:
    """The address that was connected to: what a name resolved to, and not what it may resolve to next."""
    address = ipaddress.ip_address(connection.sock.getpeername()[0].partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _inward(address: Address) -> bool:
    return address.is_loopback or address.is_link_local


class _explained:  # noqa: N801  (reads as a word in a with statement)
    """Turns the errors of sockets, TLS and HTTP into a `RegistryError` that names the host."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, (OSError, http.client.HTTPException, ValueError)):
            return
        host = named(self.origin)
        hint = "Check the network, and the mirrors in registries.conf."
        if isinstance(error, socket.gaierror):
            why = f"its name can't be resolved ({error.strerror})"
        elif isinstance(error, ssl.SSLCertVerificationError):
            why = f"its certificate can't be verified: {error.verify_message}"
            hint = (
                f"Put its CA's certificate into /etc/containers/certs.d/{host}/ca.crt,"
                " or mark it insecure = true in registries.conf."
            )
        elif isinstance(error, ssl.SSLError) and "ALERT" in str(error.reason) and "CERT" in str(error.reason):
            why = f"it wants another client certificate ({error.reason.lower().replace('_', ' ')})"
            hint = f"Put it into /etc/containers/certs.d/{host} as client.cert and client.key."
        elif isinstance(error, ssl.SSLError):
            why, hint = f"TLS failed: {error.reason or error}", _PLAIN_HINT
        elif isinstance(error, TimeoutError):
            why = "it does not answer in time"
        elif isinstance(error, http.client.HTTPException):
            why = f"its answer is not HTTP: {type(error).__name__} {printable(str(error), 200)}".rstrip()
        elif isinstance(error, OSError):
            why = (error.strerror or str(error)).lower()
        else:
            why = printable(str(error), 200)
        raise RegistryError(f"registry {host} can't be reached: {why}", hint=hint) from error
