"""Opening a store: which driver, whether it works here, and what the store remembers of both.

On the path of `run`: with a valid record no plugin is searched for and no trial mount made.

``storage.json`` records the driver that the store was made with (never switched silently), who works in it
(root, or a user namespace: the two write whiteouts differently), where each driver's class is, and the
verdicts of probes with the key that makes them valid.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys

from ..errors import ConfigError, StorageError
from . import records
from .contract import Caps, DriverReport, Env, Verdict, typed_options
from .layers import LayerStore, boot_id
from .locks import Lock, Staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .contract import Driver
    from .events import StorageEvent
    from .plugins import Found, Plugins

VERSION = 1
# Tried in this order for a new store where nobody has an opinion; copying ("vfs") is never automatic.
ORDER = ("overlay", "btrfs", "fuse-overlayfs", "aufs")
_DIRECTORIES = ("staging", "locks", "layers", "containers", "names", "images", "content", "ingest")


def installation_key() -> str:
    """Changes when a package is installed or removed: the times of the directories Python imports from."""
    times = []
    for path in sys.path:
        # The first entry is the script's own directory, or the current one: not where packages are.
        if path and (path != sys.path[0] or path.endswith("-packages")):
            try:
                times.append(f"{path}={os.stat(path).st_mtime_ns}")
            except OSError:
                continue
    return ";".join(times)


class Store:
    """A store directory opened with one driver.

    root, env, staging  see `Env` and `Staging`
    driver, layers      the driver instance and its layers
    """

    def __init__(
        self,
        root: str,
        env: Env,
        driver: Driver,
        staging: Staging,
        plugins: Plugins | None,
        warnings: list[str],
    ) -> None:
        self.root = root
        self.env = env
        self.driver = driver
        self.staging = staging
        self.plugins = plugins
        self.warnings = warnings
        self.layers = LayerStore(root, driver, staging, self.emit if plugins else None)

    def emit(self, event: StorageEvent) -> None:
        if self.plugins:
            self.plugins.emit(event)

    def other(self, name: str) -> type[Driver] | None:
        """The class of another driver by name, for removing what it made; None where it is not installed."""
        if name == self.driver.name:
            return type(self.driver)
        for found in (self.plugins or _plugins()).drivers():
            if found.name == name:
                return found.driver
        return None

    def remove(self, path: str, driver: str) -> None:
        """Remove a directory that ``driver`` made; by plain deletion where that driver is gone."""
        cls = self.other(driver)
        if cls is None:
            from ..layers.remove import remove_tree

            remove_tree(path)
        elif cls is type(self.driver):
            self.driver.remove(path)
        else:
            cls(self.env, dict(cls.Options), Verdict(True, "for removal only")).remove(path)


def make_directories(root: str) -> None:
    """The store's directories, mode 0700, so that no other user of the host reaches setuid files in layers
    (CVE-2021-41091). Raises `StorageError` where they can't be made or written."""
    try:
        if not os.path.isdir(f"{root}/{_DIRECTORIES[-1]}"):
            os.makedirs(root, mode=0o700, exist_ok=True)
            for name in _DIRECTORIES:
                os.makedirs(f"{root}/{name}", mode=0o700, exist_ok=True)
    except OSError as error:
        raise _cannot_use(root, error) from error
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        raise _cannot_use(root, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    if not os.access(f"{root}/staging", os.W_OK | os.X_OK):
        raise _cannot_use(root, OSError(errno.EACCES, os.strerror(errno.EACCES)))


def _cannot_use(root: str, error: OSError) -> StorageError:
    return StorageError(
        f"can't use {root} as the store: {error.strerror}", hint="Choose another with --root DIR."
    )


def _plugins() -> Plugins:
    from .plugins import Plugins

    return Plugins()


def _probe_key(driver: type[Driver], env: Env, options: Mapping[str, Any]) -> str:
    where = os.stat(env.root)
    parts = (boot_id(), os.uname().release, where.st_dev, driver.version(), env.userns, env.single_uid)
    return "|".join(map(str, (*parts, sorted(options.items()))))


def _cached(record: dict[str, Any], driver: type[Driver], key: str) -> Verdict | None:
    kept = record.get("verdicts", {}).get(driver.name)
    if not kept or kept["key"] != key:
        return None
    return Verdict(kept["ok"], kept["why"], kept["fix"], Caps(**kept["caps"]), kept["found"])


def _kept(verdict: Verdict, key: str) -> dict[str, Any]:
    return {
        "key": key,
        "ok": verdict.ok,
        "why": verdict.why,
        "fix": verdict.fix,
        "caps": verdict.caps.as_dict(),
        "found": verdict.found,
    }


def _read(root: str, env: Env) -> dict[str, Any]:
    try:
        record = records.read(f"{root}/storage.json")
    except FileNotFoundError:
        return {"version": VERSION, "driver": "", "userns": env.userns, "entries": {}, "verdicts": {}}
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise ConfigError(
            f"the store {root} is of another version of pyrun", hint="Use another store with --root DIR."
        )
    if record["userns"] != env.userns and record["driver"]:
        made, now = ("an ordinary user", "root") if record["userns"] else ("root", "an ordinary user")
        raise ConfigError(
            f"the store {root} was made by {made} and can't be used as {now}: its layers are kept differently",
            hint="Use another store with --root DIR.",
        )
    return record


def open_store(env: Env, name: str, options: Mapping[str, Mapping[str, Any]], *, named_by: str = "") -> Store:
    """Open the store at ``env.root`` with driver ``name``; "" takes the recorded one, else chooses.

    ``options`` are per driver name; ``named_by`` tells in errors where the name came from. Raises
    `StorageError` where the driver can't be used: it is never replaced by another one.
    """
    make_directories(env.root)
    record = _read(env.root, env)
    wanted = name or record["driver"]
    plugins = None
    driver = None
    if wanted and record.get("installation") == installation_key() and not record.get("observers"):
        driver = _import(record["entries"].get(wanted, ""))
    verdict = None
    if driver is not None:
        given = typed_options(driver, options.get(driver.name, {}))
        verdict = _cached(record, driver, _probe_key(driver, env, given))
    if driver is None or verdict is None or not verdict.ok or not record["driver"]:
        # A mistyped `--storage-opt` shows even when the name is chosen anew.
        plugins = _plugins()
        driver, verdict, given = _select(env, wanted, name, options, plugins, record, named_by)
    store = Store(env.root, env, driver(env, given, verdict), Staging(f"{env.root}/staging"), plugins, [])
    unknown = [key for key in options if key != driver.name and not _installed(key, record, plugins)]
    if unknown:
        raise StorageError(
            f"there are options for the storage driver {unknown[0]!r}, which is not installed",
            hint="pyrun storage doctor lists the drivers.",
        )
    return store


def _installed(name: str, record: dict[str, Any], plugins: Plugins | None) -> bool:
    return name in record["entries"] or any(f.name == name for f in (plugins or _plugins()).drivers())


def _import(entry: str) -> type[Driver] | None:
    module, _, qualname = entry.partition(":")
    if not qualname or "." in qualname:
        return None
    try:
        found: type[Driver] | None = getattr(importlib.import_module(module), qualname, None)
    except ImportError:
        return None
    return found


def _select(
    env: Env,
    wanted: str,
    name: str,
    options: Mapping[str, Mapping[str, Any]],
    plugins: Plugins,
    record: dict[str, Any],
    named_by: str,
) -> tuple[type[Driver], Verdict, dict[str, Any]]:
    """Find and probe the driver by search, and record what was found."""
    found = plugins.drivers()
    sound = {f.name: f for f in found if f.driver is not None}
    verdicts: dict[str, tuple[str, Verdict]] = {}
    if not wanted:
        wanted = _choose(env, sound, options, plugins, verdicts)
    if wanted not in sound:
        raise StorageError(*_missing(wanted, found, name, named_by))
    driver = sound[wanted].driver
    assert driver is not None
    given = typed_options(driver, options.get(wanted, {}))
    if wanted in verdicts:
        key, verdict = verdicts[wanted]
    else:
        key = _probe_key(driver, env, given)
        verdict = driver.probe(env, given)
    if not verdict.ok:
        source = "" if name else ", with which this store was made,"
        raise StorageError(
            f"the storage driver {wanted}{source} can't be used: {verdict.why}", hint=verdict.fix
        )
    with Lock(f"{env.root}/locks/storage"):
        record = _read(env.root, env)
        record["driver"] = record["driver"] or wanted
        record["installation"] = installation_key()
        record["observers"] = plugins.observers
        record["entries"] = {f.name: f.entry for f in sound.values()}
        record["verdicts"][wanted] = _kept(verdict, key)
        try:
            records.write(f"{env.root}/storage.json", record)
        except OSError as error:
            raise _cannot_use(env.root, error) from error
    return driver, verdict, given


def _missing(wanted: str, found: list[Found], name: str, named_by: str) -> tuple[str]:
    broken = next((f.broken for f in found if f.name == wanted and f.broken), "")
    usable = ", ".join(sorted(f.name for f in found if not f.broken))
    what = f"the storage driver {wanted!r}"
    if named_by:
        what += f" ({named_by})"
    elif not name:
        what += ", with which this store was made,"
    why = f"is broken: {broken}" if broken else "is not installed"
    return (f"{what} {why}\nInstalled drivers: {usable or 'none'}. Reasons: pyrun storage doctor.",)


def _choose(
    env: Env,
    sound: Mapping[str, Found],
    options: Mapping[str, Mapping[str, Any]],
    plugins: Plugins,
    verdicts: dict[str, tuple[str, Verdict]],
) -> str:
    """The driver of a new store: a plugin's opinion, else the first of `ORDER` that works."""
    for name, found in sound.items():
        assert found.driver is not None
        given = typed_options(found.driver, options.get(name, {}))
        verdicts[name] = (_probe_key(found.driver, env, given), found.driver.probe(env, given))
    opinion = plugins.choose({name: verdict for name, (_, verdict) in verdicts.items()}, env)
    if opinion is not None:
        return opinion
    for name in ORDER:
        if name in verdicts and verdicts[name][1].ok:
            return name
    reasons = "; ".join(f"{name}: {verdict.why}" for name, (_, verdict) in verdicts.items() if not verdict.ok)
    raise StorageError(
        f"no storage driver can be used below {env.root} ({reasons or 'none is installed'})",
        hint=next((v.fix for _, v in verdicts.values() if v.fix), "Choose another store with --root DIR."),
    )


def doctor(env: Env, name: str, options: Mapping[str, Mapping[str, Any]]) -> list[DriverReport]:
    """Every driver, usable or not, and why: each is probed afresh. For ``pyrun storage doctor``."""
    make_directories(env.root)
    record = _read(env.root, env)
    reports = []
    for found in _plugins().drivers():
        if found.driver is None:
            reports.append(DriverReport(found.name, "broken", found.broken, "", found.distribution))
            continue
        given = typed_options(found.driver, options.get(found.name, {}))
        try:
            verdict = found.driver.probe(env, given)
        except Exception as error:  # the contract forbids it; a stranger's driver may all the same
            reports.append(
                DriverReport(found.name, "broken", f"its probe raised {error!r}", "", found.distribution)
            )
            continue
        state = "usable" if verdict.ok else "no"
        if verdict.ok and found.name == (name or record["driver"]):
            state = "selected"
        reports.append(DriverReport(found.name, state, verdict.why, verdict.fix, found.distribution))
    return reports
