"""``pyrun export``, ``pyrun container export``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .outfile import written
from .session import session


def export(
    context: typer.Context,
    container: Annotated[str, typer.Argument(metavar="CONTAINER", autocompletion=shared.complete_container)],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write to a file, which appears when it is whole, and not to standard output",
            click_type=shared.complete_file,
        ),
    ] = None,
) -> None:
    """Write the files of a container to a tar archive"""
    engine = session(context).engine()
    with written(output, "a tar archive") as file:
        engine.export(container, file)
