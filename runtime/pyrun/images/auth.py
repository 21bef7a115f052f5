"""Bearer tokens (distribution's token authentication; RFC 6750), asked for anonymously."""

from __future__ import annotations

import json
import time
from urllib.parse import urlencode

from ..errors import RegistryError, Unauthorized
from .printable import printable
from .transport import Transport

MAX_TOKEN = 1 << 20  # bytes of the token server's answer
MIN_LIFETIME = 60  # seconds a token is used, also if it claims to live shorter


def challenges(header: str) -> list[tuple[str, dict[str, str]]]:
    """A WWW-Authenticate header as (scheme, parameters) pairs, names in lowercase (RFC 9110 §11.6.1)."""
    found: list[tuple[str, dict[str, str]]] = []
    rest = header.strip()
    while rest:
        word, _, after = rest.partition(" ")
        if "=" not in word:
            found.append((word.rstrip(",").lower(), {}))
            rest = after.strip()
            continue
        name, _, after = rest.partition("=")
        after = after.lstrip()
        if after.startswith('"'):
            value, after = _quoted(after)
        else:
            value, comma, after = after.partition(",")
            value, after = value.strip(), comma + after
        if found:
            found[-1][1].setdefault(name.strip().lower(), value)
        rest = after.lstrip(", \t")
    return found


def _quoted(text: str) -> tuple[str, str]:
    value: list[str] = []
    at = 1
    while at < len(text) and text[at] != '"':
        at += text[at] == "\\"
        value.append(text[at : at + 1])
        at += 1
    return "".join(value), text[at + 1 :]


class Authorizer:
    """Finds the Authorization header that a registry's challenge asks for; keeps tokens until they expire."""

    def __init__(self, transport: Transport, scope: str) -> None:
        self._transport = transport
        self._scope = scope  # "repository:<path>:pull"
        self._token = ""
        self._expires = 0.0

    @property
    def header(self) -> str | None:
        """The header to send without being asked, None where there is no live token."""
        return f"Bearer {self._token}" if self._token and time.monotonic() < self._expires else None

    def answer(self, header: str | None) -> str | None:
        """The Authorization for a 401's challenge, None where there is nothing to answer it with."""
        for scheme, parameters in challenges(header or ""):
            if scheme == "bearer" and parameters.get("realm"):
                self._fetch(parameters)
                return self.header
        return None

    def _fetch(self, parameters: dict[str, str]) -> None:
        realm = parameters["realm"]
        query = {"service": parameters["service"]} if parameters.get("service") else {}
        # What the challenge asks for is not believed: the token is for pulling this repository.
        query["scope"] = self._scope
        url = realm + ("&" if "?" in realm else "?") + urlencode(query)
        response = self._transport.request("GET", url, {"Accept": "application/json"})
        body = response.read(MAX_TOKEN)
        where = printable(realm, 200)
        if response.status in (401, 403):
            raise Unauthorized(f"the token server {where} gives no anonymous access", hint=PRIVATE)
        if response.status != 200 or body is None:
            raise RegistryError(f"the token server {where} answered with status {response.status}")
        try:
            answer = json.loads(body)
            token = answer.get("token") or answer.get("access_token")
            lifetime = max(float(answer.get("expires_in") or 0), MIN_LIFETIME)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise RegistryError(f"the token server {where} did not answer with a token") from error
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryError(f"the token server {where} did not answer with a token")
        self._token, self._expires = token, time.monotonic() + lifetime


PRIVATE = "Check the name. Private repositories need credentials, which are not sent: pulls are anonymous."
