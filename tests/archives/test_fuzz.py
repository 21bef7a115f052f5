"""Archives with bytes changed at random: each is read, or refused in words; nothing else ever comes of it.

PYRUN_FUZZ_EXAMPLES sets how many are tried.
"""

from __future__ import annotations

import json
import os
import tempfile
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyrun.errors import PyrunError
from pyrun.images.archives.archive import DirectoryArchive, TarArchive
from pyrun.images.archives.contents import images_in
from support.archives import Made, descriptor, docker_archive, oci_layout, packed
from support.registry import tar

EXAMPLES = int(os.environ.get("PYRUN_FUZZ_EXAMPLES", "300"))
IMAGE = Made([tar({"etc/motd": b"hello"})])
SOUND = {
    "docker": packed(docker_archive([IMAGE], [["app:1"]])),
    "oci": packed(oci_layout([IMAGE], ["docker.io/library/app:1"])),
    "both": packed(
        {
            **oci_layout([IMAGE], ["docker.io/library/app:1"]),
            "manifest.json": json.dumps(
                [{"Config": f"blobs/sha256/{IMAGE.hex}", "RepoTags": ["app:1"], "Layers": ["x"]}]
            ).encode(),
        }
    ),
}
fuzzed = settings(
    max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


def read(data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            archive = TarArchive(file.fileno(), 0, len(data), "the archive")
            for image in images_in(archive, None):
                assert image.id.startswith("sha256:")
                for piece in image.pieces:
                    for _ in piece.member.chunks():
                        pass
        except PyrunError as error:
            str(error).encode()  # it can be shown


def test_the_sound_ones_are_read() -> None:
    for data in SOUND.values():
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            (image,) = images_in(TarArchive(file.fileno(), 0, len(data), "it"), None)
            assert image.config == IMAGE.config


@fuzzed
@given(st.sampled_from(sorted(SOUND)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6))
def test_changed_bytes(form: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(SOUND[form])
    for where, value in changes:
        data[int(where * (len(data) - 1))] = value
    read(bytes(data))


@fuzzed
@given(st.sampled_from(sorted(SOUND)), st.floats(0, 1), st.floats(0, 1), st.binary(max_size=600))
def test_pieces_taken_out_and_put_in(form: str, first: float, second: float, added: bytes) -> None:
    data = SOUND[form]
    begin, end = sorted((int(first * len(data)), int(second * len(data))))
    read(data[:begin] + added + data[end:])


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from(["sha256:" + "0" * 64, IMAGE.id, "layers", "../../x", "\ud800", "app:1", "a" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = ["Config", "RepoTags", "Layers"]


@fuzzed
@given(st.lists(st.dictionaries(st.sampled_from(keys), values, max_size=3), max_size=3) | values)
def test_any_json_as_dockers_manifest(document: Any) -> None:
    members = docker_archive([IMAGE])
    members["manifest.json"] = json.dumps(document).encode()
    read(packed(members))


@fuzzed
@given(st.sampled_from(["config", "manifest", "index"]), st.text(max_size=12), values)
def test_any_json_within_the_documents_of_a_layout(which: str, key: str, value: Any) -> None:
    """The digests are right, whatever the documents say."""
    image = Made([b"x"])
    documents = {
        "config": json.loads(image.config),
        "manifest": json.loads(image.manifest),
    }
    if which in documents:
        names = [*documents[which], key]
        documents[which][names[len(key) % len(names)]] = value
        image.config = json.dumps(documents["config"]).encode()
        manifest = documents["manifest"]
        if which == "config":
            manifest["config"] = descriptor(image.config, manifest["config"]["mediaType"])
        image.manifest = json.dumps(manifest).encode()
    members = oci_layout([image])
    if which == "index":
        found = json.loads(bytes(members["index.json"]))  # type: ignore[arg-type]
        entry = found["manifests"][0]
        entry[[*entry, key, "annotations", "platform"][len(key) % 5]] = value
        members["index.json"] = json.dumps(found).encode()
    read(packed(members))


@fuzzed
@given(st.text(max_size=40) | st.sampled_from(["..", "/", "a/../..", "\ud800", "a\0b", "a" * 5000, "."]))
def test_any_name_in_a_directory(name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        fd = os.open(directory, os.O_RDONLY)
        try:
            assert DirectoryArchive(fd, "it").find(name) is None
        except PyrunError as error:
            str(error).encode()
        finally:
            os.close(fd)
