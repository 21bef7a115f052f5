"""Push: what an image's manifest names, then the manifest, byte for byte as it is stored, then what names it.

Nothing is sent before every blob is known to be here with the right size, or to be there already. While it is
sent, a lease keeps it from garbage collection. Needs no storage driver: layers are sent as the blobs that they
came as.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from ...errors import DigestMismatch, ImageError, PlatformUnavailable, StorageError
from ...storage.leases import Lease
from ...storage.locks import SharedLock
from ..content import ContentStore
from ..digest import short
from ..local import ImageStore
from ..mediatypes import stored_type
from ..model import INDEXES, Index, Manifest, parse
from ..platform import Platform, choose, suits
from ..record import Image, Progress
from ..reference import Reference
from ..registry.access import Access
from ..registry.client import RegistryClient
from ..registry.registries import Registries
from . import crew, manifests
from .documents import MAX_INDEX_DEPTH
from .manifests import Document
from .upload import EXISTS, MAX_SOURCES, MOUNTED, Upload

AT_ONCE = 5  # blobs on their way side by side, as docker has it
_DONE = {EXISTS: "Layer already exists", MOUNTED: "Mounted from {}"}


@dataclass(frozen=True, slots=True)
class PushResult:
    """reference  canonical name that was pushed to
    digest     of the manifest or index that the name stands for there now
    size       bytes of that manifest or index
    """

    reference: str
    digest: str
    size: int


@dataclass(slots=True)
class _Parcel:
    """All that must get there for one image: blobs by digest with their sizes, and documents, each after those
    it names; the last is what the tag stands for."""

    layers: dict[str, int] = field(default_factory=dict)
    configs: dict[str, int] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)  # fetched from elsewhere, and in no registry
    documents: list[Document] = field(default_factory=list)

    def blobs(self) -> dict[str, int]:
        return {**self.layers, **self.configs}


def push(
    goods: Sequence[tuple[str, Reference]],
    *,
    platform: str | None = None,
    all_platforms: bool = False,
    images: ImageStore,
    registries: Registries,
    access: Access | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[PushResult]:
    """Push local images, by name, each to a tag of one and the same repository.

    Of an image that was pulled from an index the whole index is pushed where all that it lists is here, else the
    manifest of the image's platform. ``platform`` pushes the manifest for that one; ``all_platforms`` nothing but
    the whole index. A name that is pushed to and has a record here for the same image gets its repository digest.

    ``progress`` is called in this thread, in docker's words. It goes to the registry's own location, as
    registries.conf has it, never to a mirror. Raises `NotFound`, `ImageError` and its kinds, `StorageError`.
    """
    work = _Push(images, registries, access or Access(), progress or (lambda step: None))
    # registries.conf may lead single tags of a repository elsewhere.
    groups: dict[str, list[tuple[str, Reference]]] = {}
    for name, reference in goods:
        groups.setdefault(str(registries.primary(reference)), []).append((name, reference))
    done = [result for group in groups.values() for result in work.run(group, platform, all_platforms)]
    order = [reference.canonical for _, reference in goods]
    return sorted(done, key=lambda result: order.index(result.reference))


class _Push:
    def __init__(
        self,
        images: ImageStore,
        registries: Registries,
        access: Access,
        progress: Callable[[Progress], None],
    ) -> None:
        self.images = images
        self.content: ContentStore = images.content
        self.registries = registries
        self.access = access
        self.progress = progress

    def run(
        self, goods: Sequence[tuple[str, Reference]], platform: str | None, all_platforms: bool
    ) -> list[PushResult]:
        target = goods[0][1]
        endpoint = self.registries.primary(target)
        for name, _ in goods:
            self.images.get(name)  # before anything else: it may not exist, and the store neither
        with ExitStack() as ending:
            # Shared with pulls: garbage collection must not come between a look at the records and the lease.
            with SharedLock(os.path.join(self.images.root, "locks", "store")):
                found = [self.images.get(name) for name, _ in goods]
                parcels = [
                    pack(self.content, image, image.familiar, platform, all_platforms) for image in found
                ]
                held = {document.digest for parcel in parcels for document in parcel.documents}
                held.update(digest for parcel in parcels for digest in parcel.blobs())
                lease = Lease(self.images.root, "", (), blobs=held, work=f"push of {target.familiar}")
                ending.enter_context(lease)
            client = RegistryClient(endpoint, target.familiar, actions="pull,push", access=self.access)
            ending.callback(client.close)
            self._say("", f"The push refers to repository [{target.repository}]")
            self._send(client, parcels)
            return [
                self._name(client, image, parcel, reference)
                for image, parcel, (_, reference) in zip(found, parcels, goods, strict=True)
            ]

    def _send(self, client: RegistryClient, parcels: Sequence[_Parcel]) -> None:
        """Have every blob of ``parcels`` in the registry."""
        layers: dict[str, int] = {}
        configs: dict[str, int] = {}
        foreign: set[str] = set()
        for parcel in parcels:
            layers.update(parcel.layers)
            configs.update(parcel.configs)
            foreign.update(parcel.foreign)
        absent = [digest for digest, size in {**layers, **configs}.items() if not self._present(digest, size)]
        sources = self._sources(client, layers)
        for digest in layers:
            self._say(short(digest), "Preparing")
        for digest in absent:
            self._spare(client, digest, {**layers, **configs}[digest], sources.get(digest, ()))
        for digest in foreign:
            self._say(short(digest), "Skipped foreign layer")
        todo = [digest for digest in layers if digest not in absent]
        for digest in todo[AT_ONCE:]:
            self._say(short(digest), "Waiting")
        tasks = [
            crew.Task(short(digest), partial(self._carry, digest, layers[digest], sources.get(digest, ())))
            for digest in todo
        ]
        tasks += [
            crew.Task("", partial(self._carry, digest, size, ()))
            for digest, size in configs.items()
            if digest not in absent and digest not in layers
        ]
        client.authorize()  # once, for all of the threads
        crew.run(tasks, client, at_once=AT_ONCE, progress=self.progress)

    def _carry(
        self,
        digest: str,
        size: int,
        sources: Sequence[str],
        client: RegistryClient,
        report: crew.Report,
        stop: threading.Event,
    ) -> str:
        """One blob, in a thread; the last word on it."""
        how, source = Upload(client, self.content, digest, size, report=report, stop=stop).run(sources)
        return _DONE.get(how, "Pushed").format(source)

    def _spare(self, client: RegistryClient, digest: str, size: int, sources: Sequence[str]) -> None:
        """A blob that is not here: the registry has it, or takes it from another of its repositories, or the image
        can't be pushed."""
        upload = Upload(client, self.content, digest, size, report=lambda *_: None, stop=threading.Event())
        how, source = upload.spare(sources)
        upload.forget()
        if not how:
            raise StorageError(
                f"{client.name} can't be pushed: its blob {digest} is neither in the store"
                f" nor at {client.endpoint.host}",
                hint="Pull it again, with a storage driver that keeps blobs (--storage): what is missing is fetched.",
            )
        self._say(short(digest), _DONE[how].format(source))

    def _present(self, digest: str, size: int) -> bool:
        """Whether the blob is stored. Raises `DigestMismatch` where it has not the size it should have."""
        if not self.content.has(digest):
            return False
        found = self.content.size(digest)
        if found != size:
            raise DigestMismatch(
                f"blob {digest} is damaged: it has {found} bytes in the store instead of {size}",
                hint="Nothing was pushed. Pull the image again: a damaged blob is replaced.",
            )
        return True

    def _sources(self, client: RegistryClient, layers: dict[str, int]) -> dict[str, list[str]]:
        """For each layer the repositories on this registry that should have it, by the local records."""
        here = client.endpoint
        found: dict[str, list[str]] = {}
        for image in self.images.naming(*layers):
            if image.unnamed or not image.digest:
                continue  # nobody knows it to be in a registry
            try:
                there = self.registries.primary(Reference.parse(image.reference))
            except ImageError:
                continue  # blocked meanwhile
            if there.host != here.host or there.path == here.path:
                continue
            for layer in image.layers:
                paths = found.setdefault(layer.digest, [])
                if layer.digest in layers and there.path not in paths and len(paths) < MAX_SOURCES:
                    paths.append(there.path)
        return found

    def _name(
        self, client: RegistryClient, image: Image, parcel: _Parcel, reference: Reference
    ) -> PushResult:
        """Push the documents, the last of them by tag, and note what was pushed."""
        *inner, last = parcel.documents
        for document in inner:
            manifests.put(client, document, document.digest)
        tag = self.registries.primary(reference).tag or str(reference.tag)
        manifests.put(client, last, tag)
        with self.images.changing():
            now = self.images.record(reference)
            held = {document.digest for document in parcel.documents}
            if now is not None and now.manifest == image.manifest in held and now.digest != last.digest:
                now.digest = last.digest
                self.images.change([now])
        self._say("", f"{reference.tag}: digest: {last.digest} size: {len(last.data)}")
        return PushResult(reference.canonical, last.digest, len(last.data))

    def _say(self, id: str, status: str) -> None:
        self.progress(Progress(id, status))


def pack(
    content: ContentStore, image: Image, name: str, platform: str | None, all_platforms: bool
) -> _Parcel:
    """What to push of ``image``, named ``name`` in messages. Raises `PlatformUnavailable`, `StorageError`."""
    has_index = image.digest not in ("", image.manifest) and content.has(image.digest)
    if platform is not None:
        return _of_platform(content, image, name, Platform.parse(platform), has_index)
    if not has_index:
        if all_platforms and image.digest not in ("", image.manifest):
            raise StorageError(
                f"the index of {name} is not in the store", hint=f"Fetch it: pyrun pull {name}"
            )
        return _collected(content, image.manifest)
    missing = _missing(content, image.digest)
    if not missing:
        return _collected(content, image.digest)
    if all_platforms:
        raise StorageError(
            f"not all that the index of {name} lists is here: {missing}",
            hint="Pull the other platforms (--platform), or leave out --all-platforms to push this one alone.",
        )
    return _collected(content, image.manifest)


def _of_platform(
    content: ContentStore, image: Image, name: str, platform: Platform, has_index: bool
) -> _Parcel:
    if not has_index:
        system, architecture, variant = (*image.platform.split("/"), "", "")[:3]
        if not suits(platform, system, architecture, variant):
            raise PlatformUnavailable(
                f"the local image {name} is for {image.platform}, not for {platform}",
                hint=f"Fetch it first: pyrun pull --platform {platform} {name}",
            )
        return _collected(content, image.manifest)
    digest = image.digest
    for _ in range(MAX_INDEX_DEPTH):
        index = parse(content.read(digest), Index, f"the index of {name}")
        chosen = choose(index.manifests, platform, name)
        digest = chosen.digest
        if chosen.media_type not in INDEXES:
            break
    missing = _missing(content, digest)
    if missing:
        raise PlatformUnavailable(
            f"{name} for {platform} is not here: {missing}",
            hint=f"Fetch it first: pyrun pull --platform {platform} {name}",
        )
    return _collected(content, digest)


def _collected(content: ContentStore, digest: str) -> _Parcel:
    """The document ``digest`` and all that it names, which need not be here but for the documents."""
    parcel = _Parcel()
    _collect(content, digest, "", 0, parcel)
    return parcel


def _collect(content: ContentStore, digest: str, media_type: str, depth: int, parcel: _Parcel) -> None:
    if any(document.digest == digest for document in parcel.documents):
        return
    data = content.read(digest)
    media_type = media_type or stored_type(data)
    what = f"the manifest {digest}"
    if media_type in INDEXES:
        if depth >= MAX_INDEX_DEPTH:
            raise ImageError(f"the index {digest} is nested deeper than {MAX_INDEX_DEPTH} levels")
        for entry in parse(data, Index, what).manifests:
            _collect(content, entry.digest, entry.media_type, depth + 1, parcel)
    else:
        manifest = parse(data, Manifest, what)
        parcel.configs[manifest.config.digest] = manifest.config.size
        for layer in manifest.layers:
            if layer.urls:
                parcel.foreign.add(layer.digest)
            else:
                parcel.layers[layer.digest] = layer.size
    parcel.documents.append(Document(digest, media_type, data))


def _missing(content: ContentStore, digest: str) -> str:
    """What of an index or a manifest is not in the store, in words; "" where all is."""
    try:
        parcel = _collected(content, digest)
    except (StorageError, DigestMismatch) as error:
        return error.message
    absent = [blob for blob in parcel.blobs() if not content.has(blob)]
    return f"{absent[0]} is not in the store {content.path}" if absent else ""
