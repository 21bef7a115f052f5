"""Asking again: answers that mean "later", and connections that broke.

429, 408, 502, 503 and 504 are asked again, and so is what lost its connection where asking twice changes nothing
(RFC 9110 §9.2.2): five tries in all, 2 s apart, doubling to 60 s, or as long as ``Retry-After`` says. A registry that
wants to be left alone for longer than a minute is, and the error says for how long. A mirror gets one further try: the
next place may answer at once.

``PYRUN_RETRY_DELAY`` (seconds, 2 by default) scales every wait.
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from ...errors import RegistryError
from ..printable import printable
from .response import Response
from .transport import Body, Transport

if TYPE_CHECKING:
    from collections.abc import Callable

ENVIRONMENT = "PYRUN_RETRY_DELAY"
TRIES = 5
MIRROR_TRIES = 2
FIRST_WAIT = 2.0  # seconds
LONGEST_WAIT = 60.0
LATER = frozenset({408, 429, 502, 503, 504})
_NOT_ACTED_ON = frozenset({408, 429, 503})  # so that what is not idempotent may be sent again, too
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})
MAX_WARNING = 4096  # bytes


class Sender:
    """A registry's `Transport`, with patience."""

    def __init__(self, transport: Transport, notice: Callable[[str], None], *, mirror: bool = False) -> None:
        self.transport = transport
        self.notice = notice
        self.tries = MIRROR_TRIES if mirror else TRIES
        self._warned: set[str] = set()

    def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: Body | None = None,
        *,
        idempotent: bool | None = None,
        follow: bool = True,
        tries: int | None = None,
    ) -> Response:
        """As `Transport.request`. The last answer is handed over as it is, whatever its status.

        ``idempotent``: whether a request whose answer was lost may be sent again (None: by its method).
        """
        tries = tries or self.tries
        again = method in IDEMPOTENT if idempotent is None else idempotent
        start = body.tell() if body is not None and not isinstance(body, bytes) else 0
        for attempt in range(1, tries + 1):
            if body is not None and not isinstance(body, bytes):
                body.seek(start)
            try:
                response = self.transport.request(method, url, headers, body, follow=follow)
            except RegistryError as error:
                if attempt == tries or not again or not _broke(error):
                    raise
                wait, why = doubling(attempt), error.message
            else:
                self._warn(response.header("Warning"))
                status = response.status
                if attempt == tries or status not in (LATER if again else _NOT_ACTED_ON):
                    return response
                asked = retry_after(response.header("Retry-After"))
                if asked is not None and asked > LONGEST_WAIT:
                    return response
                response.discard()
                wait = max(asked or 0.0, doubling(attempt) if not asked else 0.0)
                why = f"{self.transport.host} answers with status {status}"
                why += " (too many requests)" if status == 429 else ""
            self.notice(f"{why}; trying again in {wait:.0f} s ({attempt} of {tries - 1})")
            time.sleep(wait * scale())
        raise AssertionError("unreachable")

    def _warn(self, header: str | None) -> None:
        """Pass on what a registry has to say to its users (distribution spec, "Warnings"): once each."""
        for text in warnings(header or ""):
            if text not in self._warned and len(self._warned) < 20:
                self._warned.add(text)
                self.notice(f"{self.transport.host} warns: {text}")


def warnings(header: str) -> list[str]:
    """The texts of ``299 - "text"`` in a Warning header, made printable, `MAX_WARNING` bytes in all at most."""
    found: list[str] = []
    rest = header.encode("utf-8", "surrogateescape")[:MAX_WARNING].decode("utf-8", "replace")
    while True:
        _, start, rest = rest.partition('299 - "')
        if not start:
            return found
        text = []
        at = 0
        while at < len(rest) and rest[at] != '"':
            at += rest[at] == "\\"
            text.append(rest[at : at + 1])
            at += 1
        found.append(printable("".join(text), MAX_WARNING))
        rest = rest[at + 1 :]


def retry_after(header: str | None) -> float | None:
    """Seconds from now, of a number or an HTTP date (RFC 9110 §10.2.3); None where there is no such header."""
    text = (header or "").strip()
    if text.isascii() and text.isdecimal():
        seconds = float(text[:12])
        # Docker Hub sends the moment its limit ends, in seconds since 1970.
        return max(0.0, seconds - time.time()) if seconds > 1_000_000_000 else seconds
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def doubling(attempt: int) -> float:
    return min(FIRST_WAIT * 2.0 ** (attempt - 1), LONGEST_WAIT)


def scale() -> float:
    try:
        return max(0.0, float(os.environ[ENVIRONMENT])) / FIRST_WAIT
    except (KeyError, ValueError):
        return 1.0


def _broke(error: RegistryError) -> bool:
    """Whether the connection was made and then lost, so that the next may hold."""
    cause = error.__cause__
    if isinstance(cause, ConnectionRefusedError):
        return False
    return isinstance(cause, (ConnectionError, http.client.IncompleteRead, ssl.SSLEOFError))
