"""The one way to put an image that was made here into the stores: from a container, a tar or an archive.

    with assembling(root):
        layer = add_layer(content, chunks_of_a_tar)
        image = store_image(config, [*below, layer], content=..., images=..., layers=..., names=[reference])

Until its record is written nothing refers to what was stored: whatever ends this early leaves whole blobs and layers,
which the garbage collector removes, and no image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import DigestMismatch, ImageError
from ...layers import confined
from ...storage.layers import SETTLED, check_depth
from ...storage.locks import SharedLock
from ..blob import Plain, StoredBlob
from ..codec import Buffer
from ..content import out_of_space
from ..digest import hasher, sha256, short
from ..layerstore import layer_keys, sweep_staging
from ..mediatypes import oci_layer_type
from ..model import (
    OCI_CONFIG,
    OCI_MANIFEST,
    ImageConfig,
    Manifest,
    parse_config,
    parse_manifest,
    timestamp,
)
from ..platform import Platform
from ..record import Image, ImageLayer
from ..workers import Job, Report, run
from .compress import LAYER_TYPES, compression_of, compressor
from .incoming import Incoming

if TYPE_CHECKING:
    from ...layers.stream import ThreadedReader
    from ..content import ContentStore
    from ..layerstore import LayerStore
    from ..local import ImageStore
    from ..reference import Reference

_READ = 256 << 10
_HEAD = 512  # bytes that tell how a stream is compressed, and whether it is a tar


@contextmanager
def assembling(root: str) -> Iterator[None]:
    """Hold ``locks/store`` shared, as pulls do: the garbage collector leaves what no record names yet."""
    locks = os.path.join(root, "locks")
    try:
        os.makedirs(locks, mode=0o700, exist_ok=True)
        with SharedLock(os.path.join(locks, "store")):
            yield
    except OSError as error:
        raise out_of_space(error, str(error.filename or root)) from error


def add_layer(
    content: ContentStore,
    chunks: Iterable[Buffer],
    *,
    compression: str = "gzip",
    diff_id: str = "",
    report: Callable[[int], None] | None = None,
) -> ImageLayer:
    """Store a layer whose digests are not known yet, in one pass; memory does not grow with its size.

    chunks       a tar; one that is compressed with gzip or zstd is stored as it is, one with bzip2 or xz anew. Each
                 may be overwritten once the next is asked for
    compression  "gzip", "zstd" or "none", for a plain tar
    diff_id      the digest that the plain tar must have, where that is known
    report       called now and then with the bytes taken so far

    That it unpacks is found out by `store_image`. Raises `LayerError` for damaged compression, `DigestMismatch`,
    `StorageError`, and what ``chunks`` raises; nothing is kept then. The caller is `assembling`.
    """
    source, found = _sniffed(chunks, report)
    with Incoming(content) as incoming:
        if found in ("gzip", "zstd"):
            compression = found
            unpacked, digits = _kept(source, incoming, compression)
        elif found == "none":
            unpacked, digits = _packed(source, incoming, compression)
        else:
            from ..plain import plain_reader

            with plain_reader(source, found, "the layer") as reader:
                unpacked, digits = _packed(iter(lambda: reader.read(_READ), b""), incoming, compression)
        if diff_id and digits != diff_id.partition(":")[2]:
            raise DigestMismatch(
                f"a layer's tar is sha256:{digits}, and the image's config names {diff_id}",
                hint="The image is broken or was tampered with. Nothing of the layer was kept.",
            )
        digest = incoming.commit()
        return ImageLayer(digest, f"sha256:{digits}", incoming.size, unpacked, LAYER_TYPES[compression])


def _packed(chunks: Iterable[Buffer], incoming: Incoming, compression: str) -> tuple[int, str]:
    """Compress a plain tar; its bytes, and the hex digits of its sha256."""
    state = hasher("sha256:")
    unpacked = 0
    pack = compressor(compression)
    for chunk in chunks:
        state.update(chunk)
        unpacked += len(chunk)
        incoming.write(pack.compress(chunk))
    incoming.write(pack.flush())
    return unpacked, state.hexdigest()


def _kept(chunks: Iterable[Buffer], incoming: Incoming, compression: str) -> tuple[int, str]:
    """Store a compressed tar as it is; the bytes of the plain one, and the hex digits of its sha256. A stranger may
    have compressed it: it is looked into in a confined process."""
    plain = Plain("sha256:the-layer", "sha256:", LAYER_TYPES[compression])

    def kept() -> Iterator[Buffer]:
        for chunk in chunks:
            incoming.write(chunk)
            yield chunk

    def drained(stream: ThreadedReader, root: int) -> dict[str, Any]:
        stream.drain()
        return plain.told()

    found = confined.run(kept(), plain.stream, drained)
    try:
        return int(found["unpacked"]), str(found["hash"])
    except (KeyError, TypeError, ValueError):
        raise confined.senseless() from None


def _sniffed(
    chunks: Iterable[Buffer], report: Callable[[int], None] | None
) -> tuple[Generator[Buffer, None, None], str]:
    """The same bytes, and how they are compressed, as `compression_of` tells."""
    source = iter(chunks)
    head = b""
    for chunk in source:
        head += chunk
        if len(head) >= _HEAD:
            break

    def all_of_it() -> Generator[Buffer, None, None]:
        taken = len(head)
        if head:
            yield head
        for chunk in source:
            taken += len(chunk)
            if report is not None:
                report(taken)
            yield chunk

    return all_of_it(), compression_of(head)


def store_image(
    config: bytes,
    stack: Sequence[ImageLayer],
    *,
    content: ContentStore,
    images: ImageStore,
    layers: LayerStore,
    names: Sequence[Reference] = (),
    manifest: bytes | None = None,
    digest: str = "",
) -> Image:
    """Store an image and name it; the record of its first name. The process must have one thread.

    config    the image config, of which the digest is the image's ID; it must name the diff_ids of ``stack``
    stack     bottom to top, from `add_layer` or another image's record; their blobs are in the content store
    names     tags. Without any the image has none: it is known by its ID until it is removed
    manifest  the image's own, stored as it is; None: an OCI manifest is made
    digest    that of what the names stand for in their repositories; "" for an image that no registry has

    Layers that the storage driver does not have are unpacked, side by side, and their digests and diff_ids checked.
    Raises `ImageError` for documents that don't fit together, `LayerError` for a layer that can't be unpacked,
    `DigestMismatch`, `StorageError`. The caller is `assembling`.
    """
    image = make_image(config, stack, content=content, layers=layers, manifest=manifest, digest=digest)
    layers.sync(older=SETTLED)
    layers.mark()
    return name_image(images, image, names)


def make_image(
    config: bytes,
    stack: Sequence[ImageLayer],
    *,
    content: ContentStore,
    layers: LayerStore,
    manifest: bytes | None = None,
    digest: str = "",
) -> Image:
    """`store_image` up to the naming: for several images that come together. Before they are named the layers have
    to be put on disk (`LayerStore.sync`)."""
    if manifest is None:
        manifest = oci_manifest(config, stack)
    document = _check(config, stack, manifest)
    check_depth(layers.driver, len(stack))
    content.add_bytes(config, sha256(config))
    content.add_bytes(manifest, sha256(manifest))
    unpack([stack], content, layers)
    keys = layer_keys([layer.diff_id for layer in stack], chained=layers.chained)
    return Image(
        reference=f"@{sha256(manifest)}",
        digest=digest,
        manifest=sha256(manifest),
        id=sha256(config),
        platform=str(Platform(document.os, document.architecture, document.variant or "")),
        created=timestamp(document.created),
        config=document.config or {},
        layers=[
            ImageLayer(
                layer.digest,
                layer.diff_id,
                layer.size,
                layer.unpacked or layers.unpacked(key),
                layer.media_type,
            )
            for layer, key in zip(stack, keys, strict=True)
        ],
    )


def name_image(images: ImageStore, image: Image, names: Sequence[Reference]) -> Image:
    """Write the records of an image that `make_image` made; that of its first name."""
    records = []
    for name in names:
        record = image.to_json()
        record["reference"] = name.canonical
        records.append(Image.from_json(record))
    for made in records or [image]:
        images.put(made)
    return (records or [image])[0]


def oci_manifest(config: bytes, stack: Sequence[ImageLayer]) -> bytes:
    """An OCI image manifest (OCI image spec, manifest.md), compact: the same image gives the same bytes."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": sha256(config), "size": len(config)},
        "layers": [
            {"mediaType": oci_layer_type(layer.media_type), "digest": layer.digest, "size": layer.size}
            for layer in stack
        ],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _check(config: bytes, stack: Sequence[ImageLayer], data: bytes) -> ImageConfig:
    what = "the image's manifest"
    media_type = json.loads(data).get("mediaType") or OCI_MANIFEST
    manifest = parse_manifest(data, str(media_type), what)
    if not isinstance(manifest, Manifest):
        raise ImageError(f"{what} is an index")
    document = parse_config(config, manifest, "the image's config")
    if manifest.config.digest != sha256(config) or [layer.digest for layer in manifest.layers] != [
        layer.digest for layer in stack
    ]:
        raise ImageError(f"{what} names other blobs than the image is made of")
    if document.rootfs.diff_ids != [layer.diff_id for layer in stack]:
        raise ImageError("the image's config names other layers than the image is made of")
    return document


def unpack(
    stacks: Sequence[Sequence[ImageLayer]],
    content: ContentStore,
    layers: LayerStore,
    reported: Callable[[ImageLayer, str, int, int], None] | None = None,
) -> None:
    """Bring the layers of every stack into the layer store from their stored blobs: side by side, or where a layer
    is made from those below it, bottom to top. ``reported`` is told a layer's state, and bytes."""
    if layers.chained:
        for stack in stacks:
            parent = None
            keys = layer_keys([layer.diff_id for layer in stack], chained=True)
            for layer, key in zip(stack, keys, strict=True):
                if layers.find(key) is None:
                    work = partial(_ingest, content, layers, layer, parent=parent)
                    work_on([(layer, work)], content, layers, reported)
                parent = layers.find(key)
            if keys:
                layers.complete(keys[-1])
        return
    wanted = {layer.diff_id: layer for stack in stacks for layer in stack}
    work_on(
        [
            (layer, partial(_ingest, content, layers, layer))
            for layer in wanted.values()
            if layers.find(layer.diff_id) is None
        ],
        content,
        layers,
        reported,
    )


def _ingest(
    content: ContentStore,
    layers: LayerStore,
    layer: ImageLayer,
    report: Report,
    *,
    parent: object = None,
) -> None:
    layers.ingest(StoredBlob(content, layer, report=report), parent, listed=False)  # type: ignore[arg-type]


def work_on(
    todo: Sequence[tuple[ImageLayer, Callable[[Report], None]]],
    content: ContentStore,
    layers: LayerStore,
    reported: Callable[[ImageLayer, str, int, int], None] | None,
) -> None:
    """Run each in a worker, a few at a time. What a worker left that was ended is swept."""

    def tell(number: int, status: str, current: int, total: int) -> None:
        if reported is not None:
            reported(todo[number][0], status, current, total)

    def finished(number: int) -> None:
        tell(number, "Load complete", 0, 0)

    jobs = [Job(f"layer {short(layer.digest)}", work) for layer, work in todo]
    try:
        run(jobs, at_once=(os.cpu_count() or 1) + 1, reported=tell, finished=finished)
    except BaseException:
        content.sweep()
        sweep_staging(layers)
        raise
