"""``pyrun system check``, ``system df`` and ``system prune``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import PyrunError
from . import options as shared
from .body.ps import status
from .names import NONE, short_id
from .output import rows, warn, write
from .pruned import All, Force, agreed, told
from .session import session
from .units import ago, human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..upkeep.problems import Checked, Problem
    from ..upkeep.usage import DiskUsage

CHECK_HEADERS = {
    "Kind": "KIND",
    "Subject": "SUBJECT",
    "Problem": "PROBLEM",
    "Harm": "HARM",
    "Fix": "REPAIR",
    "Outcome": "OUTCOME",
}
CHECK_COLUMNS = ("Kind", "Subject", "Problem", "Fix")
REPAIR_COLUMNS = ("Kind", "Subject", "Problem", "Outcome")

DF_HEADERS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
DF_COLUMNS = ("Type", "TotalCount", "Active", "Size", "Reclaimable")

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Don't tell on standard error what is being done")]


def progress(quiet: bool) -> Callable[[str], None]:
    """Says what is being done, a line each on standard error."""
    return (lambda text: None) if quiet else warn


# --- check


def record(problem: Problem) -> dict[str, str]:
    return {
        "Kind": problem.kind,
        "Subject": problem.subject,
        "Problem": problem.what,
        "Harm": "true" if problem.harm else "false",
        "Fix": problem.fix or "by hand",
        "Outcome": problem.outcome,
    }


def check(
    context: typer.Context,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE...]", autocompletion=shared.complete_image)
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make again, fetch again or remove what is wrong")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Compare the content of every layer with what its blob makes")
    ] = False,
    quiet: Quiet = False,
    format: shared.Format = "",
) -> int:
    """Look for damage and leftovers in the store

    Hashes every blob again, compares layers with the listing recorded when they were made, and looks for
    what nothing needs and what dead processes left. Containers run and read commands work meanwhile. Given
    images, it looks at their records, blobs and layers only.

    Exits with 0 where nothing is damaged or all of it was repaired, else with 1. Leftovers alone, such as
    blobs that no image needs, are no damage.
    """
    done = (
        session(context)
        .engine()
        .check(images=images or (), deep=deep, repair=repair, progress=progress(quiet))
    )
    if done.problems or format not in ("", "table"):
        columns = REPAIR_COLUMNS if repair else CHECK_COLUMNS
        rows((record(problem) for problem in done.problems), CHECK_HEADERS, columns, format)
    if format in ("", "table"):
        write(verdict(done))
    for note in done.notes:
        warn(f"pyrun: note: {note}")
    return 0 if done.sound else 1


def verdict(done: Checked) -> str:
    """The last line of the table."""
    looked = ", ".join(f"{count} {what if count != 1 else what[:-1]}" for what, count in done.counts.items())
    left = [problem for problem in done.problems if problem.left]
    damage = sum(problem.harm for problem in left)
    leftovers = len(left) - damage
    if not left:
        found = "all repaired" if done.problems else "sound"
    else:
        found = f"{damage} damaged" if damage else "sound"
        if leftovers:
            found += f", {leftovers} left over"
    return f"{looked}: {found}\n"


# --- df


def df(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="List every item")] = False,
    format: shared.Format = "",
) -> None:
    """Show how much disk space the store takes"""
    if verbose and format:
        raise PyrunError("--verbose and --format can't be used together", hint="Drop one of them.")
    usage = session(context).engine().disk_usage()
    if verbose:
        _write_items(usage)
        return
    records = (
        {
            "Type": line.type,
            "TotalCount": str(line.total),
            "Active": str(line.active),
            "Size": human_size(line.size),
            "Reclaimable": _share(line.reclaimable, line.size),
        }
        for line in usage.lines()
    )
    rows(records, DF_HEADERS, DF_COLUMNS, format)


def _share(part: int, whole: int) -> str:
    return f"{human_size(part)} ({100 * part // whole}%)" if whole else human_size(part)


def _write_items(usage: DiskUsage) -> None:
    import time

    now = time.time()
    _table(
        "Images space usage:",
        ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"),
        (
            (
                image.repository or NONE,
                image.tag or NONE,
                short_id(image.id),
                ago(image.created, now),
                human_size(image.size),
                human_size(image.shared),
                human_size(image.size - image.shared),
                str(image.containers),
            )
            for image in usage.images
        ),
    )
    _table(
        "Containers space usage:",
        ("CONTAINER ID", "IMAGE", "DRIVER", "LOCAL VOLUMES", "SIZE", "CREATED", "STATUS", "NAMES"),
        (
            (
                short_id(found.container.id),
                found.container.image,
                found.container.driver,
                str(found.volumes),
                human_size(found.size),
                ago(found.container.created, now),
                status(found.container, now),
                found.container.name,
            )
            for found in usage.containers
        ),
    )
    _table(
        "Local Volumes space usage:",
        ("CONTAINER", "MOUNTED AT", "SIZE"),
        ((volume.container, volume.destination, human_size(volume.size)) for volume in usage.volumes),
    )
    _table(
        "Layers space usage:",
        ("DRIVER", "LAYER", "SIZE", "IMAGES", "CONTAINERS"),
        (
            (
                layer.driver,
                short_id(layer.key),
                human_size(layer.size),
                str(layer.images),
                str(layer.containers),
            )
            for layer in usage.layers
        ),
        last=True,
    )


def _table(
    title: str, headers: tuple[str, ...], lines: Iterator[tuple[str, ...]], *, last: bool = False
) -> None:
    names = dict(zip(headers, headers, strict=True))
    write(f"{title}\n\n")
    rows((dict(zip(headers, line, strict=True)) for line in lines), names, headers, "")
    if not last:
        write("\n")


# --- prune


def prune(
    context: typer.Context,
    all: All = False,
    force: Force = False,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="FILTER",
            help="Only what was made before (until=24h, until=2025-01-31T12:00:00Z), what has a label"
            " (label=KEY[=VALUE]), or has not (label!=KEY[=VALUE])",
            autocompletion=shared.one_of("until=", "label=", "label!="),
        ),
    ] = None,
) -> int:
    """Remove stopped containers, unused images and layers, and leftovers"""
    from ..images.filters import Filters
    from ..upkeep.prune import PRUNED

    Filters(filter or [], PRUNED)  # what is wrong with them shows before the question
    if not force and not _confirmed(all, filter or []):
        warn("pyrun: nothing was removed")
        return 1
    return told(session(context).engine().prune(all=all, filters=filter or []))


def _confirmed(all: bool, filters: list[str]) -> bool:
    images = "all images without at least one container associated to them" if all else "all dangling images"
    write(
        "WARNING! This will remove:\n"
        "  - all stopped containers\n"
        f"  - {images}\n"
        "  - layers that no image and no container needs\n"
        "  - what broken-off pulls and dead processes left\n\n"
    )
    if filters:
        write(
            "Items to be pruned will be filtered with:\n"
            + "".join(f"  - {text}\n" for text in filters)
            + "\n"
        )
    write("Are you sure you want to continue? [y/N] ")
    return agreed()
