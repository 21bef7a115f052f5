"""``pyrun rmi`` and ``pyrun image rm``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import NotFound
from . import options as shared
from .each import for_each
from .escape import printable
from .output import warn, write
from .session import session


def rmi(
    context: typer.Context,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", autocompletion=shared.complete_image)],
    force: Annotated[
        bool, typer.Option("-f", "--force", help="Remove it even if it has more names or stopped containers")
    ] = False,
) -> int:
    """Remove images"""
    engine = session(context).engine()

    def remove(name: str) -> None:
        try:
            for verb, what in engine.remove_image(name, force=force):
                write(f"{verb}: {printable(what)}\n")
        except NotFound as error:
            # As docker: with -f an image that isn't there is what was wanted.
            if not force:
                raise
            warn(f"pyrun: {error}")

    return for_each(images, remove)
