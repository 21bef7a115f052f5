"""``pyrun commit``, ``pyrun container commit``."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from ..images.archives.outlet import file_at, words
from . import options as shared
from .output import warn, write
from .session import session


def commit(
    context: typer.Context,
    container: Annotated[str, typer.Argument(metavar="CONTAINER", autocompletion=shared.complete_container)],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[REPOSITORY[:TAG]]", show_default=False, autocompletion=shared.complete_image
        ),
    ] = None,
    author: Annotated[
        str, typer.Option("-a", "--author", metavar="TEXT", help='Author, such as "Ann <ann@example.org>"')
    ] = "",
    change: shared.Changes = None,
    message: Annotated[str, typer.Option("-m", "--message", metavar="TEXT", help="Commit message")] = "",
    pause: Annotated[
        bool,
        typer.Option(
            "-p",
            "--pause",
            help="Stop a running container meanwhile (the default); --pause=false: let it run",
        ),
    ] = True,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only print the image's ID")] = False,
    squash: Annotated[
        bool, typer.Option("-s", "--squash", help="Make one layer of all files, the image's own included")
    ] = False,
    format: Annotated[
        str,
        typer.Option(
            "-f",
            "--format",
            metavar="oci|docker",
            help="Format of the image's manifest (oci)",
            autocompletion=shared.one_of("oci", "docker"),
        ),
    ] = "oci",
    iidfile: Annotated[
        str | None,
        typer.Option(
            "--iidfile",
            metavar="FILE",
            help="Write the image's ID to a file",
            click_type=shared.complete_file,
        ),
    ] = None,
    timestamp: Annotated[
        int | None,
        typer.Option(
            "--timestamp",
            metavar="SECONDS",
            help="The image's time, since the epoch (SOURCE_DATE_EPOCH, else that of the newest change)",
        ),
    ] = None,
) -> None:
    """Make an image of a container's files and settings"""
    # On a terminal somebody may wonder what takes so long; a program gets the ID alone.
    told = not quiet and sys.stderr is not None and sys.stderr.isatty()
    with file_at(iidfile) if iidfile else nullcontext() as file:
        image = (
            session(context)
            .engine()
            .commit(
                container,
                target,
                author=author,
                message=message,
                changes=change or (),
                pause=pause,
                squash=squash,
                format=format,
                timestamp=timestamp,
                say=warn if told else lambda text: None,
            )
        )
        if iidfile and file is not None:
            with words(iidfile):
                os.write(file, image.id.encode())
    write(f"{image.id}\n")
