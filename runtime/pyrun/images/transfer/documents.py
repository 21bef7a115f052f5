"""What a reference stands for, read down to the image config: from the content store, else from a registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import DigestMismatch, ImageError, PlatformUnavailable
from ..content import ContentStore
from ..mediatypes import stored_type
from ..model import (
    INDEXES,
    MANIFESTS,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_manifest,
)
from ..platform import Platform, choose, suits
from ..printable import printable
from ..registry.client import RegistryClient

MAX_INDEX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Resolved:
    """``digest`` is what the name stands for (an index's, where there is one); ``clients`` are those to fetch
    layers from, the one that answered first."""

    digest: str
    manifest_digest: str
    manifest: Manifest
    config: ImageConfig
    platform: Platform
    clients: Sequence[RegistryClient]


def read(
    name: str,
    digest: str,
    fetched: tuple[bytes, str] | None,
    platform: Platform,
    content: ContentStore,
    client: RegistryClient,
    order: Sequence[RegistryClient],
) -> Resolved:
    """The manifest and config for ``platform`` of what ``name`` stands for, ``digest``. ``fetched`` has its bytes
    and media type where they had to be read to learn that. Stores what it fetches.

    Raises `ImageError` or one of its kinds.
    """
    if fetched is not None:
        data, media_type = fetched
        found = parse_manifest(data, media_type, f"the manifest of {name}")
        content.add_bytes(data, digest)
    else:
        found = _document(client, content, digest, None, f"the manifest of {name}")
    manifest_digest = digest
    depth = 0
    while isinstance(found, Index):
        depth += 1
        if depth > MAX_INDEX_DEPTH:
            raise ImageError(f"the index of {name} is nested deeper than {MAX_INDEX_DEPTH} levels")
        chosen = choose(found.manifests, platform, name)
        if chosen.media_type not in INDEXES | MANIFESTS:
            raise ImageError(
                f"the index of {name} offers {printable(chosen.media_type, 200)!r}, not an image"
            )
        manifest_digest = chosen.digest
        found = _document(client, content, chosen.digest, chosen, f"the manifest of {name} for {platform}")
    config = _config(client, content, found, name)
    own = Platform(config.os, config.architecture, config.variant or "")
    if not suits(platform, own.os, own.architecture, own.variant):
        raise PlatformUnavailable(
            f"{name} is an image for {printable(str(own), 64)}, not for {platform}",
            hint=f"--platform {printable(str(own), 64)} takes it all the same.",
        )
    return Resolved(digest, manifest_digest, found, config, own, order)


def _document(
    client: RegistryClient, content: ContentStore, digest: str, descriptor: Descriptor | None, what: str
) -> Index | Manifest:
    """A manifest or index by digest: from the content store if it is there and sound, else fetched."""
    data = _stored(content, digest)
    fetched = data is None
    if data is None:
        data, media_type, _ = client.get_manifest(digest)
    else:
        media_type = stored_type(data)
    if descriptor is not None:
        if len(data) != descriptor.size:
            raise DigestMismatch(
                f"{what} has {len(data)} bytes; the index that lists it says {descriptor.size}"
            )
        if fetched and media_type.partition(";")[0].strip().lower() != descriptor.media_type:
            raise ImageError(
                f"{what} was served as {printable(media_type, 200)!r};"
                f" the index that lists it says {printable(descriptor.media_type, 200)!r}"
            )
        media_type = descriptor.media_type
    found = parse_manifest(data, media_type, what)
    if fetched:
        content.add_bytes(data, digest)
    return found


def _config(client: RegistryClient, content: ContentStore, manifest: Manifest, name: str) -> ImageConfig:
    descriptor = manifest.config
    data = _stored(content, descriptor.digest)
    fetched = data is None
    if data is None:
        data = client.get_blob(descriptor.digest, descriptor.size)
    if len(data) != descriptor.size:
        raise DigestMismatch(
            f"the config of {name} has {len(data)} bytes; its manifest says {descriptor.size}",
            hint="The image is broken or was tampered with. Nothing of it was kept.",
        )
    config = parse_config(data, manifest, f"the config of {name}")
    if fetched:
        content.add_bytes(data, descriptor.digest)
    return config


def _stored(content: ContentStore, digest: str) -> bytes | None:
    """The stored document, None if there is none; a damaged one is removed, to be fetched anew."""
    if not content.has(digest):
        return None
    try:
        return content.read(digest)
    except DigestMismatch:
        content.remove(digest)
        return None
