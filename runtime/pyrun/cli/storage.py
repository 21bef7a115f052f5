"""``pyrun storage doctor``."""

from __future__ import annotations

import typer

from . import options as shared
from .output import rows
from .session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..storage.contract import DriverReport

HEADERS = {"Driver": "DRIVER", "State": "STATE", "Why": "WHY", "Fix": "FIX", "Distribution": "DISTRIBUTION"}
COLUMNS = ("Driver", "State", "Why", "Fix")


def record(report: DriverReport) -> dict[str, str]:
    return {
        "Driver": report.name,
        "State": report.state,
        "Why": report.why,
        "Fix": report.fix,
        "Distribution": report.distribution,
    }


def doctor(context: typer.Context, format: shared.Format = "") -> int:
    """Try every storage driver and say which work here, and why not

    Exits with 1 where none works.
    """
    reports = session(context).engine().doctor()
    rows((record(report) for report in reports), HEADERS, COLUMNS, format)
    return 0 if any(report.state in ("selected", "usable") for report in reports) else 1
