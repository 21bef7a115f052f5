"""The places that a layer's blob can come from: registry endpoints, then a foreign layer's own URLs.

A source that refuses, lacks the blob or serves other bytes is not asked again. One whose connection breaks is, after
a pause, a few times; meanwhile the others are, and any of them goes on where the last one stopped.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...errors import ImageError, ManifestUnknown, RegistryError
from ..digest import short
from ..printable import printable
from ..registry.failures import failed
from ..registry.ranges import begins, from_offset
from ..registry.retry import LONGEST_WAIT, doubling, retry_after, scale

if TYPE_CHECKING:
    from ..registry.client import RegistryClient
    from ..registry.response import Response

TRIES = 5  # failures in a row without progress, a source
MAX_URLS = 16  # of one foreign layer
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class Broken(RegistryError):
    """The source may be asked again, ``after`` seconds from now if it said so."""

    def __init__(self, message: str, *, hint: str = "", after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.after = after


class Source:
    """One place. ``url`` "": the registry itself serves the blob; else that is its address, asked for without
    credentials."""

    def __init__(self, client: RegistryClient, url: str = "") -> None:
        self.client = client
        self.url = url
        self.failures = 0  # in a row
        self.ready = 0.0  # on the monotonic clock: not to be asked before
        self.ranges = True  # until it answers one wrongly

    def __str__(self) -> str:
        return printable(self.url, 200) if self.url else str(self.client.endpoint)

    @property
    def host(self) -> str:
        return printable(self.url.split("/")[2], 200) if self.url else self.client.endpoint.host

    def open(self, digest: str, offset: int, size: int) -> tuple[Response, int]:
        """The answer to a request for the blob from ``offset`` on, and where in the blob its body begins: there,
        or at 0 where the source serves no ranges, or answers them wrongly.

        Raises `RegistryError` (`Broken` where another try may help), and `DigestMismatch` where the source says
        that its blob has another size.
        """
        asked = offset if self.ranges else 0
        response = self._ask(digest, from_offset(asked))
        at = begins(response.status, response.header("Content-Range"), asked, size)
        if at is None and asked and response.status in (206, 416):
            response.close()
            self.ranges = False
            response = self._ask(digest, {})
            at = begins(response.status, None, 0, size)
        if at is None:
            response.close()
            raise RegistryError(
                f"{self.host} answered with status {response.status} for layer {short(digest)}",
                hint="It is no registry, or a broken one.",
            )
        length = response.header("Content-Length")
        if length is not None and length != str(size - at):
            response.close()
            from ..parts import mismatch

            of = f"{printable(length, 20)} bytes of it instead of {size - at}" + (
                f" from {at} on" if at else ""
            )
            raise mismatch(digest, f"{self.host} has {of}")
        return response, at

    def _ask(self, digest: str, headers: dict[str, str]) -> Response:
        try:
            if self.url:
                response = self.client.open_url(self.url, headers)
            else:
                response = self.client.open_blob(digest, headers, also=_PASSING | {416}, tries=1)
        except RegistryError as error:
            raise _passing(error) from error
        if response.status in _PASSING:
            after = retry_after(response.header("Retry-After"))
            response.close()
            wait = f"It asks to be left alone for {after:.0f} s." if after else "Try again later."
            said = (
                "limits how often it may be asked"
                if response.status == 429
                else (f"answered with status {response.status} for layer {short(digest)}")
            )
            raise Broken(f"{self.host} {said}", hint=wait, after=after)
        if self.url and response.status not in (200, 206, 416):
            response.close()
            raise RegistryError(f"{self} answered with status {response.status}")
        return response


class Sources:
    """Those that may still be asked, first the one to ask next."""

    def __init__(self, digest: str, clients: Sequence[RegistryClient], urls: Sequence[str]) -> None:
        self.digest = digest
        self._left = [Source(client) for client in clients]
        self._clients = clients
        self._urls = urls
        self._failed: list[tuple[object, ImageError]] = []
        self._lacking = 0

    def next(self, sleeping: Callable[[float], None]) -> Source:
        """The one to ask now; ``sleeping`` is told the seconds to wait before that, and has to wait them.

        Raises the error of the one that there was, or one that has every place's reason.
        """
        if not self._left:
            self._add_urls()
        if not self._left:
            raise failed(f"layer {short(self.digest)}", self._failed)
        source = min(self._left, key=lambda source: source.ready)
        wait = source.ready - time.monotonic()
        if wait > 0:
            sleeping(wait)
        return source

    def broke(self, source: Source, error: RegistryError, *, progress: bool) -> None:
        """``source`` failed; ``progress`` says whether it had brought a good deal before."""
        error = _passing(error)
        source.failures = 1 if progress else source.failures + 1
        after = error.after if isinstance(error, Broken) else 0.0
        if not isinstance(error, Broken) or source.failures >= TRIES or (after or 0.0) > LONGEST_WAIT:
            self.drop(source, error)
            return
        if after is None and not progress:
            after = doubling(source.failures)
        # One that got on keeps its place in the order; another comes after those not asked yet.
        source.ready = time.monotonic() + after * scale() if after is not None else 0.0

    def drop(self, source: Source, error: ImageError) -> None:
        """Don't ask ``source`` again."""
        if isinstance(error, Broken):
            error = RegistryError(error.message, hint=error.hint)  # for good now
        if source in self._left:
            self._left.remove(source)
            self._failed.append((source, error))
            self._lacking += isinstance(error, ManifestUnknown)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def _add_urls(self) -> None:
        """The foreign layer's own addresses, where every registry said that it has not got the blob."""
        urls, self._urls = self._urls, ()
        if not self._clients or self._lacking < len(self._clients):
            return
        for url in urls[:MAX_URLS]:
            if url.lower().startswith("https://"):
                self._left.append(Source(self._clients[0], url))
            else:
                error = RegistryError(
                    f"{printable(url, 200)} is not https",
                    hint="A foreign layer is fetched from outside its registry over https only.",
                )
                self._failed.append((printable(url, 200), error))


def _passing(error: RegistryError) -> RegistryError:
    """As `Broken`, where the connection failed in a way that may be over at the next try."""
    cause = error.__cause__
    if isinstance(error, Broken) or not isinstance(cause, (OSError, http.client.HTTPException)):
        return error
    if isinstance(cause, (ssl.SSLCertVerificationError, socket.gaierror)):
        return error
    return Broken(error.message, hint=error.hint)
