"""``pyrun rm`` and ``pyrun container rm``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .session import session


def rm(
    context: typer.Context,
    containers: Annotated[
        list[str], typer.Argument(metavar="CONTAINER...", autocompletion=shared.complete_container)
    ],
    force: Annotated[bool, typer.Option("-f", "--force", help="Kill a running container first")] = False,
) -> int:
    """Remove containers"""
    from .body import rm as body

    return body.rm(session(context), containers=containers, force=force)
