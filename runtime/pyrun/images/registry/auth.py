"""Authorization: Basic, and bearer tokens (distribution's token and OAuth2 authentication; RFC 6750, 7617).

A password goes to the registry that it is stored for and to the token server that this registry names, over https;
over plain HTTP only where the registry itself is spoken to so. Nothing else gets it: a mirror has its own, and a
redirect to another origin loses the header.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

from ...errors import RegistryError, Unauthorized
from ..printable import printable
from .origin import is_loopback
from .response import Response
from .transport import Transport

if TYPE_CHECKING:
    from .credentials import Credentials
    from .retry import Sender

MAX_TOKEN = 1 << 20  # bytes of the token server's answer
MAX_CHALLENGE = (
    16 << 10
)  # characters of WWW-Authenticate that are looked at: several headers may be of 64 KiB each
MIN_LIFETIME = 60  # seconds a token is used, also if it claims to live shorter
MAX_LIFETIME = 24 * 3600  # seconds it is used, also if it claims to live longer
CLIENT_ID = "pyrun"
_ACTIONS = frozenset({"pull", "push", "delete", "*"})


def challenges(header: str) -> list[tuple[str, dict[str, str]]]:
    """A WWW-Authenticate header as (scheme, parameters) pairs, names in lowercase (RFC 9110 §11.6.1); its first
    `MAX_CHALLENGE` characters."""
    found: list[tuple[str, dict[str, str]]] = []
    rest = header[:MAX_CHALLENGE].strip()
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


@dataclass(slots=True)
class _Token:
    header: str
    expires: float  # of time.monotonic


class Authorizer:
    """Finds the Authorization header that a registry asks for, and keeps tokens until they expire.

    ``find`` is called once, and only where the registry asks. Tokens are per list of scopes, and survive a fork: what
    the parent has, a worker needs not ask for. Threads that need the same token wait for the one that fetches it, each
    over connections of its own: ``sender`` is the caller's.
    """

    def __init__(self, sender: Sender, find: Callable[[], Credentials | None]) -> None:
        self._sender = sender
        self._find = find
        self._credentials: Credentials | None = None
        self._looked = False
        self._challenges: list[tuple[str, dict[str, str]]] | None = None  # of /v2/; None: not asked yet
        self._tokens: dict[tuple[str, ...], _Token] = {}
        # What is asked for in place of a list of scopes that was not enough.
        self._widened: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._lock = threading.RLock()
        self.identity_token = ""  # a refresh token that the token server gave where one was asked for

    @property
    def _transport(self) -> Transport:
        return self._sender.transport

    @property
    def credentials(self) -> Credentials | None:
        if not self._looked:
            self._credentials, self._looked = self._find(), True
        return self._credentials

    @property
    def used(self) -> Credentials | None:
        """The credentials, if they were needed so far."""
        return self._credentials

    def header(
        self, scopes: Sequence[str], *, offline: bool = False, sender: Sender | None = None
    ) -> str | None:
        """What to send with a request that needs ``scopes``, None where nothing is asked for or there is nothing
        to answer with. ``offline``: ask for an identity token, too (`identity_token`)."""
        with self._lock:
            self._sender = sender or self._sender
            return self._answer(self._base(), tuple(scopes), offline)

    def answer(
        self,
        challenge: str | None,
        scopes: Sequence[str],
        refused: str | None,
        *,
        sender: Sender | None = None,
    ) -> str | None:
        """What to send after a 401 with ``challenge`` instead of ``refused``; None where there is nothing better."""
        key = tuple(scopes)
        with self._lock:
            self._sender = sender or self._sender
            asked = challenges(challenge or "") or self._base()
            held = self._tokens.get(key)
            for scheme, parameters in asked:
                if scheme == "bearer" and parameters.get("error") == "insufficient_scope":
                    self._widened[key] = widened(self._widened.get(key, key), parameters.get("scope", ""))
            if held is not None and held.header == refused:
                del self._tokens[key]
            found = self._answer(asked, key, False)
            return found if found != refused else None

    def _base(self) -> list[tuple[str, dict[str, str]]]:
        """The challenges of ``/v2/``: asked for once a host."""
        if self._challenges is None:
            url = self._transport.url("/v2/")
            status, header = self._transport.base or (0, None)  # finding the scheme asked already
            if not status:
                # Patience is for the request that this is for.
                response = self._sender.request("GET", url, {}, tries=1)
                response.discard()
                status, header = response.status, response.header("WWW-Authenticate")
            self._challenges = challenges(header or "") if status == 401 else []
        return self._challenges

    def _answer(
        self, asked: Sequence[tuple[str, dict[str, str]]], key: tuple[str, ...], offline: bool
    ) -> str | None:
        for scheme, parameters in asked:
            if scheme == "bearer" and parameters.get("realm"):
                secret = self.credentials
                if secret is not None and secret.registry_token:
                    return f"Bearer {secret.registry_token}"
                held = self._tokens.get(key)
                if held is None or held.expires <= time.monotonic():
                    scopes = self._widened.get(key, key)
                    held = self._tokens[key] = self._fetch(parameters, scopes, offline)
                return held.header
        for scheme, _ in asked:
            secret = self.credentials if scheme == "basic" else None
            if secret is not None and secret.username and secret.password:
                return _basic(secret)
        return None

    def _fetch(self, parameters: dict[str, str], scopes: tuple[str, ...], offline: bool) -> _Token:
        realm = parameters["realm"]
        where = printable(realm, 200)
        secret = self.credentials
        if secret is not None and not self._trusted(realm):
            raise Unauthorized(
                f"{self._transport.host} sends its users to {where} with their passwords, which is not https",
                hint="No password is sent there.",
            )
        fields = [("service", parameters["service"])] if parameters.get("service") else []
        # What a challenge asks for is not believed: the token is for what this request needs.
        fields += [("scope", scope) for scope in scopes]
        headers = {"Accept": "application/json"}
        if secret is not None and secret.identity_token:
            fields += [
                ("grant_type", "refresh_token"),
                ("client_id", CLIENT_ID),
                ("refresh_token", secret.identity_token),
            ]
            scope = " ".join(scopes)
            fields = [field for field in fields if field[0] != "scope"] + (
                [("scope", scope)] if scope else []
            )
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            # A redirect would be sent the token in the body.
            response = self._sender.request(
                "POST", realm, headers, urlencode(fields).encode(), idempotent=True, follow=False
            )
        else:
            if secret is not None and secret.username:
                fields.append(("account", secret.username))
                headers["Authorization"] = _basic(secret)
            if offline:
                fields += [("offline_token", "true"), ("client_id", CLIENT_ID)]
            url = realm + ("&" if "?" in realm else "?") + urlencode(fields)
            response = self._sender.request("GET", url, headers)
        answer = self._document(response, where)
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise RegistryError(f"the token server {where} did not answer with a token")
        lives = answer.get("expires_in")
        # In this order NaN is the least. An integer may be larger than any float.
        lifetime: float = MIN_LIFETIME
        if isinstance(lives, (int, float)) and lives > MIN_LIFETIME:
            lifetime = min(lives, MAX_LIFETIME)
        refresh = answer.get("refresh_token")
        if offline and isinstance(refresh, str):
            self.identity_token = refresh
        return _Token(f"Bearer {token}", time.monotonic() + lifetime)

    def _document(self, response: Response, where: str) -> dict[str, object]:
        body = response.read(MAX_TOKEN)
        if response.status in (400, 401, 403):
            raise self._refused(where, response.status, _reason(body or b""))
        if response.status != 200 or body is None:
            raise RegistryError(f"the token server {where} answered with status {response.status}")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RegistryError(f"the token server {where} did not answer with a token") from error
        if not isinstance(answer, dict):
            raise RegistryError(f"the token server {where} did not answer with a token")
        return answer

    def _refused(self, where: str, status: int, reason: str) -> RegistryError:
        secret = self.credentials
        said = f": {reason}" if reason else ""
        if secret is not None:
            return Unauthorized(
                f"the token server {where} refuses the {secret.described}{said}",
                hint=f"Log in again: {login_line(self._transport.host)}",
            )
        if status == 400:
            return RegistryError(f"the token server {where} answered with status 400{said}")
        return Unauthorized(
            f"the token server {where} gives no anonymous access{said}", hint=private(self._transport.host)
        )

    def _trusted(self, realm: str) -> bool:
        """Whether the token server at ``realm`` may see a password."""
        try:
            parts = urlsplit(realm)
            host = parts.hostname or ""
        except ValueError:
            return False
        if parts.scheme == "https":
            return True
        if parts.scheme != "http" or self._transport.scheme != "http":
            return False
        return self._transport.insecure or is_loopback(f"[{host}]" if ":" in host else host)


def widened(scopes: tuple[str, ...], wanted: str) -> tuple[str, ...]:
    """``scopes`` with the further actions that a challenge wants for the same resources, and for no others."""
    more = {}
    for scope in wanted.split():
        resource, _, actions = scope.rpartition(":")
        more[resource] = set(actions.split(",")) & _ACTIONS
    found = []
    for scope in scopes:
        resource, _, actions = scope.rpartition(":")
        have = actions.split(",")
        found.append(f"{resource}:{','.join([*have, *sorted(more.get(resource, set()) - set(have))])}")
    return tuple(found)


def login_line(host: str) -> str:
    """The command that logs in at ``host``."""
    return "pyrun login" if host == "registry-1.docker.io" else f"pyrun login {printable(host, 300)}"


def private(host: str) -> str:
    """What to do where a registry denies access."""
    return f"Check the name. If the repository is private, log in: {login_line(host)}"


def _basic(secret: Credentials) -> str:
    pair = f"{secret.username}:{secret.password}".encode()
    return "Basic " + base64.b64encode(pair).decode("ascii")


def _reason(body: bytes) -> str:
    """What a token server says of its refusal: distribution's errors, OAuth2's, or Docker Hub's "details"."""
    try:
        answer = json.loads(body)
        if isinstance(answer.get("errors"), list):
            answer = answer["errors"][0]
            said = answer.get("message") or answer.get("code")
        else:
            said = answer.get("error_description") or answer.get("details") or answer.get("error")
    except (ValueError, AttributeError, KeyError, IndexError, TypeError, RecursionError):
        return ""
    return printable(re.sub(r"\s+", " ", said), 300) if isinstance(said, str) else ""
