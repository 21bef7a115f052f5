"""``--filter`` of images, as docker and podman have it: which of them to list, or to prune.

    dangling=true|false      without a tag, or with one
    label=KEY[=VALUE]        has the label, label!=KEY[=VALUE] has not; each one given must hold
    reference=PATTERN        a name that the pattern matches (any of several), reference!=PATTERN none that it matches
    before=IMAGE since=IMAGE made before, after another local image; ``after`` is podman's word for since
    until=TIME               made before: a duration back from now (24h, 1h30m), RFC 3339, or seconds since the epoch
    id=PREFIX digest=DIGEST  the image's ID, what it was pulled by (any of several)
    containers=true|false    used by a container, or by none

Several keys must all hold.
"""

from __future__ import annotations

import re
import time
from datetime import datetime

from ..errors import UsageError
from .record import moment, since_epoch
from .reference import Reference, repository_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .record import Image

LISTING = (
    "dangling",
    "label",
    "reference",
    "before",
    "since",
    "after",
    "until",
    "id",
    "digest",
    "containers",
)
PRUNING = ("until", "label", "dangling")
_NEGATED = ("label", "reference")
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)", re.ASCII)
_SPECIAL, _ESCAPED = re.compile(r"([\\^&~|\[])"), r"\\\1"  # in a class of `re`, and not in one of Go's
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


class Filters:
    """What a list of ``key=value`` asks for. Raises `UsageError` for what can't be understood.

    ``known`` are the keys that the command takes.
    """

    def __init__(self, texts: Iterable[str], known: Sequence[str] = LISTING) -> None:
        self.dangling: bool | None = None
        self.containers: bool | None = None
        self.until: float | None = None
        self.labels: list[tuple[str, str | None]] = []
        self.unlabels: list[tuple[str, str | None]] = []
        self.before: list[str] = []
        self.since: list[str] = []
        self._references: list[re.Pattern[str]] = []
        self._unreferences: list[re.Pattern[str]] = []
        self._ids: list[str] = []
        self._digests: list[str] = []
        for text in texts:
            key, equals, value = text.partition("=")
            negated = key.endswith("!")
            key = key.removesuffix("!").strip().lower()
            if not equals or key not in known or (negated and key not in _NEGATED):
                what = "unknown filter" if equals else "it is not KEY=VALUE"
                raise UsageError(f"--filter {text}: {what}", hint=f"There are: {', '.join(known)}.")
            self._add(text, key, value.strip(), negated)

    def _add(self, text: str, key: str, value: str, negated: bool) -> None:
        if not value:
            raise UsageError(f"--filter {text}: there is nothing after the =")
        if key in ("dangling", "containers"):
            given = _boolean(text, value)
            if getattr(self, key) not in (None, given):
                raise UsageError(f"--filter {key}= was given as true and as false", hint="Drop one of them.")
            setattr(self, key, given)
        elif key == "label":
            name, equals, wanted = value.partition("=")
            (self.unlabels if negated else self.labels).append((name, wanted if equals else None))
        elif key == "reference":
            (self._unreferences if negated else self._references).append(glob(value))
        elif key == "until":
            if self.until is not None:
                raise UsageError("--filter until= was given twice", hint="Drop one of them.")
            self.until = until(text, value)
        elif key == "id":
            self._ids.append("sha256:" + value.removeprefix("sha256:"))
        elif key == "digest":
            self._digests.append(value)
        else:
            (self.before if key == "before" else self.since).append(value)

    @property
    def wants_containers(self) -> bool:
        """Whether `select` has to know which images containers use."""
        return self.containers is not None

    def select(
        self, images: Sequence[Image], find: Callable[[str], Image], used: Iterable[str] = ()
    ) -> list[Image]:
        """Those of ``images`` that pass, in their order. ``find`` looks up the images of ``before`` and ``since``
        (what it raises passes through), ``used`` are the IDs of images that containers were made from."""
        earliest = max((moment(find(name).created) for name in self.since), default=None)
        latest = min((moment(find(name).created) for name in self.before), default=None)
        in_use = set(used)
        tagged = {image.id for image in images if "@" not in image.reference}
        found = []
        for image in images:
            made = moment(image.created)
            if (
                (self.dangling is None or self.dangling != (image.id in tagged))
                and (self.containers is None or self.containers == (image.id in in_use))
                and (earliest is None or made > earliest)
                and (latest is None or made < latest)
                and (self.until is None or older(image, self.until))
                and self.labelled(labels_of(image))
                and self._named(image)
                and (not self._ids or image.id.startswith(tuple(self._ids)))
                and (not self._digests or image.digest in self._digests or image.manifest in self._digests)
            ):
                found.append(image)
        return found

    def labelled(self, labels: dict[str, str]) -> bool:
        """Whether ``labels`` are as the filters want them."""
        return all(_has(labels, *wanted) for wanted in self.labels) and not any(
            _has(labels, *unwanted) for unwanted in self.unlabels
        )

    def _named(self, image: Image) -> bool:
        if not self._references and not self._unreferences:
            return True
        if image.unnamed:
            return not self._references
        names = names_of(image)
        return (not self._references or _any(self._references, names)) and not _any(self._unreferences, names)


def names_of(image: Image) -> tuple[str, ...]:
    """What a pattern may match: the name and its repository, as docker prints them and in full."""
    reference = Reference.parse(image.reference)
    return (
        reference.familiar,
        reference.familiar_repository,
        image.reference,
        repository_of(image.reference),
    )


def labels_of(image: Image) -> dict[str, str]:
    labels = image.config.get("Labels")
    return labels if isinstance(labels, dict) else {}


def older(image: Image, than: float) -> bool:
    """Whether the image was made before ``than`` (seconds since the epoch). One that says nothing of its age is as
    old as can be."""
    made = since_epoch(image.created)
    return made is None or made < than


def until(text: str, value: str) -> float:
    """The moment, in seconds since the epoch, that ``value`` of the filter ``text`` names. Raises `UsageError`."""
    parts = _PART.findall(value)
    if parts and "".join(number + unit for number, unit in parts) == value:
        return time.time() - sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        if value.isascii() and value.isdecimal() and len(value) != 8:
            return float(value)
        return datetime.fromisoformat(value).timestamp()  # without a zone: the caller's
    except (ValueError, OverflowError):
        raise UsageError(
            f"--filter {text}: no time or duration",
            hint="For example until=24h, until=1h30m or until=2025-01-31T12:00:00Z.",
        ) from None


def glob(pattern: str) -> re.Pattern[str]:
    """A pattern as Go's path.Match reads it: ``*`` and ``?`` stop at a slash, ``[a-z]`` and ``[^a-z]`` are classes,
    a backslash takes what follows as it is. Raises `UsageError`."""
    chunks: list[list[str]] = [[]]  # what stands between the stars
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if chunks[-1] or len(chunks) == 1:
                chunks.append([])
        elif char == "?":
            chunks[-1].append("[^/]")
        elif char == "[":
            end = pattern.find("]", at + 1 + (pattern[at : at + 1] == "^"))
            inside = pattern[at:end].removeprefix("^")
            if end < 0 or not inside:
                raise UsageError(f"{pattern!r} is not a pattern: a [ has no ]")
            negated = "^" if pattern[at] == "^" else ""
            chunks[-1].append(f"[{negated}{_SPECIAL.sub(_ESCAPED, inside)}]")
            at = end + 1
        elif char == "\\":
            if at == len(pattern):
                raise UsageError(f"{pattern!r} is not a pattern: it ends in a backslash")
            chunks[-1].append(re.escape(pattern[at]))
            at += 1
        else:
            chunks[-1].append(re.escape(char))
    first, *rest = ["".join(chunk) for chunk in chunks]
    # The first place at which a chunk fits is as good as any later, so nothing is gone back to: the time is linear.
    middle = "".join(f"(?>[^/]*?{chunk})" for chunk in rest[:-1])
    last = f"[^/]*{rest[-1]}" if rest else ""
    try:
        return re.compile(first + middle + last, re.DOTALL)
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a pattern: {error}") from None


def _any(patterns: Iterable[re.Pattern[str]], names: Iterable[str]) -> bool:
    return any(pattern.fullmatch(name) for pattern in patterns for name in names)


def _has(labels: dict[str, str], name: str, value: str | None) -> bool:
    return name in labels and (value is None or labels[name] == value)


def _boolean(text: str, value: str) -> bool:
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise UsageError(f"--filter {text}: {value!r} is neither true nor false")
