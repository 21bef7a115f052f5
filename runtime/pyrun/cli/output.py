"""Writing results: tables, one JSON object a line, or the caller's template.

Every write goes through `write`, so a full disk is an error in words and a closed pipe ends quietly.
"""

from __future__ import annotations

import sys

from ..errors import PyrunError
from .escape import printable, printable_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any


def write(text: str) -> None:
    """To standard output. BrokenPipeError passes through (`pyrun.cli.main` ends quietly on it)."""
    if sys.stdout is None:
        raise PyrunError("can't write the output: standard output is closed")
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error(error) from None


def flush() -> None:
    """What was written so far reaches the kernel, or an error tells."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error(error) from None


def write_error(error: OSError) -> PyrunError:
    return PyrunError(f"can't write the output: {error.strerror}", hint="Standard output is cut short.")


def warn(text: str) -> None:
    """A line on standard error; where that is closed or full there is nobody to tell."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(printable(text, keep="\n\t") + "\n")
            sys.stderr.flush()
    except OSError:
        return


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON as docker writes it: compact, or indented; not ASCII-only; nothing a terminal would act on."""
    import json

    separators = (",", ":") if indent is None else (",", ": ")
    return printable_json(json.dumps(value, ensure_ascii=False, indent=indent, separators=separators))


def rows(
    records: Iterable[Mapping[str, str]], headers: Mapping[str, str], columns: Sequence[str], layout: str
) -> None:
    """Print records of one kind.

    records  field name → text, all with the fields of ``headers``
    headers  field name → its header in tables
    columns  the fields of the default table
    layout   the value of ``--format``: "" or "table", "json", "table TEMPLATE" or "TEMPLATE"
    """
    if layout in ("", "table"):
        cells = [[headers[name] for name in columns]]
        cells += [[printable(record[name]) for name in columns] for record in records]
        _write_table(cells)
    elif layout == "json":
        for record in records:
            write(json_text(dict(record)) + "\n")
    elif layout.startswith("table "):
        from .template import Template

        template = Template(layout[len("table ") :].strip(" "), unescape=True)
        lines = [template.render_headers(headers)]
        lines += [template.render({k: printable(v) for k, v in record.items()}) for record in records]
        _write_table([line.split("\t") for text in lines for line in text.split("\n")])
    else:
        from .template import Template

        template = Template(layout, unescape=True)
        for record in records:
            write_rendered(template.render(record))


def listing(
    records: Iterable[tuple[Mapping[str, Any], Mapping[str, str]]],
    headers: Mapping[str, str],
    columns: Sequence[str],
    layout: str,
) -> None:
    """As `rows`, of records that have two forms: a document, with lists and objects, for JSON and templates, and
    text for tables."""
    if layout in ("", "table") or layout.startswith("table "):
        rows((text for _, text in records), headers, columns, layout)
        return
    for document, _ in records:
        if layout == "json":
            write(json_text(document) + "\n")
        else:
            from .template import Template

            write_rendered(Template(layout, unescape=True).render(document))


def document(value: Mapping[str, Any], layout: str) -> bool:
    """Print one document by ``--format``; False where that is "" and the caller prints its own form."""
    if not layout:
        return False
    if layout == "json":
        write(json_text(value) + "\n")
    else:
        from .template import Template

        write_rendered(Template(layout).render(value))
    return True


def write_rendered(text: str) -> None:
    """A line made by a template: exact bytes for a program, no control bytes for a terminal."""
    if sys.stdout is not None and sys.stdout.isatty():
        text = printable(text, keep="\n\t")
    write(text + "\n")


def _write_table(cells: list[list[str]]) -> None:
    from .table import aligned

    write(aligned(cells))


def write_bytes(data: bytes) -> None:
    """Content to standard output: exact for a program; for a terminal as text in which it acts on nothing."""
    if sys.stdout is None or sys.stdout.isatty():
        write(printable(data.decode("utf-8", "backslashreplace"), keep="\n\t"))
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise write_error(error) from None
