"""Taking away what is not in use: stopped containers, images, layers, and what dead processes left."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from ..errors import Conflict, NotFound, PyrunError, StorageError, UsageError
from ..images import gc
from ..storage.changes import allocated
from .rubbish import check_rubbish
from .scene import in_words
from .usage import taken
from .users import users

if TYPE_CHECKING:
    from ..containers.record import Container
    from ..images.record import Image
    from ..storage.layers import LayerStore
    from .scene import Scene

PATIENCE = 10.0
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)", re.ASCII)
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


@dataclass(slots=True)
class Pruned:
    """What went: ids of ``containers``; ``images`` as ("Untagged" | "Deleted", what); ``layers`` as (driver, key);
    ``bytes`` freed on disk. ``deferred`` says why images and layers were left alone, "" if they were not."""

    containers: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    layers: list[tuple[str, str]] = field(default_factory=list)
    bytes: int = 0
    deferred: str = ""


def prune(scene: Scene, *, all: bool = False, before: float | None = None) -> Pruned:
    """Remove every container that nobody has in hand; images without a tag, or with ``all`` every one, that no
    container was made from; layers that then nothing needs under the driver in use, and those of other drivers
    that no container of theirs needs; what dead processes left, and unfinished downloads.

    ``before`` (seconds since the epoch) spares containers and images made later. Images and layers wait for
    pulls that are going on, and are left alone where those take longer than `PATIENCE` seconds.
    """
    done = Pruned()
    with in_words(scene.root):
        _prune(scene, all, before, done)
    return done


def _prune(scene: Scene, all: bool, before: float | None, done: Pruned) -> None:
    for container in list(scene.containers.all()):
        if before is None or container.created < before:
            _remove_container(scene, container, done)
    for problem in check_rubbish(scene):
        if problem.repair is not None:
            with suppress(OSError):  # what can't be removed stays, and stops nothing
                problem.repair()
    with gc.exclusively(scene.root, PATIENCE) as alone:
        if not alone:
            done.deferred = "the store is in use, by a pull perhaps"
            return
        try:
            now = users(scene.containers)
        except StorageError as error:
            done.deferred = error.message
            return
        in_use = {user.image_id for user in now}
        for image in _unused(scene, all, before, in_use):
            done.images += scene.images.remove(image, force=True)
        shelves = scene.shelves()
        unfinished = sum(scene.images.content.unfinished().values())
        scene.images.content.sweep(kept=0)
        done.bytes += unfinished - sum(scene.images.content.unfinished().values())
        only = {scene.selected, scene.recorded}
        swept = gc.sweep(scene.images, shelves, now, only=sorted(only), measure=_measure(scene))
        done.deferred = swept.deferred
        done.layers = [(scene.selected, key) for key in swept.layers] + swept.others
        done.bytes += swept.bytes + swept.freed


def until_of(filters: Sequence[str]) -> float | None:
    """The moment of ``until=``, in seconds since the epoch; None without one. It is a duration before now, as
    "10m" or "1h30m", a time in RFC 3339 (a date alone, too), or seconds since the epoch.

    Raises `UsageError` for anything else.
    """
    moment = None
    for text in filters:
        key, equals, value = text.partition("=")
        if key != "until" or not equals:
            raise UsageError(f"--filter {text}: unknown filter", hint="There is one: until=24h.")
        if moment is not None:
            raise UsageError("--filter until= was given twice", hint="Drop one of them.")
        moment = _moment(value)
        if moment is None:
            raise UsageError(
                f"--filter {text}: no time or duration",
                hint="For example until=24h, until=1h30m or until=2025-01-31T12:00:00Z.",
            )
    return moment


def _moment(text: str) -> float | None:
    parts = _PART.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return time.time() - sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        if text.isascii() and text.isdecimal() and len(text) != 8:
            return float(text)
        return datetime.fromisoformat(text).timestamp()  # without a zone: the caller's
    except (ValueError, OverflowError):
        return None


def _remove_container(scene: Scene, container: Container, done: Pruned) -> None:
    if scene.containers.supervised(container.id):
        return
    try:
        size = taken(scene, container.driver, scene.containers.writable(container.id))
        size += allocated(f"{scene.containers.directory}/{container.id}/volumes").bytes
        scene.containers.remove(container.id, force=False, remove=scene.remove)
    except (NotFound, Conflict):
        return  # removed, or started, just now
    done.containers.append(container.id)
    done.bytes += size


def _unused(scene: Scene, all: bool, before: float | None, in_use: set[str]) -> list[str]:
    """A name of each image to remove; with it go all of the image's names."""
    by_id: dict[str, list[Image]] = {}
    for image in scene.images.records():
        by_id.setdefault(image.id, []).append(image)
    found = []
    for id, names in sorted(by_id.items()):
        tagged = any("@" not in image.reference for image in names)
        if id in in_use or (tagged and not all):
            continue
        if before is not None and not _older(names[0], before):
            continue
        found.append(id)
    return found


def _older(image: Image, before: float) -> bool:
    try:
        return datetime.fromisoformat(image.created).timestamp() < before
    except ValueError:
        return True  # it says nothing of its age: it is as old as can be


def _measure(scene: Scene) -> Callable[[LayerStore, str], int]:
    def measure(layers: LayerStore, key: str) -> int:
        try:
            return taken(scene, layers.driver.name, layers.path(key))
        except PyrunError:
            return 0

    return measure
