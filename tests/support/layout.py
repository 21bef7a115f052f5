"""An independent reader of OCI image layouts (OCI image spec: image-layout.md, image-index.md, manifest.md,
descriptor.md, annotations.md), to watch one while it changes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

INDEX_TYPES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
MANIFEST_TYPES = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
CONFIG_TYPES = {
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
LAYER_TYPE = re.compile(
    r"application/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(foreign\.)?diff\.tar(\.gzip|\.zstd)?)"
)
REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
_COMPONENT = r"[A-Za-z0-9]+(?:(?:[-._:@+]|--)[A-Za-z0-9]+)*"
REF_GRAMMAR = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}")


class Invalid(AssertionError):
    """The layout breaks a rule of the specification."""


class Layout:
    """The layout in ``path``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def look(self) -> dict[str, str]:
        """Check all of it, and return the names (of annotations) -> digest of the manifest.

        What is named must be there as long as it is named: a blob that is missing is a breach only if the index still
        names it afterwards.
        """
        while True:
            before = self._index_bytes()
            try:
                return self._check(json.loads(before))
            except (FileNotFoundError, Invalid):
                if self._index_bytes() == before:
                    raise

    def _index_bytes(self) -> bytes:
        return (self.path / "index.json").read_bytes()

    def _check(self, index: Any) -> dict[str, str]:
        version = json.loads((self.path / "oci-layout").read_bytes())
        _require(version.get("imageLayoutVersion") == "1.0.0", "oci-layout has no version")
        _require(index["schemaVersion"] == 2, "the index has another schemaVersion")
        _require(index.get("mediaType") in (None, *INDEX_TYPES), "the index has another type")
        names: dict[str, str] = {}
        for entry in index["manifests"]:
            self._descriptor(entry, INDEX_TYPES | MANIFEST_TYPES)
            annotations = entry.get("annotations", {})
            _require(
                all(isinstance(k, str) and isinstance(v, str) for k, v in annotations.items()),
                "an annotation is no string",
            )
            name = annotations.get(REF_NAME)
            _require(
                name is None or REF_GRAMMAR.fullmatch(name) is not None, f"{name!r} is no reference name"
            )
            _require(name is None or name not in names, f"{name!r} stands twice in the index")
            for key in (name, annotations.get(CONTAINERD_NAME)):
                if key is not None:
                    names[key] = entry["digest"]
            self._manifest(entry)
        return names

    def _manifest(self, entry: Any) -> None:
        document = json.loads(self.blob(entry["digest"]).read_bytes())
        _require(document["schemaVersion"] == 2, "a manifest has another schemaVersion")
        _require(
            document.get("mediaType") in (None, entry["mediaType"]),
            "a manifest has another type than its entry",
        )
        if entry["mediaType"] in INDEX_TYPES:
            for inner in document["manifests"]:
                self._descriptor(inner, INDEX_TYPES | MANIFEST_TYPES)
                self._manifest(inner)
            return
        self._descriptor(document["config"], CONFIG_TYPES)
        config = json.loads(self.blob(document["config"]["digest"]).read_bytes())
        _require(
            len(config["rootfs"]["diff_ids"]) == len(document["layers"]),
            "layers and diff_ids differ in number",
        )
        for layer in document["layers"]:
            _require(
                LAYER_TYPE.fullmatch(layer["mediaType"]) is not None, f"a layer of type {layer['mediaType']}"
            )
            self._descriptor(layer, None)

    def _descriptor(self, entry: Any, types: set[str] | None) -> None:
        _require(types is None or entry["mediaType"] in types, f"a descriptor of type {entry['mediaType']}")
        _require(DIGEST.fullmatch(entry["digest"]) is not None, f"{entry['digest']!r} is no digest")
        data = self.blob(entry["digest"]).read_bytes()
        _require(len(data) == entry["size"], f"{entry['digest']} has not the size that its descriptor says")
        algorithm, _, digits = entry["digest"].partition(":")
        _require(hashlib.new(algorithm, data).hexdigest() == digits, f"{entry['digest']} has another digest")

    def blob(self, digest: str) -> Path:
        algorithm, _, digits = digest.partition(":")
        return self.path / "blobs" / algorithm / digits


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise Invalid(what)
