"""What of a container's settings an image made of it has: as docker keeps them in the container's own config."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .spec import PATH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .record import Container


def settings(image: Mapping[str, Any], container: Container) -> dict[str, Any]:
    """The image's "config" object ``image``, with what ``run`` was told for the container: command, entrypoint,
    environment, user, working directory, volumes without a place on the host. Not what the engine added itself: the
    host name, the default PATH, TERM, HOME."""
    options = container.options
    found = dict(image)
    entrypoint = options.get("entrypoint")
    if entrypoint is None:
        # Of a container that was made before that was on record.
        entrypoint = list(image.get("Entrypoint") or [])
        if container.command[: len(entrypoint)] != entrypoint:
            entrypoint = []
    _set(found, "Entrypoint", list(entrypoint))
    _set(found, "Cmd", container.command[len(entrypoint) :])
    _set(found, "Env", _environment(image, container))
    _set(found, "User", options["user"])
    if options["workdir"] != os.path.normpath(image.get("WorkingDir") or "/"):
        found["WorkingDir"] = options["workdir"]
    volumes = dict(image.get("Volumes") or {})
    known = {os.path.normpath(path) for path in volumes}
    volumes |= {
        mount["destination"]: {}
        for mount in options["mounts"]
        if not mount["source"] and mount["destination"] not in known
    }
    _set(found, "Volumes", volumes)
    return found


def _set(found: dict[str, Any], key: str, value: Any) -> None:
    if value:
        found[key] = value
    else:
        found.pop(key, None)


def _environment(image: Mapping[str, Any], container: Container) -> list[str]:
    """The image's variables in their order, with the caller's values; then what the caller added."""
    options = container.options
    now = dict(item.partition("=")[::2] for item in options["env"])
    images = dict(item.partition("=")[::2] for item in image.get("Env") or [])
    default, _, path = PATH.partition("=")
    engines = {default: path, "HOSTNAME": options["hostname"]}
    if options["tty"]:
        engines["TERM"] = "xterm"
    names = [*images, *(name for name in now if name not in images and engines.get(name) != now[name])]
    return [f"{name}={now.get(name, images.get(name, ''))}" for name in names]
