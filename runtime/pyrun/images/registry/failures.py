"""Several places that failed, told as one error."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ImageError, ManifestUnknown


def failed(name: str, failures: Sequence[tuple[object, ImageError]]) -> ImageError:
    """The one error that tells of every place's."""
    last = failures[-1][1]
    if len(failures) == 1:
        return last
    reasons = "; ".join(f"{place}: {error.message}" for place, error in failures)
    unknown = all(isinstance(error, ManifestUnknown) for _, error in failures)
    kind = ManifestUnknown if unknown else type(last)
    return kind(f"{name} can't be fetched from any of its {len(failures)} places: {reasons}", hint=last.hint)
