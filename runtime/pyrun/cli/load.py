"""``pyrun load`` and ``pyrun image load``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..errors import UsageError
from . import options as shared
from .names import short_id
from .output import write
from .session import session


def load(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Option(
            "-i",
            "--input",
            metavar="FILE",
            help="Read this file, or directory, instead of standard input",
            click_type=shared.complete_file,
        ),
    ] = "",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Don't show progress")] = False,
    platform: shared.PlatformName = None,
    storage: shared.Storage = None,
    storage_opt: shared.StorageOpt = None,
) -> None:
    """Load images from an archive"""
    if not source and os.isatty(0):
        raise UsageError(
            "an archive is not read from a terminal", hint="Name a file with -i, or redirect the input."
        )
    progress = None
    if not quiet and sys.stdout is not None and sys.stdout.isatty():
        from .progress import PullDisplay

        progress = PullDisplay(sys.stdout)
    engine = session(context).engine(storage, storage_opt or ())
    for loaded in engine.load(source or 0, platform=platform, progress=progress):
        for name, before in loaded.replaced.items():
            write(
                f"The image {name} already exists, the old one with ID {short_id(before)} loses that name\n"
            )
        for reference in loaded.names:
            write(f"Loaded image: {reference.familiar}\n")
        if not loaded.names:
            write(f"Loaded image ID: {loaded.image.id}\n")
