"""Whether all of an image is here, and is what a pull would choose: then there is nothing to fetch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

from ...errors import DigestMismatch, ImageError, StorageError
from ..layerstore import layer_keys
from ..platform import Platform, choose, suits
from ..record import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..content import ContentStore
    from ..layerstore import LayerStore
    from ..local import ImageStore
    from ..model import Descriptor
    from ..reference import Reference


def present(
    reference: Reference, platform: Platform, content: ContentStore, images: ImageStore, layers: LayerStore
) -> Image | None:
    """The image that ``reference`` names here, if every part of it is here and ``platform`` would get no other from
    the same index; else None. Layers' blobs are looked at, not hashed again: `pyrun system check` does that."""
    for image in _named(reference, content, images):
        if _complete(image, content, layers) and _chosen(image, reference, platform, content):
            if reference.digest:
                record = image.to_json()
                record.update(reference=reference.canonical, digest=reference.digest)
                return Image.from_json(record)
            return image
    return None


def _named(reference: Reference, content: ContentStore, images: ImageStore) -> Iterator[Image]:
    """The records of the name. An index's digest stands for as many as it lists, each named by its manifest's."""
    exact = images.record(reference)
    if exact is not None:
        yield exact
    elif reference.digest:
        try:
            entries = json.loads(content.read(reference.digest))["manifests"]
            digests = [entry["digest"] for entry in entries]
        except (StorageError, DigestMismatch, ValueError, KeyError, TypeError):
            return  # it is no index, or not here
        for digest in digests:
            image = images.record(reference.with_digest(digest))
            if image is not None and image.digest == reference.digest:
                yield image


def _complete(image: Image, content: ContentStore, layers: LayerStore) -> bool:
    if not image.digest:
        return False
    try:
        for digest in {image.digest, image.manifest, image.id}:
            content.read(digest)
        needs_blobs = not layers.driver.verdict.caps.lazy
        for layer in image.layers if needs_blobs else ():
            if content.size(layer.digest) != layer.size:
                return False
    except (StorageError, DigestMismatch):
        return False
    keys = layer_keys([layer.diff_id for layer in image.layers], chained=layers.chained)
    return all(layers.find(key) is not None for key in keys)


class _Entry:
    """As much of a descriptor as a choice looks at."""

    def __init__(self, entry: dict[str, object]) -> None:
        self.digest = entry["digest"]
        where = entry.get("platform")
        self.platform: Platform | None = None
        if isinstance(where, dict):
            variant = where.get("variant") or ""
            self.platform = Platform(where.get("os", ""), where.get("architecture", ""), variant)


def _chosen(image: Image, reference: Reference, platform: Platform, content: ContentStore) -> bool:
    """Whether ``platform`` leads to this image. The index, which was checked when it was fetched, is read again for
    that; a nested one is left to a full pull."""
    if not suits(platform, *(*image.platform.split("/"), "", "")[:3]):
        return False
    if (reference.digest or image.digest) == image.manifest:
        return True
    try:
        entries = [_Entry(entry) for entry in json.loads(content.read(image.digest))["manifests"]]
        return choose(cast("list[Descriptor]", entries), platform, "").digest == image.manifest
    except (ValueError, KeyError, TypeError, ImageError):
        return False
