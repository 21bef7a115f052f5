"""What a pull does where something is to be fetched: the layers side by side, then the record that names them.

Until that record is written nothing refers to what was fetched: a pull that fails or is killed leaves whole,
verified blobs and layers, and what it has of others (the next pull uses them, gc removes them), and no image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ...errors import RegistryError
from ...storage.layers import SETTLED, check_depth
from ..content import ContentStore
from ..digest import short
from ..layerstore import LayerStore, layer_keys, sweep_staging
from ..local import ImageStore
from ..platform import Platform
from ..record import Image, ImageLayer, Progress, PullResult
from ..reference import Reference
from ..registry.client import RegistryClient
from ..registry.registries import Endpoint
from .resolve import resolve

if TYPE_CHECKING:
    from ..registry.access import Access
    from ..workers import Report
    from .documents import Resolved
    from .fetch import LayerFetch


class Pulling:
    """One pull; `run` may be called once."""

    def __init__(
        self,
        reference: Reference,
        platform: Platform,
        content: ContentStore,
        images: ImageStore,
        layers: LayerStore,
        endpoints: Sequence[Endpoint],
        access: Access | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.reference = reference
        self.platform = platform
        self.content = content
        self.images = images
        self.layers = layers
        self.endpoints = endpoints
        self.access = access
        self.progress = progress or (lambda step: None)

    def run(self, known: Image | None) -> PullResult:
        """``known`` is the image that the name stood for last time, if all of it is here."""
        name = self.reference.familiar
        clients = [RegistryClient(endpoint, name, access=self.access) for endpoint in self.endpoints]
        try:
            resolved = resolve(
                self.reference, self.platform, self.content, clients, known.digest if known else None
            )
        finally:
            for client in clients:
                client.close()  # the workers open their own connections
        self._say(self.reference.digest or str(self.reference.tag), f"Pulling from {self.reference.path}")
        if resolved is None:
            assert known is not None
            return PullResult(known, False)
        return self._bring(resolved)

    def _bring(self, resolved: Resolved) -> PullResult:
        check_depth(self.layers.driver, len(resolved.config.rootfs.diff_ids))
        keys = layer_keys(resolved.config.rootfs.diff_ids, chained=self.layers.chained)
        fetched = self._fetch(resolved, keys)
        newer = self._newer(resolved)
        image = self._record(resolved, keys)
        if newer or fetched:
            if self.layers.chained and keys:
                self.layers.complete(keys[-1])
            self.layers.sync(older=SETTLED)  # what earlier pulls left to the kernel
            self.layers.mark()
            self.images.put(image)
        return PullResult(image, newer)

    def _newer(self, resolved: Resolved) -> bool:
        """Whether the local record of the name, if there is one, stands for something else."""
        by_digest = self.reference.digest is not None
        name = self.reference.with_digest(resolved.manifest_digest) if by_digest else self.reference
        before = self.images.record(name)
        if before is None or before.manifest != resolved.manifest_digest:
            return True
        return resolved.digest != before.digest and not (by_digest and resolved.digest == before.manifest)

    def _record(self, resolved: Resolved, keys: Sequence[str]) -> Image:
        manifest, config = resolved.manifest, resolved.config
        return Image(
            reference=self.reference.canonical,
            digest=resolved.digest,
            manifest=resolved.manifest_digest,
            id=manifest.config.digest,
            platform=str(resolved.platform),
            created=config.created or "",
            config=config.config or {},
            layers=[
                ImageLayer(layer.digest, diff_id, layer.size, self.layers.unpacked(key), layer.media_type)
                for layer, diff_id, key in zip(manifest.layers, config.rootfs.diff_ids, keys, strict=True)
            ],
        )

    def _fetch(self, resolved: Resolved, keys: Sequence[str]) -> bool:
        """Bring every blob and layer in; False if all were there."""
        from .fetch import LayerFetch

        # Pairs that an earlier pull proved to belong together; for others the blob is unpacked to find out.
        known = self.images.naming(*{layer.digest for layer in resolved.manifest.layers})
        proven = {(layer.digest, layer.diff_id) for image in known for layer in image.layers}
        plan: dict[tuple[str, str], LayerFetch] = {}
        stack: list[LayerFetch] = []
        for layer, diff_id, key in zip(
            resolved.manifest.layers, resolved.config.rootfs.diff_ids, keys, strict=True
        ):
            fetch = LayerFetch(layer, diff_id, key, self.content, self.layers, resolved.clients)
            stack.append(fetch)
            pair = (layer.digest, diff_id)
            if pair in proven and fetch.needed_blob_is_there() and self.layers.find(key) is not None:
                self._say(short(layer.digest), "Already exists")
            elif pair not in plan:
                self._say(short(layer.digest), "Pulling fs layer")
                plan[pair] = fetch
        todo = list(plan.values())
        if not all(fetch.stored() for fetch in todo):
            self._authorize(resolved.clients)
        at_once = (os.cpu_count() or 1) + 1
        for fetch in todo[at_once:]:
            self._say(short(fetch.digest), "Waiting")
        if self.layers.chained:
            self._fetch_chained(todo, stack, at_once)
        else:
            self._work(todo, LayerFetch.ingest, at_once)
        return bool(todo)

    def _authorize(self, clients: Sequence[RegistryClient]) -> None:
        """Have the token that the workers need: one for all of them instead of one each."""
        try:
            clients[0].authorize()
        except RegistryError:
            return  # there may be other places; a worker will say what is wrong with this one
        finally:
            clients[0].close()

    def _fetch_chained(self, todo: Sequence[LayerFetch], stack: Sequence[LayerFetch], at_once: int) -> None:
        """A layer is made from its parent's native form: blobs side by side, then layers bottom to top."""
        from .fetch import LayerFetch

        self._work(todo, LayerFetch.store, at_once)
        parent = None
        for fetch in stack:
            if self.layers.find(fetch.key) is None:
                fetch.parent = parent
                self._work([fetch], LayerFetch.ingest, 1)
            parent = self.layers.find(fetch.key)

    def _work(
        self, fetches: Sequence[LayerFetch], what: Callable[[LayerFetch, Report], None], at_once: int
    ) -> None:
        from ..workers import Job, run
        from .fetch import LayerFetch

        def reported(number: int, status: str, current: int, total: int) -> None:
            self.progress(Progress(short(fetches[number].digest), status, current, total))

        def finished(number: int) -> None:
            if what is LayerFetch.ingest or self.layers.find(fetches[number].key) is not None:
                self._say(short(fetches[number].digest), "Pull complete")

        jobs = [Job(f"layer {short(fetch.digest)}", partial(what, fetch)) for fetch in fetches]
        try:
            run(jobs, at_once=at_once, reported=reported, finished=finished)
        except BaseException:
            # What the ended workers were making; what they had downloaded is kept.
            self.content.sweep()
            sweep_staging(self.layers)
            raise

    def _say(self, id: str, status: str) -> None:
        self.progress(Progress(id, status))
