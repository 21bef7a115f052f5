"""How registries are accessed: with whose credentials and which certificates. The options of pull, push and login
say it in these terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .credentials import Credentials
    from .registries import Endpoint


def unheard(text: str) -> None:
    """Where nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Access:
    """credentials  for the registry that a name leads to, never for its mirrors; None: those stored
    authfile     the only file credentials are read from; None: `pyrun.images.credentials.files`
    tls_verify   False: as ``insecure = true`` in registries.conf; True: no plain HTTP, not even to loopback; None:
                 as registries.conf says
    cert_dir     the only directory of CAs and client certificates; None: ``certs.d`` of the user and of the host
    notice       called with a line that the user should see: a retry, a registry's warning. In the process that
                 makes the request, which may be a worker
    """

    credentials: Credentials | None = None
    authfile: str | None = None
    tls_verify: bool | None = None
    cert_dir: str | None = None
    notice: Callable[[str], None] = field(default=unheard, repr=False, compare=False)

    def find(self, endpoint: Endpoint) -> Credentials | None:
        """The credentials for ``endpoint``, read anew; None where there are none.

        A mirror gets those stored for its own host, and never those of the registry it stands for. Raises
        `ConfigError` where a credential file or helper can't be used.
        """
        if self.credentials is not None and not endpoint.mirror:
            return self.credentials
        from .credentials import files, lookup

        return lookup(endpoint.host, endpoint.path, files(self.authfile))

    def insecure(self, endpoint: Endpoint) -> bool:
        """Whether plain HTTP, and certificates that can't be verified, are allowed."""
        return endpoint.insecure if self.tls_verify is None else not self.tls_verify
