"""How much of an image is its own, and how much it shares with others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .record import Image


@dataclass(frozen=True, slots=True)
class ImageSizes:
    """Bytes of tar streams, as `Image.size` counts: ``shared`` those of layers that an image with another ID has,
    too, ``unique`` the rest. ``containers``: how many were made from it."""

    shared: int
    unique: int
    containers: int


def sizes(images: Iterable[Image], every: Iterable[Image], used: Iterable[str]) -> dict[str, ImageSizes]:
    """By ID, those of ``images``; ``every`` are all of the store, ``used`` the image IDs of all containers."""
    owners: dict[str, set[str]] = {}
    for image in every:
        for layer in image.layers:
            owners.setdefault(layer.diff_id, set()).add(image.id)
    containers = Counter(used)
    found = {}
    for image in images:
        if image.id not in found:
            layers = {layer.diff_id: layer.unpacked for layer in image.layers}
            shared = sum(size for id, size in layers.items() if len(owners.get(id, ())) > 1)
            found[image.id] = ImageSizes(shared, image.size - shared, containers[image.id])
    return found
