"""Taking names off images: ``rmi`` and ``untag``, by docker's rules of what may go.

Only records change here. Layers and blobs stay until `pyrun.images.gc.collect`.
"""

from __future__ import annotations

import os

from ..errors import ConfigError, Conflict, InvalidReference, NotFound
from .digest import short
from .index import publish
from .local import file_name
from .naming import unnamed
from .reference import Reference, repository_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .local import ImageStore, InUse
    from .record import Image

    Lines = list[tuple[str, str]]


def remove(images: ImageStore, name: str, *, force: bool, in_use: InUse, running: InUse) -> Lines:
    """Untag, and forget the image with its last name: ("Untagged" | "Deleted", what), in docker's order.

    ``in_use`` and ``running`` tell the containers made from an image, and those of them that run. The last name
    stays where there are any; ``force`` takes it off. What runs keeps its image all the same: by name it is only
    untagged, by ID (which takes all names off, more than one with ``force`` only) it is refused.

    Raises `NotFound`, `Conflict`, `ConfigError` (the record is damaged; removing it by its name works).
    """
    with images.changing():
        reference = _reference(name)
        try:
            image = images.get(name)
        except ConfigError:
            return _remove_damaged(images, reference.canonical if reference is not None else name)
        every = [other for other in images.naming(image.id) if other.id == image.id]
        by_name = reference is not None and (
            image.reference == reference.canonical
            or (reference.digest is not None and "@" in image.reference)
        )
        if by_name:
            going = [other for other in every if other.reference == image.reference]
            repository = repository_of(image.reference)
            left = [i for i in every if i not in going and repository_of(i.reference) == repository]
            if all("@" in i.reference for i in left):
                going += left  # names by digest go with the last tag of their repository
        else:
            going = every
            _check_single(image, every, force)
        keep: list[Image] = []
        if len(going) == len(every):
            users, living = in_use(image.id), running(image.id)
            if living and not (by_name and force):
                raise Conflict(
                    f"image {short(image.id)} is used by running container {living[0]}",
                    hint=f"`pyrun rm -f {living[0]}` ends and removes the container; then the image can go.",
                )
            if users and not force:
                raise Conflict(
                    f"image {short(image.id)} is used by container {users[0]}",
                    hint=f"`pyrun rm {users[0]}` removes the container; -f untags the image all the same.",
                )
            if living:
                keep = [unnamed(image)]
        images.change(keep, going)
        done = _told(going, [other for other in every if other not in going] + keep)
        if len(going) == len(every) and not keep:
            done.append(("Deleted", image.id))
        return done


def untag(images: ImageStore, name: str, names: Sequence[str]) -> Lines:
    """Take ``names``, or all tags where there are none, off the image ``name``: ("Untagged", what) each.

    The image stays, without a tag where it lost its last. Raises `NotFound`, also where one of ``names`` is
    another image's.
    """
    with images.changing():
        image = images.get(name)
        every = [other for other in images.naming(image.id) if other.id == image.id]
        tags = {other.reference: other for other in every if "@" not in other.reference}
        if names:
            going = []
            for given in dict.fromkeys(Reference.parse(text).canonical for text in names):
                if given not in tags:
                    raise NotFound(
                        f"{Reference.parse(given).familiar} is not a name of image {short(image.id)}",
                        hint="`pyrun images` lists the names.",
                    )
                going.append(tags[given])
        else:
            going = list(tags.values())
        if not going:
            return []
        left = [other for other in every if other not in going]
        keep = [] if left else [unnamed(image)]
        images.change(keep, going)
        return _told(going, left + keep)


def _check_single(image: Image, every: list[Image], force: bool) -> None:
    """An ID stands for one name, beside those by digest in the same repository."""
    tags = sum("@" not in other.reference for other in every)
    repositories = len({repository_of(other.reference) for other in every})
    if not force and (tags > 1 or repositories > 1):
        where = " in several repositories" if repositories > 1 else ""
        raise Conflict(
            f"image {short(image.id)} has several names{where}",
            hint="Remove it name by name, or all of its names with -f.",
        )


def _remove_damaged(images: ImageStore, reference: str) -> Lines:
    """Take away a record that can't be read: what it names is unknown, and so is who uses it."""
    try:
        os.unlink(os.path.join(images.path, file_name(reference)))
    except FileNotFoundError:
        raise NotFound(f"no such image: {reference}") from None
    publish(images)
    return [("Untagged", reference if reference[:1] == "@" else Reference.parse(reference).familiar)]


def _told(going: list[Image], left: list[Image]) -> Lines:
    """What is printed of names that went, while the image has those in ``left``."""
    done: Lines = []
    going = [image for image in going if not image.unnamed]
    for image in sorted(going, key=lambda i: ("@" in i.reference, i.reference)):
        name = image.reference
        if "@" in name and image.digest:
            name = f"{repository_of(name)}@{image.digest}"  # what it was pulled by
        done.append(("Untagged", Reference.parse(name).familiar))
    remaining = {repository_of(image.reference) for image in left}
    for repository in dict.fromkeys(repository_of(image.reference) for image in going):
        digests = [i.digest for i in going if i.digest and repository_of(i.reference) == repository]
        if repository not in remaining and digests:
            by_digest = Reference.parse(f"{repository}@{digests[0]}").familiar
            if ("Untagged", by_digest) not in done:
                done.append(("Untagged", by_digest))
    return done


def _reference(name: str) -> Reference | None:
    try:
        return Reference.parse(name)
    except InvalidReference:
        return None
