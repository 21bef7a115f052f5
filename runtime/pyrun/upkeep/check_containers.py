"""Containers: their records, names, writable layers, and the layers and drivers that they need."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from ..containers.store import new_state
from ..errors import NotFound, PyrunError
from ..storage import records
from . import repair_containers as repair
from .problems import Problem
from .repair_layers import make_layer
from .scene import Origin

if TYPE_CHECKING:
    from ..containers.record import Container
    from .scene import Scene


def check_containers(scene: Scene, known: dict[str, Origin]) -> tuple[list[Container], list[Problem]]:
    """(the containers whose records are whole, what is wrong with those and the others)."""
    whole: list[Container] = []
    problems: list[Problem] = []
    for id in sorted(scene.containers.ids()):
        try:
            container = scene.containers.load(id)
        except NotFound:
            if os.path.lexists(f"{scene.containers.directory}/{id}"):
                problems.append(_unreadable(scene, id, "its record config.json is missing"))
            continue
        except (PyrunError, OSError, KeyError, TypeError):
            problems.append(_unreadable(scene, id, "its record config.json is damaged"))
            continue
        whole.append(container)
        problems += _one(scene, container, known)
    problems += _drivers(scene, whole)
    problems += _names(scene)
    return whole, problems


def _unreadable(scene: Scene, id: str, what: str) -> Problem:
    where = f"{scene.containers.directory}/{id}"
    return Problem(
        "container-damaged", id[:12], f"{what}; its data is in {where}; pyrun rm -f {id[:12]} gives it up"
    )


def _one(scene: Scene, container: Container, known: dict[str, Origin]) -> list[Problem]:
    problems = []
    directory = f"{scene.containers.directory}/{container.id}"

    def problem(kind: str, what: str, fix: str, how: partial[str], *, harm: bool = True) -> None:
        problems.append(Problem(kind, container.name, what, harm=harm, fix=fix, repair=how))

    if not _state_is_whole(f"{directory}/state.json") and not scene.containers.supervised(container.id):
        problem(
            "container-state",
            "its record state.json is damaged",
            "write down that it has ended",
            partial(repair.set_ended, scene, container.id),
        )
    rw = scene.containers.writable(container.id)
    if not os.path.isdir(rw) and os.path.isdir(directory):
        problem(
            "container-data",
            "its writable layer is missing: what it wrote is lost",
            "give it an empty one",
            partial(repair.prepare_anew, scene, container),
        )
    layers = scene.shelves().layers(container.driver)
    for key in container.layers:
        if not os.path.isdir(layers.path(key)):
            problems.append(
                Problem(
                    "layer-missing",
                    f"{container.driver}/{key}",
                    f"it is missing; container {container.name} needs it",
                    fix="make it again from its blob",
                    repair=partial(make_layer, scene, container.driver, key, known),
                )
            )
    if scene.containers.leftover_writables(container.id):
        problem(
            "container-leftover",
            "the writable layer that it had under another driver is still there",
            "remove it",
            partial(repair.remove_leftovers, scene, container.id),
            harm=False,
        )
    owner = _owner(scene, container.name)
    if owner is None:
        problem(
            "name-lost",
            "nothing tells that the name is its own",
            "claim the name for it",
            partial(repair.claim_name, scene, container),
        )
    elif owner != container.id:
        problems.append(
            Problem(
                "name-lost",
                container.name,
                f"container {container.id[:12]} has the name of another container",
            )
        )
    return problems


def _state_is_whole(path: str) -> bool:
    try:
        state = records.read(path)
    except (OSError, PyrunError):
        return False
    return isinstance(state, dict) and state.keys() >= new_state("").keys()


def _owner(scene: Scene, name: str) -> str | None:
    try:
        with open(f"{scene.root}/names/{name}") as file:
            return file.read()
    except OSError:
        return None


def _drivers(scene: Scene, containers: list[Container]) -> list[Problem]:
    """Drivers that can't be used: the containers they made can't be started or read."""
    needed: dict[str, list[str]] = {}
    for container in containers:
        needed.setdefault(container.driver, []).append(container.name)
    if scene.selected:
        needed.setdefault(scene.selected, [])
    problems = []
    for driver, names in sorted(needed.items()):
        try:
            scene.store(driver)
        except PyrunError as error:
            who = f"; {len(names)} containers need it, {names[0]} for one" if names else ""
            problems.append(Problem("driver-unusable", driver, f"{error.message}{who}"))
    return problems


def _names(scene: Scene) -> list[Problem]:
    problems = []
    for name in sorted(os.listdir(f"{scene.root}/names")):
        if repair.is_free(scene, name):
            problems.append(
                Problem(
                    "name-unused",
                    name,
                    "it is claimed for a container that is not there",
                    harm=False,
                    fix="give it back",
                    repair=partial(repair.release_name, scene, name),
                )
            )
    return problems
