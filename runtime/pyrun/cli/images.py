"""``pyrun images`` and ``pyrun image ls``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .names import NONE, matches, repository_and_tag, short_id
from .output import rows
from .session import session
from .units import ago, human_size, local_time, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..images.record import Image

HEADERS = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "Platform": "PLATFORM",
}
COLUMNS = ("Repository", "Tag", "ID", "CreatedSince", "Size")
WITH_DIGEST = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")


def record(image: Image, now: float, *, truncate: bool) -> dict[str, str]:
    """The fields of one line; ``now`` in seconds since the epoch."""
    created = timestamp(image.created)
    repository, tag = repository_and_tag(image)
    return {
        "ID": short_id(image.id) if truncate else image.id,
        "Repository": repository,
        "Tag": tag,
        "Digest": image.digest or NONE,
        "CreatedSince": ago(created, now),
        "CreatedAt": local_time(created),
        "Size": human_size(image.size),
        "Platform": image.platform,
    }


def images(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[REPOSITORY[:TAG]]", autocompletion=shared.complete_image)
    ] = None,
    quiet: shared.Quiet = False,
    no_trunc: shared.NoTrunc = False,
    digests: Annotated[bool, typer.Option("--digests", help="Show digests")] = False,
    format: shared.Format = "",
) -> None:
    """List images"""
    import time

    found = session(context).engine().images()
    if name is not None:
        from ..images.reference import Reference

        wanted = Reference.parse(name)
        found = [image for image in found if matches(image, wanted)]
    if quiet and format in ("", "table"):
        format = "{{.ID}}"
    now = time.time()
    records = (record(image, now, truncate=not no_trunc) for image in found)
    rows(records, HEADERS, WITH_DIGEST if digests else COLUMNS, format)
