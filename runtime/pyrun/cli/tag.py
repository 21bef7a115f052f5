"""``pyrun tag``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .session import session


def tag(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=shared.complete_image)],
    target: Annotated[str, typer.Argument(metavar="NAME[:TAG]", autocompletion=shared.complete_image)],
) -> None:
    """Give an image another name"""
    session(context).engine().tag(source, target)
