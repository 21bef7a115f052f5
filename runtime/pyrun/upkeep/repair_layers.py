"""Repairs of layers. Each returns "" once it is done, else why it could not be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import PyrunError
from ..images.gc import exclusively
from ..storage import mend
from ..storage.locks import SharedLock
from .repair_content import fetch_blob
from .scene import make

if TYPE_CHECKING:
    from .scene import Origin, Scene


def remake_layer(scene: Scene, driver: str, key: str, known: dict[str, Origin]) -> str:
    """Take a layer away, and where something needs it make it again from its blob."""
    layers = scene.layers(driver)
    origin = known.get(key)
    stack = [] if origin else mend.mended_by(scene.layers(driver), key)
    needed = origin is not None or bool(stack) or any(True for _ in _users(scene, driver, key))
    if needed:
        # Nothing is taken away that can't be made again.
        try:
            scene.store(driver)
        except PyrunError as error:
            return error.message
        if origin is not None:
            why = _blob_is_bad(scene, origin)
            if why:
                return f"its blob {origin.layer.digest} {why}"
        if origin is None and not stack:
            return "no local image has it any more: pull the image that it came from"
    try:
        with exclusively(scene.root) as alone:
            if not alone:
                return "the store is in use, by a pull perhaps: try again"
            for id, name in _users(scene, driver, key):
                if scene.containers.supervised(id):
                    return f"container {name} is running from it: stop it first"
            layers.remove(key)
        with SharedLock(f"{scene.root}/locks/store"):
            if origin is not None:
                make(scene, driver, key, known)
            elif stack:
                _mend(scene, driver, stack)
            layers.sync()
    except PyrunError as error:
        return error.message
    return ""


def make_layer(scene: Scene, driver: str, key: str, known: dict[str, Origin]) -> str:
    """Make a layer that is missing."""
    stack = [] if key in known else mend.mended_by(scene.layers(driver), key)
    try:
        with SharedLock(f"{scene.root}/locks/store"):
            if stack:
                _mend(scene, driver, stack)
            else:
                make(scene, driver, key, known)
            scene.store(driver).layers.sync()
    except PyrunError as error:
        return error.message
    return ""


def remove_path(scene: Scene, path: str, driver: str) -> str:
    """Remove a directory that is no layer, through the staging directory."""
    try:
        stage = scene.shelves().staging.receive(path, driver)
    except FileNotFoundError:
        return ""
    try:
        scene.remove(stage.path, driver)
    except PyrunError as error:
        return error.message
    finally:
        stage.close()
    return ""


def remove_file(path: str) -> str:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"it can't be removed: {error.strerror}"
    return ""


def _users(scene: Scene, driver: str, key: str) -> list[tuple[str, str]]:
    """(id, name) of the containers that mount the layer."""
    return [(c.id, c.name) for c in scene.containers.all() if c.driver == driver and key in c.layers]


def _blob_is_bad(scene: Scene, origin: Origin) -> str:
    """Why the layer can't be made from its blob; "" where it can. One that a lazy driver never kept is fetched."""
    content, digest = scene.images.content, origin.layer.digest
    if not content.has(digest):
        why = fetch_blob(scene, digest, [origin.image])
        return f"is missing: {why}" if why else ""
    try:
        return "" if content.intact(digest) else "is damaged"
    except (PyrunError, OSError) as error:
        return f"can't be read: {error}"


def _mend(scene: Scene, driver: str, ids: list[str]) -> None:
    layers = scene.store(driver).layers
    found = [layer for id in ids if (layer := layers.find(id)) is not None]
    if len(found) == len(ids):
        layers.mended(found)
