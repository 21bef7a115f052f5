"""What this room needs of the layer store (`pyrun.storage` has it): layers by key, made from blobs.

A layer's key is its diff_id, or where ``chained`` its chain_id (OCI image spec, config.md#layer-chainid).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..storage.layers import chain_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ..storage.contract import Blob, Driver, Layer
    from ..storage.guard import Guarded
    from ..storage.locks import Staging


class LayerStore(Protocol):
    chained: bool
    driver: Driver | Guarded
    staging: Staging

    def find(self, key: str, /) -> Layer | None: ...

    def unpacked(self, key: str, /) -> int:
        """Bytes of the tar stream the layer was made from."""

    def ingest(
        self,
        blob: Blob,
        parent: Layer | None = None,
        /,
        *,
        listed: bool = True,
        waiting: Callable[[], None] | None = None,
    ) -> Layer:
        """Make the layer, or wait for a process that is making it; ``blob`` may be left unread then. ``listed``
        False leaves the listing of its files to `complete`. ``waiting`` is called now and then while it waits."""

    def complete(self, key: str, /) -> None:
        """List a layer that was made without."""

    def mark(self) -> None:
        """Let layers that are not on disk yet be made again after a power cut."""

    def sync(self, *, older: float = 0.0) -> None:
        """Put every layer on disk that was made ``older`` seconds ago or before."""

    def keys(self) -> Iterable[str]: ...

    def remove(self, key: str, /) -> None: ...


def layer_keys(diff_ids: Sequence[str], *, chained: bool) -> list[str]:
    """The key of each layer, bottom to top."""
    if not chained:
        return list(diff_ids)
    keys: list[str] = []
    for diff_id in diff_ids:
        keys.append(chain_id(keys[-1] if keys else None, diff_id))
    return keys


def sweep_staging(layers: LayerStore) -> None:
    """Remove what a killed worker was making; another driver's entries stay for the next opening."""

    def remove(path: str, driver: str) -> None:
        if driver == layers.driver.name:
            layers.driver.remove(path)

    layers.staging.sweep(remove)
