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
from .contract import Caps, Driver, DriverReport, Env, Verdict, typed_options
from .guard import Guarded, verdict_of
from .layers import LayerStore, boot_id
from .locks import Lock, Staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from .events import StorageEvent
    from .plugins import Found, Plugins

VERSION = 1
# Tried in this order for a new store where nobody has an opinion. erofs and btrfs are taken only by request;
# copying ("vfs") is the last resort, and says what it costs.
ORDER = ("overlay", "fuse-overlayfs", "aufs", "vfs")
_DIRECTORIES = ("staging", "locks", "layers", "containers", "names", "images", "content", "ingest")


def installation_key() -> str:
    """Changes when a package is installed or removed (the times of the directories Python imports from), and
    with what PYRUN_PLUGINS limits loading to."""
    times = [os.environ.get("PYRUN_PLUGINS", "")]
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
    driver, layers      the driver, guarded, and its layers
    """

    def __init__(
        self,
        root: str,
        env: Env,
        driver: Driver,
        staging: Staging,
        plugins: Plugins | None,
    ) -> None:
        self.root = root
        self.env = env
        self.driver = Guarded(driver)
        self.staging = staging
        self.plugins = plugins
        self.layers = LayerStore(root, self.driver, staging, self.emit if plugins else None)

    def emit(self, event: StorageEvent) -> None:
        if self.plugins:
            self.plugins.emit(event)

    def look_again(self) -> None:
        """Probe the driver anew and record what it says: the host may have changed since it was asked last, e.g.
        quotas been turned on. Where it can't be used at all any more, nothing changes here."""
        driver = self.driver.inner
        verdict = verdict_of(type(driver), self.env, driver.options)
        if not verdict.ok:
            return
        driver.verdict = self.driver.verdict = verdict
        with Lock(f"{self.root}/locks/storage"):
            record = _read(self.root, self.env)
            key = _probe_key(type(driver), self.env, driver.options)
            record["verdicts"][driver.name] = _kept(verdict, key)
            records.write(f"{self.root}/storage.json", record)

    def remove(self, path: str, driver: str) -> None:
        """Remove a directory that ``driver`` made; by plain deletion where that driver is gone."""
        if driver == self.driver.name:
            self.driver.remove(path)
        else:
            from .shelves import remover

            remover(self.env)(path, driver)


def make_directories(root: str) -> None:
    """The store's directories, mode 0700, so that no other user of the host reaches setuid files in layers
    (CVE-2021-41091). Raises `StorageError` where they can't be made or written."""
    try:
        if not os.path.isdir(f"{root}/{_DIRECTORIES[-1]}"):
            os.makedirs(root, mode=0o700, exist_ok=True)
            for name in _DIRECTORIES:
                os.makedirs(f"{root}/{name}", mode=0o700, exist_ok=True)
    except OSError as error:
        raise cannot_use(root, error) from error
    if os.statvfs(root).f_flag & os.ST_RDONLY:
        raise cannot_use(root, OSError(errno.EROFS, os.strerror(errno.EROFS)))
    if not os.access(f"{root}/staging", os.W_OK | os.X_OK):
        raise cannot_use(root, OSError(errno.EACCES, os.strerror(errno.EACCES)))


def cannot_use(root: str, error: OSError) -> StorageError:
    """What it means that ``root`` can't be read or written: most likely it is another user's."""
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


def new_record(env: Env) -> dict[str, Any]:
    """What storage.json holds before anything is known."""
    return {"version": VERSION, "driver": "", "userns": env.userns, "entries": {}, "verdicts": {}}


def check_record(env: Env) -> None:
    """Raises `ConfigError` for a store of another version, or of somebody else."""
    _read(env.root, env)


def _read(root: str, env: Env) -> dict[str, Any]:
    try:
        record = records.read(f"{root}/storage.json")
    except FileNotFoundError:
        return new_record(env)
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


def open_store(
    env: Env,
    name: str,
    options: Mapping[str, Mapping[str, Any]],
    *,
    named_by: str = "",
    require: Sequence[str] = (),
) -> Store:
    """Open the store at ``env.root`` with driver ``name``; "" takes the recorded one, else chooses.

    ``options`` are per driver name; ``named_by`` tells in errors where the name came from; ``require`` names
    capabilities (true flags of `Caps`) without which a driver is refused. Raises `StorageError` where the
    driver can't be used: it is never replaced by another one.
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
    if (
        driver is None
        or verdict is None
        or not verdict.ok
        or not record["driver"]
        or _lacking(verdict, require)
    ):
        # A mistyped `--storage-opt` shows even when the name is chosen anew.
        plugins = _plugins()
        driver, verdict, given = _select(env, wanted, name, options, plugins, record, named_by, require)
    lacking = _lacking(verdict, require)
    if lacking:
        raise StorageError(
            f"the storage driver {driver.name} lacks {lacking[0]}, which the configuration requires: {verdict.why}",
            hint="Use another driver (--storage, or pyrun storage migrate), or change storage.require.",
        )
    store = Store(env.root, env, driver(env, given, verdict), Staging(f"{env.root}/staging"), plugins)
    unknown = [key for key in options if key != driver.name and not _installed(key, record, plugins)]
    if unknown:
        raise StorageError(
            f"there are options for the storage driver {unknown[0]!r}, which is not installed",
            hint="pyrun storage doctor lists the drivers.",
        )
    return store


def _lacking(verdict: Verdict, require: Sequence[str]) -> list[str]:
    return [flag for flag in require if not getattr(verdict.caps, flag)]


def _installed(name: str, record: dict[str, Any], plugins: Plugins | None) -> bool:
    return name in record["entries"] or any(f.name == name for f in (plugins or _plugins()).drivers())


def _import(entry: str) -> type[Driver] | None:
    module, _, qualname = entry.partition(":")
    if not qualname or "." in qualname:
        return None
    try:
        found = getattr(importlib.import_module(module), qualname, None)
    except (Exception, SystemExit):
        return None  # the search that follows tells what is wrong with it
    return found if isinstance(found, type) and issubclass(found, Driver) else None


def _select(
    env: Env,
    wanted: str,
    name: str,
    options: Mapping[str, Mapping[str, Any]],
    plugins: Plugins,
    record: dict[str, Any],
    named_by: str,
    require: Sequence[str],
) -> tuple[type[Driver], Verdict, dict[str, Any]]:
    """Find and probe the driver by search, and record what was found."""
    found = plugins.drivers()
    sound = {f.name: f for f in found if f.driver is not None}
    verdicts: dict[str, tuple[str, Verdict]] = {}
    if not wanted:
        wanted = _choose(env, sound, options, plugins, verdicts, require)
    if wanted not in sound:
        message, hint = _missing(wanted, found, name, named_by, plugins)
        raise StorageError(message, hint=hint)
    driver = sound[wanted].driver
    assert driver is not None
    given = typed_options(driver, options.get(wanted, {}))
    if wanted in verdicts:
        key, verdict = verdicts[wanted]
    else:
        key = _probe_key(driver, env, given)
        verdict = verdict_of(driver, env, given)
    if not verdict.ok:
        source, hint = "", verdict.fix
        if not name:
            source = ", with which this store was made,"
            hint = f"{hint}\n{_MIGRATE}" if hint else _MIGRATE
        raise StorageError(f"the storage driver {wanted}{source} can't be used: {verdict.why}", hint=hint)
    if record["driver"] != wanted and verdict.found.get("warning"):
        print(f"pyrun: warning: the storage driver {wanted}: {verdict.found['warning']}", file=sys.stderr)
    with Lock(f"{env.root}/locks/storage"):
        record = _read(env.root, env)
        record["driver"] = record["driver"] or wanted
        record["installation"] = installation_key()
        record["observers"] = plugins.observers
        record["entries"] = {f.name: f.entry for f in sound.values()}
        verdicts[wanted] = (key, verdict)
        record["verdicts"].update({known: _kept(seen, at) for known, (at, seen) in verdicts.items()})
        try:
            records.write(f"{env.root}/storage.json", record)
        except OSError as error:
            raise cannot_use(env.root, error) from error
    return driver, verdict, given


_MIGRATE = "Or move the store to a driver that works here: pyrun storage migrate DRIVER."


def _missing(wanted: str, found: list[Found], name: str, named_by: str, plugins: Plugins) -> tuple[str, str]:
    """What is wrong with the name ``wanted``, and what to do."""
    broken = next((f.broken for f in found if f.name == wanted and f.broken), "")
    usable = ", ".join(sorted(f.name for f in found if not f.broken))
    what = f"the storage driver {wanted!r}"
    if named_by:
        what += f" ({named_by})"
    elif not name:
        what += ", with which this store was made,"
    why = f"is broken: {broken}" if broken else "is not installed"
    if not broken and plugins.excluded(wanted):
        why = "is left out by PYRUN_PLUGINS"
    hint = f"Installed drivers: {usable or 'none'}. Reasons: pyrun storage doctor."
    if not name and not named_by:
        hint += f"\n{_MIGRATE}"
    return f"{what} {why}", hint


def _choose(
    env: Env,
    sound: Mapping[str, Found],
    options: Mapping[str, Mapping[str, Any]],
    plugins: Plugins,
    verdicts: dict[str, tuple[str, Verdict]],
    require: Sequence[str],
) -> str:
    """The driver of a new store: a plugin's opinion, else the first of `ORDER` that works and has what is
    required."""
    for name, found in sound.items():
        assert found.driver is not None
        given = typed_options(found.driver, options.get(name, {}))
        verdicts[name] = (_probe_key(found.driver, env, given), verdict_of(found.driver, env, given))
    opinion = plugins.choose({name: verdict for name, (_, verdict) in verdicts.items()}, env)
    if opinion is not None:
        return opinion
    for name in ORDER:
        if name in verdicts and verdicts[name][1].ok and not _lacking(verdicts[name][1], require):
            return name
    for name, (key, verdict) in list(verdicts.items()):
        if verdict.ok and (lacking := _lacking(verdict, require)):
            verdicts[name] = (key, Verdict(False, f"it lacks {lacking[0]}, which the configuration requires"))
    reasons = "; ".join(f"{name}: {verdict.why}" for name, (_, verdict) in verdicts.items() if not verdict.ok)
    raise StorageError(
        f"no storage driver can be used below {env.root} ({reasons or 'none is installed'})",
        hint=next((v.fix for _, v in verdicts.values() if v.fix), "Choose another store with --root DIR."),
    )


def doctor(env: Env, name: str, options: Mapping[str, Mapping[str, Any]]) -> list[DriverReport]:
    """Every driver, usable or not, and why: each is tried afresh, and what was found serves the next command.
    For ``pyrun storage doctor``."""
    make_directories(env.root)
    record = _read(env.root, env)
    reports = []
    fresh: dict[str, dict[str, Any]] = {}
    for found in _plugins().drivers():
        if found.driver is None:
            reports.append(DriverReport(found.name, "broken", found.broken, "", found.distribution))
            continue
        given = typed_options(found.driver, options.get(found.name, {}))
        verdict = verdict_of(found.driver, env, given)
        fresh[found.name] = _kept(verdict, _probe_key(found.driver, env, given))
        state = "usable" if verdict.ok else "no"
        if verdict.ok and found.name == (name or record["driver"]):
            state = "selected"
        reports.append(
            DriverReport(found.name, state, verdict.why, verdict.fix, found.distribution, verdict.caps)
        )
    if record["driver"]:
        with Lock(f"{env.root}/locks/storage"):
            record = _read(env.root, env)
            record["verdicts"].update(fresh)
            records.write(f"{env.root}/storage.json", record)
    return reports
