"""The layers of every driver that has some in the store, its own driver's and all others'.

A driver that can't work here, or is no longer installed, still has its layers listed, looked at and removed.
"""

from __future__ import annotations

import os

from ..errors import StorageError
from .contract import Driver, Env, Verdict, typed_options
from .guard import Guarded
from .layers import LayerStore
from .locks import Staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from ..layers.unpack import Unpacked
    from .contract import Blob, Layer
    from .store import Store


class Shelves:
    """remove   removes a directory that a driver made: ``remove(path, driver name)``
    current  the layers of the driver that is in use; None where the store's own can't be"""

    def __init__(
        self, root: str, env: Env, remove: Callable[[str, str], None], current: LayerStore | None = None
    ) -> None:
        self.root = root
        self.env = env
        self.remove = remove
        self.current = current
        self.staging = Staging(f"{root}/staging")

    @classmethod
    def of(cls, store: Store) -> Shelves:
        return cls(store.root, store.env, store.remove, store.layers)

    def names(self) -> list[str]:
        """The drivers that have a directory here, and the one in use."""
        place = f"{self.root}/layers"
        try:
            found = {n for n in os.listdir(place) if not n.startswith(".") and os.path.isdir(f"{place}/{n}")}
        except FileNotFoundError:
            found = set()
        if self.current is not None:
            found.add(self.current.driver.name)
        return sorted(found)

    def layers(self, name: str) -> LayerStore:
        """The layers of the driver ``name``: to be listed, found and removed, and no more unless it is the
        one in use."""
        if self.current is not None and self.current.driver.name == name:
            return self.current
        return LayerStore(self.root, _stand_in(name, self.env, self.remove), self.staging)

    def all(self) -> list[LayerStore]:
        return [self.layers(name) for name in self.names()]


def remover(env: Env) -> Callable[[str, str], None]:
    """``remove(path, driver name)`` by the driver's own class where it is installed, whether it could work here
    or not; else by plain deletion."""
    classes: dict[str, type[Driver] | None] = {}

    def remove(path: str, driver: str) -> None:
        from ..layers.remove import remove_tree

        if not classes:
            from .plugins import Plugins

            classes.update({found.name: found.driver for found in Plugins().drivers()})
        cls = classes.get(driver)
        if cls is None:
            remove_tree(path)
        else:
            Guarded(cls(env, typed_options(cls, {}), Verdict(True, "for removal only"))).remove(path)

    return remove


class _StandIn(Driver):
    """Takes the place of a driver that is not open: it can remove what that one made."""

    removal: Callable[[str, str], None]

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        return Verdict(False, "it is not open")

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> Unpacked | None:
        raise self._closed()

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        raise self._closed()

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        raise self._closed()

    def remove(self, path: str) -> None:
        self.removal(path, self.name)

    def _closed(self) -> StorageError:
        return StorageError(
            f"the storage driver {self.name} is not the store's",
            hint=f"Choose it with --storage {self.name}, or see why it can't work: pyrun storage doctor.",
        )


def _stand_in(name: str, env: Env, removal: Callable[[str, str], None]) -> Driver:
    cls = type("StandIn", (_StandIn,), {"name": name})
    driver: _StandIn = cls(env, {}, Verdict(True, "for removal only"))
    driver.removal = removal
    return driver
