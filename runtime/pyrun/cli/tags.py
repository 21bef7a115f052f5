"""``pyrun tags`` and ``pyrun image tags``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from . import options as shared
from .output import rows
from .session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..engine import Engine
    from ..images.registry.access import Access

HEADERS = {"Name": "NAME", "Tag": "TAG"}
COLUMNS = ("Name", "Tag")


def write_tags(
    engine: Engine, name: str, access: Access, *, limit: int | None, format: str, quiet: bool
) -> None:
    """The tags of the repository ``name``, a line each."""
    if limit is not None and limit < 1:
        raise UsageError(f"the limit {limit} is less than 1")
    repository, tags = engine.tags(name, access=access)
    if quiet and format in ("", "table"):
        format = "{{.Tag}}"
    rows(({"Name": repository, "Tag": tag} for tag in tags[:limit]), HEADERS, COLUMNS, format)


def tags(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="NAME", autocompletion=shared.complete_image)],
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="NUMBER", help="Only the first so many tags")
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only show the tags")] = False,
    format: shared.Format = "",
    creds: shared.Creds = None,
    authfile: shared.AuthFile = None,
    cert_dir: shared.CertDir = None,
    tls_verify: shared.TlsVerify = None,
) -> None:
    """Show the tags that an image has in its registry"""
    access = shared.access(creds, authfile, cert_dir, tls_verify)
    write_tags(session(context).engine(), image, access, limit=limit, format=format, quiet=quiet)
