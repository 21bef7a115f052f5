"""What the engine made in a container's root file system only to mount something there.

The container never sees these: something is mounted on each. So, as docker keeps its own in a layer that no diff
shows, they are no change of the container's. What was made is not on record; it follows from what was to be mounted
where (the runtime spec), and from what the layers had there, by the same walk that made it (`sandbox.rootfs`).
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from ..layers.dirs import Directories
from ..storage.contract import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LINKS = 40  # as `sandbox.rootfs`


def made(below: int, destinations: Iterable[bytes]) -> dict[bytes, bool]:
    """By root-relative name what was missing in the layers ``below`` (a directory fd) for mounts at
    ``destinations``, in their order: True where something is mounted on it, False for a directory on the way."""
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=below)
    tree = Directories(root)
    points: dict[bytes, bool] = {}
    mounted: set[bytes] = set()
    try:
        for destination in destinations:
            name = _walk(tree, destination, points, mounted)
            if name is not None:
                mounted.add(name)
                if name in points:
                    points[name] = True
    finally:
        tree.close()
        os.close(root)
    return points


def _walk(tree: Directories, path: bytes, points: dict[bytes, bool], mounted: set[bytes]) -> bytes | None:
    """The canonical name of ``path``; None where that lies in another mount. What is missing goes into ``points``."""
    parts = path.split(b"/")[::-1]
    at, links = b"", 0
    while parts:
        if at in mounted:
            return None
        part = parts.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            at = at.rpartition(b"/")[0]
            continue
        name = at + b"/" + part if at else part
        if name not in points and name not in mounted:
            try:
                found = os.lstat(part, dir_fd=tree.open(at))
            except (FileNotFoundError, NotADirectoryError):
                points[name] = False
            else:
                if stat.S_ISLNK(found.st_mode):
                    links += 1
                    if links > _LINKS:
                        return None
                    target = os.readlink(part, dir_fd=tree.open(at))
                    parts += target.split(b"/")[::-1]
                    if target.startswith(b"/"):
                        at = b""
                    continue
        at = name
    return at


def left_out(
    changes: Iterable[Change],
    points: dict[bytes, bool],
    view: int,
    owner: Callable[[int, int], tuple[int, int]],
) -> Iterator[Change]:
    """``changes``, sorted as `Driver.changes` tells them, without the `made` ones: of those, only directories in
    which the container changed something."""
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=view)
    tree = Directories(root)
    waiting: list[Change] = []  # each in the one before
    try:
        for change in changes:
            while waiting and not change.path.startswith(waiting[-1].path + b"/"):
                waiting.pop()
            if change.kind == "add" and change.path in points and _as_made(tree, change.path, owner):
                if not points[change.path]:
                    waiting.append(change)
                continue
            yield from waiting
            waiting.clear()
            yield change
    finally:
        tree.close()
        os.close(root)


def _as_made(tree: Directories, name: bytes, owner: Callable[[int, int], tuple[int, int]]) -> bool:
    """Whether ``name`` is the directory or the empty file that the engine makes, and belongs to root."""
    above, _, base = name.rpartition(b"/")
    try:
        found = os.lstat(base, dir_fd=tree.open(above))
    except (FileNotFoundError, NotADirectoryError):
        return False
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        plain = mode == 0o755
    else:
        plain = stat.S_ISREG(found.st_mode) and mode == 0o644 and found.st_size == 0
    return plain and owner(found.st_uid, found.st_gid) == (0, 0)
