"""Image references: ``[domain/]path[:tag][@digest]``. On the path of `run`: imports nothing but errors.

The grammar is that of distribution/reference, read the way docker does: a first component is a domain only
if it holds ``.`` or ``:`` or is ``localhost``; anything else belongs to docker.io, where a path of one
component gets ``library/`` in front.
"""

from __future__ import annotations

from ..errors import InvalidReference
from .digest import is_digest, is_hex

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
OFFICIAL = "library/"
MAX_NAME = 255  # of domain and path together, as distribution/reference has it
MAX_TAG = 128

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")
_ALNUM = _LOWER | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SEPARATORS = frozenset("._-")
_PATH = _LOWER | _SEPARATORS
_WORD = _ALNUM | {"_"}
_TAG = _WORD | {".", "-"}
_DIGITS = frozenset("0123456789")
_LABEL = _ALNUM | {"-"}
_IPV6 = frozenset("0123456789abcdefABCDEF:.")
_ALNUM_TO_SPACE = {ord(c): " " for c in _LOWER}

_EXAMPLE = 'Write it as [host[:port]/]name[:tag][@digest], for example "redis:7" or "ghcr.io/owner/app:1.0".'


class Reference:
    """A parsed, normalised reference. Immutable by convention; compares by all four parts.

    domain   "docker.io", "localhost:5000", "[::1]:5000"; lowercase
    path     "library/redis"
    tag      "latest" where the text had neither tag nor digest; ``implicit`` is True then
    digest   "sha256:<hex>" or None. Where it is given it decides, and the tag is only remembered
    """

    __slots__ = ("digest", "domain", "implicit", "path", "tag")

    def __init__(
        self, domain: str, path: str, tag: str | None, digest: str | None, *, implicit: bool = False
    ) -> None:
        self.domain = domain
        self.path = path
        self.tag = tag
        self.digest = digest
        self.implicit = implicit

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises `InvalidReference`, which says what is wrong and shows a right one."""
        rest, at, digest = text.partition("@")
        if not text:
            raise _invalid(text, "it is empty")
        if not text.isascii() or not text.isprintable() or " " in text:
            raise _invalid(text, "only ASCII letters, digits and . _ - / : @ may stand in it")
        if is_hex(text) and len(text) == 64:
            raise _invalid(text, "64 hexadecimal digits are an image ID, not a name")
        if "://" in text:
            raise _invalid(text, f"it is a URL; leave out {text.partition('://')[0]}://")
        if at and not is_digest(digest):
            raise _invalid(text, "its digest is not sha256: and 64, or sha512: and 128, lowercase hex digits")
        name, tag = rest, None
        colon = rest.rfind(":")
        if colon > rest.rfind("/"):
            name, tag = rest[:colon], rest[colon + 1 :]
            _check_tag(text, tag)
        first, slash, remainder = name.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            _check_domain(text, first)
            domain, path = first.lower(), remainder
            if domain == "index.docker.io":
                domain = DEFAULT_DOMAIN
        else:
            domain, path = DEFAULT_DOMAIN, name
        _check_path(text, path)
        if domain == DEFAULT_DOMAIN and "/" not in path:
            path = OFFICIAL + path
        if len(domain) + 1 + len(path) > MAX_NAME:
            raise _invalid(text, f"its name is longer than {MAX_NAME} characters")
        implicit = tag is None and not at
        return cls(domain, path, DEFAULT_TAG if implicit else tag, digest if at else None, implicit=implicit)

    @property
    def repository(self) -> str:
        """``docker.io/library/redis``."""
        return f"{self.domain}/{self.path}"

    @property
    def canonical(self) -> str:
        """``docker.io/library/redis:latest``, or ``...redis@sha256:...`` where there is a digest.

        The name a record is stored under. With both a tag and a digest the tag is left out: it says
        nothing about what was pulled.
        """
        return self.repository + self._suffix

    @property
    def familiar(self) -> str:
        """The short form docker prints, ``redis:latest``. `parse` of it gives the same canonical name."""
        return self.familiar_repository + self._suffix

    @property
    def familiar_repository(self) -> str:
        """``redis``."""
        if self.domain != DEFAULT_DOMAIN:
            return self.repository
        path = self.path
        if path.startswith(OFFICIAL) and path.count("/") == 1:
            return path[len(OFFICIAL) :]
        first = path.partition("/")[0]
        return self.repository if "." in first or first == "localhost" else path

    @property
    def _suffix(self) -> str:
        return f"@{self.digest}" if self.digest else f":{self.tag}"

    def with_digest(self, digest: str) -> Reference:
        """This repository by ``digest``, without a tag."""
        return Reference(self.domain, self.path, None, digest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Reference):
            return NotImplemented
        return (self.domain, self.path, self.tag, self.digest) == (
            other.domain,
            other.path,
            other.tag,
            other.digest,
        )

    def __hash__(self) -> int:
        return hash((self.domain, self.path, self.tag, self.digest))

    def __str__(self) -> str:
        return self.canonical

    def __repr__(self) -> str:
        return f"Reference({self.canonical!r})"


def _invalid(text: str, why: str) -> InvalidReference:
    shown = text if len(text) <= 300 else text[:300] + "..."
    return InvalidReference(f"{shown!r} is not an image reference: {why}", hint=_EXAMPLE)


def _check_tag(text: str, tag: str) -> None:
    if not tag:
        raise _invalid(text, "the tag after the colon is missing")
    if len(tag) > MAX_TAG:
        raise _invalid(text, f"its tag is longer than {MAX_TAG} characters")
    if not _TAG.issuperset(tag) or tag[0] not in _WORD:
        raise _invalid(
            text, f"a tag holds letters, digits, _ . - and starts with none of . -, unlike {tag!r}"
        )


def _check_domain(text: str, domain: str) -> None:
    host, colon, port = domain, "", ""
    if domain.startswith("["):
        address, bracket, after = domain[1:].partition("]")
        if not bracket or ":" not in address or not _IPV6.issuperset(address) or (after and after[0] != ":"):
            raise _invalid(text, f"{domain!r} is not an IPv6 address in brackets")
        host, colon, port = "", after[:1], after[1:]
    else:
        host, colon, port = domain.partition(":")
        for label in host.split("."):
            if not label or not _LABEL.issuperset(label) or label[0] == "-" or label[-1] == "-":
                raise _invalid(text, f"{host!r} is not a host name")
    if colon and not (port and len(port) <= 5 and _DIGITS.issuperset(port) and 0 < int(port) < 65536):
        raise _invalid(text, f"{port!r} is not a port number")


def _check_path(text: str, path: str) -> None:
    for component in path.split("/"):
        if not component:
            raise _invalid(text, "a part of its name is empty")
        if not _PATH.issuperset(component):
            if _PATH.issuperset(component.lower()):
                raise _invalid(text, "a repository name must be lowercase")
            raise _invalid(
                text, f"a repository name holds lowercase letters, digits and . _ - /, unlike {component!r}"
            )
        if component[0] in _SEPARATORS or component[-1] in _SEPARATORS:
            raise _invalid(text, f"{component!r} starts or ends with a separator")
        # Between letters and digits: one dot, one or two underscores, or any number of dashes.
        for run in component.translate(_ALNUM_TO_SPACE).split():
            if run not in (".", "_", "__") and run.strip("-"):
                raise _invalid(text, f"{run!r} is not a separator; use one of . _ __ -")


def repository_of(reference: str) -> str:
    """The repository of a canonical reference."""
    name, at, _ = reference.partition("@")
    return name if at else name.rpartition(":")[0]
