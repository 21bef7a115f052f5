"""CAs and client certificates of single registries (man containers-certs.d 5; docker's certs.d is the same).

A registry's directory is the first that exists of these, and no other is read:

    ~/.config/containers/certs.d/HOST[:PORT]
    /etc/containers/certs.d/HOST[:PORT]
    /etc/docker/certs.d/HOST[:PORT]

``*.crt`` are CAs, believed beside the system's; ``NAME.cert`` and ``NAME.key`` are a client certificate and its key.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from ...errors import ConfigError

SYSTEM = ("/etc/containers/certs.d", "/etc/docker/certs.d")
_HINT = "man containers-certs.d describes the directory."


@dataclass(frozen=True, slots=True)
class Certificates:
    """What a directory holds: files of CAs, and pairs of a client certificate's file and its key's."""

    cas: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    def context(self, *, verify: bool, client: bool) -> ssl.SSLContext:
        """A context that believes these CAs too; ``client``: and shows the certificates to whom asks for them.

        Raises `ConfigError` naming the file that can't be used.
        """
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for path in self.cas:
            try:
                context.load_verify_locations(path)
            except (OSError, ssl.SSLError) as error:
                raise _unusable(path, "CA certificates in PEM form", error) from error
        for certificate, key in self.pairs if client else ():
            try:
                # Without a password's callback OpenSSL would ask for it on the terminal.
                context.load_cert_chain(certificate, key, password=lambda: b"")
            except (OSError, ssl.SSLError) as error:
                what = f"a client certificate in PEM form with its key, not encrypted, in {key}"
                raise _unusable(certificate, what, error) from error
        return context


def certificates(host: str, directory: str | None = None) -> Certificates:
    """Those for ``host[:port]``, or all of ``directory``. Raises `ConfigError`."""
    if directory is not None:
        if not os.path.isdir(directory):
            raise ConfigError(
                f"there is no directory {directory} with certificates", hint="--cert-dir names it."
            )
        return _read(directory)
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    names = [host, "docker.io"] if host == "registry-1.docker.io" else [host]
    for base in (f"{home}/containers/certs.d", *SYSTEM):
        for name in names:
            try:
                return _read(os.path.join(base, name))
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue
    return Certificates()


def _read(directory: str) -> Certificates:
    names = sorted(os.listdir(directory))
    have = set(names)
    pairs = []
    for name in names:
        stem, dot = os.path.splitext(name)
        if dot == ".cert":
            if f"{stem}.key" not in have:
                raise ConfigError(f"{directory}/{name} has no key {stem}.key beside it", hint=_HINT)
            pairs.append((f"{directory}/{name}", f"{directory}/{stem}.key"))
        elif dot == ".key" and f"{stem}.cert" not in have:
            raise ConfigError(
                f"{directory}/{name} has no certificate {stem}.cert beside it",
                hint=f"CAs are called *.crt, client certificates *.cert. {_HINT}",
            )
    return Certificates(tuple(f"{directory}/{name}" for name in names if name.endswith(".crt")), tuple(pairs))


def _unusable(path: str, what: str, error: OSError) -> ConfigError:
    why = getattr(error, "reason", None) or error.strerror or str(error)
    return ConfigError(f"{path} does not hold {what}: {why}", hint=_HINT)
