"""Repairs of containers and their names. Each returns "" once it is done, else why it could not be."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from ..containers import claims
from ..containers.store import KILLED, new_state
from ..errors import PyrunError
from ..storage.contract import Layer
from ..storage.locks import SharedLock, lock_directory

if TYPE_CHECKING:
    from ..containers.record import Container
    from .scene import Scene


def set_ended(scene: Scene, id: str) -> str:
    lock = lock_directory(f"{scene.containers.directory}/{id}")
    if lock is None:
        return "it is running"
    try:
        state = {**new_state("exited"), "exit_code": KILLED, "error": "its state record was lost"}
        scene.containers.set_state(id, state, durable=True)
    except OSError as error:
        return f"the record can't be written: {error.strerror}"
    finally:
        os.close(lock)
    return ""


def prepare_anew(scene: Scene, container: Container) -> str:
    """Give a container an empty writable layer."""
    try:
        store = scene.store(container.driver)
        layers = [Layer(id, store.layers.path(id)) for id in container.layers]
        stage = store.staging.new(container.driver)
        try:
            os.mkdir(f"{stage.path}/rw", 0o700)
            store.driver.prepare(layers, f"{stage.path}/rw", container.options.get("size"))
            os.rename(f"{stage.path}/rw", scene.containers.writable(container.id))
        finally:
            store.remove(f"{stage.path}/rw", container.driver)
            store.remove(stage.path, container.driver)
            stage.close()
    except PyrunError as error:
        return error.message
    except OSError as error:
        return f"it can't be made: {error.strerror}"
    return ""


def remove_leftovers(scene: Scene, id: str) -> str:
    try:
        scene.containers.remove_leftovers(id, scene.remove)
    except (PyrunError, OSError) as error:
        return str(error)
    return ""


def claim_name(scene: Scene, container: Container) -> str:
    name = claims.claim(scene.root, container.name, container.id)
    if name is None:
        return "another container has the name"
    name.keep()
    name.close()
    return ""


def is_free(scene: Scene, name: str) -> bool:
    """Whether a claim stands for no container, and nobody is making one."""
    path = f"{scene.root}/names/{name}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        owner = os.read(fd, 64).decode(errors="replace")
        return not owner or not os.path.exists(f"{scene.containers.directory}/{owner}")
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def release_name(scene: Scene, name: str) -> str:
    with SharedLock(f"{scene.root}/locks/store"):
        if is_free(scene, name):
            try:
                with open(f"{scene.root}/names/{name}") as file:
                    owner = file.read(64)
                claims.release(scene.root, name, owner)
            except FileNotFoundError:
                pass
    return ""
