"""Volumes of one container: bind mounts from -v, and directories for VOLUME. On the path of `run`."""

from __future__ import annotations

import os
import stat

from ..errors import ContainerError, Unsupported, UsageError
from ..kernel.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .options import ContainerOptions


class Volume:
    """Where something is mounted. ``source`` "" means an anonymous volume, kept with the container."""

    __slots__ = ("destination", "readonly", "source")

    def __init__(self, source: str, destination: str, readonly: bool) -> None:
        self.source = source
        self.destination = destination
        self.readonly = readonly


def parse(text: str) -> Volume:
    """One -v option: HOST:CONTAINER[:ro|rw], or CONTAINER alone for an anonymous volume."""
    parts = text.split(":")
    if len(parts) == 1:
        return Volume("", mount_point(f"-v {text}", parts[0]), False)
    if len(parts) > 3:
        raise UsageError(f"-v {text}: too many colons", hint="Write HOST:CONTAINER[:ro].")
    source, destination = parts[0], parts[1]
    readonly = False
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option not in ("ro", "rw"):
            raise Unsupported(f"-v {text}: the option {option!r} is not supported", hint="Supported: ro, rw.")
        readonly = option == "ro"
    if not source.startswith(("/", ".")):
        raise Unsupported(
            f"-v {text}: {source!r} would be a named volume, which pyrun does not have yet",
            hint=f"Mount a directory by its path, for example -v ./{source}:{destination}",
        )
    try:
        source = os.path.abspath(source)
    except FileNotFoundError:
        raise UsageError(
            f"-v {text}: the current directory, to which {source!r} is relative, is gone"
        ) from None
    if not os.path.exists(source):
        raise ContainerError(
            f"-v {text}: {source} does not exist on the host", hint=f"Make it first: mkdir {source}"
        )
    return Volume(source, mount_point(f"-v {text}", destination), readonly)


def mount_point(option: str, path: str) -> str:
    """``path`` made canonical, if something may be mounted there. ``option`` is for the error."""
    if not path.startswith("/") or ".." in path.split("/") or os.path.normpath(path) == "/" or "\0" in path:
        raise UsageError(
            f"{option}: {path!r} can't be a mount point in the container",
            hint="Give an absolute path other than /.",
        )
    return os.path.normpath(path)


def collect(image: dict[str, Any], options: ContainerOptions) -> list[Volume]:
    """All volumes of a container: the caller's, and the image's where the caller mounts nothing there."""
    volumes = [parse(text) for text in options.volumes]
    destinations = [volume.destination for volume in volumes]
    twice = next((d for d in destinations if destinations.count(d) > 1), None)
    if twice:
        raise UsageError(f"two -v options mount at {twice}", hint="Drop one of them.")
    for path in sorted(image.get("Volumes") or {}):
        if path.startswith("/") and ".." not in path.split("/"):
            volume = Volume("", os.path.normpath(path), False)
            if volume.destination != "/" and volume.destination not in destinations:
                volumes.append(volume)
    return volumes


def seed(view: int, path: str, destination: str) -> None:
    """Fill the new directory ``destination`` with what the image has at ``path``: content, mode, owner.

    ``view`` is a directory fd of the image's layers, unshifted. Nothing there, or no directory: left empty.
    """
    try:
        source = openat2(view, path, os.O_RDONLY | os.O_DIRECTORY, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except (FileNotFoundError, NotADirectoryError):
        return
    target = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.listdir(source):
            from ..layers.copy import copy_tree

            copy_tree(source, target)
        found = os.stat(source)
        os.fchown(target, found.st_uid, found.st_gid)
        os.fchmod(target, stat.S_IMODE(found.st_mode))
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    finally:
        os.close(source)
        os.close(target)
