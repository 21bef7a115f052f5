"""What is said about an image: docker's ``inspect`` object, and its history."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

from ..errors import PyrunError
from ..storage import records
from .content import ContentStore
from .filters import labels_of
from .layerstore import layer_keys
from .local import ImageStore
from .model import OCI_MANIFEST, ImageConfig, parse, timestamp
from .record import HistoryEntry, Image, moment
from .reference import Reference


def _config(content: ContentStore, image: Image) -> ImageConfig:
    return parse(content.read(image.id), ImageConfig, f"the config of {image.familiar}")


def inspect(images: ImageStore, content: ContentStore, image: Image) -> dict[str, Any]:
    """The object that ``docker image inspect`` prints, of the fields that mean something here, and some of podman's.

    ``Size`` counts bytes of the layers' tar streams, and so does its old name ``VirtualSize``. ``Created`` is in UTC,
    "" where the image does not tell. ``Config`` has every common setting, empty where the image has none.
    ``GraphDriver`` names the store's driver, and the directories of the layers that it has, in its own form:
    ``UpperDir`` the topmost's, ``LowerDir`` those below, downwards. ``Annotations`` and ``Descriptor`` are the
    manifest's. ``Metadata.LastTagTime`` is when the latest of its names was given to it here.

    Raises `DigestMismatch` or `StorageError` where the config blob is damaged or missing.
    """
    config = _config(content, image)
    raw = json.loads(content.read(image.id))
    manifest, descriptor = _manifest(content, image)
    tags, digests = images.references(image)
    system, architecture, variant = (*image.platform.split("/"), "", "")[:3]
    created = moment(image.created)
    labels = labels_of(image)
    found: dict[str, Any] = {
        "Id": image.id,
        "Digest": image.manifest,
        "RepoTags": [Reference.parse(tag).familiar for tag in tags],
        "RepoDigests": [Reference.parse(digest).familiar for digest in digests],
        "Parent": "",
        "Comment": config.comment or "",
        "Created": f"{created}Z" if created else "",
        "DockerVersion": _text(raw.get("docker_version")),
        "Author": config.author or "",
        "Config": {**_NO_CONFIG, **{key: value for key, value in image.config.items() if value is not None}},
        "Architecture": architecture,
        "Os": system,
        "OsVersion": _text(raw.get("os.version")),
        "Size": image.size,
        "VirtualSize": image.size,
        "GraphDriver": _graph_driver(content.root, image),
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]},
        "Metadata": {"LastTagTime": _time(0.0 if image.unnamed else images.tagged(image))},
        "Labels": labels,
        "Annotations": manifest.get("annotations") or {},
        "ManifestType": descriptor["mediaType"],
        "Descriptor": descriptor,
    }
    if variant:
        found["Variant"] = variant
    return found


_NO_CONFIG: dict[str, Any] = {
    "User": "",
    "ExposedPorts": {},
    "Env": [],
    "Entrypoint": [],
    "Cmd": [],
    "Volumes": {},
    "WorkingDir": "",
    "Labels": {},
    "OnBuild": [],
    "StopSignal": "",
}


def _manifest(content: ContentStore, image: Image) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest, {} where it is damaged or missing, and its descriptor."""
    try:
        data = content.read(image.manifest)
        document = json.loads(data)
        kind = str(document.get("mediaType") or OCI_MANIFEST)
    except (PyrunError, ValueError, AttributeError):
        return {}, {"mediaType": "", "digest": image.manifest, "size": 0}
    return document, {"mediaType": kind, "digest": image.manifest, "size": len(data)}


def _graph_driver(root: str, image: Image) -> dict[str, Any]:
    try:
        driver = str(records.read(f"{root}/storage.json")["driver"])
    except (OSError, PyrunError, KeyError, TypeError):
        return {"Name": "", "Data": {}}
    plain = [layer.diff_id for layer in image.layers]
    paths: list[str] = []
    for pair in zip(plain, layer_keys(plain, chained=True), strict=True):
        for key in dict.fromkeys(reversed(pair)):
            path = f"{root}/layers/{driver}/{key.removeprefix('sha256:').replace(':', '-')}"
            if os.path.exists(f"{path}/meta.json"):
                tree = f"{path}/fs"
                paths.insert(0, tree if os.path.isdir(tree) else path)
                break
    data = {}
    if paths:
        data["UpperDir"] = paths[0]
    if paths[1:]:
        data["LowerDir"] = ":".join(paths[1:])
    return {"Name": driver, "Data": data}


def _time(seconds: float) -> str:
    """RFC 3339 in UTC; docker's zero value where there is none."""
    if not seconds:
        return "0001-01-01T00:00:00Z"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def history(content: ContentStore, image: Image) -> list[HistoryEntry]:
    """One entry a build step, newest first; layers that the config's history does not tell of come without
    words. Raises as `inspect` does."""
    steps = _config(content, image).history or []
    sizes = [layer.unpacked for layer in image.layers]
    found: list[HistoryEntry] = []
    for step in steps:
        size = 0 if step.empty_layer or not sizes else sizes.pop(0)
        found.append(
            HistoryEntry("", timestamp(step.created), step.created_by or "", size, step.comment or "")
        )
    found.extend(HistoryEntry("", "", "", size, "") for size in sizes)
    found.reverse()
    if found:
        found[0].id = image.id
    return found
