"""What the options about registries say: --creds, --authfile, --cert-dir, --tls-verify."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..images.registry.access import Access


def access(creds: str | None, authfile: str | None, cert_dir: str | None, tls_verify: bool | None) -> Access:
    """What the four options above say, for `Engine.pull`, `push` and others."""
    from ..images.registry.access import Access
    from .output import warn

    given = None
    if creds is not None:
        from ..errors import UsageError
        from ..images.registry.credentials import Credentials

        username, colon, password = creds.partition(":")
        if not username:
            raise UsageError("--creds has no user name", hint="Write --creds USERNAME[:PASSWORD].")
        if not colon:
            from .ask import ask_password

            password = ask_password(instead="Write --creds USERNAME:PASSWORD, or log in: pyrun login.")
        given = Credentials(username, password, source="--creds")
    return Access(given, authfile, tls_verify, cert_dir, notice=lambda text: warn(f"pyrun: {text}"))
