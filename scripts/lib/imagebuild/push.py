"""Pushes a layout's images to a registry on this machine (OCI distribution spec, "Pushing Blobs")."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from pathlib import Path
from typing import Any

from . import layout
from .errors import BuildError


class Registry:
    """A plain-HTTP registry at ``address``, "HOST:PORT"."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._connection = http.client.HTTPConnection(address, timeout=60)

    def _request(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        try:
            self._connection.request(method, path, body=body, headers=headers)
            response = self._connection.getresponse()
            response.body = response.read()  # type: ignore[attr-defined]
        except (OSError, http.client.HTTPException) as error:
            raise BuildError(f"the registry at {self.address} can't be reached: {error}") from error
        return response

    def _expect(self, response: http.client.HTTPResponse, status: int, what: str) -> http.client.HTTPResponse:
        if response.status != status:
            body = response.body[:500].decode(errors="replace")  # type: ignore[attr-defined]
            raise BuildError(f"the registry at {self.address} answered {response.status} to {what}: {body}")
        return response

    def blob(self, repository: str, digest: str, path: Path) -> bool:
        """Send a blob unless it is there; whether it was sent."""
        if self._request("HEAD", f"/v2/{repository}/blobs/{digest}").status == 200:
            return False
        begun = self._expect(self._request("POST", f"/v2/{repository}/blobs/uploads/"), 202, "a new upload")
        location = urllib.parse.urlsplit(begun.headers["Location"])
        query = urllib.parse.urlencode([*urllib.parse.parse_qsl(location.query), ("digest", digest)])
        with path.open("rb") as content:
            done = self._request(
                "PUT",
                f"{location.path}?{query}",
                content,
                **{"Content-Type": "application/octet-stream", "Content-Length": str(path.stat().st_size)},
            )
        self._expect(done, 201, f"blob {digest}")
        return True

    def manifest(self, repository: str, reference: str, media_type: str, data: bytes) -> None:
        sent = self._request(
            "PUT", f"/v2/{repository}/manifests/{reference}", data, **{"Content-Type": media_type}
        )
        self._expect(sent, 201, f"manifest {repository}:{reference}")


def push(path: Path, address: str) -> list[tuple[str, str]]:
    """Push every image of the layout ``path`` as library/NAME:TAG; (reference, digest) of each."""
    registry = Registry(address)
    pushed = []
    for name, entry in layout.names(path).items():
        image, _, tag = name.rpartition(":")
        repository = f"library/{image}"
        index = _read(path, entry["digest"])
        for described in json.loads(index)["manifests"]:
            manifest = _read(path, described["digest"])
            document = json.loads(manifest)
            for blob in (document["config"], *document["layers"]):
                registry.blob(repository, blob["digest"], _file(path, blob["digest"]))
            registry.manifest(repository, described["digest"], described["mediaType"], manifest)
        registry.manifest(repository, tag, entry["mediaType"], index)
        pushed.append((f"{address}/{repository}:{tag}", entry["digest"]))
    return pushed


def _file(path: Path, digest: str) -> Path:
    return path / "blobs" / "sha256" / digest.removeprefix("sha256:")


def _read(path: Path, digest: str) -> bytes:
    return _file(path, digest).read_bytes()
