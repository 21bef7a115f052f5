"""Are these images sound? Their records, manifests, configs and blobs, and their layers under the driver in use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..images.layerstore import layer_keys
from ..images.reference import Reference
from ..storage import mend
from ..storage.locks import SharedLock
from .check_content import check_blobs, check_images
from .check_layers import LayerCheck
from .check_store import check_store
from .problems import Checked
from .scene import origins

if TYPE_CHECKING:
    from ..images.record import Image
    from .scene import Scene


def check_some(scene: Scene, names: Sequence[str], deep: bool, say: Callable[[str], None]) -> Checked:
    """What `pyrun.upkeep.check.check` finds of the images ``names``, each a name or an ID. Layers that the driver in
    use has not made yet are no problem, for they are made when a container needs them: their blobs are looked at.

    Raises `NotFound`, `Conflict` (an ambiguous ID), `InvalidReference`.
    """
    done = Checked(check_store(scene))
    with SharedLock(f"{scene.root}/locks/store"):
        images, damaged = _named(scene, names)
        known = origins(images)
        done.problems += check_images(scene, images, only=damaged)
        count, blobs = check_blobs(scene, images, say, only=True)
        done.problems += blobs
        bad = {problem.subject for problem in blobs}
        layers = LayerCheck(scene, known, list(scene.containers.all()), bad, deep=deep, say=say)
        keys = _keys(scene, images)
        if keys:
            done.problems += layers.some(scene.selected, keys)
        done.counts = {"blobs": count, "layers": layers.count, "images": len(images) + len(damaged)}
        done.notes += layers.notes
    return done


def _named(scene: Scene, names: Sequence[str]) -> tuple[list[Image], set[str]]:
    """(the records that the names stand for, the references of those that can't be read)."""
    found: dict[str, Image] = {}
    damaged: set[str] = set()
    for name in names:
        try:
            image = scene.images.get(name)
        except ConfigError:
            damaged.add(name if name[:1] == "@" else Reference.parse(name).canonical)
            continue
        found[image.reference] = image
    return list(found.values()), damaged


def _keys(scene: Scene, images: list[Image]) -> list[str]:
    """Which of the images' layers the driver in use has, and what it mends their stacks with."""
    if not scene.selected:
        return []
    layers = scene.layers(scene.selected)
    keys: dict[str, None] = {}
    for image in images:
        plain = [layer.diff_id for layer in image.layers]
        for key in (*plain, *layer_keys(plain, chained=True)):
            if os.path.lexists(layers.path(key)):
                keys[key] = None
    return sorted({*keys, *mend.patches(layers, set(keys))})
