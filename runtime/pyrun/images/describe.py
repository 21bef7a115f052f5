"""What is said about an image: docker's ``inspect`` object, and its history."""

from __future__ import annotations

from typing import Any

from .content import ContentStore
from .local import ImageStore
from .model import ImageConfig, parse, timestamp
from .record import HistoryEntry, Image
from .reference import Reference


def _config(content: ContentStore, image: Image) -> ImageConfig:
    return parse(
        content.read(image.id), ImageConfig, f"the config of {image.familiar}"
    )


def inspect(images: ImageStore, content: ContentStore, image: Image) -> dict[str, Any]:
    """The object that ``docker image inspect`` prints, of the fields that mean something here.

    ``Size`` counts bytes of the layers' tar streams. Raises `DigestMismatch` or `StorageError` where the
    config blob is damaged or missing.
    """
    config = _config(content, image)
    tags, digests = images.references(image)
    os, architecture, variant = (*image.platform.split("/"), "", "")[:3]
    found: dict[str, Any] = {
        "Id": image.id,
        "RepoTags": [Reference.parse(tag).familiar for tag in tags],
        "RepoDigests": [Reference.parse(digest).familiar for digest in digests],
        "Parent": "",
        "Comment": config.comment or "",
        "Created": image.created,
        "Author": config.author or "",
        "Config": image.config,
        "Architecture": architecture,
        "Os": os,
        "Size": image.size,
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]},
        "Descriptor": {"Digest": image.manifest},
    }
    if variant:
        found["Variant"] = variant
    return found


def history(content: ContentStore, image: Image) -> list[HistoryEntry]:
    """One entry a build step, newest first; layers that the config's history does not tell of come without
    words. Raises as `inspect` does."""
    steps = _config(content, image).history or []
    sizes = [layer.unpacked for layer in image.layers]
    found: list[HistoryEntry] = []
    for step in steps:
        size = 0 if step.empty_layer or not sizes else sizes.pop(0)
        found.append(
            HistoryEntry("", timestamp(step.created), step.created_by or "", size, step.comment or "")
        )
    found.extend(HistoryEntry("", "", "", size, "") for size in sizes)
    found.reverse()
    if found:
        found[0].id = image.id
    return found
