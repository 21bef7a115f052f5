"""The image record: what one local image name stands for. On the path of `run`: plain classes, no imports."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Shown:
    """Shows its fields in an interactive session."""

    __slots__: tuple[str, ...] = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({fields})"


class ImageLayer(_Shown):
    """One layer, bottom to top. ``size`` counts compressed bytes, ``unpacked`` those of the tar."""

    __slots__ = ("diff_id", "digest", "media_type", "size", "unpacked")

    def __init__(self, digest: str, diff_id: str, size: int, unpacked: int, media_type: str) -> None:
        self.digest = digest
        self.diff_id = diff_id
        self.size = size
        self.unpacked = unpacked
        self.media_type = media_type


class Image:
    """What ``images/<quoted reference>.json`` holds: all that ``run`` needs, in one read.

    reference  canonical, e.g. "docker.io/library/redis:latest" or "docker.io/library/redis@sha256:..."; of an image
               without a name "@" and the digest of its manifest
    digest     of what the name resolved to (the index's, where there is one): the repository digest
    manifest   digest of the platform's manifest
    id         digest of the image config: the image ID
    platform   "os/architecture[/variant]"
    created    RFC 3339, from the config; "" where it has none
    config     the config's "config" object (Entrypoint, Cmd, Env, User, WorkingDir, Volumes, ...), verbatim
    """

    __slots__ = ("config", "created", "digest", "id", "layers", "manifest", "platform", "reference")

    def __init__(
        self,
        *,
        reference: str,
        digest: str,
        manifest: str,
        id: str,
        platform: str,
        created: str,
        config: dict[str, Any],
        layers: list[ImageLayer],
    ) -> None:
        self.reference = reference
        self.digest = digest
        self.manifest = manifest
        self.id = id
        self.platform = platform
        self.created = created
        self.config = config
        self.layers = layers

    def __repr__(self) -> str:
        return f"Image({self.reference!r}, id={self.id!r}, platform={self.platform!r})"

    @property
    def size(self) -> int:
        """Bytes of all layers' tar streams, as docker's SIZE column counts."""
        return sum(layer.unpacked for layer in self.layers)

    @property
    def unnamed(self) -> bool:
        """Whether the image has no name, not even a repository: it is known by its ID."""
        return self.reference[:1] == "@"

    @property
    def familiar(self) -> str:
        """The name as docker shows it, "redis:latest"; the short ID of an image that has none."""
        if self.unnamed:
            return self.id.partition(":")[2][:12]
        from .reference import Reference

        return Reference.parse(self.reference).familiar

    def to_json(self) -> dict[str, Any]:
        record = {name: getattr(self, name) for name in self.__slots__}
        record["layers"] = [{n: getattr(layer, n) for n in ImageLayer.__slots__} for layer in self.layers]
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Image:
        """Raises KeyError or TypeError where the record is not one of `to_json`."""
        return cls(**{**record, "layers": [ImageLayer(**layer) for layer in record["layers"]]})


class Progress(_Shown):
    """One step of a pull, in docker's words.

    id      a layer's first 12 hex digits, the tag for "Pulling from ...", or "" for a plain message line
    status  "Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Download complete",
            "Extracting", "Pull complete", "Already exists", or the message
    current, total  bytes, where they mean something (total 0: they don't)
    """

    __slots__ = ("current", "id", "status", "total")

    def __init__(self, id: str, status: str, current: int = 0, total: int = 0) -> None:
        self.id = id
        self.status = status
        self.current = current
        self.total = total


class PullResult(_Shown):
    """``newer`` is False where the local image was up to date already."""

    __slots__ = ("image", "newer")

    def __init__(self, image: Image, newer: bool) -> None:
        self.image = image
        self.newer = newer


class HistoryEntry(_Shown):
    """One line of an image's history, newest first. ``id`` is "" but for the newest; ``size``: tar bytes."""

    __slots__ = ("comment", "created", "created_by", "id", "size")

    def __init__(self, id: str, created: str, created_by: str, size: int, comment: str) -> None:
        self.id = id
        self.created = created
        self.created_by = created_by
        self.size = size
        self.comment = comment


def moment(created: str) -> str:
    """RFC 3339 as text that sorts by time; "" where there is none."""
    if created[-1:] == "Z" and created[4:5] == created[7:8] == "-" and created[10:11] == "T":
        return created[:-1]  # without the "Z", a fraction sorts after none
    if not created:
        return ""
    from datetime import UTC, datetime

    try:
        return datetime.fromisoformat(created).astimezone(UTC).isoformat().removesuffix("+00:00")
    except (ValueError, OverflowError):
        return ""


def since_epoch(created: str) -> float | None:
    """Seconds since the epoch of an RFC 3339 time, or None where ``created`` (a registry's) is not one.

    The zero time of Go, year 1, stands for "none" in image configs, as does anything before 1970-01-01.
    """
    from datetime import UTC, datetime

    try:
        when = datetime.fromisoformat(created)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = when.timestamp()
    except (ValueError, OverflowError):
        return None
    return seconds if seconds >= 0 else None
