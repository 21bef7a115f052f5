"""The lean parser: reads the command lines of the hot commands without typer and click. On the path of `run`.

typer defines the command line; `lean_table` is generated from it. Whatever is not certain here (an option that
is not in the table, ``--help``, a value that is missing or not among the choices, a word too many or too few)
is left to typer, which also has the words for what is wrong.
"""

from __future__ import annotations

from .lean_table import COMMANDS, ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

# Docker's scripts write --flag=true and --flag=false; see `command.Command`.
_WORDS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


class Line:
    """A command line that was understood.

    command      the command's name, a key of `lean_table.COMMANDS`
    globals      the options of the program itself: root, state, config, debug
    parameters   the keyword arguments of the command's body, all of them
    """

    __slots__ = ("command", "globals", "parameters")

    def __init__(self, command: str, globals: dict[str, Any], parameters: dict[str, Any]) -> None:
        self.command = command
        self.globals = globals
        self.parameters = parameters

    def body(self) -> Callable[..., int]:
        """The function of `pyrun.cli.body` that does what the command says."""
        from importlib import import_module

        module = import_module(f"{__package__}.body.{self.command}")
        found: Callable[..., int] = getattr(module, self.command)
        return found


def read(args: Sequence[str]) -> Line | None:
    """The command line ``args`` (without the program's name), or None where typer has to look at it."""
    start = _options(ROOT, args, 0)
    if start is None:
        return None
    own, rest = start
    if not rest or rest[0] not in COMMANDS:
        return None
    table = COMMANDS[rest[0]]
    found = _options(table, rest, 1)
    if found is None:
        return None
    parameters, words = found
    if not _arguments(table, words, parameters):
        return None
    return Line(rest[0], own, parameters)


def _options(table: dict[str, Any], words: Sequence[str], at: int) -> tuple[dict[str, Any], list[str]] | None:
    """The values of all options of ``table``, and the words that are no options; None where in doubt.

    The conventions are getopt_long(3)'s, without abbreviated names: ``--name=value``, ``--name value``,
    ``-nvalue``, ``-n value``, flags joined as in ``-it``, and ``--`` to end the options.
    """
    options = table["options"]
    found = dict(table["defaults"])
    rest: list[str] = []
    end = len(words)
    while at < end:
        word = words[at]
        at += 1
        if word == "--":
            break
        if len(word) < 2 or word[0] != "-":
            rest.append(word)
            if table["interspersed"]:
                continue
            break
        if word[1] == "-":
            name, equals, value = word.partition("=")
            option = options.get(name)
            if option is None:
                return None
            dest, kind, choices = option
            if kind == "flag":
                if equals and not (table["flag_values"] and value in _WORDS):
                    return None
                found[dest] = _WORDS[value] if equals else True
                continue
            taken = bool(equals)
        else:
            value, taken, option = "", False, None
            for position, letter in enumerate(word[1:], 2):
                option = options.get("-" + letter)
                if option is None:
                    return None
                dest, kind, choices = option
                if kind != "flag":
                    value = word[position:]
                    taken = bool(value)
                    break
                found[dest] = True
            if kind == "flag":
                continue
        if not taken:
            if at == end:
                return None
            value = words[at]
            at += 1
        if choices and value not in choices:
            return None
        if kind == "value":
            found[dest] = value
        else:
            found[dest] = [*(found[dest] or ()), value]
    rest.extend(words[at:])
    return found, rest


def _arguments(table: dict[str, Any], words: list[str], found: dict[str, Any]) -> bool:
    """Puts the words that are no options into the table's arguments; False where they don't fit."""
    for dest, many, required in table["arguments"]:
        if required and not words:
            return False
        if many:
            found[dest], words = words or None, []
        else:
            found[dest] = words[0]
            words = words[1:]
    return not words
