"""``pyrun inspect``, ``pyrun image inspect``, ``pyrun container inspect``."""

from __future__ import annotations

from typing import Annotated, Any

import click
import typer

from ..errors import NotFound, UsageError
from . import options as shared
from .output import document, json_text, warn, write
from .session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

KINDS = ("container", "image")
_SIZE = typer.Option(
    "-s", "--size", help="Also what a container wrote, and what it shows: SizeRw and SizeRootFs"
)
_SPEC_HELP = "Show the OCI runtime spec a container was started with, as its config.json would hold it"


def _show(names: list[str], look: Callable[[str], dict[str, Any]], layout: str) -> int:
    """Print what ``look`` finds: an array, or with ``--format`` a line each. 1 where one is missing."""
    found = []
    missing = []
    for name in names:
        try:
            found.append(look(name))
        except NotFound:
            missing.append(name)
    if layout:
        for value in found:
            document(value, layout)
    else:
        write(json_text(found, indent=4) + "\n")
    for name in missing:
        warn(f"error: no such object: {name}")
    return 1 if missing else 0


def inspect(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME|ID...", autocompletion=shared.complete_any)],
    kind: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="|".join(KINDS), help="Look for one kind only", click_type=click.Choice(KINDS)
        ),
    ] = None,
    size: Annotated[bool, _SIZE] = False,
    spec: Annotated[bool, typer.Option("--spec", help=_SPEC_HELP)] = False,
    format: shared.DocumentFormat = "",
) -> int:
    """Show all that is known of images and containers"""
    engine = session(context).engine()
    if spec:
        if kind == "image":
            raise UsageError(
                "--spec is of containers: an image has no OCI runtime spec", hint="Leave out --type image."
            )
        return _specs(names, engine.spec, format)
    return _show(names, lambda name: engine.inspect(name, kind=kind, size=size), format)


def inspect_image(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="IMAGE...", autocompletion=shared.complete_image)],
    format: shared.DocumentFormat = "",
) -> int:
    """Show all that is known of images"""
    engine = session(context).engine()
    return _show(names, lambda name: engine.inspect(name, kind="image"), format)


def inspect_container(
    context: typer.Context,
    names: Annotated[
        list[str], typer.Argument(metavar="CONTAINER...", autocompletion=shared.complete_container)
    ],
    size: Annotated[bool, _SIZE] = False,
    spec: Annotated[bool, typer.Option("--spec", help=_SPEC_HELP)] = False,
    format: shared.DocumentFormat = "",
) -> int:
    """Show all that is known of containers"""
    engine = session(context).engine()
    if spec:
        return _specs(names, engine.spec, format)
    return _show(names, lambda name: engine.inspect(name, kind="container", size=size), format)


def _specs(names: list[str], look: Callable[[str], dict[str, Any]], layout: str) -> int:
    """A JSON document a container, one after the other: what ``runc`` reads is an object, not an array."""
    code = 0
    for name in names:
        try:
            value = look(name)
        except NotFound:
            warn(f"error: no such object: {name}")
            code = 1
            continue
        if not document(value, layout):
            write(json_text(value, indent=4) + "\n")
    return code
