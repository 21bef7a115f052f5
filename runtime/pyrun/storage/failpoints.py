"""Failpoints: the moments at which a death must do no harm, by name. On the path of `run`: one comparison.

The chaos tests set ``armed`` to a function that is called with each name reached, and kills the process, or
raises, at the one it is for. Nothing else sets it, and no environment variable does.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

armed: Callable[[str], None] | None = None

# Every name, in the order of the operations; the chaos tests go through all of them.
INGEST = ("ingest.staged", "ingest.made", "ingest.recorded", "ingest.marked", "ingest.placed")
PREPARE = ("prepare.staged", "prepare.made", "prepare.placed")
MOUNT = ("mount.begin", "mount.made")
COMMIT = ("commit.begin", "commit.entry", "commit.end")
REMOVE = ("remove.begin", "remove.moved", "remove.removed")
GC = ("gc.begin", "gc.layer", "gc.blob", "gc.end")
MIGRATE = (
    "migrate.begin",
    "migrate.layer",
    "migrate.layers",
    "migrate.packed",
    "migrate.unpacked",
    "migrate.placed",
    "migrate.moved",
    "migrate.switching",
    "migrate.switched",
    "migrate.cleaned",
)
# Of making an image of a container, of which the first three are COMMIT's.
IMAGE = (*COMMIT, "commit.packed", "commit.stored")
# Of changing image records, and the OCI layout's index with them.
IMAGES = ("images.marked", "images.recorded", "images.published", "images.removed")
# Of one driver and its store; a migration has two, and tests of its own; so have images.
ALL = (*INGEST, *PREPARE, *MOUNT, *COMMIT, *REMOVE, *GC)


def reach(name: str) -> None:
    if armed is not None:
        armed(name)
