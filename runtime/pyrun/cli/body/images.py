"""Lists images. On the path of `images`, of which a store may have thousands."""

from __future__ import annotations

import time

from ...errors import UsageError
from ...images.record import since_epoch
from ..names import NONE, named, repository_and_tag, short_id
from ..output import rows, warn
from ..units import ago, human_size, local_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...images.record import Image
    from ...images.sizes import ImageSizes
    from ..session import Session

HEADERS = {
    "ID": "IMAGE ID",
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
    "VirtualSize": "VIRTUAL SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
    "Containers": "CONTAINERS",
    "Platform": "PLATFORM",
}
COLUMNS = ("Repository", "Tag", "ID", "CreatedSince", "Size")
WITH_DIGEST = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")


def record(image: Image, now: float, *, truncate: bool, sizes: ImageSizes | None = None) -> dict[str, str]:
    """The fields of one line; ``now`` in seconds since the epoch. Without ``sizes``, which only templates show, what
    they would tell is "N/A"."""
    created = since_epoch(image.created)
    repository, tag = repository_and_tag(image)
    size = human_size(image.size)
    return {
        "ID": short_id(image.id) if truncate else image.id,
        "Repository": repository,
        "Tag": tag,
        "Digest": image.digest or NONE,
        "CreatedSince": ago(created, now),
        "CreatedAt": local_time(created),
        "Size": size,
        "VirtualSize": size,
        "SharedSize": human_size(sizes.shared) if sizes else "N/A",
        "UniqueSize": human_size(sizes.unique) if sizes else "N/A",
        "Containers": str(sizes.containers) if sizes else "N/A",
        "Platform": image.platform,
    }


def images(
    session: Session,
    *,
    name: Sequence[str] | None,
    all: bool,
    quiet: bool,
    no_trunc: bool,
    digests: bool,
    filter: Sequence[str] | None,
    tree: bool,
    format: str,
) -> int:
    if name and len(name) > 1:
        raise UsageError(f"one name is taken, not {len(name)}", hint="A pattern stands for several: 'app*'.")
    engine = session.engine()
    filters = list(filter or ())
    told: list[str] = []
    if tree:
        from ..image_tree import show

        for given, option in ((quiet, "--quiet"), (digests, "--digests"), (bool(format), "--format")):
            if given:
                raise UsageError(f"--tree and {option} can't be used together", hint="Drop one of them.")
        if name:
            filters.append(f"reference={name[0]}")
        show(engine.image_tree(all=all, filters=filters, warn=told.append), truncate=not no_trunc)
    else:
        found = engine.images(all=all, filters=filters, warn=told.append)
        if name:
            found = named(found, name[0])
        template = format not in ("", "table")
        sizes = engine.image_sizes(found) if template else {}
        if quiet and not template:
            format = "{{.ID}}"
        now = time.time()
        lines = (record(image, now, truncate=not no_trunc, sizes=sizes.get(image.id)) for image in found)
        rows(lines, HEADERS, WITH_DIGEST if digests else COLUMNS, format)
    for text in told:
        warn(f"pyrun: warning: {text}")
    return 0
