"""The configuration file: TOML, every key checked. On the path of `run` (tomllib only where a file exists).

[storage]
driver = "overlay"          # for new stores; a store keeps the driver it was made with
require = ["rename_dir"]    # capabilities without which a driver is refused, and not chosen for a new store

[storage.overlay]           # the driver's own options
volatile = true

[run]
userns = "host"             # default of --userns
"""

from __future__ import annotations

import os

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SYSTEM = "/etc/pyrun/config.toml"
# Flags of `pyrun.storage.contract.Caps` that a site may insist on.
REQUIRABLE = ("hardlinks", "idmap", "quota", "rename_dir")


class Config:
    """``driver`` "" and ``userns`` "": not set. ``path`` "": there is no file. ``options``: per driver.
    ``require``: capabilities that a driver must have."""

    __slots__ = ("driver", "options", "path", "require", "userns")

    def __init__(
        self, path: str, driver: str, options: dict[str, dict[str, Any]], userns: str, require: list[str]
    ) -> None:
        self.path = path
        self.driver = driver
        self.options = options
        self.userns = userns
        self.require = require


def user_file() -> str:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return f"{base}/pyrun/config.toml"


def load(path: str | None = None) -> Config:
    """The configuration at ``path``; without one the first that exists of `SYSTEM` and the user's.

    Raises `ConfigError`, which names the file and the key.
    """
    if path is None:
        path = next((p for p in (SYSTEM, user_file()) if os.path.exists(p)), None)
        if path is None:
            return Config("", "", {}, "", [])
    import tomllib

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"can't read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not valid TOML: {error}") from error
    _only(path, "", content, ("storage", "run"))
    storage, run = _table(path, content, "storage"), _table(path, content, "run")
    _only(path, "run.", run, ("userns",))
    options = {}
    for key in storage:
        if key not in ("driver", "require"):
            options[key] = _table(path, storage, key, "storage.")
    driver, userns = storage.get("driver", ""), run.get("userns", "")
    if not isinstance(driver, str):
        raise ConfigError(f"{path}: storage.driver must be a string, not {driver!r}")
    if userns not in ("", "auto", "host"):
        raise ConfigError(f"{path}: run.userns is {userns!r}", hint='It may be "auto" or "host".')
    require = storage.get("require", [])
    if not isinstance(require, list) or not all(flag in REQUIRABLE for flag in require):
        raise ConfigError(
            f"{path}: storage.require is {require!r}",
            hint=f"A list of capabilities, of which there are {', '.join(REQUIRABLE)}.",
        )
    return Config(path, driver, options, userns, require)


def _table(path: str, content: dict[str, Any], key: str, prefix: str = "") -> dict[str, Any]:
    table = content.get(key, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {prefix}{key} must be a table, not {table!r}")
    return table


def _only(path: str, prefix: str, table: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{path}: unknown key {prefix}{key}", hint=f"Known here: {', '.join(known)}.")
