"""What two directory trees differ in, name by name: a layer as it lies, and one made again from its blob."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Iterator
from typing import Any

from ..storage.listing import lines

_CHUNK = 1 << 20
_NAMED = 5  # differences that are told; the others are counted


def differences(one: str, two: str, *, content: bool, times: bool) -> Iterator[tuple[bytes, str]]:
    """(name, in what ``one`` differs from ``two``), sorted. ``content`` compares files byte by byte; without
    ``times`` the mtimes don't count."""
    left, right = dict(lines(one)), dict(lines(two))
    for name in sorted(left.keys() | right.keys()):
        if name not in left:
            yield name, "missing"
            continue
        if name not in right:
            yield name, "not of the layer"
            continue
        mine, theirs = left[name], right[name]
        if mine != theirs and _attributes(mine, times) != _attributes(theirs, times):
            yield name, "attributes changed"
        elif content and stat.S_ISREG(_mode(mine)) and _contents_differ(one, two, name):
            yield name, "content changed"


def told(found: Iterator[tuple[bytes, str]], below: bytes = b"") -> str:
    """The first differences in words, "" for none."""
    words: list[str] = []
    more = 0
    for name, what in found:
        if len(words) < _NAMED:
            words.append(f"{os.fsdecode(below + name)}: {what}")
        else:
            more += 1
    if more:
        words.append(f"and {more} more")
    return "; ".join(words)


def _mode(line: bytes) -> int:
    """The first of the attributes, without reading the others."""
    return int(line[1 : line.index(b",")])


def _attributes(line: bytes, times: bool) -> tuple[Any, ...]:
    found: tuple[Any, ...] = ast.literal_eval(line.decode())
    return found if times else (*found[:3], *found[4:])


def _contents_differ(one: str, two: str, name: bytes) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    first = os.open(os.fsencode(one) + b"/" + name, flags)
    try:
        second = os.open(os.fsencode(two) + b"/" + name, flags)
        try:
            while True:
                mine, theirs = os.read(first, _CHUNK), os.read(second, _CHUNK)
                if mine != theirs:
                    return True
                if not mine:
                    return False
        finally:
            os.close(second)
    finally:
        os.close(first)
