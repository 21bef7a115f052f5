"""What the ``prune`` commands share: options, the question, and what they say went."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .escape import printable
from .output import flush, warn, write
from .units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..upkeep.prune import Pruned

All = Annotated[
    bool,
    typer.Option("-a", "--all", help="Remove every image that no container uses, not just untagged ones"),
]
Force = Annotated[bool, typer.Option("-f", "--force", help="Don't ask")]


def agreed() -> bool:
    """Whether the answer on standard input to the question that was just written is yes."""
    flush()
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    return answer.strip().lower() in ("y", "yes")


def told(done: Pruned) -> int:
    """Say what went; the exit code."""
    if done.containers:
        write("Deleted Containers:\n" + "".join(f"{id}\n" for id in done.containers) + "\n")
    if done.images:
        lines = [f"{verb.lower()}: {printable(what)}\n" for verb, what in done.images]
        write("Deleted Images:\n" + "".join(lines) + "\n")
    if done.layers:
        lines = [f"{driver} {key}\n" for driver, key in done.layers]
        write("Deleted Layers:\n" + "".join(lines) + "\n")
    write(f"Total reclaimed space: {human_size(done.bytes)}\n")
    if done.deferred:
        warn(f"pyrun: images and layers were left alone: {done.deferred}")
        return 1
    return 0
