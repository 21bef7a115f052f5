"""The program's root: global options, then a command of the catalog."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .group import LazyGroup
from .options import complete_directory, complete_file
from .output import write
from .session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    import click


def _show_version(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        write(f"pyrun version {__version__}\n")
        context.exit()


def pyrun(
    context: typer.Context,
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Where images and containers are kept",
            click_type=complete_directory,
        ),
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--state",
            metavar="DIR",
            help="Where the state of running containers is kept",
            click_type=complete_directory,
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="Configuration file (TOML)", click_type=complete_file),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the program an error arose")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "-v", "--version", help="Show the version and exit", is_eager=True, callback=_show_version
        ),
    ] = False,
) -> None:
    """Containers without a daemon, over storage drivers that are plugins"""
    session(context).set(root=root, state=state, config=config, debug=debug)


def root() -> click.Group:
    """The click command of the whole program; no command's module is imported by it."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    settings = {"help_option_names": ["-h", "--help"]}
    app.callback(cls=LazyGroup, context_settings=settings)(pyrun)
    command = typer.main.get_command(app)
    assert isinstance(command, LazyGroup)
    return command
