"""``pyrun history``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..images.record import since_epoch
from . import options as shared
from .escape import ellipsis
from .names import short_id
from .output import rows
from .session import session
from .units import ago, human_size, rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..images.record import HistoryEntry

HEADERS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}
MISSING = "<missing>"


def record(entry: HistoryEntry, now: float, *, truncate: bool, human: bool) -> dict[str, str]:
    """The fields of one line; ``now`` in seconds since the epoch."""
    created = since_epoch(entry.created)
    by = entry.created_by.replace("\t", " ")
    return {
        "ID": (short_id(entry.id) if truncate else entry.id) if entry.id else MISSING,
        "CreatedSince": ago(created, now),
        "CreatedAt": rfc3339(created),
        "CreatedBy": ellipsis(by, 45) if truncate else by,
        "Size": human_size(entry.size) if human else str(entry.size),
        "Comment": entry.comment,
    }


def history(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=shared.complete_image)],
    human: Annotated[
        bool,
        typer.Option("-H", "--human", help="Sizes and dates for people (the default); --human=false: exact"),
    ] = True,
    quiet: shared.Quiet = False,
    no_trunc: shared.NoTrunc = False,
    format: shared.Format = "",
) -> None:
    """Show how an image was built"""
    import time

    entries = session(context).engine().history(image)
    if quiet and format in ("", "table"):
        format = "{{.ID}}"
    now = time.time()
    records = (record(entry, now, truncate=not no_trunc, human=human) for entry in entries)
    columns = ("ID", "CreatedSince" if human else "CreatedAt", "CreatedBy", "Size", "Comment")
    rows(records, HEADERS, columns, format)
