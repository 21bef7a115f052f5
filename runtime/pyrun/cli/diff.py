"""``pyrun diff``, ``pyrun container diff``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .escape import printable
from .output import json_text, write, write_rendered
from .session import session


def diff(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="CONTAINER|IMAGE", autocompletion=shared.complete_any)],
    base: Annotated[
        str | None,
        typer.Argument(metavar="[IMAGE]", show_default=False, autocompletion=shared.complete_image),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="'json' (one object with the lists added, changed and deleted), or a Go template a line, of .Kind"
            " and .Path",
            autocompletion=shared.one_of("json"),
        ),
    ] = "",
) -> None:
    """Show which files a container, or the last layer of an image, has added (A), changed (C) or deleted (D)"""
    found = session(context).engine().diff(name, base)
    if format == "json":
        lists: dict[str, list[str]] = {}
        for key, kind in (("changed", "C"), ("added", "A"), ("deleted", "D")):
            paths = [difference.path for difference in found if difference.kind == kind]
            if paths:
                lists[key] = paths
        write(json_text(lists) + "\n")
    elif format:
        from .template import Template

        template = Template(format, unescape=True)
        for difference in found:
            write_rendered(template.render({"Kind": difference.kind, "Path": difference.path}))
    else:
        for difference in found:
            write(f"{difference.kind} {printable(difference.path)}\n")
