"""Image archives made by hand, as Docker, podman and skopeo write them, and as they never would.

made = Made([tar({"etc/motd": b"hello"})])
docker_archive([made], tags=["x:1"])       # {member name: bytes or special member}
oci_layout([made], names=["docker.io/library/x:1"])
packed(members)                            # the tar
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any

from .registry import HOST_ARCHITECTURE, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, compress, sha256

Members = dict[str, "bytes | Special"]


class Special:
    """A member that is no file: ``kind`` is one of tarfile's types."""

    def __init__(self, kind: bytes, target: str = "") -> None:
        self.kind = kind
        self.target = target


class Made:
    """An image: its documents as bytes, its layers as tars and as blobs.

    compression  of the blobs: "gzip", "zstd", "plain", or "turns" for each in turn
    top          further or other members of the config
    """

    def __init__(
        self,
        layers: Sequence[bytes],
        *,
        config: Mapping[str, Any] | None = None,
        compression: str = "gzip",
        architecture: str = HOST_ARCHITECTURE,
        **top: Any,
    ) -> None:
        self.layers = list(layers)
        ways = ("gzip", "zstd", "plain") if compression == "turns" else (compression,)
        self.blobs = [compress(layer, ways[at % len(ways)]) for at, layer in enumerate(layers)]
        document = {
            "architecture": architecture,
            "os": "linux",
            "created": "2024-05-06T07:08:09Z",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
            **top,
        }
        self.architecture = architecture
        self.config = json.dumps(document).encode()
        self.id = sha256(self.config)
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor(self.config, OCI_CONFIG),
                "layers": [descriptor(blob, media_type) for blob, media_type in self.blobs],
            }
        ).encode()

    @property
    def hex(self) -> str:
        return self.id.partition(":")[2]


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


def blob_name(data: bytes) -> str:
    return f"blobs/{sha256(data).replace(':', '/')}"


def docker_archive(images: Sequence[Made], tags: Sequence[Sequence[str]] = ()) -> Members:
    """As Docker wrote it before version 25: a directory a layer."""
    members: Members = {}
    entries = []
    for at, image in enumerate(images):
        names = []
        for number, layer in enumerate(image.layers):
            directory = f"{image.hex[:40]}{number:024}"
            members[f"{directory}/VERSION"] = b"1.0"
            members[f"{directory}/json"] = b"{}"
            members[f"{directory}/layer.tar"] = layer
            names.append(f"{directory}/layer.tar")
        members[f"{image.hex}.json"] = image.config
        entries.append(
            {
                "Config": f"{image.hex}.json",
                "RepoTags": list(tags[at]) if at < len(tags) else None,
                "Layers": names,
            }
        )
    members["manifest.json"] = json.dumps(entries).encode()
    return members


def oci_layout(images: Sequence[Made], names: Sequence[str] = ()) -> Members:
    """An OCI image layout; ``names`` as containerd's annotation has them."""
    members: Members = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    entries = []
    for at, image in enumerate(images):
        for data in (image.config, image.manifest, *(blob for blob, _ in image.blobs)):
            members[blob_name(data)] = data
        entry = descriptor(image.manifest, OCI_MANIFEST)
        if at < len(names) and names[at]:
            entry["annotations"] = {"io.containerd.image.name": names[at]}
        entries.append(entry)
    members["index.json"] = index(entries)
    return members


def index(entries: Sequence[Mapping[str, Any]]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}).encode()


def packed(members: Mapping[str, bytes | Special], *again: tuple[str, bytes]) -> bytes:
    """The tar of ``members``, and of ``again`` behind them: for names that stand in it twice."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in [*members.items(), *again]:
            info = tarfile.TarInfo(name)
            if isinstance(content, Special):
                info.type, info.linkname = content.kind, content.target
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()
