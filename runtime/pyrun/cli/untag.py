"""``pyrun untag``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .session import session


def untag(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=shared.complete_image)],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[:TAG]...]", autocompletion=shared.complete_image)
    ] = None,
) -> None:
    """Take names off an image, all of them where none is given; the image stays"""
    session(context).engine().untag(image, names or ())
