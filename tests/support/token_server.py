"""A token server as registries use one: distribution's token protocol, OAuth2 refresh tokens, JWTs signed with RS256.

    with TokenServer(tmp_path, authority, {"alice": "secret"}) as tokens:
        with Registry(..., settings={"auth": tokens.registry_auth}) as registry:
            ...

Everybody may pull what is below ``public/``; who gives a right password may do all that is asked for.
"""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from .certificates import Authority, openssl
from .serving import Served, Server

SERVICE, ISSUER = "test registry", "test token server"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Asked:
    """One request to the server. ``user`` "": anonymous; ``granted`` False: refused."""

    method: str
    user: str
    scopes: list[str]
    granted: bool
    fields: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(parse_qs(urlsplit(self.path).query))

    def do_POST(self) -> None:
        self._answer(parse_qs(self._body().decode()))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, query: dict[str, list[str]]) -> None:
        owner = cast("_Server", self.server).owner
        fields = {name: values[0] for name, values in query.items()}
        scopes = [scope for value in query.get("scope", []) for scope in value.split(" ")]
        user: str | None = ""
        if self.command == "POST":
            user = owner.identities.get(fields.get("refresh_token", ""))
            if fields.get("grant_type") != "refresh_token" or not fields.get("client_id"):
                user = None
        elif self.headers.get("Authorization"):
            scheme, _, value = self.headers["Authorization"].partition(" ")
            name, _, password = base64.b64decode(value).decode().partition(":")
            right = scheme == "Basic" and owner.users.get(name) == password and password
            # docker sends the account beside
            user = name if right and fields.get("account") == name else None
        granted = user is not None and fields.get("service") == SERVICE
        with open(owner.log, "a") as log:
            log.write(json.dumps([self.command, user or "", scopes, granted, fields]) + "\n")
        if not granted:
            self._reply(401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]})
            return
        body: dict[str, Any] = {owner.name: owner.token(user or "", scopes), "expires_in": owner.lifetime}
        if fields.get("offline_token") == "true" and user and owner.identity_tokens:
            body["refresh_token"] = next(token for token, name in owner.identities.items() if name == user)
        self._reply(200, body)

    def _reply(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(Server):
    owner: TokenServer


class TokenServer(Served):
    """
    lifetime         seconds that a token is said to be good for
    really           seconds after which the registry takes it no more (None: as said)
    name             of the answer's member with the token
    identity_tokens  whether they are given to who asks for one
    tls              (certificate, key): https
    """

    def __init__(
        self,
        directory: Path,
        authority: Authority,
        users: dict[str, str],
        *,
        lifetime: int = 300,
        really: float | None = None,
        name: str = "token",
        identity_tokens: bool = False,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.users = users
        self.lifetime = lifetime
        self.really = lifetime if really is None else really
        self.name = name
        self.identity_tokens = identity_tokens
        self.identities = {f"identity-{user}-{os.urandom(8).hex()}": user for user in users}
        self.log = directory / "asked"
        self.log.touch()
        self._authority = authority
        certificate, self._key = authority.issue("token-signer")
        der = openssl("x509", "-in", str(certificate), "-outform", "DER")
        self._chain = [base64.b64encode(der).decode()]
        super().__init__(_Server(("127.0.0.1", 0), _Handler), tls=tls)
        self._server.owner = self
        self.realm = f"{'https' if tls else 'http'}://{self.host}/token"

    @property
    def registry_auth(self) -> dict[str, Any]:
        """The ``auth`` section of a registry that believes this server."""
        return {
            "token": {
                "realm": self.realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": str(self._authority.certificate),
            }
        }

    def token(self, user: str, scopes: list[str]) -> str:
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = actions.split(",") if user else [a for a in actions.split(",") if a == "pull"]
            if user or name.startswith("public/"):
                access.append({"type": kind, "name": name, "actions": allowed})
        now = time.time()
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            # docker-registry allows clocks to differ by a minute.
            "exp": int(now + self.really - (60 if self.really < 60 else 0)),
            "nbf": int(now) - 10,
            "iat": int(now) - 10,
            "jti": os.urandom(8).hex(),
            "access": access,
        }
        head = {"typ": "JWT", "alg": "RS256", "x5c": self._chain}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        signature = openssl("dgst", "-sha256", "-sign", str(self._key), data=signed.encode())
        return f"{signed}.{_base64url(signature)}"

    def asked(self) -> list[Asked]:
        """Every request so far."""
        return [Asked(*json.loads(line)) for line in self.log.read_text().splitlines()]
