"""Lists that a registry gives in pages: tags, repositories, and what refers to a manifest (OCI distribution spec).

A page names the next in a ``Link`` header, which is followed at the registry's own origin only. Pages and entries are
counted: a list may have no end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin

from ...errors import ManifestUnknown, RegistryError
from ..model import MAX_DOCUMENT, OCI_INDEX, Descriptor, Index, parse_manifest
from ..printable import printable

if TYPE_CHECKING:
    from .client import RegistryClient

MAX_PAGES = 1000
MAX_ENTRIES = 100_000
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_NAME = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*")


def tags(client: RegistryClient) -> list[str]:
    """The repository's tags in the registry's order, which is most often that of their names. What is no tag by the
    grammar is left out. Raises `ManifestUnknown` where there is no such repository, `RegistryError`."""
    return [name for name in _names(client, "tags/list", "tags", ()) if _TAG.fullmatch(name)]


def catalog(client: RegistryClient) -> list[str]:
    """The repositories of the whole registry that these credentials may see. Raises `RegistryError` where the registry
    keeps no such list, as Docker Hub."""
    found = _names(client, "/v2/_catalog", "repositories", ("registry:catalog:*",))
    return [name for name in found if len(name) <= 255 and _NAME.fullmatch(name)]


def referrers(client: RegistryClient, digest: str, artifact_type: str = "") -> list[Descriptor]:
    """Descriptors of the manifests whose subject is ``digest``, of ``artifact_type`` or of all. A registry without the
    referrers API (404) is asked for the index that clients keep under a tag in its place."""
    query = f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else ""
    found: list[Descriptor] = []
    what = f"list of what refers to {digest}"
    try:
        for body, media_type in _pages(client, f"referrers/{digest}{query}", what, (), {"Accept": OCI_INDEX}):
            found += _index(body, media_type, what)
            _count(client, len(found), what)
    except ManifestUnknown:
        try:
            body, media_type, _ = client.get_manifest(referrers_tag(digest))
        except ManifestUnknown:
            return []
        found = _index(body, media_type, what)
    return [entry for entry in found if not artifact_type or entry.artifact_type == artifact_type]


def referrers_tag(digest: str) -> str:
    """The tag that stands in for the referrers API (distribution spec, "Referrers Tag Schema")."""
    algorithm, _, value = digest.partition(":")
    return f"{algorithm[:32]}-{value[:64]}"


def _index(body: bytes, media_type: str, what: str) -> list[Descriptor]:
    found = parse_manifest(body, media_type, f"the {what}")
    if not isinstance(found, Index):
        raise RegistryError(f"the {what} is no index but {printable(media_type, 100)!r}")
    return found.manifests


def _names(client: RegistryClient, path: str, key: str, scopes: tuple[str, ...]) -> list[str]:
    what = f"list of {key} of {client.name}" if key == "tags" else f"list of {key}"
    found: list[str] = []
    for body, _ in _pages(client, path, what, scopes, {"Accept": "application/json"}):
        found += _strings(client, body, key, what)
        _count(client, len(found), what)
    return found


def _strings(client: RegistryClient, body: bytes, key: str, what: str) -> list[str]:
    try:
        page: Any = json.loads(body)
        names = page[key] or []  # null where there is none
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RegistryError(f"{client.endpoint.host} sends a malformed {what}") from None
    return names


def _count(client: RegistryClient, count: int, what: str) -> None:
    if count > MAX_ENTRIES:
        raise RegistryError(f"{client.endpoint.host} sends a {what} with more than {MAX_ENTRIES:,} entries")


def _pages(
    client: RegistryClient, path: str, what: str, scopes: tuple[str, ...], headers: dict[str, str]
) -> Iterator[tuple[bytes, str]]:
    """(body, Content-Type) of each page."""
    seen = set()
    for _ in range(MAX_PAGES):
        url = client.url(path)
        seen.add(url)
        response = client.request("GET", url, headers, scopes=scopes)
        link = response.header("Link")
        yield client.body(response, what, MAX_DOCUMENT), response.header("Content-Type") or ""
        target = following(link or "")
        if not target:
            return
        try:
            path = urljoin(url, target)
            own = client.is_home(path)
        except ValueError:
            own = False
        if not own:
            raise RegistryError(
                f"{client.endpoint.host} continues the {what} at {printable(target, 200)}",
                hint="Only the registry's own pages are followed.",
            )
        if path in seen:
            raise RegistryError(f"{client.endpoint.host} sends the {what} in a circle")
    raise RegistryError(f"{client.endpoint.host} sends the {what} in more than {MAX_PAGES} pages")


def following(link: str) -> str:
    """The target of ``rel="next"`` in a Link header (RFC 8288), "" where there is none."""
    for target, parameters in re.findall(r"<([^<>]*)>([^<]*)", link[:8192]):
        if re.search(r';\s*rel\s*=\s*(?:next\b|"(?:[^"]*\s)?next(?:\s[^"]*)?")', parameters, re.IGNORECASE):
            return str(target)
    return ""
