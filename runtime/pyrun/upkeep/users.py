"""The containers as garbage collection sees them: which layers each needs."""

from __future__ import annotations

from ..containers.store import Containers
from ..errors import NotFound, PyrunError, StorageError
from ..images.gc import User


def users(containers: Containers) -> list[User]:
    """Every container. Raises `StorageError` where a record is damaged, for what it needs is unknown then."""
    found = []
    for id in containers.ids():
        try:
            container = containers.load(id)
        except NotFound:
            continue  # removed just now
        except (PyrunError, KeyError, TypeError) as error:
            raise StorageError(
                f"the record of container {id[:12]} is damaged, so what it needs is unknown",
                hint="pyrun system check tells more.",
            ) from error
        found.append(
            User(
                container.image_id,
                container.driver,
                tuple(container.layers),
                container.name,
                container.status == "running",
            )
        )
    return found
