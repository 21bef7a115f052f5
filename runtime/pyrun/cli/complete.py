"""``pyrun __complete``: what the completion scripts ask.

Prints a line a candidate, ``TYPE<tab>VALUE<tab>HELP``. TYPE is "plain", or "file" or "dir" where the shell
knows better.
"""

from __future__ import annotations

from typing import Annotated

import click
import typer

from .escape import printable
from .output import write

# The words to complete may look like options of this command.
SETTINGS = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}

SHELLS = ("bash", "zsh", "fish")


def candidates(root: click.Command, words: list[str], incomplete: str) -> list[tuple[str, str, str]]:
    """(type, value, help) of what could stand for ``incomplete`` after ``words`` (without the program's).

    A value is the whole word, with ``--option=`` in front where that is how the word starts.
    """
    from click.shell_completion import ShellComplete

    found = ShellComplete(root, {}, "pyrun", "").get_completions(words, incomplete)
    name, equals, _ = incomplete.partition("=")
    prefix = name + equals if equals and name.startswith("--") else ""
    result = []
    for item in found:
        value = str(item.value)
        # A name with a control byte in it could not be typed anyway.
        if not value.isprintable():
            continue
        whole = value if value.startswith(prefix) and prefix else prefix + value
        result.append((item.type, whole, printable(item.help or "")))
    return result


def after_break(value: str, incomplete: str, breaks: str) -> str:
    """The part of ``value`` that bash replaces: it takes ``redis:7`` for three words where ``breaks``
    (COMP_WORDBREAKS) holds a colon, and completes the last."""
    cut = max((incomplete.rfind(char) for char in ":=" if char in breaks), default=-1)
    return value[cut + 1 :]


def complete(
    context: typer.Context,
    shell: Annotated[str, typer.Argument(click_type=click.Choice(SHELLS))],
    line: Annotated[list[str] | None, typer.Argument()] = None,
) -> None:
    """Print what could come next on a command line

    bash: COMP_WORDBREAKS and the line up to the cursor; others: the words, the last one incomplete.
    """
    words = list(line or [])
    breaks = ""
    if shell == "bash":
        from click.shell_completion import split_arg_string

        breaks = words[0] if words else ""
        text = words[1] if len(words) > 1 else ""
        words = split_arg_string(text)
        if not text or text[-1].isspace():
            words.append("")
        words = words[1:]
    incomplete = words.pop() if words else ""
    for kind, value, help_text in candidates(context.find_root().command, words, incomplete):
        if shell == "bash":
            value = after_break(value, incomplete, breaks)
        write(f"{kind}\t{value}\t{help_text}\n")
