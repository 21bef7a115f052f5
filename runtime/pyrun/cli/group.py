"""Groups of commands that are imported one by one, when they run."""

from __future__ import annotations

from typing import Any

import click
from typer.core import TyperGroup

from .catalog import CATALOG, HIDDEN, PANELS, Entry, GroupEntry
from .command import build, help_option, noted, usage, write_options


def load(name: str, entry: Entry | GroupEntry) -> click.Command:
    """The click command of an entry. Imports its module."""
    if isinstance(entry, GroupEntry):
        group = LazyGroup(
            name=name,
            help=entry.help,
            context_settings={"help_option_names": ["-h", "--help"]},
            no_args_is_help=False,
        )
        group.entries = entry.entries
        return group
    from importlib import import_module

    module, _, function = entry.target.partition(":")
    found = import_module(f"{__package__}.{module}")
    return build(getattr(found, function), name, getattr(found, "SETTINGS", {}))


class LazyGroup(TyperGroup):
    """A group that lists its commands from the catalog. Without a command it shows its help."""

    def __init__(self, **attributes: Any) -> None:
        attributes["invoke_without_command"] = True
        super().__init__(**attributes)
        self.entries = CATALOG

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.entries.get(cmd_name)
        if entry is None and self.entries is CATALOG:
            entry = HIDDEN.get(cmd_name)
        return None if entry is None else load(cmd_name, entry)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with noted(ctx):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = self.get_command(ctx, name)
        if command is not None:
            return name, command, args[1:]
        if ctx.resilient_parsing:
            return None, None, args[1:]
        if name.startswith("-"):
            raise click.NoSuchOption(name, ctx=ctx)
        from difflib import get_close_matches

        close = get_close_matches(name, self.entries, n=3)
        hint = f"\nDid you mean {' or '.join(close)}?" if close else ""
        raise click.UsageError(f"unknown command: {ctx.command_path} {name}{hint}", ctx)

    def invoke(self, ctx: click.Context) -> Any:
        result = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            from . import output

            output.write(ctx.get_help() + "\n")
        return result

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        items = [
            CompletionItem(name, help=entry.help)
            for name, entry in self.entries.items()
            if name.startswith(incomplete)
        ]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        return help_option(self.get_help_option_names(ctx))

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS] COMMAND"] if ctx.parent is None else ["COMMAND"]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(usage(ctx) + "\n\n" + (self.help or "").strip() + "\n")
        width = max(len(name) for name in self.entries) + 2
        for panel in PANELS:
            lines = [
                f"  {name.ljust(width)}{entry.help}\n"
                for name, entry in self.entries.items()
                if entry.panel == panel
            ]
            if lines:
                formatter.write(f"\n{panel}:\n" + "".join(lines))
        write_options(ctx, formatter, "Global Options" if ctx.parent is None else "Options")
        formatter.write(f"\nRun '{ctx.command_path} COMMAND --help' for more information on a command.\n")
