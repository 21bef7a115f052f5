"""Manifests, indexes and configs as a registry may send them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.errors import ImageError
from pyrun.images import model
from pyrun.images.model import Index, Manifest, parse_config, parse_manifest

DIGEST = "sha256:" + "0123456789abcdef" * 4
CONFIG = {"mediaType": model.OCI_CONFIG, "digest": DIGEST, "size": 2}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 3}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": model.OCI_MANIFEST,
    "config": CONFIG,
    "layers": [LAYER],
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "manifests": [{"mediaType": model.OCI_MANIFEST, "digest": DIGEST, "size": 9}],
}


def encoded(document: Any, **changes: Any) -> bytes:
    return json.dumps({**document, **changes} if changes else document).encode()


def test_a_manifest_and_an_index_are_told_apart_by_what_they_were_served_as() -> None:
    assert isinstance(parse_manifest(encoded(MANIFEST), model.OCI_MANIFEST, "x"), Manifest)
    assert isinstance(parse_manifest(encoded(INDEX), model.OCI_INDEX, "x"), Index)
    docker = encoded(
        MANIFEST, mediaType=model.DOCKER_MANIFEST, config={**CONFIG, "mediaType": model.DOCKER_CONFIG}
    )
    assert isinstance(parse_manifest(docker, model.DOCKER_MANIFEST + "; charset=utf-8", "x"), Manifest)


@pytest.mark.parametrize("old", ["application/octet-stream", ""])
def test_an_early_docker_images_config_may_be_of_no_particular_type(old: str) -> None:
    config = {**CONFIG, "mediaType": old}
    docker = encoded(MANIFEST, mediaType=model.DOCKER_MANIFEST, config=config)
    assert isinstance(parse_manifest(docker, model.DOCKER_MANIFEST, "x"), Manifest)
    with pytest.raises(ImageError, match="artifact"):
        parse_manifest(encoded(MANIFEST, config=config), model.OCI_MANIFEST, "x")


@pytest.mark.parametrize(
    ("data", "media_type", "says"),
    [
        (encoded(MANIFEST), model.DOCKER_MANIFEST, "calls itself"),
        (encoded(MANIFEST), "application/json", "calls itself"),
        (encoded(INDEX), "text/html", "no image manifest"),
        (encoded({**MANIFEST, "manifests": []}), model.OCI_MANIFEST, "both an index and a manifest"),
        (encoded({**INDEX, "layers": []}), model.OCI_INDEX, "both an index and a manifest"),
        (encoded({"schemaVersion": 1, "fsLayers": []}), "application/json", "schema 1"),
        (b"{}", "application/vnd.docker.distribution.manifest.v1+prettyjws", "schema 1"),
        (encoded(MANIFEST, schemaVersion=3), model.OCI_MANIFEST, "schemaVersion 3"),
        (
            encoded(MANIFEST, config={**CONFIG, "mediaType": "application/vnd.helm+json"}),
            model.OCI_MANIFEST,
            "artifact",
        ),
        (encoded(MANIFEST, artifactType="application/x.sbom"), model.OCI_MANIFEST, "artifact"),
        (
            encoded(MANIFEST, layers=[{**LAYER, "mediaType": "a/tar+encrypted"}]),
            model.OCI_MANIFEST,
            "layer of type",
        ),
        (
            encoded(MANIFEST, layers=[{**LAYER, "digest": "sha256:12"}]),
            model.OCI_MANIFEST,
            "malformed digest",
        ),
        (encoded(MANIFEST, layers=[{**LAYER, "digest": "../../x"}]), model.OCI_MANIFEST, "malformed digest"),
        (encoded(MANIFEST, layers=[{**LAYER, "size": -1}]), model.OCI_MANIFEST, "malformed"),
        (encoded(MANIFEST, layers=[{**LAYER, "size": 1.5}]), model.OCI_MANIFEST, "malformed"),
        (encoded(MANIFEST, layers=[{**LAYER, "size": 1 << 62}]), model.OCI_MANIFEST, "malformed"),
        (encoded(MANIFEST, layers=[LAYER] * 1001), model.OCI_MANIFEST, "malformed"),
        (encoded(MANIFEST, layers=None), model.OCI_MANIFEST, "malformed"),
        (encoded({"schemaVersion": 2, "config": CONFIG}), model.OCI_MANIFEST, "malformed"),
        (encoded(MANIFEST, Layers=[]), model.OCI_MANIFEST, "other programs read"),
        (b'{"schemaVersion": 2, "schemaVersion": 2}', model.OCI_MANIFEST, "stands twice"),
        (b'{"a": {"b": 1, "b": 2}}', model.OCI_MANIFEST, "stands twice"),
        (b'{"a": NaN}', model.OCI_MANIFEST, "not a JSON number"),
        (b"[" * 100_000, model.OCI_MANIFEST, "not acceptable JSON"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, model.OCI_MANIFEST, "nested deeper"),
        (b'{"a": ' + b"1" * 5000 + b"}", model.OCI_MANIFEST, "not acceptable JSON"),
        (b"\xff\xfe", model.OCI_MANIFEST, "not acceptable JSON"),
        (b"", model.OCI_MANIFEST, "not acceptable JSON"),
        (b"[]", model.OCI_MANIFEST, "not a JSON object"),
        (b" " * (model.MAX_DOCUMENT + 1), model.OCI_MANIFEST, "larger than 4 MiB"),
    ],
)
def test_a_document_that_could_be_read_two_ways_or_is_no_image_is_refused(
    data: bytes, media_type: str, says: str
) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        parse_manifest(data, media_type, "the manifest of x")
    assert "manifest of x" in caught.value.message
    assert caught.value.message.isprintable()


CONFIG_FILE: dict[str, Any] = {
    "architecture": "amd64",
    "os": "linux",
    "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
}


def config(**changes: Any) -> model.ImageConfig:
    manifest = parse_manifest(encoded(MANIFEST), model.OCI_MANIFEST, "x")
    assert isinstance(manifest, Manifest)
    return parse_config(encoded(CONFIG_FILE, **changes), manifest, "the config of x")


def test_a_config_may_leave_out_or_null_whatever_it_does_not_need() -> None:
    assert config().config is None
    assert config(config=None, history=None, created=None, variant=None).created == ""
    full = {"Env": None, "Cmd": ["a"], "Volumes": {"/d": {}}, "ExposedPorts": {"6379/tcp": {}}, "Other": [1]}
    assert config(config=full).config == full


@pytest.mark.parametrize(
    "changes",
    [
        {"rootfs": {"type": "layers", "diff_ids": []}},
        {"rootfs": {"type": "layers", "diff_ids": [DIGEST, DIGEST]}},
        {"rootfs": {"type": "layers", "diff_ids": ["sha256:xyz"]}},
        {"rootfs": {"type": "chunks", "diff_ids": [DIGEST]}},
        {"architecture": None},
        {"config": {"Env": "A=b"}},
        {"config": {"Cmd": [1]}},
        {"config": {"Entrypoint": "sh -c"}},
        {"config": {"Volumes": ["/d"]}},
        {"config": {"User": 0}},
        {"config": [1]},
        {"history": "none"},
    ],
)
def test_a_config_of_wrong_shape_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match="config of x"):
        config(**changes)


@pytest.mark.parametrize(
    ("created", "kept"),
    [
        ("2024-05-06T07:08:09.123456789Z", True),
        ("2024-05-06T07:08:09+02:00", True),
        ("2024-05-06T07:08:09", False),
        ("yesterday\x1b[2J", False),
        ("", False),
    ],
)
def test_a_creation_date_that_is_none_counts_as_missing(created: str, kept: bool) -> None:
    assert config(created=created).created == (created if kept else "")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(MANIFEST)), JSON, st.sampled_from([model.OCI_MANIFEST, model.OCI_INDEX]))
def test_any_value_in_any_place_is_understood_or_refused(key: str, value: Any, media_type: str) -> None:
    try:
        parse_manifest(encoded({**MANIFEST, key: value}), media_type, "x")
    except ImageError:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        parse_manifest(data, model.OCI_MANIFEST, "x")


@pytest.mark.parametrize("text", ['"\\ud800"', '"\\udfff"', '["a\\ud83dx"]', '{"\\ud800": 1}'])
def test_half_a_character_is_refused(text: str) -> None:
    with pytest.raises(ImageError, match="not acceptable JSON"):
        model.strict_json(text.encode(), "x")
    assert model.strict_json(b'"\\ud83d\\ude00"', "x") == "\N{GRINNING FACE}"  # both halves are one
