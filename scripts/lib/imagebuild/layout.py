"""OCI image-layout directories: blobs, manifests, an index an image, and the index.json that names them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .bootstrap import EPOCH
from .tree import Tree, Written, made, write_layer

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
REF_NAME = "org.opencontainers.image.ref.name"

_CREATED = datetime.fromtimestamp(EPOCH, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
# GOARCH names, which the image spec prescribes.
_ARCHITECTURES = {
    "x86_64": {"architecture": "amd64"},
    "aarch64": {"architecture": "arm64", "variant": "v8"},
    "armv7l": {"architecture": "arm", "variant": "v7"},
    "i686": {"architecture": "386"},
    "ppc64le": {"architecture": "ppc64le"},
    "riscv64": {"architecture": "riscv64"},
    "s390x": {"architecture": "s390x"},
}


def host_platform() -> dict[str, str]:
    machine = platform.machine()
    return {**_ARCHITECTURES.get(machine, {"architecture": machine}), "os": "linux"}


def other_platform() -> dict[str, str]:
    """One that this host is not, so that whoever takes the first manifest of an index takes the wrong one."""
    arm = {**_ARCHITECTURES["aarch64"], "os": "linux"}
    return arm if host_platform() != arm else {**_ARCHITECTURES["x86_64"], "os": "linux"}


@dataclass
class Recipe:
    """An image to write: ``steps`` pairs what made a layer with its entries (None: an empty layer)."""

    name: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    steps: list[tuple[str, Tree | None]] = field(default_factory=list)


class Layout:
    """A layout directory being written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blobs = path / "blobs" / "sha256"
        self.blobs.mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}', encoding="ascii")
        self._index: list[dict[str, Any]] = []

    def blob(self, media_type: str, data: bytes) -> dict[str, Any]:
        """Store ``data``; its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def layer(self, entries: Tree) -> Written:
        part = self.blobs / ".part"
        written = write_layer(entries.values(), part)
        os.replace(part, self.blobs / written.digest.removeprefix("sha256:"))
        return written

    def _document(self, media_type: str, document: dict[str, Any]) -> dict[str, Any]:
        return self.blob(media_type, json.dumps(document, separators=(",", ":"), sort_keys=True).encode())

    def _manifest(self, recipe: Recipe, target: dict[str, str]) -> tuple[dict[str, Any], list[Written]]:
        written: list[Written] = []
        history = []
        for created_by, entries in recipe.steps:
            line: dict[str, Any] = {"created": _CREATED, "created_by": created_by}
            if entries is None:
                line["empty_layer"] = True
            else:
                written.append(self.layer(entries))
            history.append(line)
        config = self._document(
            CONFIG,
            {
                **target,
                "created": _CREATED,
                "config": recipe.config,
                "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in written]},
                "history": history,
            },
        )
        layers = [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size} for layer in written]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
        return {**self._document(MANIFEST, manifest), "platform": target}, written

    def image(self, recipe: Recipe) -> list[Written]:
        """Write ``recipe`` for this host beside a stand-in for another platform; the host's layers."""
        note = made("STAND-IN", b"This platform of the image exists to be passed over.\n")
        stand_in = Recipe(
            recipe.name, (), {"Cmd": ["sh"]}, [("stand-in for another platform", {"STAND-IN": note})]
        )
        other, _ = self._manifest(stand_in, other_platform())
        real, written = self._manifest(recipe, host_platform())
        index = self._document(INDEX, {"schemaVersion": 2, "mediaType": INDEX, "manifests": [other, real]})
        self._index += [{**index, "annotations": {REF_NAME: f"{recipe.name}:{tag}"}} for tag in recipe.tags]
        return written

    def adopt(self, source: Path) -> None:
        """Copy another layout's blobs and names into this one."""
        for blob in (source / "blobs" / "sha256").iterdir():
            part = self.blobs / ".part"
            shutil.copyfile(blob, part)
            os.replace(part, self.blobs / blob.name)
        self._index += names(source).values()

    def close(self) -> None:
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self._index}
        (self.path / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="ascii")


def names(path: Path) -> dict[str, dict[str, Any]]:
    """The images of a layout: "name:tag" to descriptor."""
    index = json.loads((path / "index.json").read_text(encoding="utf-8"))
    return {entry["annotations"][REF_NAME]: entry for entry in index["manifests"]}
