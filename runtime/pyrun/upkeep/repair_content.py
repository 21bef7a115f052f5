"""Repairs of blobs and image records. Each returns "" once it is done, else why it could not be."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ..errors import DigestMismatch, ImageError, PyrunError, RegistryError
from ..images import index
from ..images.blob import LayerBlob, StoredBlob
from ..images.mediatypes import stored_type
from ..images.model import Index, parse_config, parse_manifest
from ..images.platform import Platform
from ..images.record import Image, ImageLayer
from ..images.reference import Reference
from ..images.registry.client import RegistryClient
from ..images.registry.registries import Registries
from ..images.transfer.fetch import fetched
from ..images.transfer.sources import Sources

if TYPE_CHECKING:
    from ..images.content import ContentStore
    from .scene import Scene

_MOST_DOCUMENT = 4 << 20


def remove_blob(scene: Scene, digest: str) -> str:
    scene.images.content.remove(digest)
    return ""


def republish(scene: Scene) -> str:
    scene.images.republish()
    return ""


def fetch_blob(scene: Scene, digest: str, images: list[Image]) -> str:
    """Get the blob from the first registry of the images that has it. What lies there is put aside, and back
    where none has."""
    content = scene.images.content
    path = content.blob_path(digest)
    aside = f"{content.path}/.tmp-{os.getpid()}-{os.path.basename(path)[:32]}"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        aside = ""
    reasons: list[str] = []
    try:
        for image in {image.reference: image for image in images if not image.unnamed}.values():
            reference = Reference.parse(image.reference)
            for endpoint in Registries.load().endpoints(reference):
                client = RegistryClient(endpoint, reference.familiar, patience=10)
                try:
                    _fetch(client, content, digest, image)
                    if any(digest == image.manifest for image in images):
                        scene.images.agree()  # which lists no manifest that is missing
                    return ""
                except PyrunError as error:
                    if error.message not in reasons:
                        reasons.append(error.message)
                finally:
                    client.close()
    finally:
        if aside:
            if content.has(digest):
                os.unlink(aside)
            else:
                os.rename(aside, path)
    return "; ".join(reasons) or "no registry is known for it"


def _fetch(client: RegistryClient, content: ContentStore, digest: str, image: Image) -> None:
    for layer in image.layers:
        if layer.digest == digest:
            if not fetched(LayerBlob.verify, Sources(digest, [client], ()), content, layer).verified:
                raise RegistryError(f"{client.endpoint.host} did not send all of {digest}")
            return
    if digest == image.id:
        manifest = json.loads(content.read(image.manifest))
        data = client.get_blob(digest, int(manifest["config"]["size"]))
    else:
        data, _, _ = client.get_manifest(digest)
    content.add_bytes(data, digest)


def remake_record(scene: Scene, reference: str, manifest: str, *, shared: bool = False) -> str:
    """Write the image's record again: from the blobs, where its ``manifest`` (a digest, or "") is still known and
    whole, so that it stays the same image; else by pulling it. ``shared`` says that other repositories have
    the image, too: which of them it was pulled from is not known, so none gets a digest until it is again."""
    images = scene.images
    why = "nothing tells any more which image it was"
    if manifest:
        try:
            images.put(_image(scene, reference, manifest, shared))
            return ""
        except (PyrunError, OSError) as error:
            why = str(error.args[0] if error.args else error)
    store = scene.usable(scene.selected)
    if store is None:
        return f"{why}, and to pull it the store's driver must work"
    from ..images.transfer.pull import pull

    registries = Registries.load()
    try:
        pull(
            registries.reference(reference),
            content=images.content,
            images=images,
            layers=store.layers,
            registries=registries,
        )
        return ""
    except PyrunError as error:
        return error.message


def index_names(content: ContentStore) -> dict[str, str]:
    """By reference, the manifests that the layout's index knows; those of damaged records are among them."""
    return {key: str(entry["digest"]) for key, entry in (index.read(content) or {}).items()}


def _image(scene: Scene, reference: str, digest: str, shared: bool) -> Image:
    """The record of the image with the manifest ``digest``. Raises `PyrunError` where its blobs don't make one."""
    content = scene.images.content
    what = f"the manifest of {reference}"
    data = content.read(digest)
    manifest = parse_manifest(data, stored_type(data), what)
    if isinstance(manifest, Index):
        raise ImageError(f"{what} is an index")
    config = parse_config(content.read(manifest.config.digest), manifest, f"the config of {reference}")
    layers = []
    for entry, diff_id in zip(manifest.layers, config.rootfs.diff_ids, strict=True):
        layer = ImageLayer(entry.digest, diff_id, entry.size, 0, entry.media_type)
        layer.unpacked = _unpacked(scene, content, layer)
        layers.append(layer)
    return Image(
        reference=reference,
        digest="" if shared else _index_of(content, digest) or digest,
        manifest=digest,
        id=manifest.config.digest,
        platform=str(Platform(config.os, config.architecture, config.variant or "")),
        created=config.created or "",
        config=config.config or {},
        layers=layers,
    )


def _unpacked(scene: Scene, content: ContentStore, layer: ImageLayer) -> int:
    """Bytes of the layer's tar stream: as counted when it was made, else by reading it."""
    for layers in scene.shelves().all():
        try:
            return layers.unpacked(layer.diff_id)
        except (OSError, PyrunError, KeyError, TypeError, ValueError):
            continue
    blob = StoredBlob(content, layer)
    blob.verify()
    return blob.unpacked


def _index_of(content: ContentStore, manifest: str) -> str:
    """The digest of a stored index that lists ``manifest``; "" where there is none."""
    for digest in content.digests():
        try:
            if content.size(digest) > _MOST_DOCUMENT:
                continue
            data = content.read(digest)
            if data[:1] != b"{":
                continue
            document: Any = json.loads(data)
            if any(entry["digest"] == manifest for entry in document.get("manifests", ())):
                return digest
        except (PyrunError, DigestMismatch, OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return ""
