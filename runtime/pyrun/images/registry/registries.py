"""Where an image is fetched from: registries.conf version 2 (man containers-registries.conf 5).

``CONTAINERS_REGISTRIES_CONF`` names the only file that is read. Without it the user's
``$XDG_CONFIG_HOME/containers/registries.conf`` is read if it exists, else
``/etc/containers/registries.conf``; then the ``*.conf`` files of ``registries.conf.d`` beside each, in the
order of their names, system's first. A later table replaces an earlier one of the same prefix.

A short name without an alias goes to docker.io: ``unqualified-search-registries`` is not consulted, because
guessing between registries lets a stranger's image take a known name's place.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import ConfigError, ImageError, InvalidReference
from ..reference import DEFAULT_DOMAIN, Reference

ENVIRONMENT = "CONTAINERS_REGISTRIES_CONF"
SYSTEM = "/etc/containers/registries.conf"
AUTH_FILES = "containers-auth.json"
DOCKER_HUB_API = "registry-1.docker.io"
_HINT = "man containers-registries.conf describes the file (version 2 of its format)."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to ask for an image.

    host      "registry-1.docker.io", "localhost:5000": where the API is
    path      the repository's path there, which mirrors and rewrites may change
    tag       the tag there, None where the reference has none
    insecure  plain HTTP, and certificates that can't be verified, are allowed
    mirror    False for the primary location
    """

    host: str
    path: str
    tag: str | None
    insecure: bool
    mirror: bool

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"


@dataclass(frozen=True, slots=True)
class _Mirror:
    location: str
    insecure: bool
    when: str  # "all", "digest-only" or "tag-only"


@dataclass(frozen=True, slots=True)
class _Registry:
    prefix: str
    location: str  # "": no rewrite
    insecure: bool
    blocked: bool
    mirrors: tuple[_Mirror, ...]
    source: str

    def match(self, name: str) -> int:
        """How many characters of ``name`` the prefix covers; 0: it does not match."""
        if self.prefix.startswith("*."):
            host = name.partition("/")[0].partition(":")[0]
            return len(host) if host.endswith(self.prefix[1:]) else 0
        end = len(self.prefix)
        if name.startswith(self.prefix) and name[end : end + 1] in ("", "/", ":", "@"):
            return end
        return 0


@dataclass(slots=True)
class Registries:
    """The merged configuration."""

    tables: dict[str, _Registry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    # credential-helpers: where logins are looked for, in order; AUTH_FILES stands for the credential files.
    helpers: list[str] = field(default_factory=lambda: [AUTH_FILES])

    @classmethod
    def load(cls) -> Registries:
        """Read the files of this user and host. Raises `ConfigError` naming the file and the key."""
        only = os.environ.get(ENVIRONMENT)
        if only:
            return cls.from_file(only)
        found = cls()
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        user = os.path.join(home, "containers", "registries.conf")
        base = user if os.path.exists(user) else SYSTEM
        if os.path.exists(base):
            found._read(base)
        for directory in (f"{SYSTEM}.d", f"{user}.d"):
            try:
                names = sorted(os.listdir(directory))
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue
            for name in names:
                if name.endswith(".conf"):
                    found._read(os.path.join(directory, name))
        return found

    @classmethod
    def from_file(cls, path: str) -> Registries:
        """Read this file alone; it must exist."""
        found = cls()
        found._read(path)
        return found

    def reference(self, text: str) -> Reference:
        """`Reference.parse`, with a short name's alias in its place. Raises `InvalidReference`."""
        plain = Reference.parse(text)
        name = text.partition("@")[0]
        if name.rfind(":") > name.rfind("/"):
            name = name[: name.rfind(":")]
        target = self.aliases.get(name)
        if target is None or plain.domain != DEFAULT_DOMAIN or name.startswith(DEFAULT_DOMAIN + "/"):
            return plain
        to = Reference.parse(target)
        return Reference(to.domain, to.path, plain.tag, plain.digest, implicit=plain.implicit)

    def endpoints(self, reference: Reference) -> list[Endpoint]:
        """Where to ask for ``reference``, in order: its mirrors, then the primary location. Never empty.

        Raises `ImageError` where the configuration blocks the name.
        """
        name = reference.canonical
        table, end = self._match(reference)
        if table is None:
            return [_endpoint(reference, insecure=False, mirror=False)]
        found = []
        for mirror in table.mirrors:
            if mirror.when == "all" or (mirror.when == "digest-only") == bool(reference.digest):
                to = _rewritten(name, mirror.location, end, table.source)
                found.append(_endpoint(to, insecure=mirror.insecure, mirror=True))
        found.append(self.primary(reference))
        places = {(e.host, e.path, e.tag): e for e in reversed(found)}
        # A mirror that is the primary is asked at its turn, and is none: what it asks for is the registry's due.
        home = found[-1]
        return [
            replace(e, mirror=False) if (e.host, e.path) == (home.host, home.path) else e
            for e in reversed(places.values())
        ]

    def server(self, host: str) -> Endpoint:
        """The registry ``host[:port]`` itself, of no repository, for what is not about one: path "", tag None."""
        best = max(
            (t for t in self.tables.values() if t.match(host)), key=lambda t: len(t.prefix), default=None
        )
        insecure = best.insecure if best is not None else False
        return Endpoint(DOCKER_HUB_API if host == DEFAULT_DOMAIN else host, "", None, insecure, False)

    def primary(self, reference: Reference) -> Endpoint:
        """Where ``reference`` is pushed to: its primary location, whatever the mirrors. Raises as `endpoints`."""
        table, end = self._match(reference)
        if table is None:
            return _endpoint(reference, insecure=False, mirror=False)
        to = reference
        if table.location:
            to = _rewritten(reference.canonical, table.location, end, table.source)
        return _endpoint(to, insecure=table.insecure, mirror=False)

    def _match(self, reference: Reference) -> tuple[_Registry | None, int]:
        """The table for ``reference``, and how many characters of its name the prefix covers."""
        name = reference.canonical
        table, end = max(
            ((table, table.match(name)) for table in self.tables.values()),
            key=lambda match: (match[1] > 0, len(match[0].prefix)),
            default=(None, 0),
        )
        if table is None or not end:
            return None, 0
        if table.blocked:
            raise ImageError(
                f"{reference.familiar} is blocked by {table.source}",
                hint=f"Its table has prefix {table.prefix!r}.",
            )
        return table, end

    def _read(self, path: str) -> None:
        try:
            with open(path, "rb") as file:
                content = tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"{path} can't be read: {error.strerror}", hint=_HINT) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}", hint=_HINT) from error
        if isinstance(content.get("registries"), dict):
            raise ConfigError(
                f"{path}: the table [registries] belongs to version 1 of the format", hint=_HINT
            )
        helpers = content.get("credential-helpers")
        if helpers is not None:
            if not isinstance(helpers, list) or not all(isinstance(name, str) for name in helpers):
                raise ConfigError(f"{path}: credential-helpers is not a list of strings", hint=_HINT)
            self.helpers = helpers or [AUTH_FILES]
        for number, table in enumerate(_typed(path, content, "registry", list, [])):
            where = f"registry[{number}]"
            if not isinstance(table, dict):
                raise ConfigError(f"{path}: {where} is not a table; write [[registry]]", hint=_HINT)
            registry = _registry(path, where, table)
            self.tables.pop(registry.prefix, None)
            self.tables[registry.prefix] = registry
        for alias, target in _typed(path, content, "aliases", dict, {}).items():
            if not isinstance(target, str):
                raise ConfigError(f"{path}: aliases.{alias} is not a string", hint=_HINT)
            if not target:  # an empty target takes an earlier file's alias back
                self.aliases.pop(alias, None)
                continue
            try:
                Reference.parse(target)
            except InvalidReference as error:
                raise ConfigError(f"{path}: aliases.{alias}: {error.message}", hint=_HINT) from error
            self.aliases[alias] = target


def _typed(path: str, table: dict[str, Any], key: str, kind: type, default: Any, where: str = "") -> Any:
    value = table.get(key, default)
    if not isinstance(value, kind):
        names = {bool: "true or false", str: "a string", list: "an array of tables", dict: "a table"}
        dotted = f"{where}.{key}" if where else key
        raise ConfigError(f"{path}: {dotted} is {value!r}, not {names[kind]}", hint=_HINT)
    return value


def _location(path: str, table: dict[str, Any], where: str, key: str = "location") -> str:
    """A location or prefix, checked: host[:port][/path], as a name that can be put in front of a path."""
    text: str = _typed(path, table, key, str, "", where)
    if not text or (key == "prefix" and text.startswith("*.") and "/" not in text and ":" not in text):
        return text
    host, slash, _ = text.partition("/")
    try:
        # A host alone is a location too, and so is one whose name has no dot.
        parsed = Reference.parse(text if slash else f"{text}/path")
        if parsed.domain != host.lower() and host != "index.docker.io":
            raise InvalidReference(
                f"{text!r} does not start with a host name, as in host.example or host:5000"
            )
    except InvalidReference as error:
        raise ConfigError(f"{path}: {where}.{key}: {error.message}", hint=_HINT) from error
    return text.rstrip("/")


def _registry(path: str, where: str, table: dict[str, Any]) -> _Registry:
    location = _location(path, table, where)
    prefix = _location(path, table, where, "prefix") or location
    if not prefix:
        raise ConfigError(f"{path}: {where} has neither a prefix nor a location", hint=_HINT)
    if not location and not prefix.startswith("*."):
        location = prefix
    by_digest = _typed(path, table, "mirror-by-digest-only", bool, False, where)
    mirrors = []
    for number, entry in enumerate(_typed(path, table, "mirror", list, [], where)):
        at = f"{where}.mirror[{number}]"
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: {at} is not a table; write [[registry.mirror]]", hint=_HINT)
        target = _location(path, entry, at)
        if not target:
            raise ConfigError(f"{path}: {at} has no location", hint=_HINT)
        when = _typed(path, entry, "pull-from-mirror", str, "", at)
        if when not in ("", "all", "digest-only", "tag-only"):
            raise ConfigError(
                f"{path}: {at}.pull-from-mirror is {when!r}", hint="all, digest-only or tag-only."
            )
        if when and by_digest:
            raise ConfigError(
                f"{path}: {at}.pull-from-mirror can't stand beside {where}.mirror-by-digest-only", hint=_HINT
            )
        insecure = _typed(path, entry, "insecure", bool, False, at)
        mirrors.append(_Mirror(target, insecure, "digest-only" if by_digest else when or "all"))
    return _Registry(
        prefix=prefix,
        location=location,
        insecure=_typed(path, table, "insecure", bool, False, where),
        blocked=_typed(path, table, "blocked", bool, False, where),
        mirrors=tuple(mirrors),
        source=path,
    )


def _rewritten(name: str, location: str, end: int, source: str) -> Reference:
    text = location + name[end:]
    try:
        return Reference.parse(text)
    except InvalidReference as error:
        raise ConfigError(f"{source} rewrites {name} to {text!r}: {error.message}", hint=_HINT) from error


def _endpoint(to: Reference, *, insecure: bool, mirror: bool) -> Endpoint:
    host = DOCKER_HUB_API if to.domain == DEFAULT_DOMAIN else to.domain
    return Endpoint(host, to.path, None if to.digest else to.tag, insecure, mirror)
