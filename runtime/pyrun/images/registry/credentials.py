"""Stored credentials: the files that podman and docker write (man containers-auth.json 5), and their helpers.

Read in this order, and the first that knows the repository counts:

    --authfile or $REGISTRY_AUTH_FILE: this alone
    $XDG_RUNTIME_DIR/containers/auth.json (/run/containers/UID/auth.json where that is not set)
    $XDG_CONFIG_HOME/containers/auth.json (~/.config)
    $DOCKER_CONFIG/config.json (~/.docker)

``credential-helpers`` in registries.conf may put helpers before or behind these files, or in their place.

Within a file: the registry's entry in ``credHelpers``; ``auths`` for ``host/namespace/repository``, then for the
namespaces above; the helper named by ``credsStore``; ``auths`` for the host.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigError
from .registries import AUTH_FILES, Registries

ENVIRONMENT = "REGISTRY_AUTH_FILE"
DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # in docker's files and helpers
_HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
MAX_FILE = 4 << 20
CONFIGURED = "credential-helpers in registries.conf"
_HINT = "man containers-auth.json describes the file; `pyrun login` writes it."


@dataclass(frozen=True, slots=True)
class Credentials:
    """``source`` is where they are from, for messages: a file, a helper, "--creds". Secrets stay out of the repr.

    identity_token  a refresh token, for the token server in place of a password
    registry_token  a bearer token, for the registry itself
    """

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    source: str = ""

    def __post_init__(self) -> None:
        """Raises `ConfigError` for what can't be sent. Found out here, for the errors of those who would send it quote
        it."""
        origin = f" from {self.source}" if self.source else ""
        for text in (self.username, self.password, self.identity_token):
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise ConfigError(f"the credentials{origin} are not UTF-8", hint="Log in again: pyrun login")
        if not (self.registry_token.isascii() and self.registry_token.isprintable()):
            raise ConfigError(
                f"the registry token{origin} has characters that no token has",
                hint="Is there a line's end in it?",
            )

    @property
    def described(self) -> str:
        """ "credentials of alice from /run/containers/0/auth.json" """
        who = f" of {self.username}" if self.username else ""
        return f"credentials{who}" + (f" from {self.source}" if self.source else "")

    def __bool__(self) -> bool:
        return bool(self.password or self.identity_token or self.registry_token)


def registry_name(host: str) -> str:
    """``host`` as credentials are kept for it: Docker Hub's several names are one."""
    host = host.lower()
    return DOCKER_HUB if host in _HUB_NAMES else host


def files(authfile: str | None = None) -> list[str]:
    """The files to read, in order; which exist is another matter, except for one that was asked for.

    Raises `ConfigError` where that one is not there.
    """
    only = authfile or os.environ.get(ENVIRONMENT)
    if only:
        if not os.path.exists(only):
            raise ConfigError(
                f"there is no credential file {only}",
                hint="--authfile names it."
                if authfile
                else f"${ENVIRONMENT} names it; `pyrun login` makes it.",
            )
        return [only]
    return [runtime_file(), config_file(), docker_file()]


def runtime_file() -> str:
    """Where podman keeps logins until the next boot."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/containers/{_own_uid()}"
    return f"{base}/containers/auth.json" if os.environ.get("XDG_RUNTIME_DIR") else f"{base}/auth.json"


def config_file() -> str:
    """Where they are kept for good, by hand."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return f"{home}/containers/auth.json"


def docker_file() -> str:
    home = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    return f"{home}/config.json"


def _own_uid() -> int:
    """The user's number on the host, also in a user namespace where it appears as root's."""
    uid = os.geteuid()
    with contextlib.suppress(OSError, ValueError), open("/proc/self/uid_map") as file:
        for line in file:
            inside, outside, count = map(int, line.split())
            if inside <= uid < inside + count:
                return outside + uid - inside
    return uid


def stored(host: str, path: str, authfile: str | None = None) -> Credentials | None:
    """What is stored for the repository ``path`` at ``host``, by the files and helpers of this user and host; None if
    nothing is. Raises `ConfigError`."""
    paths = files(authfile)
    if authfile or os.environ.get(ENVIRONMENT):
        return lookup(host, path, paths)
    for name in Registries.load().helpers:
        found = (
            lookup(host, path, paths) if name == AUTH_FILES else ask(name, CONFIGURED, registry_name(host))
        )
        if found:
            return found
    return None


def lookup(host: str, path: str, paths: Sequence[str]) -> Credentials | None:
    """What files have for the repository ``path`` at ``host``; None if nothing.

    Raises `ConfigError` where a file is malformed, or a helper that is configured for this registry fails.
    """
    for name in paths:
        found = AuthFile.read(name).find(host, path)
        if found:
            return found
    return None


class AuthFile:
    """One file's content. ``document`` is all of it, also what means nothing here."""

    def __init__(self, path: str, document: dict[str, Any]) -> None:
        self.path = path
        self.document = document
        self.auths: dict[str, Any] = self._object("auths")
        self.helpers: dict[str, Any] = self._object("credHelpers")
        store = document.get("credsStore") or ""
        if not isinstance(store, str):
            raise ConfigError(f"{path}: credsStore is not a string", hint=_HINT)
        self.store = store

    @classmethod
    def read(cls, path: str) -> AuthFile:
        """An absent file is an empty one. Raises `ConfigError` naming the file, never quoting it."""
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE + 1)
        except (FileNotFoundError, NotADirectoryError):
            return cls(path, {})
        except OSError as error:
            raise ConfigError(f"the credential file {path} can't be read: {error.strerror}") from error
        if len(data) > MAX_FILE:
            raise ConfigError(f"the credential file {path} is larger than {MAX_FILE >> 20} MiB")
        if not data.strip():
            return cls(path, {})
        try:
            document = json.loads(data)
        except json.JSONDecodeError as error:
            # Not chained: the exception holds the whole text.
            raise ConfigError(
                f"the credential file {path} is not JSON: {error.msg} in line {error.lineno}", hint=_HINT
            ) from None
        except (ValueError, RecursionError):
            raise ConfigError(f"the credential file {path} is not JSON", hint=_HINT) from None
        if not isinstance(document, dict):
            raise ConfigError(f"the credential file {path} is not a JSON object", hint=_HINT)
        return cls(path, document)

    def _object(self, key: str) -> dict[str, Any]:
        value = self.document.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ConfigError(f"{self.path}: {key} is not an object", hint=_HINT)
        return value

    def helper(self, registry: str, *, store: bool = True) -> str:
        """The helper that is configured for ``registry`` (of `registry_name`), else, with ``store``, for all; ""."""
        for name in _helper_keys(registry):
            value = self.helpers.get(name)
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"{self.path}: credHelpers.{name} is not a string", hint=_HINT)
            if value:
                return value
        return self.store if store else ""

    def find(self, host: str, path: str = "") -> Credentials | None:
        """What this file knows of the repository ``path`` at ``host``."""
        registry = registry_name(host)
        own = self.helper(registry, store=False)
        if own and (found := ask(own, self.path, registry)):
            return found
        parts = path.split("/") if path else []
        for count in range(len(parts), 0, -1):
            key = "/".join([registry, *parts[:count]])
            if key in self.auths and (found := self._entry(key)):
                return found
        if not own and self.store and (found := ask(self.store, self.path, registry)):
            return found
        for key in self.keys(registry):
            if found := self._entry(key):
                return found
        return None

    def keys(self, name: str) -> list[str]:
        """The keys of ``auths`` that mean ``name``: itself first, then as docker writes it, with a URL around."""
        found = [name] if name in self.auths else []
        return found + [key for key in self.auths if key != name and normalised(key) == name]

    def _entry(self, key: str) -> Credentials | None:
        entry = self.auths[key]
        where = f"{self.path}: auths[{key!r}]"
        if not isinstance(entry, dict):
            raise ConfigError(f"{where} is not an object", hint=_HINT)
        texts = {}
        for name in ("auth", "username", "password", "identitytoken", "registrytoken"):
            value = entry.get(name) or ""
            if not isinstance(value, str):
                raise ConfigError(f"{where}.{name} is not a string", hint=_HINT)
            texts[name] = value
        username, password = texts["username"], texts["password"]
        if texts["auth"]:
            username, password = _decoded(texts["auth"], where)
        found = Credentials(username, password, texts["identitytoken"], texts["registrytoken"], self.path)
        return found or None


def ask(helper: str, configured: str, registry: str) -> Credentials | None:
    """What a helper that ``configured`` names keeps for ``registry`` (of `registry_name`)."""
    from .helpers import Helper

    program = Helper(helper, configured)
    for server in _servers(registry):
        if found := program.get(server):
            return found
    return None


def _decoded(auth: str, where: str) -> tuple[str, str]:
    try:
        text = base64.b64decode(auth, validate=True).decode()
        username, colon, password = text.partition(":")
    except (binascii.Error, ValueError):
        colon = ""
    if not colon:
        raise ConfigError(f"{where}.auth is not the base64 form of user:password", hint=_HINT) from None
    return username, password.strip("\0")


def encoded(username: str, password: str) -> str:
    """The value of ``auth``."""
    return base64.b64encode(f"{username}:{password}".encode()).decode("ascii")


def normalised(key: str) -> str:
    """A key of ``auths`` as a name: docker writes ``https://index.docker.io/v1/``, old versions URLs for others."""
    for scheme in ("https://", "http://"):
        if key.startswith(scheme):
            return registry_name(key[len(scheme) :].partition("/")[0])
    host, slash, path = key.partition("/")
    if path.strip("/") in ("v1", "v2"):
        slash = path = ""
    return registry_name(host) + slash + path


def _helper_keys(registry: str) -> Sequence[str]:
    return (DOCKER_HUB, "index.docker.io", DOCKER_HUB_KEY) if registry == DOCKER_HUB else (registry,)


def _servers(registry: str) -> Sequence[str]:
    """What a registry is called when a helper is asked: by docker, then by podman."""
    return (DOCKER_HUB_KEY, DOCKER_HUB) if registry == DOCKER_HUB else (registry,)


@contextlib.contextmanager
def changed(path: str) -> Iterator[AuthFile]:
    """The file, to be changed through ``document`` in the block; written at its end, whole or not at all, with mode
    0600. Whoever else logs in meanwhile waits. All that was not touched stays as it is.

    Raises `ConfigError` where the file is malformed or can't be written.
    """
    target = os.path.realpath(path)  # a link to where the user keeps such files stays one
    directory = os.path.dirname(target)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unwritten(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        file = AuthFile.read(target)
        before = _text(file.document)
        yield file
        after = _text(file.document)
        if after != before:
            _replace(target, after)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        os.close(lock)


def _text(document: dict[str, Any]) -> bytes:
    try:
        return json.dumps(document, indent="\t", ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(document, indent="\t").encode() + b"\n"


def _replace(target: str, data: bytes) -> None:
    fd, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(target)}.", dir=os.path.dirname(target))
    try:
        with os.fdopen(fd, "wb") as file:  # mkstemp made it 0600
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _unwritten(path: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"the credential file {path} can't be written: {error.strerror}",
        hint="Choose another: --authfile FILE.",
    )
