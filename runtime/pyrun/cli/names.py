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
    reference = Reference.parse(image.reference)
    return reference.familiar_repository, NONE if reference.digest else reference.tag or NONE


def matches(image: Image, wanted: Reference) -> bool:
    """Whether ``pyrun images WANTED`` lists it: the repository decides, and tag or digest if one is named."""
    if image.unnamed:
        return False
    own = Reference.parse(image.reference)
    if own.repository != wanted.repository:
        return False
    if wanted.digest:
        return wanted.digest in (own.digest, image.digest)
    return wanted.implicit or own.tag == wanted.tag
