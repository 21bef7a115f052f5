"""``pyrun pull``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..images.reference import Reference
from . import options as shared
from .output import flush, write
from .session import session


def pull(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="NAME[:TAG|@DIGEST]", autocompletion=shared.complete_image)],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only show the image's full name")] = False,
    platform: shared.PlatformName = None,
    storage: shared.Storage = None,
    storage_opt: shared.StorageOpt = None,
) -> None:
    """Download an image from a registry"""
    reference = Reference.parse(image)
    engine = session(context).engine(storage, storage_opt or ())
    if quiet or sys.stdout is None:
        result = engine.pull(image, platform=platform)
    else:
        from .progress import PullDisplay

        if reference.implicit:
            write(f"Using default tag: {reference.tag}\n")
            flush()
        result = engine.pull(image, platform=platform, progress=PullDisplay(sys.stdout))
        found = "Downloaded newer image" if result.newer else "Image is up to date"
        write(f"Digest: {result.image.digest}\nStatus: {found} for {reference.familiar}\n")
    write(f"{result.image.reference}\n")
