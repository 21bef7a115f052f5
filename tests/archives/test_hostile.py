"""Archives that no tool writes: each is refused in words, nothing is named, nothing is left half made."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrun.errors import ImageError
from pyrun.images.archives.archive import MAX_NAMES, TarArchive
from support.archives import (
    Made,
    Members,
    Special,
    blob_name,
    descriptor,
    docker_archive,
    index,
    oci_layout,
    packed,
)
from support.registry import OCI_INDEX, OCI_MANIFEST, OTHER_ARCHITECTURE, sha256, tar, zstd

from .conftest import Store

NAME = "docker.io/library/evil:latest"
IMAGE = Made([tar({"etc/motd": b"hello"})])
LAYER = f"{IMAGE.hex[:40]}{0:024}/layer.tar"


def docker(**changes: bytes | Special | None) -> Members:
    """A sound archive, then ``changes``: members by name, None takes one away."""
    members = docker_archive([IMAGE], [["evil:latest"]])
    return changed(members, changes)


def oci(image: Made = IMAGE, **changes: bytes | Special | None) -> Members:
    return changed(oci_layout([image], [NAME]), changes)


def changed(members: Members, changes: dict[str, bytes | Special | None]) -> Members:
    for name, content in changes.items():
        if content is None:
            del members[name]
        else:
            members[name] = content
    return members


def listing(**fields: object) -> bytes:
    """A manifest.json with other fields than the sound one's."""
    entry = {"Config": f"{IMAGE.hex}.json", "RepoTags": ["evil:latest"], "Layers": [LAYER], **fields}
    return json.dumps([entry]).encode()


def with_manifest(document: dict[str, object], *blobs: bytes, media_type: str = OCI_MANIFEST) -> Members:
    """An OCI layout whose one manifest is ``document``."""
    data = json.dumps(document).encode()
    members = oci()
    for blob in (data, *blobs):
        members[blob_name(blob)] = blob
    members["index.json"] = index([descriptor(data, media_type)])
    return members


def manifest(**fields: object) -> dict[str, object]:
    return {**json.loads(IMAGE.manifest), **fields}


def nested(depth: int) -> Members:
    members = oci()
    platform = {"os": "linux", "architecture": IMAGE.architecture}
    entry = descriptor(IMAGE.manifest, OCI_MANIFEST, platform=platform)
    for _ in range(depth):
        data = index([entry])
        members[blob_name(data)] = data
        entry = descriptor(data, OCI_INDEX, platform={"os": "linux", "architecture": IMAGE.architecture})
    members["index.json"] = index([entry])
    return members


def bad_header(data: bytes, **fields: bytes) -> bytes:
    """``data`` with other fields in its first header, its checksum right again."""
    places = {"size": (124, 12), "type": (156, 1)}
    block = bytearray(data[:512])
    for field, value in fields.items():
        at, length = places[field]
        block[at : at + length] = value.ljust(length, b"\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[512:]


def sparse(name: str) -> bytes:
    """A tar with one sparse member (GNU's PAX format 1.0)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        content = b"1\n0\n4\n".ljust(512, b"\0") + b"data"
        info.size = len(content)
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": name,
            "GNU.sparse.realsize": "4096",
        }
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def joined(first: bytes, second: bytes) -> bytes:
    """One tar of the members of two."""
    data = first.rstrip(b"\0")
    return data + bytes(-len(data) % 512) + second


def bomb() -> Members:
    """A layer of 1.1 GB of zeros, 10,000 times smaller."""
    made = io.BytesIO()
    with zstd.ZstdFile(made, "w") as file:
        for _ in range(1100):
            file.write(bytes(1 << 20))
    return docker(**{LAYER: made.getvalue()})


def doubled(key: str) -> bytes:
    return listing().replace(b'"Config"', f'"{key}": [], "Config"'.encode(), 1)


# name of the case -> (what makes the archive, what the error says)
CASES: dict[str, tuple[Callable[[], Members | bytes], str]] = {
    # the tar
    "empty": (lambda: b"", "is empty"),
    "text": (lambda: b"hello, world\n" * 100, "not a sound tar archive"),
    "zeros": (lambda: bytes(10240), "is no image archive"),
    "cut off in a layer": (lambda: packed(docker())[:3000], "cut off"),
    "cut off behind a member": (lambda: packed(docker()).rstrip(b"\0"), "cut off"),
    "a lone zero block": (lambda: _body(docker()) + bytes(512) + b"x" * 512, "lone zero block"),
    "a wrong checksum": (lambda: b"x" + packed(docker())[1:], "checksum"),
    "a negative size": (lambda: bad_header(packed(docker()), size=b"\xff" * 12), "size"),
    "a size beyond the end": (lambda: bad_header(packed(docker()), size=b"77777777777"), "cut off"),
    "an unknown type": (lambda: bad_header(packed(docker()), type=b"Z"), "unknown type"),
    "a member above": (lambda: docker(**{"../../evil": b"x"}), r"'\.\.'"),
    "a member twice": (lambda: packed(docker(), ("manifest.json", listing())), "stands in it twice"),
    "a layer twice": (lambda: packed(docker(), (LAYER, b"other")), "stands in it twice"),
    "no image archive": (lambda: packed({"etc/motd": b"hello"}), "neither oci-layout nor manifest.json"),
    "of the past": (lambda: {"repositories": b"{}"}, "before 1.10"),
    # compressed as a whole
    "gzip, cut off": (lambda: gzip.compress(packed(docker()))[:-20], "truncated"),
    "gzip, damaged": (lambda: _flipped(gzip.compress(packed(docker()))), "damaged|truncated|sound"),
    "gzip of nothing": (lambda: gzip.compress(b""), "cut off|empty"),
    # manifest.json
    "no JSON": (lambda: docker(**{"manifest.json": b"{"}), "not acceptable JSON"),
    "no UTF-8": (lambda: docker(**{"manifest.json": b'["\xff"]'}), "not acceptable JSON"),
    "JSON of another shape": (lambda: docker(**{"manifest.json": b'[{"Config": 1}]'}), "malformed"),
    "a key twice": (lambda: docker(**{"manifest.json": doubled("Layers")}), "twice"),
    "deep JSON": (
        lambda: docker(**{"manifest.json": b"[" * 5000 + b"]" * 5000}),
        "not acceptable JSON|nested",
    ),
    "5 MiB of JSON": (lambda: docker(**{"manifest.json": b" " * (5 << 20) + listing()}), "bytes"),
    "no images": (lambda: docker(**{"manifest.json": b"[]"}), "holds no image"),
    "a config above": (
        lambda: docker(**{"manifest.json": listing(Config="../../../etc/passwd")}),
        "leads out",
    ),
    "an absolute config": (lambda: docker(**{"manifest.json": listing(Config="/etc/passwd")}), "leads out"),
    "half a character in a name": (
        lambda: docker(**{"manifest.json": listing(Config="\ud800")}),
        "not acceptable JSON",
    ),
    "an empty config name": (lambda: docker(**{"manifest.json": listing(Config="")}), "leads out"),
    "a layer above": (
        lambda: docker(**{"manifest.json": listing(Layers=["x/../../layer.tar"])}),
        "leads out",
    ),
    "a missing layer": (lambda: docker(**{LAYER: None}), "has no"),
    "a missing config": (lambda: docker(**{f"{IMAGE.hex}.json": None}), "has no"),
    "too few layers": (lambda: docker(**{"manifest.json": listing(Layers=[])}), "names 1 layers"),
    "an uppercase name": (lambda: docker(**{"manifest.json": listing(RepoTags=["Evil"])}), "lowercase"),
    "a path as a name": (
        lambda: docker(**{"manifest.json": listing(RepoTags=["../../evil"])}),
        "not an image",
    ),
    "a name by digest": (
        lambda: docker(**{"manifest.json": listing(RepoTags=[f"evil@{sha256(b'')}"])}),
        "which is no tag",
    ),
    "control bytes as a name": (
        lambda: docker(**{"manifest.json": listing(RepoTags=["evil\x1b[2J"])}),
        "image ref",
    ),
    # links and special files
    "a link out": (lambda: docker(**{LAYER: Special(tarfile.SYMTYPE, "../../../etc/passwd")}), "leads out"),
    "an absolute link": (lambda: docker(**{LAYER: Special(tarfile.SYMTYPE, "/etc/passwd")}), "leads out"),
    "a link to itself": (lambda: docker(**{LAYER: Special(tarfile.SYMTYPE, "layer.tar")}), "leads nowhere"),
    "a link to nothing": (lambda: docker(**{LAYER: Special(tarfile.SYMTYPE, "../gone")}), "has no"),
    "a hard link out": (lambda: docker(**{LAYER: Special(tarfile.LNKTYPE, "../../etc/passwd")}), r"'\.\.'"),
    "a hard link to itself": (lambda: docker(**{LAYER: Special(tarfile.LNKTYPE, LAYER)}), "leads nowhere"),
    "a device": (lambda: docker(**{LAYER: Special(tarfile.BLKTYPE)}), "no plain file"),
    "a pipe": (lambda: docker(**{f"{IMAGE.hex}.json": Special(tarfile.FIFOTYPE)}), "no plain file"),
    "a sparse layer": (lambda: joined(packed(docker(**{LAYER: None})), sparse(LAYER)), "no plain file"),
    # configs and layers
    "a config of another name": (lambda: docker(**{f"{IMAGE.hex}.json": IMAGE.config + b" "}), "tampered"),
    "a layer of another diff_id": (lambda: docker(**{LAYER: tar({"etc/motd": b"evil"})}), "names"),
    "a layer that is no tar": (
        lambda: docker_archive([Made([b"no tar" * 200])], [["evil"]]),
        "tar|checksum",
    ),
    "a layer that writes above": (
        lambda: docker_archive([Made([tar({"../../evil": b"x"})])], [["evil"]]),
        r"'\.\.'",
    ),
    "a layer's damaged gzip": (
        lambda: docker(**{LAYER: _flipped(gzip.compress(IMAGE.layers[0]))}),
        "damaged|names",
    ),
    "a bomb": (bomb, "bomb|expands"),
    "a config without a machine": (
        lambda: docker_archive([_without("architecture")], [["evil"]]),
        "architecture",
    ),
    "settings of a wrong type": (lambda: docker_archive([_settings(Env="A=1")], [["evil"]]), "malformed"),
    "a diff_id that is a path": (
        lambda: docker_archive(
            [_rootfs({"type": "layers", "diff_ids": ["sha256:../../../etc/passwd"]})], [["evil"]]
        ),
        "digest",
    ),
    # OCI
    "a layout of the future": (lambda: oci(**{"oci-layout": b'{"imageLayoutVersion":"9"}'}), "version 1.0.0"),
    "no index": (lambda: oci(**{"index.json": None}), "has no index.json"),
    "an index of the future": (
        lambda: oci(**{"index.json": b'{"schemaVersion":3,"manifests":[]}'}),
        "schemaVersion",
    ),
    "an empty index": (lambda: oci(**{"index.json": index([])}), "holds no image"),
    "a manifest of other bytes": (
        lambda: oci(**{blob_name(IMAGE.manifest): IMAGE.manifest[:-1] + b" "}),
        "tampered",
    ),
    "a longer manifest": (lambda: oci(**{blob_name(IMAGE.manifest): IMAGE.manifest + b" "}), "bytes"),
    "a config of other bytes": (
        lambda: oci(**{blob_name(IMAGE.config): IMAGE.config[:-1] + b" "}),
        "tampered",
    ),
    "a blob of other bytes": (lambda: oci(**_flipped_blob()), "tampered|damaged"),
    "a shorter blob": (lambda: oci(**{blob_name(IMAGE.blobs[0][0]): IMAGE.blobs[0][0][:-1]}), "bytes"),
    "a missing blob": (lambda: oci(**{blob_name(IMAGE.blobs[0][0]): None}), "has no"),
    "a missing manifest": (lambda: oci(**{blob_name(IMAGE.manifest): None}), "has no"),
    "a digest that is a path": (
        lambda: oci(
            **{
                "index.json": index(
                    [{"mediaType": OCI_MANIFEST, "digest": "sha256:../../../etc/passwd", "size": 1}]
                )
            }
        ),
        "malformed digest",
    ),
    "an index and a manifest": (
        lambda: with_manifest(manifest(manifests=[])),
        "both an index and a manifest",
    ),
    "a manifest of another type": (lambda: with_manifest(manifest(), media_type=OCI_INDEX), "calls itself"),
    "schema 1": (
        lambda: with_manifest({"schemaVersion": 1, "fsLayers": []}, media_type=OCI_MANIFEST),
        "schema 1",
    ),
    "an artifact": (
        lambda: with_manifest(manifest(config=descriptor(b"{}", "application/x")), b"{}"),
        "artifact",
    ),
    "more layers than diff_ids": (
        lambda: with_manifest(manifest(layers=json.loads(IMAGE.manifest)["layers"] * 2)),
        "names 1 layers",
    ),
    "deep indexes": (lambda: nested(5), "nested deeper"),
    "no platform of use": (
        lambda: changed(
            nested(0),
            {
                "index.json": index(
                    [
                        descriptor(data := index([_for_other()]), OCI_INDEX),
                    ]
                ),
                blob_name(data): data,
            },
        ),
        "no image for",
    ),
    "a bad name": (lambda: changed(oci_layout([IMAGE], ["docker.io/../evil"]), {}), "not an image reference"),
    "a name by another digest": (
        lambda: changed(oci_layout([IMAGE], [f"docker.io/library/evil@{sha256(b'')}"]), {}),
        "tampered",
    ),
    "two stories": (
        lambda: {**oci(), "manifest.json": listing(Config=f"{'0' * 64}.json")},
        "different images",
    ),
}


def _body(members: Members) -> bytes:
    """The tar without the zeros that end it."""
    data = packed(members).rstrip(b"\0")
    return data + bytes(-len(data) % 512)


def _flipped(data: bytes) -> bytes:
    """One bit in the middle is another."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def _flipped_blob() -> dict[str, bytes | Special | None]:
    blob = IMAGE.blobs[0][0]
    return {blob_name(blob): _flipped(blob)}


def _without(key: str) -> Made:
    image = Made(IMAGE.layers)
    document = json.loads(image.config)
    del document[key]
    image.config = json.dumps(document).encode()
    image.id = sha256(image.config)
    return image


def _settings(**settings: object) -> Made:
    return Made(IMAGE.layers, config=settings)


def _rootfs(rootfs: dict[str, object]) -> Made:
    return Made(IMAGE.layers, rootfs=rootfs)


def _for_other() -> dict[str, object]:
    return descriptor(
        IMAGE.manifest, OCI_MANIFEST, platform={"os": "linux", "architecture": OTHER_ARCHITECTURE}
    )


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_words_and_nothing_is_left(shared: Store, case: str) -> None:
    make, words = CASES[case]
    made = make()
    data = made if isinstance(made, bytes) else packed(made)
    path = shared.directory / "archive"
    path.write_bytes(data)
    done = shared.pyrun("load", "-i", str(path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert re.search(words, done.stderr), done.stderr
    assert shared.images() == []
    assert shared.unfinished() == []


def test_the_cases_are_many() -> None:
    assert len(CASES) >= 60


def test_a_stream_that_breaks_off_is_refused(shared: Store) -> None:
    whole = packed(docker())
    for data in (whole[: len(whole) // 2], gzip.compress(whole)[:-9], zstd.compress(whole)[:-9], b""):
        done = shared.pyrun("load", input=data, text=False)
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"cut off" in done.stderr or b"truncated" in done.stderr or b"is empty" in done.stderr
    assert shared.images() == []
    assert shared.unfinished() == []


def _directory(path: Path, members: Members) -> Path:
    for name, content in members.items():
        if isinstance(content, bytes):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("kind", ["link", "far link", "pipe", "directory", "socket"])
def test_nothing_outside_of_a_directory_is_read(shared: Store, kind: str) -> None:
    layout = _directory(shared.directory / f"layout-{kind.replace(' ', '-')}", oci())
    blob = layout / blob_name(IMAGE.config)
    outside = shared.directory / f"config-{kind}"
    outside.write_bytes(blob.read_bytes())
    blob.unlink()
    if kind == "link":
        blob.symlink_to(outside)
    elif kind == "far link":
        blob.symlink_to(f"../../../{outside.name}")
    elif kind == "pipe":
        os.mkfifo(blob)
    elif kind == "directory":
        blob.mkdir()
    else:
        os.mknod(blob, 0o140644)
    done = shared.pyrun("load", "-i", str(layout), timeout=20)
    assert done.returncode == 1
    assert "can't be read" in done.stderr or "no plain file" in done.stderr
    assert "Traceback" not in done.stderr
    assert shared.images() == []


def test_a_few_small_indexes_are_not_a_billion_ways_to_one_image(store: Store) -> None:
    """Docker's manifest.json beside an index makes all of the index's images be looked at. Three indexes, each naming
    the next three hundred times, are 27 million ways to one manifest."""
    platform = {"os": "linux", "architecture": IMAGE.architecture}
    entry = descriptor(IMAGE.manifest, OCI_MANIFEST, platform=platform)
    members = oci(
        **{"manifest.json": json.dumps([{"Config": blob_name(IMAGE.config), "Layers": []}]).encode()}
    )
    for _ in range(3):
        nested = index([entry] * 300)
        members[blob_name(nested)] = nested
        entry = descriptor(nested, OCI_INDEX, platform=platform)
    members["index.json"] = index([entry])
    began = time.monotonic()
    done = store.pyrun("load", timeout=60, input=packed(members), text=False)
    assert b"Loaded image" in done.stdout, done.stderr
    assert time.monotonic() - began < 20


def test_names_do_not_take_all_memory(tmp_path: Path) -> None:
    """A hundred thousand names of 16 KiB each are a small file once they are compressed."""
    path = tmp_path / "names.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(MAX_NAMES // 15_000):
            archive.addfile(tarfile.TarInfo("/".join(["a" * 250] * 63) + f"/{number:06}"))
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(ImageError, match="take more than 32 MiB"):
            TarArchive(fd, 0, path.stat().st_size, "it")
    finally:
        os.close(fd)


def test_the_sound_ones_that_the_cases_are_made_of_load(store: Store) -> None:
    for members in (docker(), oci(), nested(2)):
        path = store.directory / "archive"
        path.write_bytes(packed(members))
        store.pyrun.ok("load", "-i", str(path))
        assert IMAGE.id in store.images()[0]
