"""Manifests, indexes, configs and ranges that nobody would write: an `ImageError`, or a sound reading."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from rounds import rounds

from pyrun.errors import ImageError
from pyrun.images import model
from pyrun.images.model import Index, Manifest, parse_config, parse_manifest, strict_json
from pyrun.images.registry import ranges

DIGEST = "sha256:" + "0123456789abcdef" * 4
DESCRIPTOR = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 3}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": model.OCI_MANIFEST,
    "config": {"mediaType": model.OCI_CONFIG, "digest": DIGEST, "size": 2},
    "layers": [DESCRIPTOR, {**DESCRIPTOR, "urls": ["https://example.com/x"], "annotations": {"a": "b"}}],
    "annotations": {"a": "b"},
    "subject": DESCRIPTOR,
}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": model.OCI_INDEX,
    "manifests": [
        {
            "mediaType": model.OCI_MANIFEST,
            "digest": DIGEST,
            "size": 9,
            "platform": {"os": "linux", "architecture": "arm", "variant": "v7", "os.features": ["x"]},
        }
    ],
}
CONFIG: dict[str, Any] = {
    "os": "linux",
    "architecture": "amd64",
    "created": "2024-01-01T00:00:00Z",
    "config": {
        "Env": ["A=b"],
        "Cmd": ["x"],
        "Volumes": {"/v": {}},
        "User": "1",
        "WorkingDir": "/",
        "Labels": {"a": "b"},
    },
    "rootfs": {"type": "layers", "diff_ids": [DIGEST, DIGEST]},
    "history": [{"created_by": "x", "empty_layer": True}, {"created": "no time"}],
}
TYPES = [
    model.OCI_MANIFEST,
    model.DOCKER_MANIFEST,
    model.OCI_INDEX,
    model.DOCKER_INDEX,
    "application/json",
    "",
    "é;x",
]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.sampled_from(
        [
            DIGEST,
            DIGEST.upper(),
            "sha256:",
            "sha512:" + "0" * 128,
            "md5:" + "0" * 32,
            *TYPES,
            "\0",
            "\x1b[2J",
            "\ud800",
        ]
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["digest", "size", "a", "mediaType", "os"]), inner, max_size=4),
    ),
    max_leaves=8,
)


def printable_words(error: ImageError) -> None:
    assert str(error).replace("\n", "").isprintable()


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(document, dict):
        for key, value in document.items():
            found += places(value, (*path, key))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            found += places(value, (*path, number))
    return found


@st.composite
def changed(draw: Callable[..., Any], document: dict[str, Any]) -> bytes:
    """``document`` with a few of its parts replaced, removed, renamed or doubled; as JSON, sometimes damaged."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        *above, last = draw(st.sampled_from(places(document)[1:] or [("x",)]))
        at: Any = document
        for step in above:
            at = at[step]
        if not isinstance(at, (dict, list)) or (isinstance(at, dict) and last not in at):
            continue
        what = draw(st.sampled_from(["replace", "remove", "case", "double"]))
        if what == "replace":
            at[last] = draw(VALUES)
        elif what == "remove":
            del at[last]
        elif isinstance(at, dict):
            at[str(last).swapcase()] = at[last] if what == "double" else at.pop(last)
        else:
            at.append(at[last])
    data = json.dumps(document).encode()
    if draw(st.integers(0, 9)) == 0:
        cut = draw(st.integers(0, len(data)))
        data = data[:cut] + draw(st.binary(max_size=4)) + data[cut + draw(st.integers(0, 4)) :]
    return data


@given(
    st.one_of(changed(MANIFEST), changed(INDEX), changed(CONFIG), st.binary(max_size=200)),
    st.sampled_from(TYPES),
)
@rounds(500)
def test_a_manifest_is_read_soundly_or_refused(data: bytes, media_type: str) -> None:
    try:
        found = parse_manifest(data, media_type, "the manifest")
    except ImageError as error:
        printable_words(error)
        return
    document = json.loads(data)
    assert document.get("mediaType") in (None, media_type)
    assert not ("layers" in document and "manifests" in document)
    descriptors = found.manifests if isinstance(found, Index) else [found.config, *found.layers]
    assert isinstance(found, (Index, Manifest))
    for descriptor in descriptors:
        assert re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", descriptor.digest)
        assert 0 <= descriptor.size <= 1 << 50


@given(st.one_of(changed(CONFIG), changed(MANIFEST), st.binary(max_size=200)))
@rounds(300)
def test_a_config_is_read_soundly_or_refused(data: bytes) -> None:
    manifest = parse_manifest(json.dumps(MANIFEST).encode(), model.OCI_MANIFEST, "the manifest")
    assert isinstance(manifest, Manifest)
    try:
        found = parse_config(data, manifest, "the config")
    except ImageError as error:
        printable_words(error)
        return
    assert len(found.rootfs.diff_ids) == 2
    assert all(
        re.fullmatch(r"sha(256:[0-9a-f]{64}|512:[0-9a-f]{128})", digest) for digest in found.rootfs.diff_ids
    )


@given(
    st.one_of(VALUES.map(json.dumps), st.text(max_size=60)).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    )
)
@example(b"[" * 100_000)
@example(b'{"a":' * 65 + b"1" + b"}" * 65)
@example(b'{"a":1,"a":1}')
@example(b"1" * 5000)
@example(b'"\\ud800"')
@rounds(300)
def test_json_is_read_as_python_reads_it_or_refused(data: bytes) -> None:
    try:
        found = strict_json(data, "x")
    except ImageError as error:
        printable_words(error)
        return
    assert found == json.loads(data)


# --- ranges

NUMBERS = st.one_of(st.integers(0, 30), st.sampled_from([1 << 31, 1 << 63, 1 << 64]))
HEADERS = st.one_of(
    st.none(),
    st.text(max_size=12),
    st.tuples(NUMBERS, NUMBERS, st.one_of(NUMBERS.map(str), st.just("*"))).map(
        lambda n: f"bytes {n[0]}-{n[1]}/{n[2]}"
    ),
    st.tuples(NUMBERS, NUMBERS, NUMBERS).map(lambda n: f"bytes={n[0]}-{n[1]}/{n[2]}"),
    st.tuples(NUMBERS, NUMBERS, NUMBERS).map(
        lambda n: f"bytes {n[0]}-{n[1]}/{n[2]}, bytes {n[0]}-{n[1]}/{n[2]}"
    ),
    st.tuples(NUMBERS, NUMBERS, NUMBERS).map(lambda n: f"bytes +{n[0]}-{n[1]}/0{n[2]}"),
)


@st.composite
def answers(draw: Callable[..., Any]) -> tuple[int, str | None, int, int]:
    size = draw(st.integers(1, 40))
    offset = draw(st.integers(0, size - 1))
    header = draw(st.one_of(HEADERS, st.just(f"bytes {offset}-{size - 1}/{size}")))
    return draw(st.sampled_from([200, 206, 204, 416, 301, 500])), header, offset, size


@given(answers())
@rounds(600)
def test_a_body_is_believed_to_begin_only_where_it_must(answer: tuple[int, str | None, int, int]) -> None:
    status, header, offset, size = answer
    found = ranges.begins(status, header, offset, size)
    if status == 200:
        assert found == 0
        return
    # RFC 9110, 14.4, read by an expression of its own.
    match = re.fullmatch(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)", (header or "").strip())
    sound = (
        status == 206
        and offset > 0
        and match is not None
        and (int(match[1]), int(match[2]) + 1, int(match[3])) == (offset, size, size)
    )
    assert found == (offset if sound else None)


@given(st.integers(0, 1 << 60))
@rounds(200)
def test_a_range_is_asked_for_from_where_it_broke_off(offset: int) -> None:
    assert ranges.from_offset(offset) == ({"Range": f"bytes={offset}-"} if offset else {})
