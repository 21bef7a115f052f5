"""``pyrun storage doctor``."""

from __future__ import annotations

import typer

from . import options as shared
from .output import listing
from .session import session

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


def doctor(context: typer.Context, format: shared.Format = "", storage_opt: shared.StorageOpt = None) -> int:
    """Try every storage driver and say which work here, and why not

    Exits with 1 where none works. With --format json, and in templates, Caps is an object with every capability.
    """
    reports = session(context).engine(storage_opts=storage_opt or ()).doctor()
    listing([(document(report), record(report)) for report in reports], HEADERS, COLUMNS, format)
    return 0 if any(report.state in ("selected", "usable") for report in reports) else 1
