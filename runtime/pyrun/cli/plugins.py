"""``pyrun plugins``."""

from __future__ import annotations

from . import options as shared
from .output import listing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..storage.plugins import Plugin

HEADERS = {
    "Name": "NAME",
    "Distribution": "DISTRIBUTION",
    "Version": "VERSION",
    "Hooks": "HOOKS",
    "Drivers": "DRIVERS",
    "State": "STATE",
    "Why": "WHY",
}
COLUMNS = ("Name", "Distribution", "Version", "Hooks", "State", "Why")


def document(plugin: Plugin) -> dict[str, Any]:
    """``Hooks`` and ``Drivers`` are lists."""
    return {
        "Name": plugin.name,
        "Distribution": plugin.distribution,
        "Version": plugin.version,
        "Hooks": plugin.hooks,
        "Drivers": plugin.drivers,
        "State": plugin.state,
        "Why": plugin.why,
    }


def record(plugin: Plugin) -> dict[str, str]:
    found = document(plugin)
    # Every hook's name begins so.
    found["Hooks"] = ",".join(hook.removeprefix("pyrun_") for hook in plugin.hooks)
    return {**found, "Drivers": ",".join(plugin.drivers)}


def plugins(format: shared.Format = "") -> None:
    """List plugins with their versions and hooks

    A broken one is listed with the reason. PYRUN_PLUGINS=NAME,... limits loading to these plugins, named by
    their entry point or their distribution ("pyrun": all that pyrun brings); what it leaves out is listed, too.
    """
    from ..storage.plugins import Plugins

    found = [(document(plugin), record(plugin)) for plugin in Plugins().list()]
    listing(found, HEADERS, COLUMNS, format)
