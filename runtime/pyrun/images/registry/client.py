"""The registry client: manifests and blobs of one repository at one endpoint (OCI distribution spec).

Digests are always computed from the bytes; what the registry claims about them is never believed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING

from ...errors import DigestMismatch, ImageError, ManifestUnknown, RegistryError, Unauthorized
from ..digest import digest_like, is_digest, sha256
from ..mediatypes import DOCKER_INDEX, DOCKER_MANIFEST, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST
from ..printable import printable
from .access import Access
from .auth import Authorizer, login_line, private
from .credentials import Credentials
from .registries import Endpoint
from .response import PATIENCE, Response
from .retry import IDEMPOTENT, Sender, retry_after
from .transport import Body, Transport

if TYPE_CHECKING:
    from ..model import Descriptor

ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST))
MAX_ERROR_BODY = 1 << 20


class RegistryClient:
    """One repository at one `Endpoint`.

    name      the image's name in messages, as the user knows it
    actions   what tokens are asked for: "pull" or "pull,push"
    access    whose credentials, which certificates, who hears of retries and warnings
    patience  the seconds a slow answer gets (`pyrun.images.registry.response.PATIENCE`)

    Connections must not be shared across fork: `close` before forking; the next request opens new ones. Tokens
    are inherited: call `authorize` before forking, so that the workers don't ask for one each.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        *,
        actions: str = "pull",
        access: Access | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.endpoint = endpoint
        self.name = name
        self.access = access or Access()
        # "" for a client of the registry as a whole.
        self.scope = f"repository:{endpoint.path}:{actions}" if endpoint.path else ""
        self._transport = Transport(
            endpoint.host,
            insecure=self.access.insecure(endpoint),
            tls_only=self.access.tls_verify is True,
            cert_dir=self.access.cert_dir,
            patience=patience,
        )
        self._sender = Sender(self._transport, self.access.notice, mirror=endpoint.mirror)
        self._authorizer = Authorizer(self._sender, lambda: self.access.find(endpoint))

    @property
    def notice(self) -> Callable[[str], None]:
        """Called with a line that the user should see: a retry, a registry's warning. A worker may set its own."""
        return self._sender.notice

    @notice.setter
    def notice(self, notice: Callable[[str], None]) -> None:
        self._sender.notice = notice

    def authorize(self, *scopes: str) -> None:
        """Have a token at hand if this registry asks for one, for this repository and ``scopes`` beside.

        Raises as `request`."""
        self._authorizer.header(self._scopes(scopes), sender=self._sender)

    def verify(self, *, offline: bool = False) -> str:
        """Make sure that the registry takes the credentials: it answers ``/v2/`` to them, or asks for none.

        With ``offline`` an identity token is asked for beside; it is returned, "" where the registry gives none.
        Raises `Unauthorized`, `RegistryError`.
        """
        url = self._transport.url("/v2/")
        known = self._authorizer.header((), offline=offline)
        response = self._sender.request("GET", url, {"Authorization": known} if known else {})
        if response.status == 401:
            raise self._denied(response.read(MAX_ERROR_BODY) or b"", known)
        if response.status != 200:
            response.close()
            raise RegistryError(
                f"{self.endpoint.host} does not answer as a registry: status {response.status} for /v2/",
                hint="Check host and port.",
            )
        response.discard()
        return self._authorizer.identity_token

    def _scopes(self, more: Sequence[str]) -> tuple[str, ...]:
        return (self.scope, *more) if self.scope else tuple(more)

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        """`Transport.abort`."""
        self._transport.abort()

    def twin(self) -> RegistryClient:
        """A client for another thread: with connections of its own, and the tokens of this one."""
        twin = copy(self)
        twin._transport = self._transport.twin()
        twin._sender = copy(self._sender)
        twin._sender.transport = twin._transport
        return twin

    def head_manifest(self, version: str) -> str | None:
        """The digest the registry gives for a tag or digest; None where it does not say.

        Docker Hub does not count HEAD against its pull limit. Raises `ManifestUnknown`, `Unauthorized`,
        `RegistryError`.
        """
        response = self.request("HEAD", f"manifests/{version}", {"Accept": ACCEPT})
        response.discard()
        digest = response.header("Docker-Content-Digest") or ""
        if response.status == 405 or (response.status == 200 and not is_digest(digest)):
            return None
        if response.status != 200:
            # A HEAD has no body to explain itself: the GET's error will. HEAD was patient already.
            self.get_manifest(version, tries=1)
            return None
        return digest

    def get_manifest(self, version: str, *, tries: int | None = None) -> tuple[bytes, str, str]:
        """(exact bytes, Content-Type, digest) of a manifest or index.

        By digest, the bytes are checked against it (`DigestMismatch`); by tag the digest is their sha256.
        """
        response = self.request("GET", f"manifests/{version}", {"Accept": ACCEPT}, tries=tries)
        body = self._body(response, f"manifest for {self.name}", MAX_DOCUMENT)
        if not is_digest(version):
            return body, response.header("Content-Type") or "", sha256(body)
        self._check(body, version, "manifest")
        return body, response.header("Content-Type") or "", version

    def get_blob(self, digest: str, size: int) -> bytes:
        """A small blob (the image config) of exactly ``size`` bytes, whole and checked."""
        if size > MAX_DOCUMENT:
            raise ImageError(f"the config of {self.name} is larger than {MAX_DOCUMENT >> 20} MiB")
        response = self.request("GET", f"blobs/{digest}", {})
        body = self._body(response, f"config of {self.name}", size, too_long="than its manifest says")
        self._check(body, digest, "config")
        return body

    def open_blob(
        self,
        digest: str,
        headers: Mapping[str, str] | None = None,
        *,
        also: Collection[int] = (),
        tries: int | None = None,
    ) -> Response:
        """The answer to a blob's GET, body not read: status 200, or 206 to ``headers`` with a Range, or one of
        ``also``. ``tries``: 1 for a caller that asks again itself."""
        response = self.request("GET", f"blobs/{digest}", dict(headers or {}), tries=tries)
        if response.status in also:
            return response
        if response.status not in ((200, 206) if headers else (200,)):
            self._body(response, f"layer {digest} of {self.name}", 0)
        encoding = response.header("Content-Encoding") or "identity"
        if encoding.lower() != "identity":
            response.close()
            raise RegistryError(
                f"{self.endpoint.host} sends {digest} in the encoding {printable(encoding, 60)!r}"
            )
        return response

    def open_url(self, url: str, headers: Mapping[str, str]) -> Response:
        """The answer to a GET of an address outside the registry, as a foreign layer's: without credentials."""
        return self._transport.request("GET", url, dict(headers))

    def blob_range(self, digest: str, offset: int, count: int) -> bytes:
        """``count`` bytes of the blob from ``offset``, fewer at its end; not verified (RFC 9110, section 14).

        Raises `RegistryError` where the registry serves no ranges: the whole blob is not read for a part of it.
        """
        if count <= 0:
            return b""
        response = self.request("GET", f"blobs/{digest}", {"Range": f"bytes={offset}-{offset + count - 1}"})
        if response.status == 416:  # it begins past the end; the length told may be the blob's
            response.close()
            return b""
        if response.status == 200:
            response.close()
            raise RegistryError(
                f"{self.endpoint.host} serves no parts of blobs, which this image's storage driver needs",
                hint="Use a driver that is not lazy (--storage).",
            )
        if response.status != 206:
            self._body(response, f"layer {digest} of {self.name}", 0)
        said = response.header("Content-Range") or ""
        if not said.startswith(f"bytes {offset}-"):
            response.close()
            raise RegistryError(
                f"{self.endpoint.host} sends {printable(said, 60)!r} where bytes from {offset} were asked for"
            )
        body = response.read(count)
        if body is None:
            raise RegistryError(f"{self.endpoint.host} sends more than the {count} bytes asked for")
        return body

    def tags(self) -> list[str]:
        """`pyrun.images.registry.listing.tags` of this repository."""
        from .listing import tags

        return tags(self)

    def catalog(self) -> list[str]:
        """`pyrun.images.registry.listing.catalog` of this registry."""
        from .listing import catalog

        return catalog(self)

    def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """`pyrun.images.registry.listing.referrers` to a manifest of this repository."""
        from .listing import referrers

        return referrers(self, digest, artifact_type)

    def url(self, path: str) -> str:
        """The address of ``path`` as `request` takes it."""
        if path.startswith(("http://", "https://")):
            return path
        return self._transport.url(path if path.startswith("/") else f"/v2/{self.endpoint.path}/{path}")

    def is_home(self, url: str) -> bool:
        """Whether an address is at this registry's origin, so that it gets credentials. Raises `RegistryError`."""
        return self._transport.is_home(url)

    def body(self, response: Response, what: str, limit: int) -> bytes:
        """The body of an answer with status 200, at most ``limit`` bytes; any other as the error that it means."""
        return self._body(response, what, limit)

    def request(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: Body | None = None,
        *,
        scopes: Sequence[str] = (),
        tries: int | None = None,
    ) -> Response:
        """Any request about this repository, authorised where that is asked for: the answer, its body not read.

        path    below ``/v2/<repository>/``, or from the root ("/v2/_catalog"), or an absolute URL, such as an
                upload's Location or a page's Link; at another origin that gets no credentials
        body    as for `Transport.request`; a file is sought back where it must be sent again
        scopes  further scopes for the token, such as "repository:other:pull" for a mount from there

        Retried as `pyrun.images.registry.retry` says. Raises `Unauthorized`, `RegistryError`; an answer's status is the
        caller's to judge.
        """
        absolute = path.startswith(("http://", "https://"))
        url = self.url(path)
        wanted = self._scopes(scopes)
        own = not absolute or self._transport.is_home(url)
        again = method in IDEMPOTENT and not (absolute and method == "PUT")
        start = body.tell() if body is not None and not isinstance(body, bytes) else 0
        known = self._authorizer.header(wanted, sender=self._sender) if own else None
        sent = {**headers, "Authorization": known} if known else headers
        response = self._sender.request(method, url, sent, body, idempotent=again, tries=tries)
        if response.status == 401 and own and response.home:
            refusal = response.read(MAX_ERROR_BODY) or b""
            answer = self._authorizer.answer(
                response.header("WWW-Authenticate"), wanted, known, sender=self._sender
            )
            if answer is None:
                raise self._denied(refusal, known)
            if body is not None and not isinstance(body, bytes):
                body.seek(start)
            response = self._sender.request(
                method, url, {**headers, "Authorization": answer}, body, idempotent=again, tries=tries
            )
        return response

    def _denied(self, body: bytes, sent: str | None) -> Unauthorized:
        """What a 401 to the Authorization ``sent`` means."""
        _, said = _errors(body)
        host, secret = self.endpoint.host, self._authorizer.credentials
        reason = f": {said}" if said else ""
        if secret is None:
            return Unauthorized(f"{host} wants credentials for {self.name}{reason}", hint=private(host))
        if sent and sent.startswith("Bearer ") and not secret.registry_token:
            # The token server knows them; what they may do is another matter.
            return self._forbidden(secret, reason)
        place = "" if self.name == host else f" for {self.name}"
        given = secret.source == "--creds"  # nothing that a login would change
        return Unauthorized(
            f"{host} refuses the {secret.described}{place}{reason}",
            hint="Check user name and password." if given else f"Log in again: {login_line(host)}",
        )

    def _forbidden(self, secret: Credentials, reason: str) -> Unauthorized:
        return Unauthorized(
            f"{self.endpoint.host} denies access to {self.name} with the {secret.described}{reason}",
            hint="Check the name, and what this user may do there.",
        )

    def _body(self, response: Response, what: str, limit: int, too_long: str = "") -> bytes:
        """The body of a 200; any other status as the error it means."""
        if response.status == 200:
            body = response.read(limit)
            if body is None:
                raise ImageError(f"the {what} is larger {too_long or f'than {limit >> 20} MiB'}")
            return body
        raise self.failure(response, what)

    def failure(self, response: Response, what: str) -> RegistryError:
        """What an answer means that is an error: ``what`` was asked for. Reads its body."""
        status = response.status
        body = response.read(MAX_ERROR_BODY) or b""
        codes, said = _errors(body)
        host = self.endpoint.host
        if status in (401, 403):
            reason = f": {said}" if said else ""
            secret = self._authorizer.used
            if secret is not None:
                return self._forbidden(secret, reason)
            return Unauthorized(f"{host} denies access to {self.name}{reason}", hint=private(host))
        if status == 404:
            where = "" if {"MANIFEST_UNKNOWN", "NAME_UNKNOWN", "BLOB_UNKNOWN"} & codes else f" at {host}"
            tagged = what.startswith("manifest") and "@" not in what
            return ManifestUnknown(
                f"{what} not found{where}" + (f": {said}" if said else ""),
                hint="Check name and tag." if tagged else "Check the name.",
            )
        if status == 429:
            seconds = retry_after(response.header("Retry-After"))
            wait = "Try again later." if seconds is None else f"Try again in {_duration(seconds)}."
            return RegistryError(
                f"{host} limits how often it may be asked{_limits(response)}" + (f": {said}" if said else ""),
                hint=f"{wait} Those who log in may often ask more: {login_line(host)}",
            )
        return RegistryError(
            f"{host} answered with status {status} for the {what}" + (f": {said}" if said else "")
        )

    def _check(self, body: bytes, digest: str, what: str) -> None:
        found = digest_like(digest, body)
        if found != digest:
            raise DigestMismatch(
                f"the {what} of {self.name} from {self.endpoint.host} is damaged or tampered with:"
                f" it was asked for as {digest}, and is {found}"
            )


def _limits(response: Response) -> str:
    """What the ``ratelimit-*`` headers say (Docker Hub sends them: "100;w=21600", in a window of seconds)."""
    names = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "Docker-RateLimit-Source")
    said = [f"{name.lower()} {printable(value, 60)}" for name in names if (value := response.header(name))]
    return f" ({', '.join(said)})" if said else ""


def _duration(seconds: float) -> str:
    whole = math.ceil(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{math.ceil(whole / 60)} minutes" if whole < 7200 else f"{math.ceil(whole / 3600)} hours"


def _errors(body: bytes) -> tuple[set[str], str]:
    """The codes of a registry's error body, and "code: message" of the first (distribution spec), or the code alone
    where the message only repeats it."""
    try:
        listed = json.loads(body)["errors"]
        codes = {entry["code"] for entry in listed if isinstance(entry["code"], str)}
        first = listed[0]
        code, message = str(first["code"]).replace("_", " ").lower(), str(first.get("message") or "")
        said = code if message.lower() == code else f"{code}: {message}".rstrip(": ")
        return codes, printable(said, 500)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return set(), ""
