"""The ``inspect`` view of a container, in docker's shape."""

from __future__ import annotations

import datetime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .record import Container


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC; docker's zero value for "never"."""
    if not seconds:
        return "0001-01-01T00:00:00Z"
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"


def describe(container: Container, root: str) -> dict[str, Any]:
    """What ``pyrun inspect`` prints for a container."""
    options = container.options
    directory = f"{root}/containers/{container.id}"
    mounts = []
    anonymous = 0
    for mount in options["mounts"]:
        source = mount["source"]
        if not source:
            source = f"{directory}/volumes/{anonymous}"
            anonymous += 1
        mounts.append(
            {
                "Type": "bind" if mount["source"] else "volume",
                "Source": source,
                "Destination": mount["destination"],
                "Mode": "ro" if mount["readonly"] else "",
                "RW": not mount["readonly"],
                "Propagation": "rprivate",
            }
        )
    return {
        "Id": container.id,
        "Created": timestamp(container.created),
        "Path": container.command[0],
        "Args": container.command[1:],
        "State": {
            "Status": container.status,
            "Running": container.status == "running",
            "Paused": False,
            "Restarting": False,
            "Dead": False,
            "Pid": container.pid,
            "ExitCode": container.exit_code,
            "Error": container.error,
            "StartedAt": timestamp(container.started),
            "FinishedAt": timestamp(container.finished),
        },
        "Image": container.image_id,
        "Name": container.name,
        "Driver": container.driver,
        "Platform": "linux",
        "GraphDriver": {
            "Name": container.driver,
            "Data": {"Layers": container.layers, "Writable": f"{directory}/rw"},
        },
        "HostConfig": {
            "NetworkMode": options["network"],
            "UsernsMode": options["userns"],
            "AutoRemove": options["rm"],
            "ReadonlyRootfs": options["read_only"],
        },
        "Mounts": mounts,
        "Config": {
            "Hostname": options["hostname"],
            "User": options["user"],
            "Tty": options["tty"],
            "OpenStdin": options["interactive"],
            "Env": options["env"],
            "Cmd": container.command,
            "Image": container.image,
            "WorkingDir": options["workdir"],
        },
    }
