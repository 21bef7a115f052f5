"""Local images as a tree: the names of each, and below them the platforms it is for (``docker images --tree``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import PyrunError
from .content import ContentStore
from .mediatypes import stored_type
from .model import Descriptor, Index, parse_manifest
from .record import Image
from .reference import Reference


@dataclass(slots=True)
class TreePlatform:
    """``image`` is None where the index lists the platform and its image is not here. ``id``: the image's, or the
    digest of the manifest that is not here. ``disk``: bytes that its compressed layers and documents take together
    with the unpacked layers; ``content``: without those. ``used``: by a container."""

    platform: str
    id: str
    image: Image | None
    disk: int = 0
    content: int = 0
    used: bool = False


@dataclass(slots=True)
class TreeImage:
    """What was pulled or made as one: an index or a manifest, by its ``digest``; ``names`` as docker prints them,
    none for an image without a tag."""

    digest: str
    names: list[str]
    platforms: list[TreePlatform] = field(default_factory=list)

    @property
    def present(self) -> list[TreePlatform]:
        return [platform for platform in self.platforms if platform.image is not None]


def tree(images: Iterable[Image], content: ContentStore, used: set[str], *, all: bool) -> list[TreeImage]:
    """The ``images`` (newest first, which the answer keeps to) by what they were pulled as. ``used`` are IDs of
    containers' images; ``all`` shows those without a tag, too."""
    groups: dict[str, list[Image]] = {}
    for image in images:
        key = image.digest if image.digest and content.has(image.digest) else image.manifest
        groups.setdefault(key, []).append(image)
    # A tag in another repository has no digest of its own: it goes with the image it was given to.
    homes = {image.manifest: key for key, group in groups.items() for image in group if key != image.manifest}
    for key in [key for key in groups if key in homes]:
        groups[homes[key]] += groups.pop(key)
    found = []
    for digest, group in groups.items():
        names = sorted({Reference.parse(i.reference).familiar for i in group if "@" not in i.reference})
        if names or all:
            found.append(TreeImage(digest, names, _platforms(digest, group, content, used)))
    return found


def _platforms(digest: str, group: list[Image], content: ContentStore, used: set[str]) -> list[TreePlatform]:
    here = {image.manifest: image for image in group}
    found: list[TreePlatform] = []
    for listed in _listed(content, digest):
        image = here.pop(listed.digest, None)
        if image is not None:
            found.append(_present(image, content, used))
        elif listed.platform is not None and listed.platform.os != "unknown":
            found.append(TreePlatform(_platform(listed), listed.digest, None))
    return found + [_present(image, content, used) for image in here.values()]


def _present(image: Image, content: ContentStore, used: set[str]) -> TreePlatform:
    layers = {layer.digest: layer for layer in image.layers}.values()
    held = sum(layer.size for layer in layers)
    for digest in (image.manifest, image.id):
        if content.has(digest):
            held += content.size(digest)
    disk = held + sum(layer.unpacked for layer in layers)
    return TreePlatform(image.platform, image.id, image, disk, held, image.id in used)


def _listed(content: ContentStore, digest: str) -> list[Descriptor]:
    """What the index lists, in its order; nothing where ``digest`` is a manifest's, or the index is damaged."""
    try:
        data = content.read(digest)
        document = parse_manifest(data, stored_type(data), f"the index {digest}")
    except PyrunError:
        return []
    return document.manifests if isinstance(document, Index) else []


def _platform(listed: Descriptor) -> str:
    assert listed.platform is not None
    parts = (listed.platform.os, listed.platform.architecture, listed.platform.variant)
    return "/".join(part for part in parts if part)
