"""What dead processes left, and what nothing needs: harmless, and in the way."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from ..errors import PyrunError
from ..images import gc
from ..storage import leases
from ..storage.locks import Lock
from .problems import Problem
from .repair_layers import remove_file
from .users import users

if TYPE_CHECKING:
    from .scene import Scene

# A file that is being made is unlocked for a moment: what is rubbish is so twice.
_AGAIN = 0.1


def check_rubbish(scene: Scene) -> list[Problem]:
    """Half-made things, stale locks, dead leases, temporary files; containers that lost their supervisor."""
    first = dict(_look(scene))
    if first:
        time.sleep(_AGAIN)
        second = dict(_look(scene))
        first = {path: found for path, found in first.items() if path in second}
    problems = [problem for _, problem in sorted(first.items())]
    lost = scene.containers.lost()
    for id in dict.fromkeys([*lost, *scene.containers.abandoned()]):
        what = "its supervisor was killed" if id in lost else "its maker was killed"
        problems.append(
            Problem(
                "container-lost",
                id[:12],
                what,
                harm=False,
                fix="end what it left running, and set its record right",
                repair=partial(_recover, scene, id),
            )
        )
    return problems


def check_orphans(scene: Scene) -> tuple[list[Problem], str]:
    """(layers and blobs that nothing needs, why none were looked for). Looks while nobody pulls or makes a
    container, or what these are about to name would be among them."""
    with gc.exclusively(scene.root) as alone:
        if not alone:
            return [], "unused layers and blobs were not looked for: the store is in use, by a pull perhaps"
        try:
            shelves = scene.shelves()
            needs = gc.needs(scene.images, shelves, users(scene.containers))
        except PyrunError as error:
            return [], f"unused layers and blobs were not looked for: {error.message}"
        if needs.unknown:
            return [], f"unused layers and blobs were not looked for: {needs.unknown}"
        problems = []
        for layers in shelves.all():
            for key in sorted(layers.keys()):
                if key not in needs.layers[layers.driver.name] and _is_layer(layers.directory, key):
                    subject = f"{layers.driver.name}/{key}"
                    problems.append(_orphan("layer-orphan", subject, scene))
        for digest in sorted(scene.images.content.digests()):
            if digest not in needs.blobs:
                problems.append(_orphan("blob-orphan", digest, scene))
    return problems, ""


def _orphan(kind: str, subject: str, scene: Scene) -> Problem:
    what = "no image, container or lease needs it"
    return Problem(kind, subject, what, harm=False, fix="remove it", repair=partial(_collect, scene))


def _is_layer(directory: str, key: str) -> bool:
    name = key.removeprefix("sha256:").replace(":", "-")
    return os.path.exists(f"{directory}/{name}/meta.json")


def _collect(scene: Scene) -> str:
    """One collection takes all of them."""
    done = gc.collect(scene.images, scene.shelves(), lambda: users(scene.containers))
    return done.deferred


def _recover(scene: Scene, id: str) -> str:
    scene.containers.recover([id], scene.remove)
    return "its record can't be written" if id in scene.containers.lost() else ""


# --- things that lie about


def _look(scene: Scene) -> Iterator[tuple[str, Problem]]:
    root = scene.root

    def found(kind: str, path: str, what: str, how: Callable[[], str]) -> tuple[str, Problem]:
        subject = os.path.relpath(path, root)
        return path, Problem(kind, subject, what, harm=False, fix="remove it", repair=how)

    for path in scene.shelves().staging.dead():
        yield found(
            "half-made", path, "whoever was making or removing it is dead", partial(_sweep_staging, scene)
        )
    for name in _listed(f"{root}/ingest"):
        # A download that was broken off is gone on with by the next pull: for a week it is no rubbish.
        if _unlocked(f"{root}/ingest/{name}") and scene.images.content.stale(name):
            yield found(
                "half-made",
                f"{root}/ingest/{name}",
                "its download was broken off",
                partial(_sweep_content, scene),
            )
    for name in _listed(f"{root}/locks"):
        path = f"{root}/locks/{name}"
        if name != "store" and _unlocked(path):
            yield found("stale-lock", path, "its holder was killed", partial(_release, path))
    for path in leases.dead(root):
        yield found("stale-lease", path, "its holder was killed", partial(remove_file, path))
    for path in _temporaries(scene):
        yield found("temporary", path, "the process that was writing it is dead", partial(remove_file, path))


def _temporaries(scene: Scene) -> Iterator[str]:
    """``.tmp-<pid>-name`` and ``name.<pid>.tmp``, of processes that are gone."""
    root = scene.root
    places = [root, f"{root}/images", f"{root}/content", f"{root}/tables"]
    places += [f"{root}/containers/{id}" for id in scene.containers.ids()]
    places += [f"{root}/layers/{name}/.mended" for name in _listed(f"{root}/layers")]
    for place in places:
        for name in _listed(place):
            if name.startswith(".tmp-"):
                pid = name.split("-")[1]
            elif name.endswith(".tmp"):
                pid = name.removesuffix(".tmp").rpartition(".")[2]
            else:
                continue
            if pid.isdecimal() and not os.path.exists(f"/proc/{pid}"):
                yield f"{place}/{name}"


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _unlocked(path: str) -> bool:
    """Whether the file is there and nobody holds its lock. Looks with a shared lock, for a moment."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _release(path: str) -> str:
    lock = Lock(path)
    if lock.acquire(wait=False):
        lock.release()
    return ""


def _sweep_staging(scene: Scene) -> str:
    containers = scene.containers
    scene.shelves().staging.sweep(lambda path, driver: containers.clear_staged(path, driver, scene.remove))
    return "it can't be removed" if scene.shelves().staging.dead() else ""


def _sweep_content(scene: Scene) -> str:
    scene.images.content.sweep()
    return ""
