"""``pyrun images --tree``."""

from __future__ import annotations

from .escape import printable
from .names import short_id
from .output import write
from .table import aligned
from .units import human_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..images.tree import TreeImage, TreePlatform

HEADERS = ("IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "EXTRA")
UNTAGGED = "<untagged>"
_USED = "U"


def show(images: Iterable[TreeImage], *, truncate: bool) -> None:
    """A block an image: its names, a line each, the first with its ID and sizes, then its platforms."""
    lines: list[tuple[str, ...]] = [HEADERS]
    for number, image in enumerate(images):
        if number:
            lines.append(("",))
        lines += _block(image, truncate)
    # The last cell of a line is not padded, so an empty one leaves no spaces behind.
    write(aligned([[printable(cell) for cell in _trimmed(line)] for line in lines]))


def _block(image: TreeImage, truncate: bool) -> list[tuple[str, ...]]:
    here = image.present
    ids = {platform.id for platform in here}
    # A layer that several platforms share is rare, and counted with each of them.
    disk, content = sum(p.disk for p in here), sum(p.content for p in here)
    used = _USED if any(platform.used for platform in here) else ""
    first, *more = image.names or [UNTAGGED]
    # Of several images, one for each platform, the digest that they were pulled by stands for all.
    id = _id(ids.pop() if len(ids) == 1 else image.digest, truncate)
    lines: list[tuple[str, ...]] = [(first, id, human_size(disk), human_size(content), used)]
    lines += [(name,) for name in more]
    for platform in image.platforms:
        branch = "└─" if platform is image.platforms[-1] else "├─"
        lines.append((f"{branch} {platform.platform}", *_cells(platform, truncate)))
    return lines


def _cells(platform: TreePlatform, truncate: bool) -> tuple[str, ...]:
    if platform.image is None:
        return (_id(platform.id, truncate), "0B", "0B", "")
    used = _USED if platform.used else ""
    return (_id(platform.id, truncate), human_size(platform.disk), human_size(platform.content), used)


def _id(text: str, truncate: bool) -> str:
    return short_id(text) if truncate else text


def _trimmed(line: tuple[str, ...]) -> tuple[str, ...]:
    while line and not line[-1]:
        line = line[:-1]
    return line or ("",)
