"""The store's own record, storage.json: without it nobody knows which driver the store was made with."""

from __future__ import annotations

from functools import partial

from ..storage import records
from ..storage.locks import Lock
from ..storage.store import new_record
from .problems import Problem
from .scene import Scene, drivers_with_layers


def check_store(scene: Scene) -> list[Problem]:
    if not scene.damaged:
        return []
    driver = _told_by_layers(scene)
    fix = f"write it again, with the driver that has the layers: {driver}" if driver else ""
    return [
        Problem(
            "store-damaged",
            "storage.json",
            scene.damaged,
            fix=fix,
            repair=partial(_write, scene, driver) if driver else None,
        )
    ]


def _told_by_layers(scene: Scene) -> str:
    """The driver under which most layers are; "" where two have the same number, or there are none."""
    counts = sorted(drivers_with_layers(scene.root).items(), key=lambda item: -item[1])
    if not counts or (len(counts) > 1 and counts[0][1] == counts[1][1]):
        return ""
    return counts[0][0]


def _write(scene: Scene, driver: str) -> str:
    with Lock(f"{scene.root}/locks/storage"):
        records.write(f"{scene.root}/storage.json", {**new_record(scene.env), "driver": driver})
    scene.look_again()
    return scene.damaged
