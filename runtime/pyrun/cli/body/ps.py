"""Lists containers. On the path of `ps`."""

from __future__ import annotations

import time

from ..escape import ellipsis, quoted
from ..names import short_id
from ..output import rows
from ..units import ago, human_duration, local_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ...containers.record import Container
    from ..session import Session

HEADERS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED",
    "Ports": "PORTS",
    "State": "STATE",
    "Status": "STATUS",
    "Names": "NAMES",
    "Networks": "NETWORKS",
}
COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


def status(container: Container, now: float) -> str:
    """The STATUS cell."""
    if container.status == "running":
        return f"Up {human_duration(now - container.started)}"
    if container.status == "exited":
        return f"Exited ({container.exit_code}) {ago(container.finished, now)}"
    return "Created"


def record(container: Container, now: float, *, truncate: bool) -> dict[str, str]:
    """The fields of one line; ``now`` in seconds since the epoch."""
    command = " ".join(container.command)
    return {
        "ID": short_id(container.id) if truncate else container.id,
        "Image": container.image,
        "Command": quoted(ellipsis(command, 20) if truncate else command),
        "CreatedAt": local_time(container.created),
        "RunningFor": ago(container.created, now),
        "Ports": ", ".join(container.options.get("exposed_ports", ())),
        "State": container.status,
        "Status": status(container, now),
        "Names": container.name,
        "Networks": container.options.get("network") or "none",
    }


def ps(session: Session, *, all: bool, quiet: bool, no_trunc: bool, format: str) -> int:
    found = session.engine().containers(all=all)
    if quiet and format in ("", "table"):
        format = "{{.ID}}"
    now = time.time()
    rows((record(container, now, truncate=not no_trunc) for container in found), HEADERS, COLUMNS, format)
    return 0
