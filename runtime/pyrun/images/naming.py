"""Giving names to images: what a pull, a build or ``tag`` puts on record, and what becomes of the image that had the
name before."""

from __future__ import annotations

from ..errors import ConfigError, InvalidReference, StorageError
from .local import file_name
from .record import Image
from .reference import Reference, repository_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .local import ImageStore


def put(images: ImageStore, image: Image) -> None:
    """Write the record of ``image.reference``; an image that so loses its last name keeps one by digest, or if
    no registry has it stays without a name. One without a name gets no record where it has a name already.

    A reference by digest becomes that of the image's manifest. Atomic and durable; the content it names
    must be in the stores already.
    """
    with images.changing():
        _put(images, image)


def tag(images: ImageStore, source: str, target: str) -> Image:
    """Give the image ``source`` the name ``target`` too; the new record.

    In another repository it has no repository digest until it is pushed there. Raises `NotFound`,
    `InvalidReference`.
    """
    reference = Reference.parse(target)
    if reference.digest:
        raise InvalidReference(
            f"{target!r} can't be the name of a tag: it has a digest", hint='For example "app:1.0".'
        )
    with images.changing():
        image = images.get(source)  # under the lock: `remove` may be taking it
        digest = image.digest if repository_of(image.reference) == reference.repository else ""
        copy = renamed(image, reference.canonical, digest)
        _put(images, copy)
    return copy


def renamed(image: Image, reference: str, digest: str) -> Image:
    """A copy with another name, and what that name resolves to."""
    return Image.from_json({**image.to_json(), "reference": reference, "digest": digest})


def unnamed(image: Image) -> Image:
    """The record of an image that loses its last name and stays."""
    return renamed(image, f"@{image.manifest}", "")


def _put(images: ImageStore, image: Image) -> None:
    by_digest = "@" in image.reference
    if by_digest:
        image = _by_manifest(image)
    if image.unnamed and any(i.id == image.id and not i.unnamed for i in images.naming(image.id)):
        return
    try:
        before = images.read(file_name(image.reference), image.reference)
    except ConfigError:
        before = None
    written = [image]
    if before is not None and before.id != image.id:
        written += _kept_by_digest(images, before)
    elif before is not None and by_digest and image.digest == image.manifest:
        image.digest = before.digest  # the index's, by which it is known too
    images.change(written, _without_name(images, image))


def _by_manifest(image: Image) -> Image:
    """A copy, named by the digest of its manifest."""
    return renamed(image, f"{repository_of(image.reference)}@{image.manifest}", image.digest)


def _kept_by_digest(images: ImageStore, image: Image) -> list[Image]:
    """The record that an image gets for the name it is losing; none where it has others."""
    if any(i.id == image.id and i.reference != image.reference for i in images.naming(image.id)):
        return []
    return [_by_manifest(image) if image.digest else unnamed(image)]


def _without_name(images: ImageStore, image: Image) -> list[Image]:
    """The records without a name of the same image, other than its own."""
    found = []
    for name in images.names():
        if name[:1] == "@":
            try:
                other = images.read(name, None)
            except (ConfigError, StorageError):
                continue
            if other is not None and other.id == image.id and other.reference != image.reference:
                found.append(other)
    return found
