"""The hooks a storage plugin may implement. Read `pyrun.storage.contract` next.

A plugin is a module (or object) named by an entry point of the group "pyrun". It marks its functions with
`hookimpl`:

    from pyrun.storage.hookspecs import hookimpl

    @hookimpl
    def pyrun_storage_drivers():
        return [MyDriver]
"""

from __future__ import annotations

import pluggy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .contract import Driver, Env, Verdict
    from .events import StorageEvent

PROJECT = "pyrun"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def pyrun_storage_drivers() -> Iterable[type[Driver]]:  # type: ignore[empty-body]
    """The driver classes that this plugin brings."""


@hookspec(firstresult=True)
def pyrun_storage_choose(verdicts: Mapping[str, Verdict], env: Env) -> str | None:
    """The name of the driver for a new, empty store, or None for no opinion: a site's policy.

    Asked only where neither the command line, nor the configuration, nor the store names one. Without an
    opinion the engine takes the first usable one of its own order, and plain copying only by request.
    """


@hookspec
def pyrun_storage_event(event: StorageEvent) -> None:
    """Something happened in the store. For observers: an exception is reported once and never fatal."""
