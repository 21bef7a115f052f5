"""Logging in and out: credentials are tried at the registry, then kept where podman and docker look for them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from ...errors import InvalidReference, NotFound, Unauthorized, UsageError
from ..printable import printable
from ..reference import Reference
from .access import Access
from .client import RegistryClient
from .credentials import (
    CONFIGURED,
    DOCKER_HUB,
    DOCKER_HUB_KEY,
    ENVIRONMENT,
    AuthFile,
    Credentials,
    changed,
    config_file,
    docker_file,
    encoded,
    files,
    lookup,
    normalised,
    registry_name,
    runtime_file,
    stored,
)
from .helpers import TOKEN, Helper
from .registries import AUTH_FILES, Registries


@dataclass(frozen=True, slots=True)
class Server:
    """What is logged in to: a registry ``host[:port]``, or with ``path`` some of its repositories."""

    host: str
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Server:
        """``docker.io``, ``host.example:5000``, ``host.example/namespace``, or a URL, of which the host counts.

        Raises `InvalidReference`.
        """
        name = text.strip()
        name = normalised(name if "://" in name else name.rstrip("/"))
        host, _, path = name.partition("/")
        try:
            parsed = Reference.parse(f"{host}/{path or 'repository'}")
        except InvalidReference:
            parsed = None
        if parsed is None or registry_name(parsed.domain) != host or not parsed.implicit or parsed.digest:
            raise InvalidReference(
                f"{printable(text, 200)!r} is not the name of a registry",
                hint="Write host.example, host:5000, localhost or host.example/namespace.",
            )
        return cls(host, path)

    def __str__(self) -> str:
        return f"{self.host}/{self.path}" if self.path else self.host


@dataclass(frozen=True, slots=True)
class Login:
    """A login that succeeded. ``stored``: the file or helper that keeps it; ``encrypted``: by a helper, which has a
    keychain; ``existing``: it was there before."""

    server: str
    username: str
    stored: str
    encrypted: bool
    existing: bool = False


@dataclass(frozen=True, slots=True)
class Logout:
    """``removed``: the files and helpers that forgot the credentials. ``left``: what is still sent to that registry,
    and where it is kept; "" where nothing is."""

    server: str
    removed: tuple[str, ...]
    left: str = ""


def login(
    server: Server,
    username: str,
    password: str,
    *,
    registries: Registries,
    access: Access,
    compat_file: str | None = None,
) -> Login:
    """Try ``username`` and ``password`` at ``server``, and keep them; without a ``username`` try those kept already.

    Where the registry's token server gives an identity token, that is kept in place of the password.

    ``access.authfile``: the file to write (made if need be). ``compat_file``: the file to write in docker's form.
    Raises `Unauthorized` where the registry refuses, `NotFound` where nothing is kept, `RegistryError`,
    `ConfigError`, `UsageError`.
    """
    existing = not username
    if existing:
        given = _stored(server, access.authfile, compat_file)
        if given is None:
            raise NotFound(f"not logged in to {server}", hint="Give a user name and a password.")
    else:
        if ":" in username:
            raise UsageError("a user name can't have a colon")
        if not password:
            raise UsageError("the password is empty")
        given = Credentials(username, password)
    keep = _Place.choose(server, access.authfile, compat_file)
    endpoint = registries.server(server.host)
    client = RegistryClient(endpoint, str(server), access=replace(access, credentials=given))
    try:
        identity = client.verify(offline=not existing)
    except Unauthorized as error:
        raise Unauthorized(
            f"can't log in to {server}: {error.message}",
            hint="Check user name and password. Some registries want an access token in place of the password.",
        ) from None
    finally:
        client.close()
    if existing:
        return Login(str(server), given.username, given.source, not os.path.isabs(given.source), True)
    keep.store(replace(given, password="", identity_token=identity) if identity else given)
    return Login(str(server), username, keep.name, keep.helper is not None)


def logout(server: Server, *, authfile: str | None = None, compat_file: str | None = None) -> Logout:
    """Forget what is kept for ``server``: in the helper that is configured for it, and in the file that `login` would
    write. Raises `ConfigError`."""
    keep = _Place.choose(server, authfile, compat_file)
    removed = keep.erase()
    left = _stored(server, authfile, compat_file)
    return Logout(str(server), tuple(removed), left.described if left else "")


def logout_all(*, authfile: str | None = None, compat_file: str | None = None) -> list[str]:
    """Forget whatever the file that `login` would write keeps, and the helpers that it names; the servers' names."""
    path = compat_file or authfile or os.environ.get(ENVIRONMENT) or runtime_file()
    if not os.path.exists(path):
        return []
    known = AuthFile.read(path)
    gone = []
    for name, program in known.helpers.items():
        if Helper(str(program), path).erase(DOCKER_HUB_KEY if name == DOCKER_HUB else name):
            gone.append(normalised(name))
    if known.store:
        store = Helper(known.store, path)
        for name in store.list():
            store.erase(name)
            gone.append(normalised(name))
    with changed(path) as file:
        gone += [normalised(name) for name in file.auths]
        if file.auths:
            file.document["auths"] = {}
    return sorted(set(gone))


def logged_in(server: Server, authfile: str | None = None) -> str:
    """The user name that is kept for ``server``. Raises `NotFound`, `ConfigError`."""
    found = _stored(server, authfile, None)
    if found is None:
        raise NotFound(f"not logged in to {server}", hint=f"Log in: pyrun login {server}")
    return found.username or TOKEN


def _stored(server: Server, authfile: str | None, compat_file: str | None) -> Credentials | None:
    only = compat_file or authfile or os.environ.get(ENVIRONMENT)
    if only:  # which `login` may be about to make
        return lookup(server.host, server.path, [only])
    return stored(server.host, server.path)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a server's credentials are kept. ``file`` names the ``helper``, or keeps them itself, ``docker``: in
    docker's form."""

    server: Server
    file: str
    docker: bool
    helper: Helper | None

    @classmethod
    def choose(cls, server: Server, authfile: str | None, compat_file: str | None) -> _Place:
        """The helper that a file configures for this registry; else the file that was asked for; else podman's."""
        if authfile and compat_file:
            raise UsageError("--authfile and --compat-auth-file can't both be given")
        if compat_file and server.path:
            raise UsageError(
                f"docker's files keep credentials of whole registries, not of {server}",
                hint="Use --authfile.",
            )
        only = compat_file or authfile or os.environ.get(ENVIRONMENT)
        if not only and not server.path:
            first = Registries.load().helpers[0]
            if first != AUTH_FILES:
                return cls(server, os.path.abspath(runtime_file()), False, Helper(first, CONFIGURED))
        for path in [only] if only else [runtime_file(), config_file(), docker_file()]:
            name = AuthFile.read(path).helper(server.host)
            if name and not server.path:
                return cls(server, path, bool(compat_file), Helper(name, path))
        return cls(server, os.path.abspath(only or runtime_file()), bool(compat_file), None)

    @property
    def name(self) -> str:
        return self.helper.program if self.helper else self.file

    @property
    def _helper_key(self) -> str:
        return DOCKER_HUB_KEY if self.server.host == DOCKER_HUB else self.server.host

    def store(self, secret: Credentials) -> None:
        if self.helper is not None:
            if secret.identity_token:
                self.helper.store(self._helper_key, TOKEN, secret.identity_token)
            else:
                self.helper.store(self._helper_key, secret.username, secret.password)
            if AuthFile.read(self.file).keys(str(self.server)):
                self._forget()  # the same in plain text
            return
        entry = {"auth": encoded(secret.username, secret.password)}
        if secret.identity_token:
            entry["identitytoken"] = secret.identity_token
        key = DOCKER_HUB_KEY if self.docker and self.server.host == DOCKER_HUB else str(self.server)
        with changed(self.file) as file:
            auths = dict(file.auths)
            for other in file.keys(str(self.server)):
                if other != key:
                    del auths[other]
            auths[key] = entry
            file.document["auths"] = auths

    def erase(self) -> list[str]:
        """Forget them; the places that had them."""
        removed = []
        if self.helper is not None:
            keys = {self._helper_key, self.server.host}
            had = [key for key in sorted(keys) if self.helper.get(key) is not None]
            for key in had:
                self.helper.erase(key)
            if had:
                removed.append(self.helper.program)
        if os.path.exists(self.file) and self._forget():
            removed.append(self.file)
        return removed

    def _forget(self) -> bool:
        with changed(self.file) as file:
            keys = file.keys(str(self.server))
            if keys:
                file.document["auths"] = {key: v for key, v in file.auths.items() if key not in keys}
        return bool(keys)


def known(authfile: str | None = None) -> list[str]:
    """The servers that files keep something for, for completion. Raises `ConfigError`."""
    found: list[str] = []
    for path in files(authfile):
        found += [normalised(key) for key in AuthFile.read(path).auths]
    return list(dict.fromkeys(found))
