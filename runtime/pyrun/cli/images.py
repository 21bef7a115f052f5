"""``pyrun images`` and ``pyrun image ls``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .session import session

FILTERS = (
    *("dangling=", "label=", "label!=", "reference=", "reference!=", "before=", "since=", "until="),
    *("id=", "digest=", "containers="),
)


def images(
    context: typer.Context,
    name: Annotated[
        list[str] | None, typer.Argument(metavar="[REPOSITORY[:TAG]]", autocompletion=shared.complete_image)
    ] = None,
    all: Annotated[
        bool,
        typer.Option(
            "-a", "--all", help="Also names by digest that a tag makes superfluous; untagged in trees"
        ),
    ] = False,
    quiet: shared.Quiet = False,
    no_trunc: shared.NoTrunc = False,
    digests: Annotated[bool, typer.Option("--digests", help="Show digests")] = False,
    filter: Annotated[
        list[str] | None,
        typer.Option(
            "-f",
            "--filter",
            metavar="FILTER",
            help="dangling=true|false, label[!]=KEY[=VALUE], reference[!]=PATTERN, before=IMAGE, since=IMAGE,"
            " until=TIME, id=ID, digest=DIGEST, containers=true|false",
            autocompletion=shared.one_of(*FILTERS),
        ),
    ] = None,
    tree: Annotated[
        bool, typer.Option("--tree", help="Show each image's names, and the platforms it is for, as a tree")
    ] = False,
    format: shared.Format = "",
) -> int:
    """List images"""
    from .body import images as body

    return body.images(
        session(context),
        name=name,
        all=all,
        quiet=quiet,
        no_trunc=no_trunc,
        digests=digests,
        filter=filter,
        tree=tree,
        format=format,
    )
