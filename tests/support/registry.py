"""A real registry on loopback (Debian's docker-registry), images made by hand to push to it, and tampering.

with Registry(tmp_path) as registry:
    registry.push_image("library/redis", "7", [tar({"etc/motd": b"hello"})])
    registry.registries_conf(tmp_path / "registries.conf")   # docker.io is this registry from here on
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
HOST_ARCHITECTURE = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
OTHER_ARCHITECTURE = "s390x" if HOST_ARCHITECTURE != "s390x" else "amd64"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def tar(entries: Mapping[str, bytes | str | None]) -> bytes:
    """A layer's tar: bytes are a file, a str is a symbolic link's target, None is a directory. A whiteout is
    a file named ``.wh.NAME``, ``.wh..wh..opq`` makes its directory opaque."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.mtime = 1_700_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size, info.mode = len(content), 0o644
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def compress(data: bytes, how: str) -> tuple[bytes, str]:
    """(blob, media type) of a tar; ``how`` is "gzip", "zstd" or "plain"."""
    if how == "gzip":
        return gzip.compress(data, 6, mtime=0), f"{OCI_LAYER}+gzip"
    if how == "zstd":
        return zstd.compress(data), f"{OCI_LAYER}+zstd"
    return data, OCI_LAYER


@dataclass
class Pushed:
    """What an image is made of: digests, and the documents as they were pushed."""

    repository: str
    tag: str
    digest: str  # of what the tag names: the index, or the manifest where there is none
    manifest_digest: str
    config_digest: str
    layer_digests: list[str]
    diff_ids: list[str]
    manifest: dict[str, Any]
    config: dict[str, Any]


class Registry:
    """A registry process with a directory of its own; a context manager. ``host`` is "127.0.0.1:<port>".

    ``settings`` are further sections of its configuration, as ``auth`` or ``http: {tls: ...}``. One with those is not
    pushed to from here: give it the ``root`` of a plain one, and push to that.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        root: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        client: ssl.SSLContext | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.root = root or self.directory / "registry"
        self.settings = dict(settings or {})
        self._client = client  # with which a registry that speaks TLS is asked whether it is there
        self.host = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Registry:
        for _ in range(5):  # another process may take the port that was free
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.host = f"127.0.0.1:{probe.getsockname()[1]}"
            self.start()
            if self._answers():
                return self
            self.stop()
        raise RuntimeError((self.directory / "registry.log").read_text())

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve at ``host``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(parents=True, exist_ok=True)
        config = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.root)}, "delete": {"enabled": True}},
            **self.settings,
            "http": {"addr": self.host, **self.settings.get("http", {})},
        }
        path = self.directory / "registry.json"
        path.write_text(json.dumps(config))  # JSON is YAML
        with open(self.directory / "registry.log", "wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
            )

    def stop(self) -> None:
        """End the process; what was pushed stays, and `start` serves it again."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        for _ in range(200):
            if self._process.poll() is not None:
                return False
            try:
                return self.request("GET", "/v2/")[0] in (200, 401)
            except OSError:
                time.sleep(0.02)
        return False

    def request(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers by lowercase name, body)."""
        connection: http.client.HTTPConnection
        if "tls" in self.settings.get("http", {}):
            connection = http.client.HTTPSConnection(self.host, timeout=10, context=self._client)
        else:
            connection = http.client.HTTPConnection(self.host, timeout=10)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    # --- pushing

    def push_blob(self, repository: str, data: bytes) -> str:
        digest = sha256(data)
        status, headers, body = self.request("POST", f"/v2/{repository}/blobs/uploads/")
        assert status == 202, body
        where = headers["location"].partition(self.host)[2] or headers["location"]
        status, _, body = self.request(
            "PUT",
            f"{where}{'&' if '?' in where else '?'}digest={digest}",
            data,
            content_type="application/octet-stream",
        )
        assert status == 201, body
        return digest

    def push_manifest(
        self,
        repository: str,
        reference: str,
        document: Mapping[str, Any] | bytes,
        media_type: str = OCI_MANIFEST,
    ) -> str:
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        path = f"/v2/{repository}/manifests/{reference or sha256(data)}"
        status, _, body = self.request("PUT", path, data, content_type=media_type)
        assert status == 201, body
        return sha256(data)

    def push_image(
        self,
        repository: str,
        tag: str,
        layers: Sequence[bytes],
        config: Mapping[str, Any] | None = None,
        *,
        platform: str = f"linux/{HOST_ARCHITECTURE}",
        other_platform: bool = True,
        compression: Sequence[str] = ("gzip", "zstd", "plain"),
        diff_ids: Sequence[str] | None = None,
        sizes: Sequence[int] | None = None,
        **top: Any,
    ) -> Pushed:
        """Push an image made of ``layers`` (tars, bottom to top), ``compression`` taking turns.

        ``config`` is its "config" object; ``top`` are further members of the image config. With
        ``other_platform`` the tag names an index that lists the image after one for another architecture.
        ``diff_ids`` and ``sizes`` replace the true ones, for images that lie.
        """
        system, architecture, *variant = platform.split("/")
        descriptors = []
        for at, layer in enumerate(layers):
            blob, media_type = compress(layer, compression[at % len(compression)])
            size = sizes[at] if sizes else len(blob)
            descriptors.append(
                {"mediaType": media_type, "digest": self.push_blob(repository, blob), "size": size}
            )
        image_config = {
            "architecture": architecture,
            "os": system,
            **({"variant": variant[0]} if variant else {}),
            "created": "2024-05-06T07:08:09.123456789Z",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(sha256, layers))},
            "history": [
                {"created": "2024-05-06T07:08:09Z", "created_by": f"step {n}"} for n in range(len(layers))
            ],
            **top,
        }
        manifest, digest = self._push_one(
            repository, "" if other_platform else tag, image_config, descriptors
        )
        named = digest
        if other_platform:
            foreign = {**image_config, "architecture": OTHER_ARCHITECTURE}
            foreign.pop("variant", None)
            if architecture == OTHER_ARCHITECTURE:
                foreign["architecture"] = HOST_ARCHITECTURE
            entries = []
            for document in (foreign, image_config):
                other, other_digest = self._push_one(repository, "", document, descriptors)
                where = {"os": document["os"], "architecture": document["architecture"]}
                if "variant" in document:
                    where["variant"] = document["variant"]
                entries.append(
                    {
                        "mediaType": OCI_MANIFEST,
                        "digest": other_digest,
                        "size": len(json.dumps(other).encode()),
                        "platform": where,
                    }
                )
            index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
            named = self.push_manifest(repository, tag, index, OCI_INDEX)
        return Pushed(
            repository,
            tag,
            named,
            digest,
            manifest["config"]["digest"],
            [d["digest"] for d in descriptors],
            image_config["rootfs"]["diff_ids"],
            manifest,
            image_config,
        )

    def _push_one(
        self, repository: str, tag: str, config: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, Any], str]:
        data = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG,
                "digest": self.push_blob(repository, data),
                "size": len(data),
            },
            "layers": list(layers),
        }
        return manifest, self.push_manifest(repository, tag, manifest)

    # --- tampering, on the registry's own disk

    def blob_path(self, digest: str) -> Path:
        algorithm, _, digits = digest.partition(":")
        return self.root / "docker/registry/v2/blobs" / algorithm / digits[:2] / digits / "data"

    def flip_byte(self, digest: str, at: int = -1) -> None:
        """Change one byte, of the middle where ``at`` is not given; the size stays."""
        data = bytearray(self.blob_path(digest).read_bytes())
        data[len(data) // 2 if at < 0 else at] ^= 0x40
        self.blob_path(digest).write_bytes(data)

    def truncate(self, digest: str, size: int) -> None:
        os.truncate(self.blob_path(digest), size)

    def append(self, digest: str, data: bytes) -> None:
        with open(self.blob_path(digest), "ab") as file:
            file.write(data)

    def replace(self, digest: str, data: bytes) -> None:
        self.blob_path(digest).write_bytes(data)

    def delete(self, digest: str) -> None:
        self.blob_path(digest).unlink()

    # --- for the engine

    def registries_conf(self, path: str | Path) -> Path:
        """A registries.conf that makes this registry the mirror, and the only home, of docker.io: a name that
        it lacks is not asked for anywhere else."""
        path = Path(path)
        path.write_text(
            f'[[registry]]\nprefix = "docker.io"\nlocation = "{self.host}"\ninsecure = true\n\n'
            f'[[registry.mirror]]\nlocation = "{self.host}"\ninsecure = true\n'
        )
        return path


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    """One registry for the whole session; use repositories of your own in it."""
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry (package docker-registry)")
    with tempfile.TemporaryDirectory(prefix="pyrun-registry-") as directory, Registry(directory) as running:
        yield running
