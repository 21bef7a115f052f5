"""``pyrun export``, ``pyrun container export``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..errors import UsageError
from . import options as shared
from .session import session


def export(
    context: typer.Context,
    container: Annotated[str, typer.Argument(metavar="CONTAINER", autocompletion=shared.complete_container)],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write to a file, which appears when it is whole, and not to standard output",
            click_type=shared.complete_file,
        ),
    ] = "",
) -> None:
    """Write the files of a container to a tar archive"""
    if not output and os.isatty(1):
        raise UsageError(
            "an archive is not written to a terminal", hint="Name a file with -o, or redirect the output."
        )
    session(context).engine().export(container, output or 1)
