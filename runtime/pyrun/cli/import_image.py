"""``pyrun import`` and ``pyrun image import``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..errors import UsageError
from . import options as shared
from .output import write
from .session import session


def import_image(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="FILE|URL|-", click_type=shared.complete_file)],
    target: Annotated[
        str | None, typer.Argument(metavar="[REPOSITORY[:TAG]]", autocompletion=shared.complete_image)
    ] = None,
    change: shared.Changes = None,
    message: Annotated[
        str, typer.Option("-m", "--message", metavar="TEXT", help="Comment for the image's history")
    ] = "",
    platform: Annotated[
        str | None,
        typer.Option(
            "--platform",
            metavar="OS/ARCH[/VARIANT]",
            help="Platform that the files are for (DOCKER_DEFAULT_PLATFORM)",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Only show the image's ID (always so)")
    ] = False,
    storage: shared.Storage = None,
    storage_opt: shared.StorageOpt = None,
) -> None:
    """Create an image from a root file system's tar archive"""
    if source == "-" and os.isatty(0):
        raise UsageError("a tar is not read from a terminal", hint="Name a file, or redirect the input.")
    image = (
        session(context)
        .engine(storage, storage_opt or ())
        .import_image(
            0 if source == "-" else source, target, changes=change or (), message=message, platform=platform
        )
    )
    write(f"{image.id}\n")
