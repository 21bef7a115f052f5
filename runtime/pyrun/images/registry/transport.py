"""HTTP to a registry, under a hostile registry's rules: what is connected to, followed and believed.

Plain HTTP is spoken only to loopback and to hosts that registries.conf calls insecure, and then it is tried
*first*: there is no step down from TLS to plain text after a failure, which someone on the way could cause.
TLS follows where plain HTTP finds no registry, on port 443 for a host without a port.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from copy import copy
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

from ...errors import RegistryError
from ..printable import printable
from .origin import PLAIN_HINT, Address, Origin, address, explained, is_inward, is_loopback, named, parsed
from .proxy import Proxies, Proxy
from .response import IDLE_TIMEOUT, PATIENCE, Deadline, Response, head_of
from .tls import certificates

CONNECT_TIMEOUT = 15.0  # seconds
KEEPING = 5  # times the patience, for the answer to an upload
MAX_REDIRECTS = 10
BLOCK = 256 << 10  # bytes of a body that are sent at once
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_USER_AGENT = "pyrun"

Body = bytes | BinaryIO


class Transport:
    """Requests to one registry and to where it redirects. Connections are kept; not safe across fork.

    insecure  plain HTTP, and at this host certificates that can't be verified, are allowed
    tls_only  no plain HTTP, although the host is loopback
    cert_dir  the directory of its CAs and client certificates (None: `pyrun.images.registry.tls.certificates`). CAs
              hold for whatever the registry leads to, its token server for one; client certificates are shown to its
              host
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
        return parsed(url)[0] == self._origin(self.scheme)

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
            origin, target = parsed(url)
            if origin[0] == "http" and not self.plain_allowed:
                raise RegistryError(
                    f"{self.host} leads to {printable(url, 200)}, which is not https", hint=PLAIN_HINT
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
            following = parsed(url)[0]
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
            target, headers = address(origin, target), {**headers, **proxy.headers}
        for attempt in (1, 2):
            with explained(origin):
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
                    raw = head_of(connection, deadline)
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
        if is_inward(peer) and not (home and is_inward(home) and home.is_loopback == peer.is_loopback):
            connection.close()
            raise RegistryError(
                f"{self.host} leads to {named(origin)}, an address of this machine or link ({peer})",
                hint="That is never followed from a registry elsewhere.",
            )

    def _origin(self, scheme: str) -> Origin:
        return parsed(f"{scheme}://{self.host}/")[0]

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
        origin, target = parsed(f"http://{self.host}/v2/")
        connection = http.client.HTTPConnection(origin[1], origin[2], timeout=CONNECT_TIMEOUT)
        headers = {"User-Agent": _USER_AGENT}
        proxy = self._proxy(origin)
        if proxy is not None and not proxy.socks:
            target, headers = address(origin, target), {**headers, **proxy.headers}
        try:
            try:
                with explained(origin):
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
                answer = head_of(connection, Deadline(self.patience))
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


def _request(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    body: Body | None,
    headers: dict[str, str],
) -> bool:
    """Send a request. False where the other side stopped reading its body: it may have said why (413), which only
    `head_of` can tell."""
    try:
        connection.request(method, target, body, headers)
    except (BrokenPipeError, ConnectionResetError):
        if body is None:
            raise
        return False
    return True


def _peer(connection: http.client.HTTPConnection) -> Address:
    """The address that was connected to: what a name resolved to, and not what it may resolve to next."""
    address = ipaddress.ip_address(connection.sock.getpeername()[0].partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address
