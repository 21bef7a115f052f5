"""What ``pyrun info`` tells about the engine, its store and its host."""

from __future__ import annotations

import os
import platform
import sys

from . import __version__
from .errors import PyrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .engine import Engine


def describe(engine: Engine) -> dict[str, Any]:
    """A JSON-able description; what can't be found out is told in words, not left out."""
    from .storage.contract import API

    host = {
        "hostname": os.uname().nodename,
        "kernel": os.uname().release,
        "architecture": os.uname().machine,
        "os": _os_name(),
        "cpus": os.cpu_count() or 0,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "cgroups": cgroup_layout(),
        "rootless": engine._uid != 0,
    }
    store: dict[str, Any] = {"root": engine.root, "state": engine.state, "config": engine.config.path}
    containers = engine.containers(all=True)
    counts = {"all": len(containers), "running": sum(c.status == "running" for c in containers)}
    store["containers"] = counts
    store["images"] = len({image.id for image in engine.images()})
    try:
        driver = engine._open().driver
        store["driver"] = driver.name
        store["driver_state"] = driver.verdict.why
        store["idmapped_layers"] = driver.verdict.caps.idmap
    except PyrunError as error:
        store["driver"] = ""
        store["driver_state"] = error.message
    # Last: as an ordinary user the engine is in its user namespace by now, which is where it unpacks.
    host["unpacking"] = _unpacking()
    return {
        "version": __version__,
        "driver_api": API,
        "python": f"{platform.python_version()} ({sys.executable})",
        "host": host,
        "store": store,
    }


def _unpacking() -> str:
    """How the processes that unpack layers are kept from everything else; what can't be had is named."""
    from .layers.confined import probe

    missing = probe()
    return f"confined, without: {'; '.join(missing)}" if missing else "confined"


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def cgroup_layout() -> str:
    """ "v2", "v1" or "hybrid" (v1 controllers beside a v2 hierarchy)."""
    with open("/proc/self/cgroup") as file:
        lines = file.read().splitlines()
    unified = any(line.startswith("0::") for line in lines)
    legacy = any(not line.startswith("0::") for line in lines)
    return "hybrid" if unified and legacy else "v2" if unified else "v1"
