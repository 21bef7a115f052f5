"""The documents of an image that stands on another: its config, one step further, and its manifest.

The same arguments give the same bytes. Layers of the image below keep their blobs and what its manifest says of them;
only the names of media types follow the format.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ...errors import ImageError
from ..digest import sha256
from ..mediatypes import docker_layer_type, oci_layer_type
from ..model import DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_MANIFEST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..platform import Platform
    from ..record import ImageLayer

FORMATS = ("oci", "docker")
# What a config says of the machine that an image is for (OCI image spec, config.md).
_MACHINE = ("architecture", "os", "os.version", "os.features", "variant")


def config(
    below: bytes | None,
    *,
    settings: Mapping[str, Any],
    diff_ids: Sequence[str],
    step: Mapping[str, Any],
    flat: bool = False,
    platform: Platform,
) -> bytes:
    """An image config.

    below     the config of the image that it stands on; None: there is none, and it is for ``platform``
    settings  the "config" object
    diff_ids  of all layers, bottom to top
    step      the new entry of the history, of which the image has time, author and comment, too
    flat      whether all layers are one: then the history below tells of none, and is left out
    """
    parent: dict[str, Any] = json.loads(below) if below is not None else {}
    made: dict[str, Any] = {"created": step["created"]}
    for key in ("author", "comment"):
        if step.get(key):
            made[key] = step[key]
    if below is None:
        made |= {"architecture": platform.architecture, "os": platform.os}
        if platform.variant:
            made["variant"] = platform.variant
    else:
        made |= {key: parent[key] for key in _MACHINE if key in parent}
    made["config"] = dict(settings)
    made["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids)}
    made["history"] = [*(() if flat else parent.get("history") or ()), dict(step)]
    return json.dumps(made, separators=(",", ":")).encode()


def manifest(
    below: bytes | None, config: bytes, stack: Sequence[ImageLayer], *, format: str = "oci"
) -> bytes:
    """A manifest of ``format`` "oci" or "docker" for the image of ``config`` and ``stack``, whose lower layers are
    those of the manifest ``below``. Raises `ImageError` for a layer that docker's format can't have (zstd)."""
    known: list[dict[str, Any]] = json.loads(below)["layers"] if below is not None else []
    layer_type = docker_layer_type if format == "docker" else oci_layer_type
    descriptors = []
    for number, layer in enumerate(stack):
        entry: dict[str, Any] = {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
        if number < len(known):
            if known[number]["digest"] != layer.digest:
                raise ImageError("the manifest of the image below names other layers than its record")
            entry = dict(known[number])
        entry["mediaType"] = layer_type(entry["mediaType"])
        descriptors.append(entry)
    types = (DOCKER_MANIFEST, DOCKER_CONFIG) if format == "docker" else (OCI_MANIFEST, OCI_CONFIG)
    document = {
        "schemaVersion": 2,
        "mediaType": types[0],
        "config": {"mediaType": types[1], "digest": sha256(config), "size": len(config)},
        "layers": descriptors,
    }
    return json.dumps(document, separators=(",", ":")).encode()
