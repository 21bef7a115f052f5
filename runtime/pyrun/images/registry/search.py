"""Finding images in registries by a word, and listing the tags of a repository.

A registry is asked by the search of the first registry API (``GET /v1/search``), which Docker Hub and a few others
have kept; one without it by its list of repositories. All that comes back is checked, cut and counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from ...errors import ImageError, InvalidReference, RegistryError, UsageError
from ..model import MAX_DOCUMENT
from ..printable import printable
from ..reference import DEFAULT_DOMAIN, OFFICIAL, Reference
from .access import Access
from .client import RegistryClient
from .failures import failed
from .registries import DOCKER_HUB_API, Endpoint, Registries

DOCKER_HUB_SEARCH = "index.docker.io"
DEFAULT_LIMIT = 25
MAX_LIMIT = 100  # as docker has it
MAX_TERM = 255
MAX_DESCRIPTION = 1000
_PROBE = "probe"
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


@dataclass(frozen=True, slots=True)
class Found:
    """A repository. ``name`` is what `pull` takes; the rest is "", 0 and False where the registry does not tell."""

    name: str
    description: str = ""
    stars: int = 0
    official: bool = False
    automated: bool = False


class SearchFilters:
    """``stars=N`` (at least), ``is-official=`` and ``is-automated=true|false``. Raises `UsageError`."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.stars = 0
        self.official: bool | None = None
        self.automated: bool | None = None
        for text in texts:
            key, _, value = text.partition("=")
            if key == "stars" and value.isascii() and value.isdecimal() and len(value) < 10:
                self.stars = int(value)
            elif key == "is-official" and value in _TRUE + _FALSE:
                self.official = value in _TRUE
            elif key == "is-automated" and value in _TRUE + _FALSE:
                self.automated = value in _TRUE
            else:
                what = (
                    "unknown filter"
                    if key not in ("stars", "is-official", "is-automated")
                    else "invalid value"
                )
                raise UsageError(
                    f"--filter {text}: {what}",
                    hint="There are: stars=NUMBER, is-official=true|false, is-automated=true|false.",
                )

    def allow(self, found: Found) -> bool:
        return (
            found.stars >= self.stars
            and self.official in (None, found.official)
            and self.automated in (None, found.automated)
        )


def search(
    term: str,
    *,
    limit: int = DEFAULT_LIMIT,
    filters: Sequence[str] = (),
    registries: Registries,
    access: Access | None = None,
) -> list[Found]:
    """The repositories that ``term`` finds, in the registry's order: ``redis`` on Docker Hub (or what registries.conf
    has in its place), ``HOST[:PORT]/redis`` in another registry, ``HOST[:PORT]/`` all that one has.

    Raises `UsageError`, `InvalidReference`, `Unauthorized`, `RegistryError`.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise UsageError(f"the limit {limit} is outside the range of 1 to {MAX_LIMIT}")
    wanted = SearchFilters(filters)
    domain, word = _split(term)
    home = Reference(domain, _PROBE if domain != DEFAULT_DOMAIN else OFFICIAL + _PROBE, "latest", None)
    endpoint = registries.endpoints(home)[-1]  # mirrors have some of the images only
    prefix = endpoint.path.removesuffix(home.path)
    hub = endpoint.host == DOCKER_HUB_API
    whole = Endpoint(DOCKER_HUB_SEARCH if hub else endpoint.host, "", None, endpoint.insecure, mirror=False)
    client = RegistryClient(whole, printable(term, MAX_TERM), access=access)
    try:
        found = _by_search(client, word, required=hub) if word else None
        if found is None:
            found = [Found(name) for name in client.catalog() if word in name]
    finally:
        client.close()
    named = []
    for one in found:
        if not prefix or one.name.startswith(prefix):
            name = _name(domain, one.name.removeprefix(prefix))
            if name:
                named.append(Found(name, one.description, one.stars, one.official, one.automated))
    return [one for one in named if wanted.allow(one)][:limit]


def list_tags(reference: Reference, *, registries: Registries, access: Access | None = None) -> list[str]:
    """The tags of ``reference``'s repository, sorted, as the first of its registries that answers has them. Raises
    `ManifestUnknown`, `Unauthorized`, `RegistryError`."""
    failures: list[tuple[object, ImageError]] = []
    for endpoint in registries.endpoints(reference):
        client = RegistryClient(endpoint, reference.familiar_repository, access=access)
        try:
            return sorted(client.tags())
        except ImageError as error:
            failures.append((endpoint, error))
        finally:
            client.close()
    raise failed(reference.familiar_repository, failures)


def _split(term: str) -> tuple[str, str]:
    """(domain, what to look for there)."""
    if not term or len(term) > MAX_TERM or not term.isascii() or not term.isprintable() or " " in term:
        raise InvalidReference(
            f"{printable(term, MAX_TERM)!r} is nothing to search for",
            hint='For example "redis", or "registry.example:5000/redis".',
        )
    if "://" in term:
        raise InvalidReference(f"{term!r} is a URL; leave out {term.partition('://')[0]}://")
    first, slash, rest = term.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        domain = Reference.parse(f"{first}/{_PROBE}").domain  # raises where it is none
        if domain != DEFAULT_DOMAIN:
            return domain, rest
        term = rest.removeprefix(OFFICIAL)
    if not term:
        raise InvalidReference("Docker Hub has no list of all its images", hint="Give a word to search for.")
    return DEFAULT_DOMAIN, term


def _by_search(client: RegistryClient, term: str, *, required: bool) -> list[Found] | None:
    """What ``/v1/search`` finds; None where the registry has no such thing. ``required``: then that is an error."""
    query = urlencode({"q": term, "n": MAX_LIMIT})
    what = f"search for {client.name}"
    response = client.request("GET", f"/v1/search?{query}", {"Accept": "application/json"})
    if response.status != 200 and not required:
        response.discard()
        return None
    body = client.body(response, what, MAX_DOCUMENT)
    try:
        results = json.loads(body)["results"]
        if not isinstance(results, list):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        if not required:
            return None  # a page for people, perhaps
        raise RegistryError(f"{client.endpoint.host} sends a malformed answer to the {what}") from None
    return [one for one in map(_result, results[: 10 * MAX_LIMIT]) if one is not None]


def _result(entry: Any) -> Found | None:
    """One result, None where it is malformed."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    description, stars = entry.get("description"), entry.get("star_count")
    return Found(
        entry["name"],
        printable(description, MAX_DESCRIPTION) if isinstance(description, str) else "",
        stars if isinstance(stars, int) and 0 <= stars < 1 << 53 else 0,
        entry.get("is_official") is True,
        entry.get("is_automated") is True,
    )


def _name(domain: str, path: str) -> str:
    """As `pull` takes it; "" where it is no name."""
    try:
        own = path.partition("/")[0]
        if domain == DEFAULT_DOMAIN and ("." in own or ":" in own):
            return ""  # would be read as another registry's
        return Reference.parse(f"{domain}/{path}").familiar_repository
    except InvalidReference:
        return ""
