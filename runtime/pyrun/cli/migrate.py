"""``pyrun storage migrate``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .output import warn, write
from .session import session
from .system import Quiet, progress


def migrate(
    context: typer.Context,
    to: Annotated[str, typer.Argument(metavar="DRIVER", autocompletion=shared.complete_driver)],
    without_containers: Annotated[
        bool,
        typer.Option(
            "--without-containers", help="Leave containers, and the layers they need, with their driver"
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Move the store to another storage driver

    Makes every image's layers again from the blobs and moves what containers wrote. What the old driver has
    stays, and works, until all of it is there under the new one. A migration that was broken off goes on where
    it was: run it again.
    """
    engine = session(context).engine()
    done = engine.migrate(to, containers=not without_containers, progress=progress(quiet))
    if done.before == to:
        write(f"The store has the storage driver {to}\n")
    else:
        write(f"The store was moved from {done.before or 'no driver'} to {to}\n")
    for name in done.left:
        warn(f"pyrun: note: the container {name} stays with its storage driver")
    for note in done.notes:
        warn(f"pyrun: note: {note}")
