"""What a registry serves, as types: index, manifest, descriptor, image config (OCI image spec; Docker v2.2).

Every document is parsed from the exact bytes that were hashed, by `parse`: duplicate keys, deep nesting and
keys that differ from a known one by case only are refused, since two programs would read them differently
(CVE-2021-41190 is of that family). Fields that mean nothing here are ignored.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from ..errors import ImageError
from .digest import is_digest
from .mediatypes import DOCKER_CONFIG as DOCKER_CONFIG
from .mediatypes import DOCKER_INDEX as DOCKER_INDEX
from .mediatypes import DOCKER_MANIFEST as DOCKER_MANIFEST
from .mediatypes import MAX_DOCUMENT as MAX_DOCUMENT
from .mediatypes import OCI_CONFIG as OCI_CONFIG
from .mediatypes import OCI_INDEX as OCI_INDEX
from .mediatypes import OCI_MANIFEST as OCI_MANIFEST
from .printable import printable

INDEXES = frozenset({OCI_INDEX, DOCKER_INDEX})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
# Of the time before schema 2 was settled; docker and containerd still take them.
_OLD_DOCKER_CONFIGS = frozenset({"application/octet-stream", ""})
LAYERS = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)
_SCHEMA1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)

MAX_DEPTH = 64  # of JSON nesting
MAX_MANIFESTS = 1000  # entries of one index
MAX_LAYERS = 1000

Text = Annotated[str, Meta(max_length=4096)]
Size = Annotated[int, Meta(ge=0, le=1 << 50)]


class PlatformField(Struct):
    architecture: Text
    os: Text
    variant: Text = ""


class Descriptor(Struct, rename="camel"):
    """descriptor.md. ``digest`` has been checked by `parse`."""

    media_type: Text
    digest: Text
    size: Size
    urls: list[Text] | None = None
    annotations: dict[str, str] | None = None
    platform: PlatformField | None = None
    artifact_type: Text | None = None


class Index(Struct, rename="camel"):
    schema_version: int
    manifests: Annotated[list[Descriptor], Meta(max_length=MAX_MANIFESTS)]
    media_type: Text | None = None
    annotations: dict[str, str] | None = None
    artifact_type: Text | None = None


class Manifest(Struct, rename="camel"):
    schema_version: int
    config: Descriptor
    layers: Annotated[list[Descriptor], Meta(max_length=MAX_LAYERS)]
    media_type: Text | None = None
    annotations: dict[str, str] | None = None
    artifact_type: Text | None = None


class RunConfig(Struct, rename="pascal"):
    """The part of the image config that `run` reads: checked for its types here, kept verbatim elsewhere."""

    user: str | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None
    volumes: dict[str, dict[str, Any] | None] | None = None
    exposed_ports: dict[str, dict[str, Any] | None] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None


class RootFS(Struct):
    type: Text
    diff_ids: list[str]


class History(Struct):
    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool | None = None


class ImageConfig(Struct):
    """config.md. ``config`` is the verbatim object, {} where there is none."""

    architecture: Text
    os: Text
    rootfs: RootFS
    variant: Text | None = None
    created: Text | None = None
    author: str | None = None
    comment: str | None = None
    config: dict[str, Any] | None = None
    history: list[History] | None = None


T = TypeVar("T", Index, Manifest, ImageConfig)


def parse(data: bytes, kind: type[T], what: str) -> T:
    """``data`` as a ``kind``. Raises `ImageError` that names ``what`` and the field at fault."""
    document = _json(data, what)
    known = {name.lower(): name for name in kind.__struct_encode_fields__}
    for key in document:
        if known.get(key.lower(), key) != key:
            raise ImageError(f"{what} has the key {printable(key)!r}, which other programs read as another's")
    try:
        parsed: T = msgspec.convert(document, kind)
        if isinstance(parsed, ImageConfig):
            msgspec.convert(parsed.config or {}, RunConfig)
    except msgspec.ValidationError as error:
        raise ImageError(f"{what} is malformed: {printable(str(error))}") from error
    descriptors: list[Descriptor]
    if isinstance(parsed, Index):
        descriptors = parsed.manifests
    elif isinstance(parsed, Manifest):
        descriptors = [parsed.config, *parsed.layers]
    else:
        descriptors = []
        for diff_id in parsed.rootfs.diff_ids:
            _check_digest(diff_id, what)
    for descriptor in descriptors:
        _check_digest(descriptor.digest, what)
    return parsed


def parse_manifest(data: bytes, media_type: str, what: str) -> Index | Manifest:
    """An index or manifest, told apart by ``media_type``: what the registry or the descriptor called it.

    Refused in words: a body that calls itself something else, one that is both (CVE-2021-41190), schema 1,
    and artifacts that are not container images. Raises `ImageError`.
    """
    media_type = media_type.partition(";")[0].strip().lower()
    document = _json(data, what)
    declared = document.get("mediaType")
    if media_type in _SCHEMA1 or (document.get("schemaVersion") == 1 and "fsLayers" in document):
        raise ImageError(
            f"{what} is in Docker's schema 1, which names no content by digest",
            hint="Push the image again with any current tool: it then gets a schema 2 or OCI manifest.",
        )
    if "manifests" in document and ("layers" in document or "config" in document):
        raise ImageError(f"{what} is both an index and a manifest, so it stands for two different images")
    if declared is not None and declared != media_type:
        raise ImageError(
            f"{what} was served as {printable(media_type, 200)!r}"
            f" but calls itself {printable(str(declared), 200)!r}"
        )
    if media_type in INDEXES:
        index = parse(data, Index, what)
        _check_version(index.schema_version, what)
        return index
    if media_type not in MANIFESTS:
        raise ImageError(
            f"{what} is of type {printable(media_type, 200)!r}, which is no image manifest",
            hint="OCI and Docker schema 2 manifests and indexes are understood.",
        )
    manifest = parse(data, Manifest, what)
    _check_version(manifest.schema_version, what)
    configs = CONFIGS | _OLD_DOCKER_CONFIGS if media_type == DOCKER_MANIFEST else CONFIGS
    if manifest.config.media_type not in configs or manifest.artifact_type:
        kind = printable(manifest.artifact_type or manifest.config.media_type, 200)
        raise ImageError(
            f"{what} is an artifact of type {kind!r}, not a container image",
            hint="It is for a program that knows this type. Nothing of it was kept.",
        )
    for layer in manifest.layers:
        if layer.media_type not in LAYERS:
            raise ImageError(
                f"{what} has a layer of type {printable(layer.media_type, 200)!r}",
                hint="Layers are tar archives: plain, gzip or zstd. Encrypted ones can't be read.",
            )
    return manifest


def foreign_urls(layer: Descriptor) -> list[str]:
    """Where else a foreign (nondistributable) layer may be had; none for a layer of another kind."""
    foreign = "nondistributable" in layer.media_type or ".foreign." in layer.media_type
    return list(layer.urls or ()) if foreign else []


def parse_config(data: bytes, manifest: Manifest, what: str) -> ImageConfig:
    """The image config, which must name one diff_id a layer of ``manifest``. Raises `ImageError`."""
    config = parse(data, ImageConfig, what)
    if config.rootfs.type != "layers" or len(config.rootfs.diff_ids) != len(manifest.layers):
        raise ImageError(
            f"{what} names {len(config.rootfs.diff_ids)} layers, its manifest {len(manifest.layers)}",
            hint="The image is broken: it has to be built again.",
        )
    config.created = timestamp(config.created)
    return config


def timestamp(text: str | None) -> str:
    """``text`` if it is an RFC 3339 date and time with a zone, else ""."""
    try:
        return text if text and datetime.fromisoformat(text).tzinfo else ""
    except ValueError:
        return ""


def _check_version(version: int, what: str) -> None:
    if version != 2:
        raise ImageError(f"{what} has schemaVersion {version}; 2 is understood")


def _check_digest(digest: str, what: str) -> None:
    if not is_digest(digest):
        raise ImageError(
            f"{what} holds the malformed digest {printable(digest, 200)!r}",
            hint="sha256 and sha512 digests are understood.",
        )


def _json(data: bytes, what: str) -> dict[str, Any]:
    """One JSON object, as `strict_json` reads it."""
    document = strict_json(data, what)
    if not isinstance(document, dict):
        raise ImageError(f"{what} is not a JSON object")
    return document


def strict_json(data: bytes, what: str) -> Any:
    """JSON, strictly: UTF-8, no duplicate keys, no NaN, bounded in size and depth. Raises `ImageError`."""
    if len(data) > MAX_DOCUMENT:
        raise ImageError(f"{what} is larger than {MAX_DOCUMENT >> 20} MiB")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_constant)
        _check_depth(document)
        if b"\\ud" in data.lower():
            # A half of a surrogate pair is no character (RFC 8259, 8.2), and no program that reads it writes it again.
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not acceptable JSON: {printable(str(error), 300)}") from error
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _check_depth(document: Any) -> None:
    level = [document]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                deeper.extend(v for v in value.values() if isinstance(v, (dict, list)))
            elif isinstance(value, list):
                deeper.extend(v for v in value if isinstance(v, (dict, list)))
        if not deeper:
            return
        level = deeper
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
