"""The media types of images, Docker's and OCI's, and from one to the other (OCI image spec, media-types.md)."""

from __future__ import annotations

import json

from ..errors import ImageError
from .printable import printable

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
MAX_DOCUMENT = 4 << 20  # bytes of a manifest, index or config

_OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_TO_OCI = {
    _DOCKER_LAYER: _OCI_LAYER,
    f"{_DOCKER_LAYER}.gzip": f"{_OCI_LAYER}+gzip",
    f"{_DOCKER_LAYER}.zstd": f"{_OCI_LAYER}+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}
_TO_DOCKER = {oci: docker for docker, oci in _TO_OCI.items() if not docker.endswith(".zstd")}


def oci_layer_type(media_type: str) -> str:
    """The OCI name of a layer's media type, which may be it already."""
    return _TO_OCI.get(media_type, media_type)


def docker_layer_type(media_type: str) -> str:
    """Docker's name of a layer's media type. Raises `ImageError` where Docker's manifests know none: zstd."""
    if media_type in _TO_DOCKER.values():
        return media_type
    try:
        return _TO_DOCKER[media_type]
    except KeyError:
        raise ImageError(
            f"a layer of type {printable(media_type, 200)!r} can't stand in a manifest of Docker's format",
            hint="Use an OCI format.",
        ) from None


def stored_type(data: bytes) -> str:
    """The media type of a stored document. OCI lets it be left out, and was checked when it was fetched."""
    try:
        document = json.loads(data)
        return str(document.get("mediaType") or (OCI_INDEX if "manifests" in document else OCI_MANIFEST))
    except (ValueError, AttributeError, RecursionError):
        return OCI_MANIFEST
