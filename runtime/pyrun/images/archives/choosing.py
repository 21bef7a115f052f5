"""Which images the words of ``pyrun save`` mean, and under which names they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ...errors import InvalidReference, PlatformUnavailable
from ..local import satisfies
from ..reference import Reference, repository_of
from .save import Saving

if TYPE_CHECKING:
    from ..local import ImageStore
    from ..record import Image


def chosen(
    images: ImageStore, words: Sequence[str], platform: str | None, find: Callable[[str], Image]
) -> list[Saving]:
    """One `Saving` an image, in the order of ``words``, as docker reads them: a repository alone means all of its
    tags, a tag that tag, and an ID or digest the image without a name.

    ``find`` gets a local image by any of its names. Raises `NotFound` and what else ``find`` raises;
    `PlatformUnavailable` where ``platform`` is given and an image is for another.
    """
    found: dict[str, Saving] = {}
    for word in words:
        for image, name in _named(images, word, find):
            if platform is not None and not satisfies(image, platform):
                image = _sibling(images, image, platform, word)
            saving = found.setdefault(image.manifest, Saving(image, ()))
            if name is not None and name not in saving.names:
                saving.names.append(name)
    return list(found.values())


def _sibling(images: ImageStore, image: Image, platform: str, word: str) -> Image:
    """The image for ``platform`` that the same index of the same repository named. Raises `PlatformUnavailable`."""
    for other in images.naming(image.digest) if image.digest else ():
        same = other.digest == image.digest and repository_of(other.reference) == repository_of(
            image.reference
        )
        if same and satisfies(other, platform):
            return other
    raise PlatformUnavailable(
        f"the local image {word} is for {image.platform}, not for {platform}",
        hint=f"`pyrun pull --platform {platform} {word}` fetches that.",
    )


def _named(
    images: ImageStore, word: str, find: Callable[[str], Image]
) -> list[tuple[Image, Reference | None]]:
    try:
        reference = Reference.parse(word)
    except InvalidReference:
        return [(find(word), None)]
    if reference.implicit:
        tags = [
            image
            for image in images.naming(reference.repository)
            if "@" not in image.reference and repository_of(image.reference) == reference.repository
        ]
        if tags:
            tags.sort(key=lambda image: image.reference)
            return [(image, Reference.parse(image.reference)) for image in tags]
    image = find(word)
    # A short ID looks like a name, and so does an alias of registries.conf.
    by_id = (
        image.id.startswith(f"sha256:{word.removeprefix('sha256:')}")
        and image.reference != reference.canonical
    )
    named = "@" not in image.reference and not reference.digest and not by_id
    return [(image, Reference.parse(image.reference) if named else None)]
