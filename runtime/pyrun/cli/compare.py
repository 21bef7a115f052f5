"""``pyrun storage compare``."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import click
import typer

from ..errors import NotFound, UsageError
from . import options as shared
from .catalog import CATALOG
from .escape import printable
from .group import load
from .output import document, write
from .session import Session, session
from .table import aligned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..engine import Engine
    from ..lab.compare import Comparison, Difference

_HEADERS = {
    "Driver": "DRIVER",
    "Exit": "EXIT CODE",
    "Seconds": "SECONDS",
    "Stdout": "STDOUT",
    "Stderr": "STDERR",
    "Changes": "CHANGES",
    "Names": "NAMES",
}
_MOST_LINES = 200
# Options of `run` that would take from compare what it looks at, or that it sets itself.
_OWN = {"rm": "--rm", "name": "--name", "storage": "--storage", "storage_opt": "--storage-opt", "tty": "-t"}


def compare(
    context: typer.Context,
    one: Annotated[str, typer.Argument(metavar="DRIVER", autocompletion=shared.complete_driver)],
    two: Annotated[str, typer.Argument(metavar="DRIVER", autocompletion=shared.complete_driver)],
    words: Annotated[list[str], typer.Argument(metavar="-- IMAGE [COMMAND] [ARG...]")],
    times: Annotated[
        bool, typer.Option("--times", help="Compare the times of files that the command wrote, too")
    ] = False,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="PATTERN", help="Leave out files whose path matches, as /tmp/*"),
    ] = None,
    format: shared.DocumentFormat = "",
    storage_opt: shared.StorageOpt = None,
) -> int:
    """Run one command on two storage drivers and show what differs

    Output, exit code and the whole file system afterwards are compared. Options of pyrun run may stand before
    IMAGE. Both run in stores of their own, which are removed. Exits with 0 where nothing differs, 1 where something
    does, 125 where a driver can't be used or the container can't be made.
    """
    found = session(context)
    found.failure = 125
    run = _run_parameters(words)
    others = [option for option in storage_opt or () if option.partition(".")[0] not in (one, two)]
    if others:
        raise UsageError(f"--storage-opt {others[0]} is for neither {one} nor {two}")
    engine = found.engine()
    _ensure_image(engine, run["image"], run["platform"])

    from ..lab.compare import compare as look

    comparison = look(
        engine, (one, two), words, storage_opts=storage_opt or (), times=times, ignore=ignore or ()
    )
    if not document(comparison.as_dict(), format):
        _show(comparison)
    return 1 if comparison.differences else 0


def _run_parameters(words: Sequence[str]) -> dict[str, Any]:
    """What ``pyrun run`` would make of the words; raises for those that can't be compared with."""
    command = load("run", CATALOG["run"])
    with click.Context(command, info_name="run", obj=Session()) as parent:
        parameters: dict[str, Any] = command.make_context(
            "run", list(words), parent=parent, obj=parent.obj
        ).params
    for name, option in _OWN.items():
        if parameters[name]:
            raise UsageError(f"{option} of run can't be used with compare")
    return parameters


def _ensure_image(engine: Engine, image: str, platform: str | None) -> None:
    """Pull it where it is missing: in the containers' output, that would be a difference."""
    try:
        engine.image(image)
    except NotFound:
        from .progress import PullDisplay

        engine.pull(image, platform=platform, progress=PullDisplay(sys.stderr) if sys.stderr else None)


def _show(comparison: Comparison) -> None:
    from ..lab.compare import summary

    cells = [list(_HEADERS.values())]
    cells += [[printable(row[name]) for name in _HEADERS] for row in summary(comparison)]
    write(aligned(cells) + "\n")
    if not comparison.differences:
        write("No differences.\n")
        return
    names = tuple(side.driver for side in comparison.sides)
    lines = [line for found in comparison.differences for line in _lines(found, names)]
    if len(lines) > _MOST_LINES:
        lines[_MOST_LINES:] = [
            f"... and {len(lines) - _MOST_LINES} lines more (--format json has everything)"
        ]
    write("".join(f"{printable(line, keep=' ')}\n" for line in lines))


def _lines(found: Difference, names: Sequence[str]) -> list[str]:
    both = ", ".join(f"{name} {value or 'has none'}" for name, value in zip(names, found.values, strict=True))
    if found.path is None:
        return [f"{found.what}: {both}", *(f"  {line}" for line in found.lines)]
    path = "/" + found.path.decode(errors="backslashreplace")
    if found.what == "tree":
        where = names[0] if found.values[0] else names[1]
        return [f"{path}: a {found.values[0] or found.values[1]} that only {where} has"]
    if found.what == "change":
        told = ", ".join(
            f"{name} {value or 'not changed'}" for name, value in zip(names, found.values, strict=True)
        )
        return [f"{path}: told as: {told}"]
    return [f"{path}: {found.what}: {both}"]
