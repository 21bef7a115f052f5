"""``pyrun rmi`` and ``pyrun image rm``."""

from __future__ import annotations

from typing import Annotated

import click
import typer

from ..errors import NotFound, UsageError
from . import options as shared
from .each import for_each
from .escape import printable
from .output import warn, write
from .session import session


def rmi(
    context: typer.Context,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE...", autocompletion=shared.complete_image)
    ] = None,
    all: Annotated[bool, typer.Option("-a", "--all", help="Remove all images")] = False,
    force: Annotated[
        bool, typer.Option("-f", "--force", help="Remove it even if it has more names or stopped containers")
    ] = False,
    ignore: Annotated[
        bool, typer.Option("-i", "--ignore", help="Say nothing where there is no such image")
    ] = False,
    no_prune: Annotated[
        bool, typer.Option("--no-prune", help="Leave layers and blobs, to be removed by a later prune")
    ] = False,
) -> int:
    """Remove images"""
    engine = session(context).engine()
    if all and images:
        raise UsageError("--all and names of images can't be used together", hint="Drop one of them.")
    if not all and not images:
        raise click.UsageError("missing argument 'IMAGE...': name images, or take all with --all", context)

    def remove(name: str) -> None:
        try:
            for verb, what in engine.remove_image(name, force=force, prune=not no_prune):
                write(f"{verb}: {printable(what)}\n")
        except NotFound as error:
            if ignore:
                return
            error.hint = "`pyrun images -a` lists them."
            # As docker: with -f an image that isn't there is what was wanted.
            if not force:
                raise
            warn(f"pyrun: {error}")

    if all:
        # Name by name, as an ID with several would need force; what has none by its ID.
        found = engine.images(all=True, warn=lambda text: warn(f"pyrun: warning: {text}"))
        images = [
            image.id if image.unnamed else image.reference for image in found if "@" not in image.reference
        ]
        images += [image.id for image in found if "@" in image.reference]
        ignore = True  # one by digest may have gone with its tag
    return for_each(dict.fromkeys(images or ()), remove)
