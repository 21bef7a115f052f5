"""``pyrun rm`` and ``pyrun container rm``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import NotFound
from . import options as shared
from .each import for_each
from .output import write
from .session import session


def rm(
    context: typer.Context,
    containers: Annotated[
        list[str], typer.Argument(metavar="CONTAINER...", autocompletion=shared.complete_container)
    ],
    force: Annotated[bool, typer.Option("-f", "--force", help="Kill a running container first")] = False,
) -> int:
    """Remove containers"""
    engine = session(context).engine()

    def remove(name: str) -> None:
        try:
            engine.remove_container(name, force=force)
        except NotFound:
            if force:
                return
            raise
        write(f"{name}\n")

    return for_each(containers, remove)
