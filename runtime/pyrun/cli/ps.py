"""``pyrun ps`` and ``pyrun container ls``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .session import session


def ps(
    context: typer.Context,
    all: Annotated[bool, typer.Option("-a", "--all", help="Show stopped containers, too")] = False,
    quiet: shared.Quiet = False,
    no_trunc: shared.NoTrunc = False,
    format: shared.Format = "",
) -> int:
    """List containers"""
    from .body import ps as body

    return body.ps(session(context), all=all, quiet=quiet, no_trunc=no_trunc, format=format)
