"""Finding plugins: each entry point is loaded in a ``try`` of its own, each hook called plugin by plugin.

One broken package must never break the engine: it is listed with the reason (`pyrun plugins`,
`pyrun storage doctor`), and the others work. What a plugin raises, SystemExit included, and whatever it
returns ends here. Not on the path of `run`, unless a plugin observes storage events.

``PYRUN_PLUGINS`` limits loading to what it names, separated by commas: entry points ("acme") or whole
distributions ("pyrun": all built-in drivers). Unset or empty, everything installed is loaded.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import sys

import pluggy

from . import hookspecs
from .contract import API, Driver

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from .contract import Env, Verdict
    from .events import StorageEvent

GROUP = "pyrun"
OWN = "pyrun"  # the distribution
VARIABLE = "PYRUN_PLUGINS"
_MOST_DRIVERS = 100  # of one plugin; a generator may never end
# How the engine calls a driver's methods, all by position.
_CALLS = {
    "probe": ("env", "options"),
    "ingest": ("blob", "dest", "parent"),
    "prepare": ("layers", "dest", "size"),
    "mount": ("layers", "rw", "idmap"),
    "changes": ("layers", "rw", "view", "idmap"),
    "usage": ("path",),
    "server": ("mount",),
    "remove": ("path",),
    "version": (),
}


class Found:
    """One driver that a plugin offers, or the reason why there is none.

    name          the driver's, or the entry point's where it could not be loaded
    driver        the class, or None
    entry         "module:Class", to import it again without a search
    distribution  "name version" of the package, or ""
    broken        why it can't be used at all; "" where the class is sound
    plugin        the entry point's name
    """

    __slots__ = ("broken", "distribution", "driver", "entry", "name", "plugin")

    def __init__(
        self,
        name: str,
        driver: type[Driver] | None,
        entry: str = "",
        distribution: str = "",
        broken: str = "",
        plugin: str = "",
    ) -> None:
        self.plugin = plugin or name
        self.name = name
        self.driver = driver
        self.entry = entry
        self.distribution = distribution
        self.broken = broken


class Plugin:
    """One entry point of the group, for ``pyrun plugins``.

    name          the entry point's
    state         "loaded", "broken", "left out" (by PYRUN_PLUGINS) or "missing" (named there, not installed)
    distribution, version  of the package that brings it; "" where it was registered by hand
    hooks         the hooks it implements
    drivers       the names of the sound drivers it brings
    why           for every other state than "loaded", the reason
    """

    __slots__ = ("distribution", "drivers", "hooks", "name", "state", "version", "why")

    def __init__(self, name: str, state: str, distribution: str = "", why: str = "") -> None:
        self.name = name
        self.state = state
        self.distribution, _, self.version = distribution.rpartition(" ")
        self.hooks: list[str] = []
        self.drivers: list[str] = []
        self.why = why


class Plugins:
    """All installed plugins. ``extra`` are further plugin objects, for embedding and tests."""

    def __init__(self, extra: Mapping[str, object] | None = None) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.broken: list[Found] = []
        self.left_out: list[Plugin] = []
        self._distributions: dict[str, str] = {}
        self._complained: set[tuple[str, str]] = set()
        wanted = _wanted()
        named = set()
        # Our own first: of two drivers with one name the first serves, and a stranger's must not replace a
        # built-in one. The others in an order that does not depend on a directory's.
        points = sorted(
            importlib.metadata.entry_points(group=GROUP),
            key=lambda p: (p.dist is None or p.dist.name != OWN, p.dist.name if p.dist else "", p.name),
        )
        for point in points:
            distribution = f"{point.dist.name} {point.dist.version}" if point.dist else ""
            names = {point.name, point.dist.name if point.dist else point.name}
            if wanted is not None and not names & wanted:
                why = f"{VARIABLE} names neither it nor its distribution"
                self.left_out.append(Plugin(point.name, "left out", distribution, why))
                continue
            named |= names
            try:
                self._register(point.name, point.load(), distribution)
            except BaseException as error:
                _unless_interrupted(error)
                self.broken.append(Found(point.name, None, "", distribution, _reason(error)))
        for name in sorted((wanted or set()) - named):
            why = f"{VARIABLE} names it, and it is not installed"
            self.left_out.append(Plugin(name, "missing", why=why))
        for name, plugin in (extra or {}).items():
            self._register(name, plugin, "")

    def _register(self, name: str, plugin: object, distribution: str) -> None:
        if self.manager.has_plugin(name):
            raise LookupError(f"the name {name} is taken by {self._distributions[name] or 'another plugin'}")
        if plugin is None:
            raise TypeError("the entry point names None")
        try:
            self.manager.register(plugin, name)
            hooks = self.manager.get_hookcallers(plugin) or []
            # An implementation of a hook that does not exist is a typing error, or made for another version.
            unknown = [hook.name for hook in hooks if not hook.has_spec()]
            if unknown:
                raise LookupError(f"it implements the unknown hook {unknown[0]}")
            if not hooks:
                raise LookupError("it implements no hook (are its functions marked with hookimpl?)")
        except BaseException:
            # Pluggy notes the name first and looks at the hooks afterwards.
            if self.manager.get_plugin(name) is plugin:
                self.manager.unregister(plugin, name)
            raise
        self._distributions[name] = distribution

    def list(self) -> Listing:
        """Every plugin: the loaded ones, those that are broken, and what PYRUN_PLUGINS left out."""
        drivers = self._offered()
        found = []
        for name, plugin in self.manager.list_name_plugin():
            entry = Plugin(name, "loaded", self._distributions.get(name, ""))
            entry.hooks = sorted(hook.name for hook in self.manager.get_hookcallers(plugin) or [])
            entry.drivers = [f.name for f in drivers if f.plugin == name and not f.broken]
            faults = [
                f.broken if f.name == name else f"{f.name}: {f.broken}"
                for f in drivers
                if f.plugin == name and f.broken
            ]
            if faults:
                entry.state, entry.why = "broken", "; ".join(faults)
            found.append(entry)
        found += [Plugin(f.name, "broken", f.distribution, f.broken) for f in self.broken]
        return found + self.left_out

    def drivers(self) -> DriverList:
        """Every driver offered, sound or broken, in order of registration; a name taken twice is broken. Then the
        plugins that could not be loaded."""
        return self._offered() + self.broken

    def _offered(self) -> DriverList:
        found: list[Found] = []
        for name, plugin in self.manager.list_name_plugin():
            distribution = self._distributions.get(name, "")
            try:
                offered = [
                    c for result in self._call(plugin, "pyrun_storage_drivers") for c in _classes(result)
                ]
            except BaseException as error:
                _unless_interrupted(error)
                found.append(Found(name, None, "", distribution, _reason(error), name))
                continue
            for driver in offered:
                try:
                    problem = _unsound(driver)
                except Exception as error:  # a metaclass or descriptor of its own may do anything
                    problem = _reason(error)
                shown = name if problem else driver.name
                if problem and isinstance(getattr(driver, "__name__", None), str):
                    shown = f"{name} ({driver.__name__})" if len(offered) > 1 else name
                if not problem and any(f.name == shown and not f.broken for f in found):
                    problem = f"the driver name {shown!r} is taken by another plugin"
                entry = "" if problem else f"{driver.__module__}:{driver.__qualname__}"
                found.append(Found(shown, None if problem else driver, entry, distribution, problem, name))
        return found

    def choose(self, verdicts: Mapping[str, Verdict], env: Env) -> str | None:
        """The first usable opinion of a plugin on which driver a new store gets; others are told and passed
        over."""
        for name, plugin in self.manager.list_name_plugin():
            try:
                opinions = list(self._call(plugin, "pyrun_storage_choose", verdicts=dict(verdicts), env=env))
            except BaseException as error:
                _unless_interrupted(error)
                self._complain("pyrun_storage_choose", name, _reason(error))
                continue
            for opinion in opinions:
                if isinstance(opinion, str) and opinion in verdicts and verdicts[opinion].ok:
                    return opinion
                usable = ", ".join(sorted(key for key, verdict in verdicts.items() if verdict.ok))
                self._complain(
                    "pyrun_storage_choose", name, f"it chose {opinion!r}; usable are: {usable or 'none'}"
                )
        return None

    @property
    def observers(self) -> bool:
        return bool(self.manager.hook.pyrun_storage_event.get_hookimpls())

    def emit(self, event: StorageEvent) -> None:
        for name, plugin in self.manager.list_name_plugin():
            try:
                list(self._call(plugin, "pyrun_storage_event", event=event))
            except BaseException as error:
                _unless_interrupted(error)
                self._complain("pyrun_storage_event", name, _reason(error))

    def excluded(self, name: str) -> bool:
        """Whether PYRUN_PLUGINS left out an entry point of this name: most are named as their driver is."""
        return any(plugin.name == name and plugin.state == "left out" for plugin in self.left_out)

    def _call(self, plugin: object, hook: str, **arguments: object) -> Iterator[Any]:
        """One plugin's answers to one hook: a raising plugin would otherwise end the call for all others."""
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        caller = self.manager.subset_hook_caller(hook, others)
        answer = caller(**arguments)
        yield from answer if isinstance(answer, list) else [] if answer is None else [answer]

    def _complain(self, hook: str, plugin: str, reason: str) -> None:
        """Once a process: an observer that fails, fails at every event."""
        if (hook, plugin) not in self._complained:
            self._complained.add((hook, plugin))
            print(f"pyrun: warning: plugin {plugin} failed in {hook}: {reason}", file=sys.stderr)


if TYPE_CHECKING:
    # `Plugins` has a method of the name list.
    Listing = list[Plugin]
    DriverList = list[Found]


def _wanted() -> set[str] | None:
    """The names in PYRUN_PLUGINS; None for no limit."""
    names = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")} - {""}
    return names or None


def _unless_interrupted(error: BaseException) -> None:
    """A plugin's exception, which the caller puts into words; but Ctrl-C is the user's."""
    if isinstance(error, KeyboardInterrupt):
        raise error


def _reason(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return " ".join(f"{type(error).__name__}: {text}".split())[:300].removesuffix(":")


def _classes(result: Any) -> list[Any]:
    """What a plugin's pyrun_storage_drivers returned, as a list."""
    if isinstance(result, str | bytes | type) or not hasattr(result, "__iter__"):
        raise TypeError(f"pyrun_storage_drivers returned {result!r:.80}, not a list of driver classes")
    classes = list(itertools.islice(result, _MOST_DRIVERS + 1))
    if len(classes) > _MOST_DRIVERS:
        raise ValueError(f"pyrun_storage_drivers offers more than {_MOST_DRIVERS} drivers")
    return classes


def _unsound(driver: Any) -> str:
    """Why ``driver`` can't be used as a driver class; "" where it can."""
    if not isinstance(driver, type) or not issubclass(driver, Driver):
        return f"{driver!r:.80} is not a subclass of pyrun.storage.contract.Driver"
    name = getattr(driver, "name", None)
    if not isinstance(name, str) or not name or not name.replace("-", "").replace("_", "").isalnum():
        return f"its name is {name!r}; a driver's name has letters, digits, - and _"
    if driver.api != API:
        return f"it is written for version {driver.api} of the driver contract; this engine has {API}"
    abstract = getattr(driver, "__abstractmethods__", ())
    if abstract:
        return "it lacks the methods " + ", ".join(sorted(abstract))
    for method, arguments in _CALLS.items():
        problem = _uncallable(getattr(driver, method, None), method, arguments)
        if problem:
            return problem
    return ""


def _uncallable(function: Callable[..., Any] | None, method: str, arguments: tuple[str, ...]) -> str:
    import inspect

    if not callable(function):
        return f"its {method} is {function!r:.80}, which can't be called"
    own = () if method in ("probe", "version") else ("self",)
    try:
        inspect.signature(function).bind(*own, *arguments)
    except TypeError as error:
        return f"its method {method} can't be called as {method}({', '.join(arguments)}): {error}"
    except ValueError:
        return ""  # written in C, without a signature to look at
    return ""
