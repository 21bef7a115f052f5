"""Image and container names as docker shows them."""

from __future__ import annotations

from ..images.reference import Reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..images.record import Image

NONE = "<none>"


def short_id(identifier: str) -> str:
    """The 12 hex digits that stand for an image or a container in tables."""
    return identifier.removeprefix("sha256:")[:12]


def repository_and_tag(image: Image) -> tuple[str, str]:
    """The REPOSITORY and TAG cells; an image kept under a digest has ``<none>`` for a tag, one without a name for
    both."""
    if image.unnamed:
        return NONE, NONE
    name, at, tag = image.reference.partition("@")
    if not at:
        name, _, tag = name.rpartition(":")
    familiar = _FAMILIAR.get(name)
    if familiar is None:
        familiar = _FAMILIAR[name] = Reference.parse(name).familiar_repository
    return familiar, NONE if at else tag


_FAMILIAR: dict[str, str] = {}  # by repository, of which many images have the same


def named(images: list[Image], text: str) -> list[Image]:
    """Those that ``pyrun images TEXT`` lists: ``text`` is a name, with or without a tag or digest, or a pattern."""
    if any(char in text for char in "*?[\\"):
        from ..images.filters import glob, names_of

        pattern = glob(text)
        return [i for i in images if not i.unnamed and any(pattern.fullmatch(name) for name in names_of(i))]
    wanted = Reference.parse(text)
    return [image for image in images if matches(image, wanted)]


def matches(image: Image, wanted: Reference) -> bool:
    """Whether ``pyrun images WANTED`` lists it: the repository decides, and tag or digest if one is named."""
    if not image.reference.startswith(wanted.repository):
        return False
    own = Reference.parse(image.reference)
    if own.repository != wanted.repository:
        return False
    if wanted.digest:
        return wanted.digest in (own.digest, image.digest)
    return wanted.implicit or own.tag == wanted.tag
