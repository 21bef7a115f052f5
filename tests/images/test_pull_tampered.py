"""A registry whose content is not what it was: every pull fails in words and keeps nothing of it."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from pyrun.errors import DigestMismatch, ImageError, LayerError, ManifestUnknown, PyrunError
from support.registry import OCI_MANIFEST, Registry, sha256, tar

from .conftest import Engine


@pytest.fixture
def one() -> bytes:
    """A layer that no other test tampers with in the registry they share."""
    return tar({"a": os.urandom(300_000)})


@pytest.fixture
def two() -> bytes:
    return tar({"b": os.urandom(1000)})


def refused(engine: Engine, name: str, kind: type[PyrunError], says: str) -> PyrunError:
    """The pull's error; and nothing is left that an image or a layer could be made of."""
    with pytest.raises(kind, match=says) as caught:
        engine.pull(name)
    assert engine.images.list() == []
    assert engine.partial() == []
    assert not any(digest in caught.value.message for digest in engine.content.unfinished())
    for digest in engine.content.digests():
        assert sha256(engine.content.read(digest)) == digest
    return caught.value


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
@pytest.mark.parametrize("at", [0, 20, 1000, 150_000])
def test_a_flipped_byte_anywhere_is_called_tampering(
    engine: Engine, registry: Registry, repository: str, compression: str, at: int, one: bytes, two: bytes
) -> None:
    pushed = registry.push_image(repository, "1", [one, two], compression=(compression,))
    registry.flip_byte(pushed.layer_digests[0], at)
    error = refused(engine, f"{repository}:1", DigestMismatch, "damaged or tampered with")
    assert pushed.layer_digests[0] in error.message
    assert engine.layers.find(pushed.diff_ids[0]) is None
    assert not engine.content.has(pushed.layer_digests[0])


def test_a_truncated_blob_is_refused(engine: Engine, registry: Registry, repository: str, one: bytes) -> None:
    pushed = registry.push_image(repository, "1", [one])
    registry.truncate(pushed.layer_digests[0], 1000)
    refused(engine, f"{repository}:1", DigestMismatch, pushed.layer_digests[0])


def test_an_extended_blob_is_refused(engine: Engine, registry: Registry, repository: str, one: bytes) -> None:
    pushed = registry.push_image(repository, "1", [one])
    registry.append(pushed.layer_digests[0], b"more")
    refused(engine, f"{repository}:1", DigestMismatch, pushed.layer_digests[0])


def test_a_blob_swapped_for_another_good_one_is_refused(
    engine: Engine, registry: Registry, repository: str, one: bytes, two: bytes
) -> None:
    pushed = registry.push_image(repository, "1", [one, two])
    first, second = pushed.layer_digests
    registry.replace(first, registry.blob_path(second).read_bytes())
    refused(engine, f"{repository}:1", DigestMismatch, first)


@pytest.mark.parametrize("off", [-1, 1, 100])
def test_a_wrong_size_in_the_descriptor_is_refused(
    engine: Engine, registry: Registry, repository: str, off: int, one: bytes
) -> None:
    sizes = [len(gzip.compress(one, 6, mtime=0)) + off]
    pushed = registry.push_image(repository, "1", [one], compression=("gzip",), sizes=sizes)
    refused(engine, f"{repository}:1", DigestMismatch, pushed.layer_digests[0])


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize("off", [-1, 1])
def test_a_manifest_that_is_wrong_about_a_stored_blob_costs_nothing_of_the_honest_image(
    engine: Engine, registry: Registry, repository: str, off: int, unpacked: bool, one: bytes
) -> None:
    honest = registry.push_image(repository, "1", [one], compression=("gzip",))
    digest = honest.layer_digests[0]
    size = registry.blob_path(digest).stat().st_size
    registry.push_image(repository, "2", [one], compression=("gzip",), sizes=[size + off])
    engine.pull(f"{repository}:1")
    if not unpacked:
        engine.layers.remove(honest.diff_ids[0])
    registry.delete(digest)  # were the stored one given up, no other could be had
    with pytest.raises(ImageError, match=f"has {size + off} bytes, and the blob has {size}") as caught:
        engine.pull(f"{repository}:2")
    assert type(caught.value) is ImageError
    assert engine.content.intact(digest)
    assert engine.pull(f"{repository}:1").image.id == honest.config_digest
    assert [image.reference for image in engine.images.list()] == [f"docker.io/{repository}:1"]


def test_a_stored_blob_that_was_cut_short_is_fetched_again(
    engine: Engine, registry: Registry, repository: str, one: bytes
) -> None:
    pushed = registry.push_image(repository, "1", [one])
    engine.pull(f"{repository}:1")
    os.truncate(engine.content.blob_path(pushed.layer_digests[0]), 1000)
    engine.pull(f"{repository}:1")
    assert engine.content.intact(pushed.layer_digests[0])


def test_a_wrong_diff_id_is_refused_and_the_good_blob_kept(
    engine: Engine, registry: Registry, repository: str, one: bytes
) -> None:
    lie = sha256(b"something else")
    pushed = registry.push_image(repository, "1", [one], diff_ids=[lie])
    refused(
        engine,
        f"{repository}:1",
        DigestMismatch,
        f"unpacks to {sha256(one)}, and the image config names {lie}",
    )
    assert engine.layers.find(lie) is None
    assert engine.layers.find(sha256(one)) is None
    assert engine.content.has(pushed.layer_digests[0])  # its digest holds: it is what it says it is


def test_swapped_diff_ids_are_refused(
    engine: Engine, registry: Registry, repository: str, one: bytes, two: bytes
) -> None:
    registry.push_image(repository, "1", [one, two], diff_ids=[sha256(two), sha256(one)])
    refused(engine, f"{repository}:1", DigestMismatch, "unpacks to")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_diff_ids_than_layers_is_refused(
    engine: Engine, registry: Registry, repository: str, count: int, one: bytes, two: bytes
) -> None:
    rootfs = {"type": "layers", "diff_ids": [sha256(one)] * count}
    registry.push_image(repository, "1", [one, two], rootfs=rootfs)
    refused(engine, f"{repository}:1", ImageError, f"names {count} layers, its manifest 2")


@pytest.mark.parametrize("which", ["digest", "manifest_digest", "config_digest"])
def test_a_tampered_document_is_refused(
    engine: Engine, registry: Registry, repository: str, which: str, one: bytes
) -> None:
    pushed = registry.push_image(repository, "1", [one])
    digest = getattr(pushed, which)
    data = registry.blob_path(digest).read_bytes()
    registry.replace(
        digest, data.replace(b"linux", b"linuX").replace(b'"schemaVersion": 2', b'"schemaVersion": 3')
    )
    refused(engine, f"{repository}:1", ImageError, repository)


def test_a_manifest_of_another_size_than_the_index_says_is_refused(
    engine: Engine, registry: Registry, repository: str, one: bytes
) -> None:
    pushed = registry.push_image(repository, "1", [one])
    index = json.loads(registry.blob_path(pushed.digest).read_bytes())
    for entry in index["manifests"]:
        entry["size"] += 1
    registry.push_manifest(repository, "2", index, index["mediaType"])
    refused(engine, f"{repository}:2", DigestMismatch, "the index that lists it says")


def test_a_blob_that_the_registry_lost_is_named(
    engine: Engine, registry: Registry, repository: str, one: bytes, two: bytes
) -> None:
    pushed = registry.push_image(repository, "1", [one, two])
    registry.delete(pushed.layer_digests[1])
    refused(
        engine,
        f"{repository}:1",
        ManifestUnknown,
        f"layer {pushed.layer_digests[1]} of {repository}:1 not found",
    )


def test_a_layer_that_is_no_archive_is_refused(engine: Engine, registry: Registry, repository: str) -> None:
    refuse = b"this is not a tar archive" * 100
    registry.push_image(repository, "1", [refuse], compression=("gzip",))
    refused(engine, f"{repository}:1", LayerError, "header")


def test_a_hostile_layer_is_told_with_the_images_name(
    engine: Engine, registry: Registry, repository: str
) -> None:
    registry.push_image(repository, "1", [tar({"../../outside": b"x"})])
    with pytest.raises(LayerError, match=r"contains '\.\.'") as caught:
        engine.pull(f"{repository}:1")
    assert f"{repository}:1 is broken or hostile" in caught.value.hint


def test_a_bomb_is_refused_before_it_fills_the_disk(
    engine: Engine, registry: Registry, repository: str, two: bytes
) -> None:
    # Two gigabytes of zeros behind a good tar, in a few members: kilobytes of zstd.
    from support.registry import zstd

    blob = zstd.compress(two) + zstd.compress(bytes(128 << 20)) * 16
    digest = registry.push_blob(repository, blob)
    honest = registry.push_image(repository, "0", [two], other_platform=False)
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": digest, "size": len(blob)}
    registry.push_manifest(repository, "1", {**honest.manifest, "layers": [layer]}, OCI_MANIFEST)
    refused(engine, f"{repository}:1", LayerError, "expands more than 1000 times")


def test_one_bad_layer_ends_the_others_and_their_work_is_cleared(
    engine: Engine, registry: Registry, repository: str
) -> None:
    layers = [tar({f"f{n}": os.urandom(4_000_000)}) for n in range(4)]
    pushed = registry.push_image(repository, "1", layers, compression=("plain",))
    registry.truncate(pushed.layer_digests[1], 10)
    with pytest.raises(DigestMismatch):
        engine.pull(f"{repository}:1")
    assert not any(pushed.layer_digests[1][7:] in name for name in os.listdir(engine.root / "ingest"))
    assert engine.images.list() == []
    registry.replace(pushed.layer_digests[1], layers[1])
    assert engine.pull(f"{repository}:1").image.id == pushed.config_digest
