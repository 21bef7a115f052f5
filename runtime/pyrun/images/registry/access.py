"""How registries are accessed: with whose credentials and which certificates. The options of pull, push and login
say it in these terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ...errors import ConfigError

if TYPE_CHECKING:
    from .credentials import Credentials
    from .registries import Endpoint


def unheard(text: str) -> None:
    """Where nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Access:
    """credentials  for the registry that a name leads to, never for its mirrors; None: those stored
    authfile     the only file credentials are read from; None: what `pyrun.images.registry.credentials` finds
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
    _found: Mapping[Endpoint, Credentials | ConfigError | None] | None = field(default=None, repr=False)

    def find(self, endpoint: Endpoint) -> Credentials | None:
        """The credentials for ``endpoint``, read anew; None where there are none.

        A mirror gets those stored for its own host, and never those of the registry it stands for. Raises
        `ConfigError` where a credential file or helper can't be used.
        """
        if self.credentials is not None and not endpoint.mirror:
            return self.credentials
        if self._found is not None and endpoint in self._found:
            found = self._found[endpoint]
            if isinstance(found, ConfigError):
                raise found
            return found
        from .credentials import stored

        return stored(endpoint.host, endpoint.path, self.authfile)

    def ahead(self, endpoints: Sequence[Endpoint]) -> Access:
        """This, with the credentials for ``endpoints`` looked up now, before the process enters a user namespace:
        keychains tell their owner by the user's number, which is another there. What goes wrong is raised only where
        they are needed."""
        found: dict[Endpoint, Credentials | ConfigError | None] = {}
        for endpoint in endpoints:
            try:
                found[endpoint] = self.find(endpoint)
            except ConfigError as error:
                found[endpoint] = error
        return replace(self, _found=found)

    def insecure(self, endpoint: Endpoint) -> bool:
        """Whether plain HTTP, and certificates that can't be verified, are allowed."""
        return endpoint.insecure if self.tls_verify is None else not self.tls_verify
