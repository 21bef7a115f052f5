"""Garbage collection: what no image record and no container names goes (mark and sweep)."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field

from .layerstore import LayerStore, layer_keys
from .local import ImageStore
from .record import Image

# A container: its image's ID, its layers' keys, its name.
User = tuple[str, tuple[str, ...], str]

PATIENCE = 2.0  # seconds to wait for pulls and starting containers before leaving the work to the next call


@dataclass(slots=True)
class Collected:
    """``layers`` and ``blobs`` are what was deleted, ``bytes`` the size of those blobs. ``deferred`` says why
    nothing was looked at, "" if all was."""

    layers: list[str] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)
    bytes: int = 0
    deferred: str = ""


def collect(
    images: ImageStore,
    layers: LayerStore,
    containers_layers: Callable[[], Set[str]],
    *,
    patience: float = PATIENCE,
) -> Collected:
    """Delete the layers and blobs that neither an image record nor ``containers_layers`` (keys) names. That is
    asked under the lock: a container that began just now counts.

    Holds ``locks/store`` exclusively. While a pull has it, and while a record can't be read (what it names
    is unknown), nothing is deleted: a later call finds the same garbage.
    """
    give_up = time.monotonic() + patience
    fd = os.open(os.path.join(images.root, "locks", "store"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return _collect(images, layers, containers_layers())
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    return Collected(deferred="the store is in use, by a pull perhaps")
            time.sleep(0.02)
    finally:
        os.close(fd)


def remove_image(
    images: ImageStore,
    layers: LayerStore,
    name: str,
    *,
    force: bool = False,
    users: Callable[[], Iterable[User]] = tuple,
) -> list[tuple[str, str]]:
    """`ImageStore.remove`, then `collect`: ("Untagged" | "Deleted", what) as ``docker rmi`` prints them, a
    "Deleted" for the image ID and for each layer that went, topmost first.

    ``users`` tells the containers of the moment. ``force`` removes an image that one was made from; its layers
    stay until the container goes. Raises as `ImageStore.remove` does.
    """
    order = {key: at for image in images.records() for at, key in enumerate(_keys(image, layers))}

    def in_use(id: str) -> list[str]:
        return [container for image_id, _, container in users() if image_id == id]

    done = images.remove(name, force=force, in_use=in_use)
    if done and done[-1][0] == "Deleted":
        gone = collect(images, layers, lambda: {key for _, keys, _ in users() for key in keys}).layers
        done += [("Deleted", key) for key in sorted(gone, key=lambda key: -order.get(key, 0))]
    return done


def _collect(images: ImageStore, layers: LayerStore, containers_layers: Set[str]) -> Collected:
    done = Collected()
    content = images.content
    records = images.records()
    if images.warnings:
        done.deferred = images.warnings[0]
        return done
    live_blobs: set[str] = set()
    live_layers = set(containers_layers)
    for image in records:
        live_blobs.update((image.digest, image.manifest, image.id), (layer.digest for layer in image.layers))
        live_layers.update(_keys(image, layers))
    for key in list(layers.keys()):
        if key not in live_layers:
            layers.remove(key)
            done.layers.append(key)
    for digest in list(content.digests()):
        if digest not in live_blobs:
            done.bytes += content.remove(digest)
            done.blobs.append(digest)
    content.sweep()
    return done


def _keys(image: Image, layers: LayerStore) -> list[str]:
    return layer_keys([layer.diff_id for layer in image.layers], chained=layers.chained)
