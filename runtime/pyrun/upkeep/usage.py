"""What the store takes on disk, and how much of it could go: for `pyrun system df`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import PyrunError
from ..images import gc, tables
from ..images.layerstore import layer_keys
from ..images.record import since_epoch
from ..images.reference import Reference
from ..storage.changes import allocated
from .check_content import named
from .scene import in_words

if TYPE_CHECKING:
    from ..containers.record import Container
    from ..images.record import Image
    from .scene import Scene


@dataclass(slots=True)
class Line:
    """A line of the table. ``reclaimable`` is what `pyrun system prune -a` would free of ``size`` (bytes)."""

    type: str
    total: int = 0
    active: int = 0
    size: int = 0
    reclaimable: int = 0


@dataclass(slots=True)
class ImageUsage:
    """One name. ``size`` counts its blobs, ``shared`` those that an image with another ID has, too."""

    repository: str
    tag: str
    id: str
    created: float | None
    size: int
    shared: int
    containers: int


@dataclass(slots=True)
class ContainerUsage:
    """``size`` is that of the writable layer; ``volumes`` how many anonymous ones it has; ``active``: somebody has
    it in hand."""

    container: Container
    volumes: int
    size: int
    active: bool


@dataclass(slots=True)
class VolumeUsage:
    """An anonymous volume, which lives and goes with its container."""

    container: str
    destination: str
    size: int
    active: bool


@dataclass(slots=True)
class LayerUsage:
    driver: str
    key: str
    size: int
    images: int
    containers: int
    leased: bool


@dataclass(slots=True)
class DiskUsage:
    """``blobs``: digest → bytes of every blob; ``in_use``: those that images with containers, or leases, need.
    ``unfinished``: digest → bytes that are there of blobs whose download goes on, or was broken off.
    ``tables``: diff_id → bytes of what `pyrun which` keeps of a layer; ``needed_tables``: of images with containers."""

    images: list[ImageUsage] = field(default_factory=list)
    containers: list[ContainerUsage] = field(default_factory=list)
    volumes: list[VolumeUsage] = field(default_factory=list)
    layers: list[LayerUsage] = field(default_factory=list)
    blobs: dict[str, int] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)
    unfinished: dict[str, int] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    needed_tables: set[str] = field(default_factory=set)

    def lines(self) -> list[Line]:
        ids = {image.id: image.containers for image in self.images}
        lines = [
            Line(
                "Images",
                len(ids),
                sum(1 for count in ids.values() if count),
                sum(self.blobs.values()),
                sum(size for digest, size in self.blobs.items() if digest not in self.in_use),
            ),
            Line(
                "Containers",
                len(self.containers),
                sum(c.active for c in self.containers),
                sum(c.size for c in self.containers),
                sum(c.size for c in self.containers if not c.active),
            ),
            Line(
                "Local Volumes",
                len(self.volumes),
                sum(v.active for v in self.volumes),
                sum(v.size for v in self.volumes),
                sum(v.size for v in self.volumes if not v.active),
            ),
        ]
        if self.unfinished:
            size = sum(self.unfinished.values())
            lines.append(Line("Unfinished downloads", len(self.unfinished), 0, size, size))
        if self.tables:
            needed = [size for diff_id, size in self.tables.items() if diff_id in self.needed_tables]
            size = sum(self.tables.values())
            lines.append(Line("Layer tables", len(self.tables), len(needed), size, size - sum(needed)))
        by_driver: dict[str, Line] = {}
        for layer in self.layers:
            line = by_driver.setdefault(layer.driver, Line(f"Layers ({layer.driver})"))
            used = bool(layer.containers) or layer.leased
            line.total += 1
            line.active += used
            line.size += layer.size
            line.reclaimable += 0 if used else layer.size
        return lines + [by_driver[name] for name in sorted(by_driver)]


def disk_usage(scene: Scene) -> DiskUsage:
    """Look at everything; takes no lock, so what changes meanwhile is counted or not."""
    done = DiskUsage()
    with in_words(scene.root):
        _look(scene, done)
    return done


def _look(scene: Scene, done: DiskUsage) -> None:
    images = scene.images.list()
    every = scene.images.records()
    containers = list(scene.containers.all())
    used = {container.image_id for container in containers}
    content = scene.images.content
    for digest in content.digests():
        try:
            done.blobs[digest] = content.size(digest)
        except PyrunError:
            continue
    done.unfinished = content.unfinished()
    done.tables = tables.sizes(scene.root)
    owners: dict[str, set[str]] = {}
    for image in every:
        for digest in named(image):
            owners.setdefault(digest, set()).add(image.id)
        if image.id in used:
            done.in_use |= named(image)
            done.needed_tables |= {layer.diff_id for layer in image.layers}
    for image in images:
        done.images.append(_image(image, done, owners, containers))
    for container in containers:
        _container(scene, container, done)
    _layers(scene, every, containers, done)


def _image(
    image: Image, done: DiskUsage, owners: dict[str, set[str]], containers: list[Container]
) -> ImageUsage:
    reference = None if image.unnamed else Reference.parse(image.reference)
    sizes = {digest: done.blobs.get(digest, 0) for digest in named(image)}
    return ImageUsage(
        reference.familiar_repository if reference else "",
        "" if reference is None or reference.digest else reference.tag or "",
        image.id,
        since_epoch(image.created),
        sum(sizes.values()),
        sum(size for digest, size in sizes.items() if len(owners[digest]) > 1),
        sum(container.image_id == image.id for container in containers),
    )


def _container(scene: Scene, container: Container, done: DiskUsage) -> None:
    directory = f"{scene.containers.directory}/{container.id}"
    try:
        writable = scene.containers.writable(container.id)
    except PyrunError:
        return  # removed just now
    active = scene.containers.supervised(container.id)
    mounts = [mount for mount in container.options.get("mounts", ()) if not mount["source"]]
    size = taken(scene, container.driver, writable)
    for path, driver in scene.containers.leftover_writables(container.id):
        size += taken(scene, driver, path)
    done.containers.append(ContainerUsage(container, len(mounts), size, active))
    for number, mount in enumerate(mounts):
        inside = allocated(f"{directory}/volumes/{number}").bytes
        done.volumes.append(VolumeUsage(container.name, mount["destination"], inside, active))


def _layers(scene: Scene, images: list[Image], containers: list[Container], done: DiskUsage) -> None:
    uses: dict[str, set[str]] = {}
    for image in images:
        plain = [layer.diff_id for layer in image.layers]
        for key in {*plain, *layer_keys(plain, chained=True)}:
            uses.setdefault(key, set()).add(image.id)
    try:
        leased = gc.leased(scene.root)
    except PyrunError:
        leased = {}
    for layers in scene.shelves().all():
        name = layers.driver.name
        for key in sorted(layers.keys()):
            try:
                path = layers.path(key)
            except PyrunError:
                continue
            done.layers.append(
                LayerUsage(
                    name,
                    key,
                    taken(scene, name, path),
                    len(uses.get(key, ())),
                    sum(c.driver == name and key in c.layers for c in containers),
                    key in leased.get(name, ()),
                )
            )


def container_sizes(scene: Scene, container: Container) -> tuple[int, int]:
    """(bytes that the container wrote, these and the bytes of its image's layers): what docker calls SizeRw and
    SizeRootFs. Layers of which nothing tells the size any more count as nothing."""
    with in_words(scene.root):
        written = taken(scene, container.driver, scene.containers.writable(container.id))
        layers = scene.layers(container.driver)
        below = 0
        image = next((i for i in scene.images.naming(container.image_id) if i.id == container.image_id), None)
        if image is not None:
            below = image.size
        else:
            for key in container.layers:
                with suppress(PyrunError, OSError, KeyError, TypeError, ValueError):
                    below += layers.unpacked(key)
        return written, written + below


def taken(scene: Scene, driver: str, path: str) -> int:
    """Bytes on disk, as the driver counts them; by plain counting where it can't work."""
    store = scene.usable(driver)
    try:
        return store.driver.usage(path).bytes if store is not None else allocated(path).bytes
    except (PyrunError, OSError):
        return allocated(path).bytes if os.path.isdir(path) else 0
