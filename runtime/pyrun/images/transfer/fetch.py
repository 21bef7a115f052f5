"""One layer's way into the stores, in a worker: from the first place that has its bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ...errors import DigestMismatch
from ..blob import LayerBlob, Report, StoredBlob, silent, wrong_size
from ..model import foreign_urls
from ..record import ImageLayer
from ..registry.client import RegistryClient
from .download import RegistryBlob
from .sources import Sources

if TYPE_CHECKING:
    from ...storage.contract import Layer
    from ..content import ContentStore
    from ..layerstore import LayerStore
    from ..model import Descriptor

PROGRESS_INTERVAL = 0.1  # seconds between two reports of one state


class LayerFetch:
    """A layer to be brought in. ``key`` is its name in the layer store, whose ``parent`` counts where that
    store is chained."""

    def __init__(
        self,
        descriptor: Descriptor,
        diff_id: str,
        key: str,
        content: ContentStore,
        layers: LayerStore,
        clients: Sequence[RegistryClient],
    ) -> None:
        self.digest = descriptor.digest
        self.diff_id = diff_id
        self.key = key
        self._layer = ImageLayer(descriptor.digest, diff_id, descriptor.size, 0, descriptor.media_type)
        self._annotations = descriptor.annotations
        self._urls = foreign_urls(descriptor)
        self.parent: Layer | None = None
        self._content = content
        self._layers = layers
        self._clients = clients

    def ingest(self, report: Report) -> None:
        """Unpack the layer and keep its compressed blob, whichever is missing."""
        if self._layers.find(self.key) is not None:
            if not self._lazy:
                self.store(report)
            return

        told = _sparse(report)

        def waiting() -> None:
            """Another process makes the layer: what it has of the blob is this one's progress, too."""
            told("Downloading", self._content.unfinished().get(self.digest, 0), self._layer.size)

        def use(blob: LayerBlob) -> None:
            parent = self.parent if self._layers.chained else None
            self._layers.ingest(blob, parent, listed=False, waiting=waiting)

        if not self._through(use, told).verified and not self._lazy:
            self.store(report)  # another process made the layer, perhaps from another blob

    def store(self, report: Report) -> None:
        """Keep the compressed blob, and check that it unpacks to the diff_id."""
        self._through(LayerBlob.verify, _sparse(report))

    @property
    def _lazy(self) -> bool:
        """A lazy driver reads what it needs when it needs it, and verifies that itself."""
        return self._layers.driver.verdict.caps.lazy

    def needed_blob_is_there(self) -> bool:
        """`stored`, for a driver that needs the blob."""
        return self._lazy or self.stored()

    def stored(self) -> bool:
        """Whether the blob is stored, of the size that the manifest says. A damaged one is removed.

        Raises `ImageError` where the blob is sound, so that the manifest must be wrong about its size.
        """
        if not self._content.has(self.digest):
            return False
        found = self._content.size(self.digest)
        if found == self._layer.size:
            return True
        if self._content.intact(self.digest):
            raise wrong_size(self.digest, self._layer.size, found)
        self._content.remove(self.digest)
        return False

    def _through(self, use: Callable[[LayerBlob], None], report: Report) -> LayerBlob:
        """``use`` the blob of the first source whose bytes are what they should be; that blob."""
        if self.stored():
            blob = StoredBlob(self._content, self._layer, self._annotations, report)
            try:
                use(blob)
                return blob
            except DigestMismatch:
                if blob.intact:
                    raise
                self._content.remove(self.digest)  # damaged on disk: fetched again below
        sources = Sources(self.digest, self._clients, self._urls)
        return fetched(use, sources, self._content, self._layer, self._annotations, report)


def fetched(
    use: Callable[[LayerBlob], None],
    sources: Sources,
    content: ContentStore,
    layer: ImageLayer,
    annotations: Mapping[str, str] | None = None,
    report: Report = silent,
) -> RegistryBlob:
    """``use`` the layer's blob from the first of ``sources`` whose bytes are what they should be; that blob.

    Wrong bytes are never kept, and their source is not asked again. Where they came from several, or were partly on
    disk already, it can't be told whose were wrong: all are fetched once more. Raises the last source's error, or
    one that tells of all.
    """
    again = False
    try:
        while True:
            blob = RegistryBlob(sources, content, layer, annotations, report)
            try:
                use(blob)
                return blob
            except DigestMismatch as error:
                if blob.intact or blob.source is None:
                    raise  # the bytes are right and the image is wrong; or there is no source left
                if again or not blob.mixed:
                    sources.drop(blob.source, error)
                else:
                    again = True
    finally:
        sources.close()


def _sparse(report: Report) -> Report:
    """``report`` with the steps between two changes of state thinned out."""
    last, when = "", 0.0

    def thinned(status: str, current: int, total: int) -> None:
        nonlocal last, when
        now = time.monotonic()
        if status != last or now - when >= PROGRESS_INTERVAL:
            last, when = status, now
            report(status, current, total)

    return thinned
