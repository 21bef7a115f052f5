"""Taking away what is not in use: stopped containers, images, layers, and what dead processes left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import Conflict, NotFound, PyrunError, StorageError
from ..images import gc
from ..images.filters import PRUNING, Filters, labels_of, older
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
PRUNED = ("until", "label")  # filters of the whole store's pruning


@dataclass(slots=True)
class Pruned:
    """What went: ids of ``containers``; ``images`` as ("Untagged" | "Deleted", what); ``layers`` as (driver, key);
    ``bytes`` freed on disk. ``deferred`` says why images and layers were left alone, "" if they were not."""

    containers: list[str] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    layers: list[tuple[str, str]] = field(default_factory=list)
    bytes: int = 0
    deferred: str = ""


def prune(
    scene: Scene, *, all: bool = False, before: float | None = None, filters: Sequence[str] = ()
) -> Pruned:
    """Remove every container that nobody has in hand; images without a tag, or with ``all`` every one, that no
    container was made from; layers that then nothing needs under the driver in use, and those of other drivers
    that no container of theirs needs; what dead processes left, and unfinished downloads.

    ``before`` (seconds since the epoch) spares containers and images made later, ``filters`` ("until=24h", "label=k",
    "label!=k=v") those that they don't fit; a container has its image's labels. Images and layers wait for pulls that
    are going on, and are left alone where those take longer than `PATIENCE` seconds.
    """
    wanted = Filters(filters, PRUNED)
    if before is not None:
        wanted.until = before if wanted.until is None else min(before, wanted.until)
    done = Pruned()
    with in_words(scene.root):
        labels = {image.id: labels_of(image) for image in scene.images.records()}
        for container in list(scene.containers.all()):
            old = wanted.until is None or container.created < wanted.until
            if old and wanted.labelled(labels.get(container.image_id, {})):
                _remove_container(scene, container, done)
        for problem in check_rubbish(scene):
            if problem.repair is not None:
                with suppress(OSError):  # what can't be removed stays, and stops nothing
                    problem.repair()
        content = scene.images.content
        unfinished = sum(content.unfinished().values())
        content.sweep(kept=0)  # downloads that broke off, which are no rubbish yet
        done.bytes += unfinished - sum(content.unfinished().values())
        _prune_images(scene, all, wanted, done)
    return done


def prune_images(scene: Scene, *, all: bool = False, filters: Sequence[str] = ()) -> Pruned:
    """The images of `prune`, and the layers and blobs that then nothing needs. Of ``filters``, "dangling=false" is
    the same as ``all``."""
    wanted = Filters(filters, PRUNING)
    if wanted.dangling is False:
        all = True
    done = Pruned()
    with in_words(scene.root):
        _prune_images(scene, all, wanted, done)
    return done


def _prune_images(scene: Scene, all: bool, wanted: Filters, done: Pruned) -> None:
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
        for image in _unused(scene, all, wanted, in_use):
            done.images += scene.images.remove(image, force=True)
        shelves = scene.shelves()
        only = {scene.selected, scene.recorded}
        swept = gc.sweep(scene.images, shelves, now, only=sorted(only), measure=_measure(scene))
        done.deferred = swept.deferred
        done.layers = [(scene.selected, key) for key in swept.layers] + swept.others
        done.bytes += swept.bytes + swept.freed


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


def _unused(scene: Scene, all: bool, wanted: Filters, in_use: set[str]) -> list[str]:
    """The IDs of the images to remove, each with all of its names."""
    by_id: dict[str, list[Image]] = {}
    for image in scene.images.records():
        by_id.setdefault(image.id, []).append(image)
    found = []
    for id, names in sorted(by_id.items()):
        tagged = any("@" not in image.reference for image in names)
        if id in in_use or (tagged and not all):
            continue
        if (wanted.until is None or older(names[0], wanted.until)) and wanted.labelled(labels_of(names[0])):
            found.append(id)
    return found


def _measure(scene: Scene) -> Callable[[LayerStore, str], int]:
    def measure(layers: LayerStore, key: str) -> int:
        try:
            return taken(scene, layers.driver.name, layers.path(key))
        except PyrunError:
            return 0

    return measure
