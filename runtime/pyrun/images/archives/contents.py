"""Which images an archive holds: docker-archive, OCI layout, skopeo's ``dir:``.

An archive that is an OCI layout is read as one, also where it has Docker's manifest.json, too: there manifests and
digests stand as they were. The two must then speak of the same images, for other programs read the other one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from ...errors import DigestMismatch, ImageError, InvalidReference, PlatformUnavailable
from ..digest import digest_like, sha256
from ..index import CONTAINERD_NAME
from ..model import (
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT,
    MAX_LAYERS,
    MAX_MANIFESTS,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    parse,
    parse_config,
    parse_manifest,
    strict_json,
)
from ..platform import Platform, choose, suits, wanted
from ..printable import printable
from ..reference import Reference
from .archive import Archive, Member, required

_REF_NAME = "org.opencontainers.image.ref.name"
_ATTESTATION = "vnd.docker.reference.type"
_MAX_DEPTH = 3  # of indexes
_NAMED_BY_DIGEST = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Piece:
    """A layer in the archive. ``digest`` and ``size`` are those of its blob, "" and 0 where the archive doesn't tell
    them (docker-archive); ``member`` then is a tar, compressed or not, whose ``diff_id`` is told."""

    member: Member
    diff_id: str
    digest: str = ""
    size: int = 0
    media_type: str = ""


@dataclass(slots=True)
class Found:
    """An image in the archive. ``manifest`` is None where the archive has none (docker-archive)."""

    config: bytes
    manifest: bytes | None
    pieces: list[Piece]
    names: list[Reference] = field(default_factory=list)

    @property
    def id(self) -> str:
        return sha256(self.config)


def images_in(archive: Archive, platform: str | None) -> list[Found]:
    """Every image, in the archive's order, each once with all of its names.

    platform  "os/arch[/variant]" that they have to suit; None: what is for several platforms is taken for the host's
              (or DOCKER_DEFAULT_PLATFORM's), and what is for one as it is

    Only documents are read. Raises `ImageError` and its kinds for what is no image archive, is incomplete, or doesn't
    fit together.
    """
    found: dict[tuple[str, bytes | None], Found] = {}
    layout = archive.find("oci-layout")
    docker = archive.find("manifest.json")
    if layout is not None:
        images = _oci(archive, layout, platform)
        if docker is not None:
            images = _agreeing(archive, docker, images)
    elif docker is not None:
        images = _docker_or_dir(archive, docker, platform)
    elif archive.find("repositories") is not None:
        raise ImageError(
            f"{archive.what} is an archive of a Docker before 1.10", hint="Save it again with a newer one."
        )
    else:
        raise ImageError(
            f"{archive.what} is no image archive: it has neither oci-layout nor manifest.json",
            hint="A root file system becomes an image by `pyrun import`.",
        )
    for image in images:
        known = found.setdefault((image.id, image.manifest), image)
        known.names += [name for name in image.names if name not in known.names]
    if not found:
        raise ImageError(f"{archive.what} holds no image")
    return list(found.values())


# --- Docker's


class _Entry(msgspec.Struct, rename="pascal"):
    """An image in manifest.json."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


def _entries(archive: Archive, member: Member) -> list[_Entry] | None:
    """What manifest.json lists; None where it is an image's manifest, as in a ``dir:``."""
    what = f"manifest.json of {archive.what}"
    document = strict_json(member.read(MAX_DOCUMENT), what)
    if isinstance(document, dict):
        return None
    try:
        entries = msgspec.convert(document, list[_Entry])
    except msgspec.ValidationError as error:
        raise ImageError(f"{what} is malformed: {printable(str(error))}") from error
    if len(entries) > MAX_MANIFESTS or any(len(entry.layers) > MAX_LAYERS for entry in entries):
        raise ImageError(f"{what} lists more than {MAX_MANIFESTS} images, or {MAX_LAYERS} layers of one")
    return entries


def _docker_or_dir(archive: Archive, member: Member, platform: str | None) -> Iterator[Found]:
    entries = _entries(archive, member)
    if entries is None:
        yield _dir(archive, member, platform)
        return
    for entry in entries:
        what = f"the config of {printable((entry.repo_tags or [entry.config])[0], 200)}"
        config = required(archive, entry.config).read(MAX_DOCUMENT)
        named = _NAMED_BY_DIGEST.fullmatch(entry.config)
        if named and sha256(config) != f"sha256:{named[1]}":
            raise _mismatch(what, f"sha256:{named[1]}", sha256(config))
        document = parse(config, ImageConfig, what)
        if document.rootfs.type != "layers" or len(document.rootfs.diff_ids) != len(entry.layers):
            raise ImageError(
                f"{what} names {len(document.rootfs.diff_ids)} layers, manifest.json {len(entry.layers)}",
                hint="The archive is broken: save it again.",
            )
        _check_platform(document, platform, what)
        pieces = [
            Piece(required(archive, name), diff_id)
            for name, diff_id in zip(entry.layers, document.rootfs.diff_ids, strict=True)
        ]
        yield Found(config, None, pieces, [_tag(text, archive) for text in entry.repo_tags or ()])


def _tag(text: str, archive: Archive) -> Reference:
    reference = Reference.parse(text)
    if reference.digest:
        raise InvalidReference(f"{archive.what} gives an image the name {text!r}, which is no tag")
    return reference


def _dir(archive: Archive, member: Member, platform: str | None) -> Found:
    data = member.read(MAX_DOCUMENT)
    what = f"the manifest in {archive.what}"
    document = strict_json(data, what)
    media_type = str(document.get("mediaType") or OCI_MANIFEST)
    found = parse_manifest(data, media_type, what)
    if not isinstance(found, Manifest):
        raise ImageError(
            f"{what} is an index", hint="Copy one platform's image, as an OCI layout or archive."
        )
    return _image(archive, data, found, what, platform, lambda digest: digest.partition(":")[2])


# --- OCI's


def _oci(archive: Archive, layout: Member, platform: str | None) -> Iterator[Found]:
    what = f"oci-layout of {archive.what}"
    version = strict_json(layout.read(MAX_DOCUMENT), what)
    if not isinstance(version, dict) or version.get("imageLayoutVersion") != "1.0.0":
        raise ImageError(f"{what} is not of version 1.0.0")
    index = _index(required(archive, "index.json").read(MAX_DOCUMENT), f"index.json of {archive.what}")
    groups: dict[str, list[Descriptor]] = {}
    for entry in index.manifests:
        if _is_image(entry):
            groups.setdefault(_name(entry), []).append(entry)
    for name, entries in groups.items():
        different = list({entry.digest: entry for entry in entries}.values())
        if len(different) > 1 and all(entry.platform for entry in different):
            # One image for several platforms, without an index of its own.
            different = [_choice(archive, different, platform, name or archive.what)]
        for entry in different:
            image = _resolved(archive, entry, platform, name or f"an image in {archive.what}")
            image.names = [_oci_name(name, entry, image)] if name else []
            yield image


def _index(data: bytes, what: str) -> Index:
    index = parse(data, Index, what)
    if index.schema_version != 2:
        raise ImageError(f"{what} has schemaVersion {index.schema_version}; 2 is understood")
    return index


def _is_image(entry: Descriptor) -> bool:
    """Attestations and what else hangs on images are left out."""
    it = entry.platform
    unknown = it is not None and it.os == it.architecture == "unknown"
    return not (unknown or entry.artifact_type or _ATTESTATION in (entry.annotations or {}))


def _name(entry: Descriptor) -> str:
    """The whole name that an entry of the index has, "" for none: a tag alone is no name."""
    annotations = entry.annotations or {}
    name = annotations.get(CONTAINERD_NAME)
    if name:
        return name
    name = annotations.get(_REF_NAME, "")
    return name if ":" in name or "/" in name else ""


def _oci_name(text: str, entry: Descriptor, image: Found) -> Reference:
    reference = Reference.parse(text)
    if reference.digest not in (None, entry.digest, sha256(image.manifest or b"")):
        raise _mismatch(f"the image {printable(text, 300)}", str(reference.digest), entry.digest)
    return reference


def _resolved(archive: Archive, entry: Descriptor, platform: str | None, name: str) -> Found:
    what = f"the manifest of {printable(name, 300)}"
    for _ in range(_MAX_DEPTH + 1):
        data = _blob(archive, entry, what)
        found = parse_manifest(data, entry.media_type, what)
        if isinstance(found, Manifest):
            return _image(archive, data, found, what, platform, _blob_name)
        entry = _choice(archive, found.manifests, platform, name)
        if entry.media_type not in INDEXES | MANIFESTS:
            raise ImageError(f"{what} is of type {printable(entry.media_type, 200)!r}: no image")
    raise ImageError(f"the index of {printable(name, 300)} is nested deeper than {_MAX_DEPTH} levels")


def _choice(archive: Archive, entries: Sequence[Descriptor], platform: str | None, name: str) -> Descriptor:
    """Of those that the archive has: it may have been saved for one platform of many."""
    there = [entry for entry in entries if archive.find(_blob_name(entry.digest)) is not None]
    return choose(there, wanted(platform), printable(name, 300))


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _blob(archive: Archive, entry: Descriptor, what: str) -> bytes:
    data = required(archive, _blob_name(entry.digest)).read(MAX_DOCUMENT)
    _check_blob(data, entry, what)
    return data


def _check_blob(data: bytes, entry: Descriptor, what: str) -> None:
    if len(data) != entry.size:
        raise DigestMismatch(f"{what} has {len(data)} bytes; what names it says {entry.size}")
    found = digest_like(entry.digest, data)
    if found != entry.digest:
        raise _mismatch(what, entry.digest, found)


def _image(
    archive: Archive,
    data: bytes,
    manifest: Manifest,
    what: str,
    platform: str | None,
    blob_name: Callable[[str], str],
) -> Found:
    config = required(archive, blob_name(manifest.config.digest)).read(MAX_DOCUMENT)
    _check_blob(config, manifest.config, f"the config behind {what}")
    document = parse_config(config, manifest, f"the config behind {what}")
    _check_platform(document, platform, what)
    pieces = []
    for layer, diff_id in zip(manifest.layers, document.rootfs.diff_ids, strict=True):
        member = required(archive, blob_name(layer.digest))
        if member.size != layer.size:
            raise DigestMismatch(
                f"layer {layer.digest} in {archive.what} has {member.size} bytes; {what} says {layer.size}",
                hint="The archive is broken or was tampered with.",
            )
        pieces.append(Piece(member, diff_id, layer.digest, layer.size, layer.media_type))
    return Found(config, data, pieces)


def _agreeing(archive: Archive, docker: Member, images: Iterator[Found]) -> Iterator[Found]:
    """``images``; raises `ImageError` where Docker's manifest.json beside the index speaks of others."""
    entries = _entries(archive, docker)
    yield from images
    index = _index(required(archive, "index.json").read(MAX_DOCUMENT), f"index.json of {archive.what}")
    known = set(_configs(archive, index.manifests, _MAX_DEPTH, set()))
    for entry in entries or ():
        named = _NAMED_BY_DIGEST.fullmatch(entry.config)
        if not named or f"sha256:{named[1]}" not in known:
            raise ImageError(
                f"manifest.json and index.json of {archive.what} speak of different images",
                hint="Programs that read the one or the other would load different things: don't trust it.",
            )


def _configs(
    archive: Archive, entries: Sequence[Descriptor], depth: int, seen: set[tuple[str, int]]
) -> Iterator[str]:
    """The digests of the configs of all images that the archive has, those for other platforms, too. Each document is
    looked at once a level: three indexes that name the next a thousand times are a billion ways to one image."""
    for entry in entries:
        if (entry.digest, depth) in seen or not _is_image(entry):
            continue
        seen.add((entry.digest, depth))
        if archive.find(_blob_name(entry.digest)) is None:
            continue
        what = f"a manifest in {archive.what}"
        found = parse_manifest(_blob(archive, entry, what), entry.media_type, what)
        if isinstance(found, Manifest):
            yield found.config.digest
        elif depth:
            yield from _configs(archive, found.manifests, depth - 1, seen)


def _check_platform(config: ImageConfig, platform: str | None, what: str) -> None:
    own = Platform(config.os, config.architecture, config.variant or "")
    if platform is not None and not suits(Platform.parse(platform), own.os, own.architecture, own.variant):
        raise PlatformUnavailable(
            f"{what} is for {printable(str(own), 64)}, not for {platform}",
            hint="Load it without --platform, or save the other one.",
        )


def _mismatch(what: str, named: str, found: str) -> DigestMismatch:
    return DigestMismatch(
        f"{what} is damaged or tampered with: its bytes are {found}, not {named}",
        hint="Nothing of it was kept.",
    )
