"""Stores with many images, written straight to the disk: what `pull` would leave of a thousand small images.

Each image has a manifest, a config and a layer of its own over one that all share, so that the OCI layout is valid
and nothing is missing but the unpacked layers.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pyrun.images.content import ContentStore
from pyrun.images.local import ImageStore, file_name
from pyrun.images.record import Image, ImageLayer

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
# As long as an ordinary image's.
_ENV = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG=C.UTF-8",
    "GPG_KEY=" + "A" * 40,
]


def _blob(content: ContentStore, data: bytes) -> str:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    Path(content.blob_path(digest)).write_bytes(data)
    return digest


def write_images(root: str | Path, count: int, *, repository: str = "docker.io/library/app") -> list[Image]:
    """Write ``count`` images ``<repository><n>:1`` into the store ``root``, and publish them; oldest first."""
    images = ImageStore(str(root))
    content = images.content
    for directory in ("blobs/sha256", "blobs/sha512"):
        Path(content.path, directory).mkdir(parents=True, exist_ok=True)
    Path(content.path, "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    Path(images.path).mkdir(mode=0o700, parents=True, exist_ok=True)
    base = _blob(content, b"\0" * 10240)
    found = []
    for number in range(count):
        own = b"%010d" % number + b"\0" * 1014 + b"\0" * 1024
        layers = [(base, 10240), (_blob(content, own), len(own))]
        created = (
            f"2024-{1 + number // 28 % 12:02d}-{1 + number % 28:02d}T00:00:{number % 60:02d}.{number:09d}Z"
        )
        config = {
            "Env": _ENV,
            "Cmd": ["server", "--number", str(number)],
            "Labels": {"number": str(number), "parity": "odd" if number % 2 else "even"},
            "WorkingDir": "/srv",
            "ExposedPorts": {"80/tcp": {}},
        }
        document = {
            "architecture": "amd64",
            "os": "linux",
            "created": created,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [digest for digest, _ in layers]},
        }
        data = json.dumps(document).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": _blob(content, data), "size": len(data)},
            "layers": [{"mediaType": _LAYER, "digest": digest, "size": size} for digest, size in layers],
        }
        digest = _blob(content, json.dumps(manifest).encode())
        image = Image(
            reference=f"{repository}{number}:1",
            digest=digest,
            manifest=digest,
            id=manifest["config"]["digest"],  # type: ignore[index]
            platform="linux/amd64",
            created=created,
            config=config,
            layers=[ImageLayer(digest, digest, size, size, _LAYER) for digest, size in layers],
        )
        path = Path(images.path, file_name(image.reference))
        path.write_bytes(json.dumps(image.to_json(), separators=(",", ":")).encode())
        path.chmod(0o600)
        found.append(image)
    images.republish()
    return found
