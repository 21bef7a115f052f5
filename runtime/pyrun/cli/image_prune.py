"""``pyrun image prune``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .output import warn, write
from .pruned import All, Force, agreed, told
from .session import session


def prune(
    context: typer.Context,
    all: All = False,
    force: Force = False,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="FILTER",
            help="Only images made before (until=24h), with a label (label=KEY[=VALUE]) or without it"
            " (label!=KEY[=VALUE]); dangling=false is --all",
            autocompletion=shared.one_of("until=", "label=", "label!=", "dangling="),
        ),
    ] = None,
) -> int:
    """Remove unused images, and the layers that only they need"""
    from ..images.filters import PRUNING, Filters

    wanted = Filters(filter or [], PRUNING)  # what is wrong with them shows before the question
    if not force:
        every = all or wanted.dangling is False
        what = (
            "all images without at least one container associated to them" if every else "all dangling images"
        )
        write(f"WARNING! This will remove {what}.\nAre you sure you want to continue? [y/N] ")
        if not agreed():
            warn("pyrun: nothing was removed")
            return 1
    return told(session(context).engine().prune_images(all=all, filters=filter or []))
