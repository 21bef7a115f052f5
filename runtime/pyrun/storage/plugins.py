"""Finding plugins: each entry point is loaded in a ``try`` of its own, each hook called plugin by plugin.

One broken package must never break the engine: it is listed with the reason (`pyrun storage doctor`), and
the others work. Not on the path of `run`, unless a plugin observes storage events.
"""

from __future__ import annotations

import importlib.metadata
import sys

import pluggy

from . import hookspecs
from .contract import API, Driver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from .contract import Env, Verdict
    from .events import StorageEvent

GROUP = "pyrun"


class Found:
    """One driver that a plugin offers, or the reason why there is none.

    name          the driver's, or the entry point's where it could not be loaded
    driver        the class, or None
    entry         "module:Class", to import it again without a search
    distribution  "name version" of the package, or ""
    broken        why it can't be used at all; "" where the class is sound
    """

    __slots__ = ("broken", "distribution", "driver", "entry", "name")

    def __init__(
        self,
        name: str,
        driver: type[Driver] | None,
        entry: str = "",
        distribution: str = "",
        broken: str = "",
    ) -> None:
        self.name = name
        self.driver = driver
        self.entry = entry
        self.distribution = distribution
        self.broken = broken


class Plugins:
    """All installed plugins. ``extra`` are further plugin objects, for embedding and tests."""

    def __init__(self, extra: Mapping[str, object] | None = None) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.broken: list[Found] = []
        self._distributions: dict[str, str] = {}
        for point in importlib.metadata.entry_points(group=GROUP):
            distribution = f"{point.dist.name} {point.dist.version}" if point.dist else ""
            try:
                self._register(point.name, point.load(), distribution)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                self.broken.append(Found(point.name, None, "", distribution, _reason(error)))
        for name, plugin in (extra or {}).items():
            self._register(name, plugin, "")

    def _register(self, name: str, plugin: object, distribution: str) -> None:
        registered = self.manager.register(plugin, name)
        # An implementation of a hook that does not exist is a typing error, or made for another version.
        unknown = [h for h in self.manager.get_hookcallers(plugin) or () if not h.has_spec()]
        if registered and unknown:
            self.manager.unregister(plugin)
            raise LookupError(f"it implements the unknown hook {unknown[0].name}")
        self._distributions[name] = distribution

    def drivers(self) -> list[Found]:
        """Every driver offered, sound or broken, in order of registration; a name taken twice is broken."""
        found: list[Found] = []
        for name, plugin in self.manager.list_name_plugin():
            distribution = self._distributions.get(name, "")
            try:
                classes = [c for result in self._call(plugin, "pyrun_storage_drivers") for c in result]
            except Exception as error:
                found.append(Found(name, None, "", distribution, _reason(error)))
                continue
            for driver in classes:
                entry = f"{getattr(driver, '__module__', '?')}:{getattr(driver, '__qualname__', '?')}"
                problem = _unsound(driver)
                shown = getattr(driver, "name", name) if not problem else str(getattr(driver, "name", name))
                if not problem and any(f.name == shown and not f.broken for f in found):
                    problem = f"the driver name {shown!r} is taken by another plugin"
                found.append(Found(shown, None if problem else driver, entry, distribution, problem))
        return found + self.broken

    def choose(self, verdicts: Mapping[str, Verdict], env: Env) -> str | None:
        """The first opinion of a plugin on which driver a new store gets."""
        for _, plugin in self.manager.list_name_plugin():
            try:
                for name in self._call(plugin, "pyrun_storage_choose", verdicts=verdicts, env=env):
                    return str(name)
            except Exception as error:
                self._complain("pyrun_storage_choose", plugin, error)
        return None

    @property
    def observers(self) -> bool:
        return bool(self.manager.hook.pyrun_storage_event.get_hookimpls())

    def emit(self, event: StorageEvent) -> None:
        for _, plugin in self.manager.list_name_plugin():
            try:
                list(self._call(plugin, "pyrun_storage_event", event=event))
            except Exception as error:
                self._complain("pyrun_storage_event", plugin, error)

    def _call(self, plugin: object, hook: str, **arguments: object) -> Iterator[Any]:
        """One plugin's answers to one hook: a raising plugin would otherwise end the call for all others."""
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        caller = self.manager.subset_hook_caller(hook, others)
        answer = caller(**arguments)
        yield from answer if isinstance(answer, list) else [] if answer is None else [answer]

    def _complain(self, hook: str, plugin: object, error: Exception) -> None:
        name = self.manager.get_name(plugin)
        print(f"pyrun: warning: plugin {name} failed in {hook}: {_reason(error)}", file=sys.stderr)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _unsound(driver: object) -> str:
    """Why ``driver`` can't be used as a driver class; "" where it can."""
    if not isinstance(driver, type) or not issubclass(driver, Driver):
        return f"{driver!r} is not a subclass of pyrun.storage.contract.Driver"
    name = getattr(driver, "name", None)
    if not isinstance(name, str) or not name or not name.replace("-", "").replace("_", "").isalnum():
        return f"its name is {name!r}; a driver's name has letters, digits, - and _"
    if driver.api != API:
        return f"it is written for version {driver.api} of the driver contract; this engine has {API}"
    abstract = getattr(driver, "__abstractmethods__", ())
    if abstract:
        return "it lacks the methods " + ", ".join(sorted(abstract))
    return ""
