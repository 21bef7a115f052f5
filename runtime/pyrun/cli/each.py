"""Commands that take several names: one failure doesn't stop the others."""

from __future__ import annotations

from ..errors import PyrunError
from .output import warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def for_each(names: Iterable[str], act: Callable[[str], None]) -> int:
    """Call ``act`` for every name; 1 where it raised a `PyrunError` for any, each said in a line, else 0."""
    code = 0
    for name in names:
        try:
            act(name)
        except PyrunError as error:
            warn(f"pyrun: {error}")
            code = 1
    return code
