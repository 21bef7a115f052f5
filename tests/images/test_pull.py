"""Pull, against a real registry and into the real stores."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pyrun.errors import ConfigError, ImageError, ManifestUnknown, PlatformUnavailable, RegistryError
from pyrun.images.digest import short
from pyrun.storage.contract import Caps, Driver, Env, Layer, Verdict
from pyrun.storage.layers import LayerStore, chain_id
from pyrun.storage.locks import Staging
from support.registry import (
    HOST_ARCHITECTURE,
    OCI_INDEX,
    OCI_MANIFEST,
    OTHER_ARCHITECTURE,
    Registry,
    sha256,
    tar,
)

from .conftest import Engine
from .faults import FaultServer, Request, closed_port

if TYPE_CHECKING:
    from pyrun.storage.contract import Blob

ONE, TWO, THREE = (
    tar({"a": b"one" * 5000, "d/x": b""}),
    tar({"b": b"two"}),
    tar({".wh.a": b"", "c": b"three"}),
)


def layer_file(engine: Engine, key: str, path: str) -> bytes:
    found = engine.layers.find(key)
    assert found is not None
    return Path(found.path, "fs", path).read_bytes()


def test_an_image_is_pulled_whole_and_recorded(engine: Engine, registry: Registry, repository: str) -> None:
    pushed = registry.push_image(repository, "1", [ONE, TWO, THREE], {"Cmd": ["sh"], "Env": ["A=b"]})
    result = engine.pull(f"{repository}:1")
    image = result.image
    assert result.newer
    assert (image.reference, image.digest, image.manifest, image.id) == (
        f"docker.io/{repository}:1",
        pushed.digest,
        pushed.manifest_digest,
        pushed.config_digest,
    )
    assert image.platform == f"linux/{HOST_ARCHITECTURE}"
    assert image.created == "2024-05-06T07:08:09.123456789Z"
    assert image.config == {"Cmd": ["sh"], "Env": ["A=b"]}
    assert [(layer.digest, layer.diff_id, layer.unpacked) for layer in image.layers] == [
        (digest, diff_id, len(data))
        for digest, diff_id, data in zip(
            pushed.layer_digests, pushed.diff_ids, (ONE, TWO, THREE), strict=True
        )
    ]
    for digest in [*pushed.layer_digests, pushed.config_digest, pushed.manifest_digest, pushed.digest]:
        stored = Path(engine.content.blob_path(digest)).read_bytes()
        assert "sha256:" + hashlib.sha256(stored).hexdigest() == digest
    assert layer_file(engine, pushed.diff_ids[0], "a") == b"one" * 5000
    assert layer_file(engine, pushed.diff_ids[2], "c") == b"three"
    assert engine.images.get(f"{repository}:1").to_json() == image.to_json()
    assert engine.partial() == []


def test_every_layer_goes_through_dockers_states(engine: Engine, registry: Registry, repository: str) -> None:
    pushed = registry.push_image(repository, "1", [ONE, TWO])
    engine.pull(f"{repository}:1")
    assert (engine.steps[0].id, engine.steps[0].status) == ("1", f"Pulling from {repository}")
    for digest in pushed.layer_digests:
        assert engine.states(short(digest)) == [
            "Pulling fs layer",
            "Downloading",
            "Verifying Checksum",
            "Download complete",
            "Extracting",
            "Pull complete",
        ]


def test_more_layers_than_workers_wait_their_turn(
    engine: Engine, registry: Registry, repository: str
) -> None:
    count = (os.cpu_count() or 1) + 4
    pushed = registry.push_image(repository, "1", [tar({f"f{n}": b"x"}) for n in range(count)])
    assert len(engine.pull(f"{repository}:1").image.layers) == count
    waited = [d for d in pushed.layer_digests if "Waiting" in engine.states(short(d))]
    assert waited == pushed.layer_digests[-3:]
    assert all(engine.states(short(d))[-1] == "Pull complete" for d in pushed.layer_digests)


def test_a_second_pull_finds_everything_there(engine: Engine, registry: Registry, repository: str) -> None:
    pushed = registry.push_image(repository, "1", [ONE, TWO])
    first = engine.pull(f"{repository}:1")
    for digest in pushed.layer_digests:  # were they fetched again, it would fail
        registry.delete(digest)
    engine.steps.clear()
    again = engine.pull(f"{repository}:1")
    assert not again.newer
    assert again.image.to_json() == first.image.to_json()
    assert [step.status for step in engine.steps] == [f"Pulling from {repository}"]


def test_an_image_by_digest_that_is_there_needs_no_network(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE])
    engine.pull(f"{repository}@{pushed.digest}")
    engine.conf.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "127.0.0.1:{closed_port()}"\n')
    result = engine.pull(f"{repository}@{pushed.digest}")
    assert not result.newer
    assert result.image.reference == f"docker.io/{repository}@{pushed.digest}"


def test_a_moved_tag_is_newer_and_shares_layers_with_the_old_image(
    engine: Engine, registry: Registry, repository: str
) -> None:
    old = registry.push_image(repository, "1", [ONE, TWO])
    engine.pull(f"{repository}:1")
    new = registry.push_image(repository, "1", [ONE, THREE], compression=("gzip", "gzip"))
    engine.steps.clear()
    result = engine.pull(f"{repository}:1")
    assert result.newer
    assert result.image.id == new.config_digest
    assert engine.states(short(new.layer_digests[0])) == ["Already exists"]
    # The old image lost its tag, and is found by its digest and ID.
    assert engine.images.get(old.config_digest).reference == f"docker.io/{repository}@{old.manifest_digest}"
    assert engine.images.get(f"{repository}@{old.digest}").id == old.config_digest


def test_the_digest_decides_over_the_tag_beside_it(
    engine: Engine, registry: Registry, repository: str
) -> None:
    old = registry.push_image(repository, "1", [ONE])
    registry.push_image(repository, "1", [TWO])
    image = engine.pull(f"{repository}:1@{old.digest}").image
    assert (image.id, image.reference) == (old.config_digest, f"docker.io/{repository}@{old.digest}")


def test_a_single_manifest_needs_no_index(engine: Engine, registry: Registry, repository: str) -> None:
    pushed = registry.push_image(repository, "1", [ONE], other_platform=False)
    image = engine.pull(f"{repository}:1").image
    assert image.digest == image.manifest == pushed.manifest_digest


def test_an_index_may_list_an_index(engine: Engine, registry: Registry, repository: str) -> None:
    pushed = registry.push_image(repository, "1", [ONE])

    def around(digest: str) -> str:
        size = registry.blob_path(digest).stat().st_size
        entry = {"mediaType": OCI_INDEX, "digest": digest, "size": size}
        entry["platform"] = {"os": "linux", "architecture": HOST_ARCHITECTURE}
        document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        return registry.push_manifest(repository, "", document, OCI_INDEX)

    two = around(pushed.digest)
    assert engine.pull(f"{repository}@{two}").image.id == pushed.config_digest
    with pytest.raises(ImageError, match="nested deeper than 3"):
        engine.pull(f"{repository}@{around(around(two))}")


def test_one_layer_twice_in_an_image_is_fetched_once(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE, TWO, ONE], compression=("gzip",))
    image = engine.pull(f"{repository}:1").image
    assert [layer.diff_id for layer in image.layers] == pushed.diff_ids
    statuses = [s.status for s in engine.steps if s.id == short(pushed.layer_digests[0])]
    assert statuses.count("Pulling fs layer") == statuses.count("Pull complete") == 1


def test_one_layer_in_two_compressions_keeps_both_blobs(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE, ONE], compression=("gzip", "zstd"))
    engine.pull(f"{repository}:1")
    assert len(set(pushed.layer_digests)) == 2
    assert all(engine.content.has(digest) for digest in pushed.layer_digests)
    assert len(list(engine.layers.keys())) == 1


def test_an_image_without_layers_is_an_image(engine: Engine, registry: Registry, repository: str) -> None:
    registry.push_image(repository, "1", [])
    assert engine.pull(f"{repository}:1").image.layers == []


# --- what is missing


def test_a_missing_tag_is_named(engine: Engine, registry: Registry, repository: str) -> None:
    registry.push_image(repository, "1", [ONE])
    with pytest.raises(ManifestUnknown, match=f"manifest for {repository}:nope not found: manifest unknown"):
        engine.pull(f"{repository}:nope")
    assert engine.images.list() == []


def test_a_platform_that_is_not_there_is_named_with_those_that_are(
    engine: Engine, registry: Registry, repository: str
) -> None:
    registry.push_image(repository, "1", [ONE])
    with pytest.raises(PlatformUnavailable, match=f"{repository}:1 has no image for linux/riscv64") as caught:
        engine.pull(f"{repository}:1", "linux/riscv64")
    assert f"linux/{OTHER_ARCHITECTURE}, linux/{HOST_ARCHITECTURE}" in caught.value.hint


def test_another_platforms_image_can_be_asked_for(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE])
    own = engine.pull(f"{repository}:1").image
    other = engine.pull(f"{repository}:1", f"linux/{OTHER_ARCHITECTURE}")
    assert other.newer
    assert other.image.platform == f"linux/{OTHER_ARCHITECTURE}"
    assert (other.image.digest, own.digest) == (pushed.digest, pushed.digest)
    assert other.image.id != own.id


def test_two_platforms_of_one_index_digest_stand_side_by_side(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE])
    name = f"{repository}@{pushed.digest}"
    own = engine.pull(name).image
    other = engine.pull(name, f"linux/{OTHER_ARCHITECTURE}").image
    assert {image.id for image in engine.images.list()} == {own.id, other.id}
    assert engine.images.get(name).id == own.id
    for platform, manifest in ((None, own.manifest), (f"linux/{OTHER_ARCHITECTURE}", other.manifest)):
        assert not engine.pull(name, platform).newer
        assert not engine.pull(f"{repository}@{manifest}", platform).newer
        assert not engine.pull(name, platform).newer


def test_a_config_for_another_platform_than_the_index_says_is_refused(
    engine: Engine, registry: Registry, repository: str
) -> None:
    registry.push_image(repository, "1", [ONE], platform=f"linux/{OTHER_ARCHITECTURE}", other_platform=False)
    with pytest.raises(PlatformUnavailable, match=f"is an image for linux/{OTHER_ARCHITECTURE}, not for"):
        engine.pull(f"{repository}:1")


def test_an_unreachable_registry_is_named(engine: Engine, registry: Registry, repository: str) -> None:
    host = f"127.0.0.1:{closed_port()}"
    with pytest.raises(RegistryError, match=f"registry {host} can't be reached: connection refused"):
        engine.pull(f"{host}/a/b")


def test_an_artifact_is_refused_in_words(engine: Engine, registry: Registry, repository: str) -> None:
    blob = registry.push_blob(repository, b"{}")
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": blob, "size": 2}
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}
    registry.push_manifest(repository, "sbom", document)
    with pytest.raises(ImageError, match="is an artifact of type 'application/vnd"):
        engine.pull(f"{repository}:sbom")


# --- mirrors


def mirrors(*hosts: str) -> str:
    tables = "".join(f'[[registry.mirror]]\nlocation = "{host}"\ninsecure = true\n' for host in hosts[:-1])
    return f'[[registry]]\nprefix = "docker.io"\nlocation = "{hosts[-1]}"\n{tables}'


def test_an_unreachable_mirror_gives_way_to_the_next(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE])
    engine.conf.write_text(mirrors(f"127.0.0.1:{closed_port()}", registry.host, f"127.0.0.1:{closed_port()}"))
    assert engine.pull(f"{repository}:1").image.id == pushed.config_digest


EMPTY = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
BROKEN: dict[str, tuple[Callable[[Request], None], str]] = {
    "web": (lambda request: request.reply(200, b"<html>", content_type="text/html"), "not acceptable JSON"),
    "empty": (lambda request: request.document(EMPTY, OCI_INDEX), "has no image for"),
    "oversized": (lambda request: request.reply(200, bytes((4 << 20) + 1)), "larger than 4 MiB"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_mirror_that_serves_no_image_gives_way_to_the_next(
    engine: Engine, registry: Registry, repository: str, tmp_path: Path, kind: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE])
    answer, reason = BROKEN[kind]
    with FaultServer(answer, str(tmp_path / "requests")) as mirror:
        engine.conf.write_text(mirrors(mirror.host, registry.host))
        assert engine.pull(f"{repository}:1").image.id == pushed.config_digest
        engine.conf.write_text(mirrors(mirror.host, f"127.0.0.1:{closed_port()}"))
        with pytest.raises(ImageError) as caught:
            engine.pull(f"{repository}:2")
        assert reason in caught.value.message
        assert "connection refused" in caught.value.message


def test_when_all_places_fail_each_ones_reason_is_told(
    engine: Engine, registry: Registry, repository: str
) -> None:
    dead = f"127.0.0.1:{closed_port()}"
    engine.conf.write_text(mirrors(registry.host, dead))
    with pytest.raises(RegistryError) as caught:
        engine.pull(f"{repository}:1")
    assert f"{registry.host}/{repository}: manifest for {repository}:1 not found" in caught.value.message
    assert (
        f"{dead}/{repository}: registry {dead} can't be reached: connection refused" in caught.value.message
    )


def test_a_mirror_with_a_damaged_layer_gives_way_to_the_next(
    engine: Engine, registry: Registry, repository: str, tmp_path: Path
) -> None:
    pushed = registry.push_image(repository, "1", [ONE, TWO])
    (tmp_path / "mirror").mkdir()
    with Registry(tmp_path / "mirror") as mirror:
        mirror.push_image(repository, "1", [ONE, TWO])
        mirror.flip_byte(pushed.layer_digests[0])
        mirror.delete(pushed.layer_digests[1])
        engine.conf.write_text(mirrors(mirror.host, registry.host))
        assert engine.pull(f"{repository}:1").image.id == pushed.config_digest
    assert layer_file(engine, pushed.diff_ids[0], "a") == b"one" * 5000
    assert engine.partial() == []


def test_a_broken_configuration_is_named(engine: Engine) -> None:
    engine.conf.write_text("[[registry]]\nlocation = 5\n")
    with pytest.raises(ConfigError, match=r"registries\.conf: registry\[0\]\.location"):
        engine.pull("redis")


# --- what is partly there


def test_a_layer_whose_blob_is_gone_is_not_unpacked_again(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE, TWO])
    engine.pull(f"{repository}:1")
    engine.content.remove(pushed.layer_digests[0])
    layer = engine.layers.find(pushed.diff_ids[0])
    assert layer is not None
    made = os.stat(layer.path).st_ino
    assert not engine.pull(f"{repository}:1").newer
    assert engine.content.has(pushed.layer_digests[0])
    assert os.stat(layer.path).st_ino == made


def test_a_blob_whose_layer_is_gone_is_unpacked_without_the_network(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE, TWO])
    engine.pull(f"{repository}:1")
    engine.layers.remove(pushed.diff_ids[0])
    registry.delete(pushed.layer_digests[0])
    engine.pull(f"{repository}:1")
    assert layer_file(engine, pushed.diff_ids[0], "a") == b"one" * 5000


def test_a_stored_blob_that_rotted_is_fetched_again(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE])
    engine.pull(f"{repository}:1")
    engine.layers.remove(pushed.diff_ids[0])
    path = Path(engine.content.blob_path(pushed.layer_digests[0]))
    good = path.read_bytes()
    path.write_bytes(good[:40] + b"\xff" + good[41:])
    engine.pull(f"{repository}:1")
    assert path.read_bytes() == good
    assert layer_file(engine, pushed.diff_ids[0], "a") == b"one" * 5000


def test_stored_content_is_not_believed_to_be_another_images_layer(
    engine: Engine, registry: Registry, repository: str
) -> None:
    honest = registry.push_image(repository, "1", [ONE, TWO], compression=("gzip",))
    engine.pull(f"{repository}:1")
    # Both layers and both blobs are here; the config claims that they belong together crosswise.
    registry.push_image(repository, "2", [ONE, TWO], compression=("gzip",), diff_ids=honest.diff_ids[::-1])
    with pytest.raises(ImageError, match="unpacks to"):
        engine.pull(f"{repository}:2")
    assert engine.pull(f"{repository}:1").image.id == honest.config_digest


# --- drivers whose layers need their parents


class Copying(Driver):
    """Each layer is a full copy of its parent with the tar's name list added."""

    name = "copying"

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        return Verdict(True, "for this test", caps=Caps(chained=True))

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> None:
        if parent:
            shutil.copytree(f"{parent.path}/fs", f"{dest}/fs")
        else:
            os.mkdir(f"{dest}/fs")
        fd = os.open(f"{dest}/fs", os.O_RDONLY | os.O_DIRECTORY)
        try:
            blob.unpack(fd, "apply")
        finally:
            os.close(fd)

    def prepare(self, layers: Any, dest: str) -> None:
        raise NotImplementedError

    def mount(self, layers: Any, rw: str | None, idmap: int | None = None) -> int:
        raise NotImplementedError


def test_a_chained_driver_gets_its_layers_bottom_to_top(
    tmp_path: Path, engine: Engine, registry: Registry, repository: str
) -> None:
    root = tmp_path / "chained"
    for name in ("staging", "locks", "layers/copying"):
        (root / name).mkdir(parents=True)
    env = Env(str(root))
    driver = Copying(env, {}, Copying.probe(env, {}))
    chained = Engine(root, engine.conf, LayerStore(str(root), driver, Staging(f"{root}/staging")))
    pushed = registry.push_image(repository, "1", [ONE, TWO, THREE, TWO])
    image = chained.pull(f"{repository}:1").image
    assert [layer.unpacked for layer in image.layers] == [len(data) for data in (ONE, TWO, THREE, TWO)]
    keys: list[str] = []
    for diff_id in pushed.diff_ids:
        keys.append(chain_id(keys[-1] if keys else None, diff_id))
    assert sorted(chained.layers.keys()) == sorted(keys)
    top = chained.layers.find(keys[-1])
    assert top is not None
    assert sorted(os.listdir(f"{top.path}/fs")) == ["b", "c", "d"]  # the third layer deleted a
    assert not chained.pull(f"{repository}:1").newer
    assert chained.steps[-1].status == f"Pulling from {repository}"


def test_nothing_of_the_image_is_trusted_that_its_digest_does_not_cover(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(repository, "1", [ONE])
    assert json.loads(engine.content.read(engine.pull(f"{repository}:1").image.id)) == pushed.config
    assert sha256(engine.content.read(pushed.manifest_digest)) == pushed.manifest_digest
