"""The tables of layers' entries that `pyrun which` and `pyrun layers` keep (`pyrun.images.tables`): each can be made
again from its layer's blob, so nothing that is wrong with one does harm."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ..images import tables
from .problems import Problem
from .repair_layers import remove_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..images.record import Image
    from .scene import Scene


def check_tables(scene: Scene, images: Iterable[Image]) -> list[Problem]:
    """Those that can't be read, or that no image needs."""
    needed = {layer.diff_id for image in images for layer in image.layers}
    unneeded = set() if scene.images.warnings else set(tables.unneeded(scene.root, needed))
    store = tables.Tables(scene.root)
    problems = []
    for name in tables.names(scene.root):
        path = os.path.join(store.path, name)
        if path in unneeded:
            kind, what = "table-orphan", "no image has the layer it tells of"
        elif store.kept(name.replace("-", ":", 1)) is None:
            kind, what = "table-damaged", "it is no table of what a layer holds"
        else:
            continue
        subject = os.path.relpath(path, scene.root)
        how = partial(remove_file, path)
        problems.append(Problem(kind, subject, what, harm=False, fix="remove it", repair=how))
    return problems
