"""``pyrun storage doctor``."""

from __future__ import annotations

import shutil
import sys
import textwrap

import typer

from . import options as shared
from .escape import printable
from .output import listing, write
from .session import session
from .table import MINIMUM, PADDING, aligned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..storage.contract import DriverReport

HEADERS = {
    "Driver": "DRIVER",
    "State": "STATE",
    "Why": "WHY",
    "Fix": "FIX",
    "Distribution": "DISTRIBUTION",
    "Caps": "CAPABILITIES",
}
COLUMNS = ("Driver", "State", "Why", "Fix")


def record(report: DriverReport) -> dict[str, str]:
    """The report as text, for tables; ``Caps`` are the flags that are set, and the limit where there is one."""
    caps = report.caps.as_dict() if report.caps else {}
    flags = [name if value is True else f"{name}={value}" for name, value in caps.items() if value]
    return {
        "Driver": report.name,
        "State": report.state,
        "Why": report.why,
        "Fix": report.fix,
        "Distribution": report.distribution,
        "Caps": ",".join(flags),
    }


def document(report: DriverReport) -> dict[str, Any]:
    """The report with ``Caps`` as an object of every flag, None where the driver could not be tried."""
    return {**record(report), "Caps": report.caps.as_dict() if report.caps else None}


def wrapped(records: list[dict[str, str]], width: int) -> list[list[str]]:
    """The table for a terminal of ``width`` columns: reasons may be long, and what a terminal wraps nobody reads.
    A record takes as many rows as its longest cell needs."""
    rows = [[HEADERS[name] for name in COLUMNS]]
    cells = [[printable(record[name]) for name in COLUMNS] for record in records]
    taken = sum(max(MINIMUM, *(len(row[n]) + PADDING for row in [*rows, *cells])) for n in (0, 1))
    room = max(width - taken - PADDING, 40)
    fixes = max(len(row[3]) for row in [*rows, *cells])
    fix = min(fixes, max(room - max(len(row[2]) for row in [*rows, *cells]), room * 2 // 5))
    for row in cells:
        why = textwrap.wrap(row[2], max(room - fix, 20)) or [""]
        how = textwrap.wrap(row[3], max(fix, 12)) or [""]
        for number in range(max(len(why), len(how))):
            first = row[:2] if number == 0 else ["", ""]
            rows.append([*first, *(lines[number] if number < len(lines) else "" for lines in (why, how))])
    return rows


def doctor(context: typer.Context, format: shared.Format = "", storage_opt: shared.StorageOpt = None) -> int:
    """Try every storage driver and say which work here, and why not

    Exits with 1 where none works. With --format json, and in templates, Caps is an object with every capability.
    """
    reports = session(context).engine(storage_opts=storage_opt or ()).doctor()
    if format in ("", "table") and sys.stdout is not None and sys.stdout.isatty():
        write(aligned(wrapped([record(report) for report in reports], shutil.get_terminal_size().columns)))
    else:
        listing([(document(report), record(report)) for report in reports], HEADERS, COLUMNS, format)
    return 0 if any(report.state in ("selected", "usable") for report in reports) else 1
