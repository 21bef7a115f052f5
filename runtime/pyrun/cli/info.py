"""``pyrun info``."""

from __future__ import annotations

from typing import Any

import typer

from . import options as shared
from .escape import printable
from .output import document, write
from .session import session


def lines(value: dict[str, Any], depth: int = 0) -> list[str]:
    """A document as indented ``Key: value`` lines; a list of documents as one block each."""
    result = []
    margin = " " * depth
    for key, item in value.items():
        label = f"{margin}{printable(str(key))}:"
        if isinstance(item, dict):
            result.append(label)
            result += lines(item, depth + 1)
        elif isinstance(item, list | tuple) and any(isinstance(part, dict) for part in item):
            result.append(label)
            for part in item:
                block = lines(part, depth + 3) if isinstance(part, dict) else [f"{margin}   {_text(part)}"]
                # A dash before the first line keeps the entries apart.
                result.append(f"{margin} - {block[0].lstrip()}" if block else f"{margin} -")
                result += block[1:]
        else:
            result.append(f"{label} {_text(item)}".rstrip())
    return result


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return " ".join(_text(part) for part in value)
    return printable(str(value))


def info(context: typer.Context, format: shared.DocumentFormat = "") -> None:
    """Show the store, the host and what pyrun can do on it"""
    found = session(context).engine().info()
    if not document(found, format):
        write("".join(line + "\n" for line in lines(found)))
