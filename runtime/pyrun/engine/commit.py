"""A container's files as a tar (``pyrun export``), and as an image (``pyrun commit``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..containers import view as views
from ..layers.pack import pack
from ..storage.changes import added
from ..storage.contract import Change

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .archives import ArchiveMethods


class Sink(Protocol):
    """Where bytes go: a file opened for writing."""

    def write(self, data: bytes, /) -> object: ...


def export(engine: ArchiveMethods, name: str, out: Sink) -> int:
    """`Engine.export`."""
    container = engine.container(name)
    store = engine._store_of(container)
    with views.opened(store, engine._containers(), container.id) as view:
        size = pack(_everything(view.root), view.root, out, owner=view.owner, plain=True)
        view.check()
        return size


def _everything(root: int) -> Iterator[Change]:
    """All that the directory has, and its own attributes."""
    yield Change(b"", "modify")
    yield from added(root, b"")
