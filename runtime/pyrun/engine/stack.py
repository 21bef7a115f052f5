"""An image or a container as a stack of layers that can be asked: who made each, what is in it, and the content.

Layers are read from their blobs, once; their tables are kept (`pyrun.images.tables`). Where a blob is not in the
store, as with drivers that need none, a layer is told from what its driver shows with it and without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import Conflict, NotFound, PyrunError, StorageError
from ..layers.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..containers.record import Container
    from ..containers.store import Containers
    from ..images.content import ContentStore
    from ..images.record import Image, ImageLayer
    from ..storage.contract import Layer
    from ..storage.store import Store
    from .containers import ContainerMethods

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer of a stack.

    number      from 1, the lowest
    container   True for a container's writable layer, which has no digests
    diff_id, digest  of its tar, and of the blob as the registry has it
    size, unpacked   bytes of the blob and of the tar
    created, created_by, comment  of the history line that made it ("" where the history does not tell); ``created``
                in RFC 3339
    """

    number: int
    container: bool = False
    diff_id: str = ""
    digest: str = ""
    size: int = 0
    unpacked: int = 0
    created: str = ""
    created_by: str = ""
    comment: str = ""


class BlobSource:
    """The content of a layer whose blob is in the store."""

    def __init__(self, content: ContentStore, layer: ImageLayer) -> None:
        self._content = content
        self._layer = layer

    def read(self, table: Table, row: int) -> Iterator[bytes]:
        """The file's bytes. The blob is decompressed up to where the file ends. `LayerError` for a damaged one."""
        from ..images.blob import StoredBlob

        runs = table.sparse.get(row, [(0, table.stored[row])])
        start, position = table.offsets[row], 0
        with StoredBlob(self._content, self._layer).tar() as tar:
            stream = _Forward(iter(lambda: tar.read(_CHUNK), b""))
            stream.skip(start)
            for offset, length in runs:
                yield from _zeros(offset - position)
                yield from stream.take(length, self._layer.digest)
                position = offset + length
            yield from _zeros(table.sizes[row] - position)


class ViewSource:
    """The content of a layer as a mount shows it that has this layer on top."""

    def __init__(self, view: int) -> None:
        self._view = view

    def read(self, table: Table, row: int) -> Iterator[bytes]:
        import stat

        from ..kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

        name = table.names[row]
        limits = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
        handle = openat2(self._view, name, os.O_PATH | os.O_NOFOLLOW, resolve=limits)
        try:
            # Only a regular file is opened: in a running container the name may be a device's by now.
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise StorageError(f"{os.fsdecode(name)} is no file any more")
            fd = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(handle)
        try:
            while piece := os.read(fd, _CHUNK):
                yield piece
        finally:
            os.close(fd)


@dataclass(slots=True)
class Opened:
    """``name`` as the user gave it; layers, tables and sources bottom to top. ``notes`` are for the user to know:
    a line each. ``covers`` are the places (root-relative) where a container has something else mounted."""

    name: str
    image: Image | None
    container: Container | None
    layers: list[LayerInfo]
    tables: list[Table]
    sources: list[BlobSource | ViewSource]
    notes: list[str] = field(default_factory=list)
    covers: list[bytes] = field(default_factory=list)

    def chosen(self, text: str) -> int:
        """The index of the layer that ``text`` means: "@3" (from the bottom), "@container", or "@" and the first
        digits of a digest or diff_id. Raises `NotFound`, `Conflict`."""
        word = text.removeprefix("@")
        count = len(self.layers)
        if word == "container" and self.container is not None:
            return count - 1
        if word.isascii() and word.isdecimal() and len(word) < 6:
            if 1 <= int(word) <= count:
                return int(word) - 1
        else:
            digits = word.removeprefix("sha256:")
            fits = [
                at
                for at, layer in enumerate(self.layers)
                if len(digits) >= 3
                and any(
                    d.removeprefix("sha256:").startswith(digits) for d in (layer.digest, layer.diff_id) if d
                )
            ]
            if len(fits) > 1:
                raise Conflict(f"{text} fits {len(fits)} layers of {self.name}", hint="Give its number.")
            if fits:
                return fits[0]
        raise NotFound(
            f"{self.name} has no layer {text}",
            hint=f"It has layers @1 (the lowest) to @{count}; digits of a digest or diff_id do as well.",
        )


def suggested(engine: ContainerMethods, name: str, begun: str) -> list[str]:
    """How the path ``begun`` could go on in the image ``name``, as far as tables of its layers are kept: a shell that
    completes a word must not wait for blobs."""
    from ..images.tables import Tables
    from ..layers.provenance import Stack

    image = engine.image(name)
    tables = [Tables(engine.root).kept(layer.diff_id) for layer in image.layers]
    kept = [table for table in tables if table is not None]
    if len(kept) < len(tables):
        return []
    stack = Stack(kept)
    directory, slash, last = begun.rpartition("/")
    place = stack.find(os.fsencode(directory) or b"/")
    if place.problem:
        return []
    found = []
    for base, kind in sorted(stack.children(place.name).items()):
        text = os.fsdecode(base)
        if text.startswith(last):
            found.append(directory + slash + text + ("/" if kind == "dir" else ""))
    return found


@contextmanager
def opened(engine: ContainerMethods, name: str, *, images_only: bool = False) -> Iterator[Opened]:
    """The container or image ``name`` (a container is looked for first), readable while the context lasts.

    Raises `NotFound`; `StorageError` where neither the blob of a layer nor the driver's form of it is there;
    `DigestMismatch` and `LayerError` for a blob that was tampered with.
    """
    container = None
    if not images_only:
        try:
            container = engine.container(name)
        except NotFound:
            container = None
    if container is not None:
        with _opened_container(engine, name, container) as found:
            yield found
        return
    try:
        image = engine.image(name)
    except NotFound:
        if images_only:
            raise
        raise NotFound(
            f"no such image or container: {name}",
            hint=f"`pyrun pull {name}` fetches an image; `pyrun images` and `pyrun ps -a` list what is here.",
        ) from None
    with ExitStack() as stack:
        yield _opened_image(engine, name, image, stack)


def _opened_image(engine: ContainerMethods, name: str, image: Image, stack: ExitStack) -> Opened:
    from ..images.tables import Tables

    images = engine._images()
    layers, notes = _told(images.content, image)
    found = Tables(images.root).of(image.layers)
    sources: list[BlobSource | ViewSource] = []
    tables: list[Table] = []
    views = _Views(engine, image, stack)
    for at, table in enumerate(found):
        if table is not None and images.content.has(image.layers[at].digest):
            sources.append(BlobSource(images.content, image.layers[at]))
            tables.append(table)
            continue
        view, changed = views.layer(at)
        sources.append(ViewSource(view))
        tables.append(table or changed())
        # A file's place in the tar means nothing to a mount; names are all that is read by.
    if views.used:
        missing = ", ".join(str(at + 1) for at in views.used)
        notes.append(
            f"the blob of layer {missing} is not in the store: told from what the storage driver"
            f" {views.driver} shows, so a file that is the same again counts for no change"
        )
    return Opened(name, image, None, layers, tables, sources, notes)


def _told(content: ContentStore, image: Image) -> tuple[list[LayerInfo], list[str]]:
    """What is known of the image's layers without reading them; the history's lines go to the layers in turn, but
    for those that made none (OCI image spec, config.md, "empty_layer")."""
    import json

    notes = []
    steps: list[dict[str, object]] = []
    try:
        # Its digest holds, so it is the config that was found sound when the image came.
        history = json.loads(content.read(image.id)).get("history") or []
        steps = [step for step in history if not step.get("empty_layer")]
    except (PyrunError, ValueError, AttributeError, TypeError) as error:
        notes.append(f"the history is not known: {getattr(error, 'message', 'the config is damaged')}")
    layers = []
    for at, layer in enumerate(image.layers):
        step = steps[at] if at < len(steps) else {}
        words = [str(step.get(key) or "") for key in ("created", "created_by", "comment")]
        layers.append(
            LayerInfo(at + 1, False, layer.diff_id, layer.digest, layer.size, layer.unpacked, *words)
        )
    return layers, notes


class _Views:
    """What the driver shows with the lower layers of an image, mounted when it is asked for."""

    def __init__(self, engine: ContainerMethods, image: Image, stack: ExitStack) -> None:
        self._engine = engine
        self._image = image
        self._stack = stack
        self._store: Store | None = None
        self._fds: dict[int, int] = {}
        self.used: list[int] = []
        self.driver = ""

    def layer(self, at: int) -> tuple[int, Callable[[], Table]]:
        from ..storage.changes import added, compare
        from ..storage.tabulate import tabulate

        self.used.append(at)
        view = self._view(at)

        def changed() -> Table:
            if not at:
                return tabulate(added(view, b""), view)
            return tabulate(compare(self._view(at - 1), view), view)

        return view, changed

    def _view(self, at: int) -> int:
        """A mount of the layers up to ``at``."""
        if at in self._fds:
            return self._fds[at]
        if self._store is None:
            self._store = self._engine._open()
            self.driver = self._store.driver.name
        layers = self._layers(self._store, at + 1)
        mount = self._store.driver.mount(layers, None)
        self._stack.callback(os.close, mount)
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        self._stack.callback(os.close, fd)
        self._fds[at] = fd
        return fd

    def _layers(self, store: Store, count: int) -> list[Layer]:
        from ..images.layerstore import layer_keys

        diff_ids = [layer.diff_id for layer in self._image.layers[:count]]
        layers = []
        for at, key in enumerate(layer_keys(diff_ids, chained=store.layers.chained)):
            found = store.layers.find(key)
            if found is None:
                layer = self._image.layers[at]
                raise StorageError(
                    f"layer {at + 1} can't be read: neither its blob {layer.digest} is in the store, nor what the "
                    f"storage driver {store.driver.name} made of it",
                    hint="Pull the image again.",
                )
            layers.append(found)
        return store.layers.mended(layers)


@contextmanager
def _opened_container(engine: ContainerMethods, name: str, container: Container) -> Iterator[Opened]:
    from ..containers.view import opened as viewed
    from ..storage.tabulate import tabulate

    store = engine._open()
    if container.driver != store.driver.name:
        raise StorageError(
            f"the container {container.name} was made with the storage driver {container.driver}, and the one in use "
            f"is {store.driver.name}",
            hint=f"Choose it with --storage {container.driver}, or move the container: pyrun storage migrate.",
        )
    images = engine._images()
    image = next((one for one in images.naming(container.image_id) if one.id == container.image_id), None)
    if image is None:
        raise NotFound(
            f"the image of container {container.name} is no longer here, and with it what its layers are",
            hint=f"Pull it again: pyrun pull {container.image}",
        )
    containers = engine._containers()
    with ExitStack() as stack:
        found = _opened_image(engine, name, image, stack)
        view = stack.enter_context(viewed(store, containers, container.id))
        table = tabulate(view.changes(), view.root, view.owner)
        view.check()
        found.container = container
        found.layers.append(LayerInfo(len(found.layers) + 1, container=True, unpacked=sum(table.stored)))
        found.tables.append(table)
        found.sources.append(ViewSource(view.root))
        found.covers = _covers(containers, container)
        yield found


def _covers(containers: Containers, container: Container) -> list[bytes]:
    """Where something is, or would be, mounted in the container, the root itself left out."""
    try:
        places = [mount["destination"] for mount in containers.spec(container.id)["mounts"]]
    except NotFound:
        places = [mount["destination"] for mount in container.options["mounts"]]
    return [name for name in (os.fsencode(place).strip(b"/") for place in places) if name]


class _Forward:
    """A stream of pieces, read forwards."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""

    def skip(self, count: int) -> None:
        while count > len(self._piece):
            count -= len(self._piece)
            self._piece = next(self._pieces, b"")
            if not self._piece:
                return
        self._piece = self._piece[count:]

    def take(self, count: int, what: str) -> Iterator[bytes]:
        while count:
            if not self._piece:
                self._piece = next(self._pieces, b"")
                if not self._piece:
                    raise StorageError(
                        f"blob {what} is cut off", hint="`pyrun system check` tells; pull the image again."
                    )
            part, self._piece = self._piece[:count], self._piece[count:]
            count -= len(part)
            yield part


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        part = bytes(min(count, _CHUNK))
        count -= len(part)
        yield part
