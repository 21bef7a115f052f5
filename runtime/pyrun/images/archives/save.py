"""Images as archives that other engines read.

docker-archive  what ``docker save`` has written since version 25: an OCI layout with Docker's manifest.json beside its
                index, so that ``docker load``, ``podman load``, and skopeo's docker-archive: and oci-archive: all read
                it. Blobs, compressed as they are, and manifests stand there unchanged: loaded again, an image has the
                same ID and digest
oci-archive     the OCI layout alone (OCI image spec, image-layout.md); Docker's manifests become OCI's
oci-dir         the same in a directory
docker-dir      skopeo's ``dir:``, one image in Docker's format; OCI manifests become Docker's

Every blob is hashed again on its way out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import DigestMismatch, ImageError, UsageError
from ..digest import hasher, sha256
from ..index import CONTAINERD_NAME, is_ref_name
from ..mediatypes import docker_layer_type, oci_layer_type, stored_type
from ..model import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Manifest,
    parse_manifest,
)

if TYPE_CHECKING:
    from ..content import ContentStore
    from ..record import Image
    from ..reference import Reference
    from .outlet import Outlet

FORMATS = ("docker-archive", "oci-archive", "oci-dir", "docker-dir")
DIRECTORIES = frozenset({"oci-dir", "docker-dir"})
_REF_NAME = "org.opencontainers.image.ref.name"
_CHUNK = 256 << 10


class Saving:
    """One image to be saved, under ``names``; none for one that is told by its ID."""

    def __init__(self, image: Image, names: Sequence[Reference]) -> None:
        self.image = image
        self.names = list(names)


class _Document:
    """A manifest in the format that is written, and what it names."""

    def __init__(self, data: bytes, media_type: str, what: str) -> None:
        manifest = parse_manifest(data, media_type, what)
        if not isinstance(manifest, Manifest):
            raise ImageError(f"{what} is an index")
        self.data = data
        self.media_type = media_type
        self.digest = sha256(data)
        self.config: Descriptor = manifest.config
        self.layers: list[Descriptor] = manifest.layers


def save(content: ContentStore, wanted: Sequence[Saving], outlet: Outlet, form: str) -> None:
    """Write the images of ``wanted`` in the format ``form``, one of `FORMATS`.

    The caller keeps garbage collection away. Raises `UsageError` for what the format can't hold, `DigestMismatch`
    where a blob was damaged on disk, `StorageError` where one is missing, and what the outlet raises.
    """
    if form == "docker-dir":
        if len(wanted) != 1:
            raise UsageError(
                "docker-dir holds one image", hint="Save the images one by one, or as an archive."
            )
        _save_dir(content, wanted[0], outlet)
        return
    documents = [
        _document(content, one, docker=False if form != "docker-archive" else None) for one in wanted
    ]
    files = {f"{_path(document.digest)}": document.data for document in documents}
    files["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    files["index.json"] = _json(_index(wanted, documents))
    if form == "docker-archive":
        files["manifest.json"] = _json(_docker_manifest(wanted, documents))
    blobs = {
        _path(blob.digest): blob for document in documents for blob in (document.config, *document.layers)
    }
    directories = {"blobs", *(name.rpartition("/")[0] for name in (*blobs, *files) if "/" in name)}
    for name in sorted({*files, *blobs, *directories}):
        if name in directories:
            outlet.directory(name)
        elif name in files:
            outlet.file(name, len(files[name]), [files[name]])
        else:
            outlet.file(name, blobs[name].size, _checked(content, blobs[name]))


def _save_dir(content: ContentStore, one: Saving, outlet: Outlet) -> None:
    document = _document(content, one, docker=True)
    blobs = {blob.digest: blob for blob in (document.config, *document.layers)}
    for digest, blob in sorted(blobs.items()):
        outlet.file(digest.partition(":")[2], blob.size, _checked(content, blob))
    outlet.file("manifest.json", len(document.data), [document.data])
    version = b"Directory Transport Version: 1.1\n"
    outlet.file("version", len(version), [version])


def _document(content: ContentStore, one: Saving, *, docker: bool | None) -> _Document:
    """The image's manifest as it is, or brought into Docker's or OCI's format."""
    what = f"the manifest of {one.image.familiar}"
    data = content.read(one.image.manifest)
    media_type = stored_type(data)
    if docker is None or docker == (media_type == DOCKER_MANIFEST):
        return _Document(data, media_type, what)
    parse_manifest(data, media_type, what)  # what is changed below has to be sound
    document: dict[str, Any] = json.loads(data)
    document["mediaType"] = DOCKER_MANIFEST if docker else OCI_MANIFEST
    document["config"]["mediaType"] = DOCKER_CONFIG if docker else OCI_CONFIG
    for layer in document["layers"]:
        translate = docker_layer_type if docker else oci_layer_type
        layer["mediaType"] = translate(layer["mediaType"])
    return _Document(_json(document), document["mediaType"], what)


def _index(wanted: Sequence[Saving], documents: Sequence[_Document]) -> dict[str, Any]:
    entries = []
    for one, document in zip(wanted, documents, strict=True):
        os, architecture, variant = (*one.image.platform.split("/"), "", "")[:3]
        platform = {"architecture": architecture, "os": os, **({"variant": variant} if variant else {})}
        entry = {"mediaType": document.media_type, "digest": document.digest, "size": len(document.data)}
        for name in one.names:
            annotations = {CONTAINERD_NAME: name.canonical}
            if is_ref_name(name.canonical):
                annotations[_REF_NAME] = name.canonical
            entries.append({**entry, "annotations": annotations, "platform": platform})
        if not one.names:
            entries.append({**entry, "platform": platform})
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}


def _docker_manifest(wanted: Sequence[Saving], documents: Sequence[_Document]) -> list[dict[str, Any]]:
    return [
        {
            "Config": _path(document.config.digest),
            # In full: Docker means the same by both forms, and podman takes the short one for a local name.
            "RepoTags": [name.canonical for name in one.names] or None,
            "Layers": [_path(layer.digest) for layer in document.layers],
        }
        for one, document in zip(wanted, documents, strict=True)
    ]


def _checked(content: ContentStore, blob: Descriptor) -> Iterator[memoryview]:
    """The blob's bytes, from the store; its end means that size and digest hold."""
    state = hasher(blob.digest)
    seen = 0
    buffer = memoryview(bytearray(_CHUNK))
    with content.open(blob.digest) as file:
        while count := file.readinto(buffer):
            seen += count
            if seen > blob.size:
                break
            state.update(buffer[:count])
            yield buffer[:count]
    if seen != blob.size or state.hexdigest() != blob.digest.partition(":")[2]:
        raise DigestMismatch(
            f"{content.blob_path(blob.digest)} is damaged: its content is not what its name says",
            hint="Pull the image again: the damaged blob is replaced.",
        )


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _json(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
