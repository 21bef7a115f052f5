"""Removes containers. On the path of `rm`."""

from __future__ import annotations

from ...errors import NotFound
from ..each import for_each
from ..output import write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..session import Session


def rm(session: Session, *, containers: Sequence[str], force: bool) -> int:
    engine = session.engine()

    def remove(name: str) -> None:
        try:
            engine.remove_container(name, force=force)
        except NotFound:
            if force:
                return
            raise
        write(f"{name}\n")

    return for_each(containers, remove)
