"""Is the store sound? Nothing is changed unless repair is asked for, and every read command works meanwhile.

The store's lock is held shared while blobs and layers are read: pulls and containers go on, garbage collection
waits. What a living process is making or holds is never a problem.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ..errors import Conflict
from ..storage.locks import Lock, SharedLock
from .check_containers import check_containers
from .check_content import check_blobs, check_images, check_index
from .check_layers import LayerCheck
from .check_one import check_some
from .check_store import check_store
from .check_tables import check_tables
from .problems import Checked, Problem
from .rubbish import check_orphans, check_rubbish
from .scene import Scene, in_words, origins


def check(
    scene: Scene,
    *,
    images: Sequence[str] = (),
    deep: bool = False,
    repair: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Checked:
    """Look at everything, or at ``images`` (names, IDs): see `pyrun.upkeep.check_one`. ``deep`` compares the content
    of layers with what their blobs make; ``repair`` does something about what is found, and looks again at nothing.
    ``say`` is told what is being done.

    Raises `Conflict` where another repair or a migration is going on, `StorageError` for a store that can't
    be looked at, `NotFound` for an image that is not there.
    """

    def look() -> Checked:
        return check_some(scene, images, deep, say) if images else _look(scene, deep, say)

    with in_words(scene.root):
        return _repaired(scene, look, say) if repair else look()


def _repaired(scene: Scene, look: Callable[[], Checked], say: Callable[[str], None]) -> Checked:
    lock = Lock(f"{scene.root}/locks/upkeep")
    if not lock.acquire(wait=False):
        raise Conflict("another repair or migration of this store is going on", hint="Wait until it is done.")
    try:
        first = check_store(scene)
        _repair(first, say)  # the rest can be looked at with it only
        checked = look()
        _repair(checked.problems, say)
        checked.problems[:0] = [problem for problem in first if not problem.left]
        return checked
    finally:
        lock.release()


def _look(scene: Scene, deep: bool, say: Callable[[str], None]) -> Checked:
    done = Checked(check_store(scene))
    with SharedLock(f"{scene.root}/locks/store"):
        images = scene.images.records()
        known = origins(images)
        done.problems += check_images(scene, images)
        count, blobs = check_blobs(scene, images, say)
        done.problems += blobs
        done.problems += check_index(scene)  # after the blobs: it lists those that are there
        containers, problems = check_containers(scene, known)
        bad = {problem.subject for problem in blobs}
        layers = LayerCheck(scene, known, containers, bad, deep=deep, say=say)
        done.problems += layers.all()
        done.problems += layers.missing(images)
        done.problems += problems
        done.problems += check_tables(scene, images)
        done.counts = {
            "blobs": count,
            "layers": layers.count,
            "images": len(images),
            "containers": len(containers),
        }
        done.notes += layers.notes
    say("Looking for leftovers")
    done.problems += check_rubbish(scene)
    orphans, why = check_orphans(scene)
    # What is damaged and unused was told already.
    told = {problem.subject for problem in done.problems}
    done.problems += [problem for problem in orphans if problem.subject not in told]
    if why:
        done.notes.append(why)
    done.problems = _once(done.problems)
    return done


def _once(problems: list[Problem]) -> list[Problem]:
    """A layer that an image and containers lack is one problem."""
    found: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        found.setdefault((problem.kind, problem.subject), problem)
    return list(found.values())


def _repair(problems: list[Problem], say: Callable[[str], None]) -> None:
    """In the order found: records, blobs, layers, containers, leftovers. What failed is tried once more, for it
    may have needed what came after it."""
    for attempt in range(2):
        for problem in problems:
            if problem.repair is None:
                problem.outcome = "nothing can be done about it here"
            elif problem.left:
                if not attempt:
                    say(f"Repairing {problem.kind} {problem.subject}")
                try:
                    problem.outcome = problem.repair() or "repaired"
                except OSError as error:
                    problem.outcome = f"{error.filename or problem.subject}: {os.strerror(error.errno or 0)}"
