"""``pyrun search`` and ``pyrun image search``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from . import options as shared
from .escape import ellipsis
from .output import rows
from .session import session
from .tags import write_tags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..images.registry.search import Found

HEADERS = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "StarCount": "STARS",
    "IsOfficial": "OFFICIAL",
    "IsAutomated": "AUTOMATED",
}
COLUMNS = ("Name", "Description", "StarCount", "IsOfficial")


def record(found: Found, *, truncate: bool, json: bool) -> dict[str, str]:
    """The fields of one line."""
    return {
        "Name": found.name,
        "Description": ellipsis(found.description, 45) if truncate else found.description,
        "StarCount": str(found.stars),
        "IsOfficial": _truth(found.official, json),
        "IsAutomated": _truth(found.automated, json),
    }


def _truth(value: bool, json: bool) -> str:
    if json:
        return "true" if value else "false"
    return "[OK]" if value else ""


def search(
    context: typer.Context,
    term: Annotated[str, typer.Argument(metavar="TERM")],
    filter: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--filter",
            metavar="FILTER",
            help="stars=NUMBER (at least so many), is-official=true|false, is-automated=true|false",
            autocompletion=shared.one_of("stars=", "is-official=", "is-automated="),
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="NUMBER", help="At most so many results, 1 to 100 (25)")
    ] = None,
    list_tags: Annotated[
        bool, typer.Option("--list-tags", help="TERM is a repository: show its tags (see pyrun tags)")
    ] = False,
    no_trunc: shared.NoTrunc = False,
    format: shared.Format = "",
    creds: shared.Creds = None,
    authfile: shared.AuthFile = None,
    cert_dir: shared.CertDir = None,
    tls_verify: shared.TlsVerify = None,
) -> None:
    """Search registries for images

    TERM is looked for on Docker Hub, or with a registry in front of it (HOST[:PORT]/TERM) there. A registry that
    can't be searched is asked for all of its repositories, and those whose names hold TERM are shown; HOST[:PORT]/
    shows them all.
    """
    engine = session(context).engine()
    access = shared.access(creds, authfile, cert_dir, tls_verify)
    if list_tags:
        if filter:
            raise UsageError("--list-tags and --filter can't be used together", hint="Drop one of them.")
        write_tags(engine, term, access, limit=limit, format=format, quiet=False)
        return
    from ..images.registry.search import DEFAULT_LIMIT

    found = engine.search(
        term, limit=DEFAULT_LIMIT if limit is None else limit, filters=filter or (), access=access
    )
    records = (record(one, truncate=not no_trunc, json=format == "json") for one in found)
    rows(records, HEADERS, COLUMNS, format)
