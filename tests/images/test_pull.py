"""Pull, against a real registry and into the real stores."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from support.registry import OTHER_ARCHITECTURE, Registry, sha256, tar

from pyrun.errors import ManifestUnknown, PlatformUnavailable
from pyrun.images.digest import short
from pyrun.images.record import Progress

from .conftest import Engine


def layer_file(engine: Engine, diff_id: str, path: str) -> bytes:
    found = engine.layers.find(diff_id)
    assert found is not None
    return Path(found.path, "fs", path).read_bytes()


def test_an_image_is_pulled_whole_and_recorded(engine: Engine, registry: Registry, repository: str) -> None:
    layers = [tar({"a": b"one" * 5000}), tar({"b": b"two"}), tar({".wh.a": b"", "c": b"three"})]
    pushed = registry.push_image(repository, "1", layers, {"Cmd": ["sh"], "Env": ["A=b"]})
    result = engine.pull(f"{repository}:1")
    image = result.image
    assert result.newer
    assert (image.reference, image.digest, image.manifest, image.id) == (
        f"docker.io/{repository}:1",
        pushed.digest,
        pushed.manifest_digest,
        pushed.config_digest,
    )
    assert image.config == {"Cmd": ["sh"], "Env": ["A=b"]}
    assert [(l.digest, l.diff_id, l.unpacked) for l in image.layers] == [
        (digest, diff_id, len(data))
        for digest, diff_id, data in zip(pushed.layer_digests, pushed.diff_ids, layers, strict=True)
    ]
    for digest in [*pushed.layer_digests, pushed.config_digest, pushed.manifest_digest, pushed.digest]:
        stored = Path(engine.content.blob_path(digest)).read_bytes()
        assert "sha256:" + hashlib.sha256(stored).hexdigest() == digest
    assert layer_file(engine, pushed.diff_ids[0], "a") == b"one" * 5000
    assert layer_file(engine, pushed.diff_ids[2], "c") == b"three"
    assert engine.images.get(f"{repository}:1").to_json() == image.to_json()
    assert engine.partial() == []
