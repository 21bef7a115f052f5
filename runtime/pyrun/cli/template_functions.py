"""The functions of ``--format`` templates: Go's own that make sense for a line of text, and docker's.

Each takes the values of its arguments and raises `FunctionError` where they don't fit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .output import json_text


class FunctionError(Exception):
    """The message says what was expected and what came."""


def go_type(value: Any) -> str:
    """The Go type name a template user knows for a value."""
    if value is None:
        return "nil"
    names = {bool: "bool", int: "int", float: "float64", str: "string", list: "list", dict: "map"}
    return names.get(type(value), type(value).__name__)


def go_text(value: Any, *, nested: bool = False) -> str:
    """A value as Go's ``%v`` prints it: ``[a b]``, ``map[k:v]``, ``true``, ``<no value>``."""
    if value is None:
        return "<nil>" if nested else "<no value>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    if isinstance(value, list | tuple):
        return "[" + " ".join(go_text(item, nested=True) for item in value) + "]"
    if isinstance(value, dict):
        pairs = (f"{key}:{go_text(value[key], nested=True)}" for key in sorted(value))
        return "map[" + " ".join(pairs) + "]"
    return str(value)


def _expect(value: Any, kind: type, name: str) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FunctionError(f"wrong type for value; expected {name}; got {go_type(value)}")


def _string(value: Any) -> str:
    _expect(value, str, "string")
    return str(value)


def _int(value: Any) -> int:
    _expect(value, int, "int")
    return int(value)


def _json(value: Any) -> str:
    return json_text(value)


def _split(text: Any, separator: Any) -> list[str]:
    whole, by = _string(text), _string(separator)
    return whole.split(by) if by else list(whole)


def _join(items: Any, separator: Any) -> str:
    _expect(items, list, "list of strings")
    return _string(separator).join(_string(item) for item in items)


def _title(text: Any) -> str:
    return re.sub(r"(^|\s)(\S)", lambda m: m.group(1) + m.group(2).upper(), _string(text))


def _lower(text: Any) -> str:
    return _string(text).lower()


def _upper(text: Any) -> str:
    return _string(text).upper()


def _pad(text: Any, before: Any, after: Any) -> str:
    whole = _string(text)
    return " " * _int(before) + whole + " " * _int(after) if whole else whole


def _truncate(text: Any, length: Any) -> str:
    return _string(text)[: max(_int(length), 0)]


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            # A missing key is the zero value in Go, which for a map of anything is nil.
            value = value.get(_string(key))
        elif isinstance(value, list | str):
            position = _int(key)
            if not 0 <= position < len(value):
                raise FunctionError(f"error calling index: index out of range: {position}")
            value = value[position] if isinstance(value, list) else ord(value[position])
        else:
            raise FunctionError(f"error calling index: can't index item of type {go_type(value)}")
    return value


def _slice(value: Any, *bounds: Any) -> Any:
    if not isinstance(value, list | str):
        raise FunctionError(f"error calling slice: can't slice item of type {go_type(value)}")
    start = _int(bounds[0]) if bounds else 0
    end = _int(bounds[1]) if len(bounds) > 1 else len(value)
    if not 0 <= start <= end <= len(value):
        raise FunctionError(f"error calling slice: index out of range: {start}:{end}")
    return value[start:end]


def _len(value: Any) -> int:
    if not isinstance(value, list | dict | str):
        raise FunctionError(f"error calling len: len of type {go_type(value)}")
    return len(value.encode(errors="surrogatepass")) if isinstance(value, str) else len(value)


def _print(*values: Any) -> str:
    """Go's Sprint: a space between two values where neither is a string."""
    text = ""
    for at, value in enumerate(values):
        if at and not isinstance(value, str) and not isinstance(values[at - 1], str):
            text += " "
        text += go_text(value, nested=True)
    return text


def _println(*values: Any) -> str:
    return " ".join(go_text(value, nested=True) for value in values) + "\n"


_VERB = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d*))?(.)", re.DOTALL)
_WIDEST = 10_000


def _printf(layout: Any, *values: Any) -> str:
    remaining = list(values)

    def replace(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if int(width or 0) > _WIDEST or int(precision or 0) > _WIDEST:
            return "%!(BADWIDTH)"
        if not remaining:
            return f"%!{verb}(MISSING)"
        value = remaining.pop(0)
        spec = f"%{flags}{width}" + ("" if precision is None else f".{precision}")
        text = _formatted(spec, verb, value)
        return f"%!{verb}({go_type(value)}={go_text(value, nested=True)})" if text is None else text

    text = _VERB.sub(replace, _string(layout))
    if remaining:
        extra = ", ".join(f"{go_type(value)}={go_text(value, nested=True)}" for value in remaining)
        text += f"%!(EXTRA {extra})"
    return text


def _formatted(spec: str, verb: str, value: Any) -> str | None:
    """``value`` by one verb; None where the verb is not for its type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if verb == "v" or (verb == "s" and isinstance(value, str | list | dict)):
        return (spec + "s") % go_text(value, nested=True)
    if verb == "q" and isinstance(value, str):
        from .escape import quoted

        return (spec + "s") % quoted(value)
    if verb == "t" and isinstance(value, bool):
        return (spec + "s") % go_text(value)
    if verb in "dxXoc" and number and isinstance(value, int):
        return (spec + verb) % value
    if verb in "feEgG" and isinstance(value, float):
        return (spec + verb) % value
    if verb in "xX" and isinstance(value, str):
        digits = value.encode(errors="surrogatepass").hex()
        return (spec + "s") % (digits.upper() if verb == "X" else digits)
    return None


def _comparable(a: Any, b: Any) -> None:
    if type(a) is not type(b) or isinstance(a, list | dict):
        raise FunctionError("incompatible types for comparison")


def _eq(first: Any, *others: Any) -> bool:
    for other in others:
        if first is not None and other is not None:
            _comparable(first, other)
    return any(first == other for other in others)


def _ne(a: Any, b: Any) -> bool:
    return not _eq(a, b)


def _lt(a: Any, b: Any) -> bool:
    _comparable(a, b)
    if a is None or isinstance(a, bool):
        raise FunctionError("invalid type for comparison")
    return bool(a < b)


def _gt(a: Any, b: Any) -> bool:
    return _lt(b, a)


def _le(a: Any, b: Any) -> bool:
    return not _lt(b, a)


def _ge(a: Any, b: Any) -> bool:
    return not _lt(a, b)


def _not(value: Any) -> bool:
    return not value


# name → (function, fewest arguments, most arguments or None). "and" and "or" belong to the evaluator: they
# leave arguments unevaluated.
FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int | None]] = {
    "eq": (_eq, 2, None),
    "ge": (_ge, 2, 2),
    "gt": (_gt, 2, 2),
    "index": (_index, 1, None),
    "join": (_join, 2, 2),
    "json": (_json, 1, 1),
    "le": (_le, 2, 2),
    "len": (_len, 1, 1),
    "lower": (_lower, 1, 1),
    "lt": (_lt, 2, 2),
    "ne": (_ne, 2, 2),
    "not": (_not, 1, 1),
    "pad": (_pad, 3, 3),
    "print": (_print, 0, None),
    "printf": (_printf, 1, None),
    "println": (_println, 0, None),
    "slice": (_slice, 1, 3),
    "split": (_split, 2, 2),
    "title": (_title, 1, 1),
    "truncate": (_truncate, 2, 2),
    "upper": (_upper, 1, 1),
}

LAZY = frozenset({"and", "or"})

# In the header line of a table these hand on the header they are given, whatever they do to values.
HEADER_FUNCTIONS = frozenset({"join", "json", "lower", "pad", "split", "title", "truncate", "upper"})
