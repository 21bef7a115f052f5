"""One command: typer's, with help that looks like docker's, and flags that take ``=true`` and ``=false``."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import click
import typer
from typer.core import TyperCommand

from . import output
from .session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


def show_help(context: click.Context, _: click.Parameter, value: bool) -> None:
    """The callback of ``--help``: like click's, but a full disk is an error in words."""
    if value and not context.resilient_parsing:
        output.write(context.get_help() + "\n")
        context.exit()


def help_option(names: Sequence[str]) -> click.Option:
    return click.Option(
        names,
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show_help,
        help="Show this help",
    )


def usage(context: click.Context) -> str:
    """``Usage:  pyrun rm [OPTIONS] CONTAINER...``"""
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return f"Usage:  {context.command_path} {pieces}".rstrip()


def write_options(context: click.Context, formatter: click.HelpFormatter, heading: str) -> None:
    """The options, without the arguments, which the usage line names."""
    records = []
    for parameter in context.command.get_params(context):
        if isinstance(parameter, click.Option):
            record = parameter.get_help_record(context)
            if record is not None:
                names, text = record
                records.append(
                    (names if names.startswith("-") and names[1:2] != "-" else f"    {names}", text)
                )
    if records:
        formatter.write(f"\n{heading}:\n")
        formatter.indent()
        formatter.write_dl(records)
        formatter.dedent()


@contextmanager
def noted(context: click.Context) -> Iterator[None]:
    """Notes in the session which command is being read, and in usage errors where they arose."""
    found = context.find_object(Session)
    if found is not None and not context.resilient_parsing:
        found.command = context.command_path
    try:
        yield
    except click.UsageError as error:
        error.ctx = error.ctx or context
        raise


class Command(TyperCommand):
    """What every command of the program is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with noted(ctx):
            args, off = self._flag_values(ctx, args)
            rest = super().parse_args(ctx, args)
        for name in off:
            ctx.params[name] = False
        return rest

    def _flag_values(self, ctx: click.Context, args: list[str]) -> tuple[list[str], set[str]]:
        """``--flag=true`` as ``--flag``; ``--flag=false`` left out, and the names of those whose last word
        was false; the same of ``-f=true``. Docker's scripts write them; click knows none."""
        options = {
            o: p for p in self.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)
        }
        kept: list[str] = []
        off: set[str] = set()
        words = iter(args)
        for word in words:
            if word == "--" or (not ctx.allow_interspersed_args and not word.startswith("-")) or word == "-":
                kept.append(word)
                if word == "--" or not ctx.allow_interspersed_args:
                    break
                continue
            name, equals, value = word.partition("=")
            option = options.get(name)
            if word.startswith("--") or (equals and len(name) == 2 and option is not None and option.is_flag):
                if option is None or not option.is_flag:
                    kept.append(word)
                    if option is not None and not equals:
                        kept.extend(_next(words))
                elif not equals or value in _TRUE:
                    off.discard(option.name or "")
                    kept.append(name)
                elif value in _FALSE:
                    off.add(option.name or "")
                elif option.metavar and value.startswith("@"):
                    kept += [name, value]  # --cat=@2 is --cat and an argument
                else:
                    raise click.BadParameter(f"{value!r} is neither true nor false", ctx, option)
            else:
                kept.append(word)
                if word.startswith("-"):
                    off -= self._cluster(word, options, words, kept)
        kept.extend(words)
        return kept, off

    def _cluster(self, word: str, options: dict[str, click.Option], words: Any, kept: list[str]) -> set[str]:
        """The flags of ``-it``. Where the last letter takes the next word as its value, keeps that, too."""
        flags = set()
        for at, letter in enumerate(word[1:], 1):
            option = options.get("-" + letter)
            if option is None:
                break
            if not option.is_flag:
                if at == len(word) - 1:
                    kept.extend(_next(words))
                break
            flags.add(option.name or "")
        return flags

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        # After IMAGE, what looks like an option is the container's.
        first = next((p for p in self.params if isinstance(p, click.Argument)), None)
        if not ctx.allow_interspersed_args and first is not None and ctx.params.get(first.name or ""):
            return []
        return super().shell_complete(ctx, incomplete)

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        names = self.get_help_option_names(ctx)
        return help_option(names) if names else None

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(usage(ctx) + "\n")
        if self.help:
            formatter.write("\n" + self.help.strip() + "\n")
        write_options(ctx, formatter, "Options")


def _next(words: Any) -> list[str]:
    word = next(words, None)
    return [] if word is None else [word]


def build(function: Callable[..., Any], name: str, settings: Mapping[str, Any]) -> click.Command:
    """The command that typer reads from a function's signature; its docstring is the help, ``settings`` are
    click's context settings."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=Command, context_settings={"help_option_names": ["-h", "--help"], **settings})(
        function
    )
    command = typer.main.get_command(app)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            # Defaults worth knowing are in the help; typer would import rich to show them.
            parameter.show_default = False
    return command
