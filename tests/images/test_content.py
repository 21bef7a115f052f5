"""The content store: whole blobs only, and an OCI layout that other tools read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pyrun.errors import DigestMismatch, StorageError
from pyrun.images import parts
from pyrun.images.content import ContentStore
from pyrun.images.digest import digest_like, sha256
from support.registry import Registry, tar

from .conftest import Engine

DATA = b"some blob" * 1000


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path))


def ingest(content: ContentStore) -> list[str]:
    return os.listdir(os.path.join(content.root, "ingest"))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_is_read_back_under_its_digest(content: ContentStore, algorithm: str) -> None:
    digest = digest_like(f"{algorithm}:", DATA)
    assert not content.has(digest)
    content.add_bytes(DATA, digest)
    content.add_bytes(DATA, digest)
    assert content.has(digest)
    assert (content.size(digest), content.read(digest), list(content.digests())) == (
        len(DATA),
        DATA,
        [digest],
    )
    assert content.open(digest).read() == DATA
    assert ingest(content) == []
    assert content.remove(digest) == len(DATA)
    assert content.remove(digest) == 0


def test_the_directory_is_an_oci_layout_from_the_first_blob_on(content: ContentStore) -> None:
    content.add_bytes(DATA, sha256(DATA))
    assert json.loads(Path(content.path, "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert json.loads(Path(content.path, "index.json").read_text())["manifests"] == []


@pytest.mark.parametrize("data", [DATA[:-1], DATA + b"x", DATA[:-1] + b"x", b""])
def test_other_bytes_than_the_digest_names_are_never_kept(content: ContentStore, data: bytes) -> None:
    writer = content.writer(sha256(DATA), len(DATA))
    assert writer is not None

    def store() -> None:
        with writer:
            writer.write(data)
            writer.commit()

    with pytest.raises(DigestMismatch, match=sha256(DATA)):
        store()
    assert not content.has(sha256(DATA))
    assert ingest(content) == []


@pytest.mark.parametrize(
    "digest", ["sha256:../../x", "sha256:" + "A" * 64, "md5:" + "0" * 32, "", "/etc/passwd"]
)
def test_a_digest_that_is_none_names_no_file(content: ContentStore, digest: str) -> None:
    with pytest.raises(StorageError, match="not a digest"):
        content.open(digest)


def test_a_missing_blob_is_named(content: ContentStore) -> None:
    with pytest.raises(StorageError, match=f"{sha256(b'no')} is not in the store"):
        content.read(sha256(b"no"))


def test_a_blob_that_rotted_is_noticed(content: ContentStore) -> None:
    content.add_bytes(DATA, sha256(DATA))
    Path(content.blob_path(sha256(DATA))).write_bytes(DATA[:-1] + b"!")
    with pytest.raises(DigestMismatch, match="is damaged"):
        content.read(sha256(DATA))


def test_what_a_killed_writer_left_is_kept_for_a_while_and_swept_on_demand_and_a_living_one_spared(
    content: ContentStore,
) -> None:
    living = content.writer(sha256(b"living"), 6)
    assert living is not None
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        dying = content.writer(sha256(DATA), len(DATA), resumable=True)
        assert dying is not None
        dying.write(DATA[:100])
        os.write(writer, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    assert content.sweep(kept=0) == 0
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
    assert content.sweep() == 0
    assert content.unfinished() == {sha256(DATA): 100, sha256(b"living"): 0}
    week = time.time() - parts.KEPT - 60
    os.utime(Path(content.root, "ingest", parts.file_name(sha256(DATA))), (week, week))
    assert content.sweep() == 1
    assert len(ingest(content)) == 1
    with living:
        living.write(b"living")
        living.commit()
    content.add_bytes(DATA, sha256(DATA))
    assert content.read(sha256(DATA)) == DATA


def test_a_broken_writer_is_gone_on_with(content: ContentStore) -> None:
    for end in (1000, 3000):
        writer = content.writer(sha256(DATA), len(DATA), resumable=True)
        assert writer is not None
        with writer:
            assert b"".join(bytes(piece) for piece in writer.replay()) == DATA[: writer.held]
            writer.write(DATA[writer.held : end])
    writer = content.writer(sha256(DATA), len(DATA), resumable=True)
    assert writer is not None
    with writer:
        assert writer.held == 3000
        assert sum(len(piece) for piece in writer.replay()) == writer.written == 3000
        writer.write(DATA[3000:])
        writer.commit()
    assert content.read(sha256(DATA)) == DATA
    assert ingest(content) == []


@pytest.mark.parametrize("left", [b"x" * 100, DATA[:100] + b"x", DATA + b"more", DATA[:-1] + b"x"])
def test_a_part_with_other_bytes_is_found_out_at_the_end_and_goes(content: ContentStore, left: bytes) -> None:
    content.add_bytes(b"", sha256(b""))
    Path(content.root, "ingest", parts.file_name(sha256(DATA))).write_bytes(left)

    def store() -> None:
        writer = content.writer(sha256(DATA), len(DATA), resumable=True)
        assert writer is not None
        with writer:
            for _ in writer.replay():
                pass
            writer.write(DATA[writer.written :])
            writer.commit()

    if len(left) <= len(DATA):
        with pytest.raises(DigestMismatch):
            store()
        assert ingest(content) == []
    store()
    assert content.read(sha256(DATA)) == DATA


@pytest.mark.parametrize("name", ["sha256-00.part", "nonsense", f"sha256-{'0' * 64}.part.x", "md5-00.part"])
def test_what_is_no_part_is_swept_at_once(content: ContentStore, name: str) -> None:
    content.add_bytes(b"", sha256(b""))
    Path(content.root, "ingest", name).write_bytes(b"x")
    assert content.sweep() == 1
    assert ingest(content) == []


def test_a_part_whose_blob_is_stored_is_swept_at_once(content: ContentStore) -> None:
    content.add_bytes(DATA, sha256(DATA))
    Path(content.root, "ingest", parts.file_name(sha256(DATA))).write_bytes(DATA[:10])
    assert content.sweep() == 1
    assert content.read(sha256(DATA)) == DATA


def test_the_temporary_file_of_a_dead_process_is_swept_and_a_living_ones_spared(
    content: ContentStore,
) -> None:
    content.add_bytes(DATA, sha256(DATA))
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    for pid in (dead, os.getpid()):
        Path(content.path, f".tmp-{pid}-index.json").write_bytes(b"{")
    assert content.sweep() == 1
    assert [n for n in os.listdir(content.path) if n.startswith(".tmp")] == [f".tmp-{os.getpid()}-index.json"]
    assert content.read(sha256(DATA)) == DATA


class Second:
    """A second process that writes the same blob, once `begin` lets it. It is forked before the first writer
    is opened: a copy of that one's descriptor would share its lock."""

    def __init__(self, content: ContentStore) -> None:
        reader, self._gate = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            signal.alarm(20)
            code = 1
            try:
                os.read(reader, 1)
                writer = content.writer(sha256(DATA), len(DATA))
                code = 10
                if writer is not None:
                    with writer:
                        writer.write(DATA)
                        writer.commit()
                    code = 11
            finally:
                os._exit(code)
        os.close(reader)

    def begin(self) -> None:
        os.write(self._gate, b"x")
        os.close(self._gate)
        time.sleep(0.1)
        assert os.waitpid(self._pid, os.WNOHANG) == (0, 0), "it did not wait"

    def outcome(self) -> str:
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return {10: "found it", 11: "wrote it"}.get(code, f"exited with {code}")


def test_a_second_writer_waits_and_finds_the_blob(content: ContentStore) -> None:
    second = Second(content)
    first = content.writer(sha256(DATA), len(DATA))
    assert first is not None
    second.begin()
    with first:
        first.write(DATA)
        first.commit()
    assert second.outcome() == "found it"
    assert ingest(content) == []


def test_a_second_writer_takes_over_from_one_that_gave_up(content: ContentStore) -> None:
    second = Second(content)
    first = content.writer(sha256(DATA), len(DATA))
    assert first is not None
    second.begin()
    with first:
        first.write(DATA[:5])
    assert second.outcome() == "wrote it"
    assert content.read(sha256(DATA)) == DATA
    assert ingest(content) == []


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo (package skopeo)")
def test_skopeo_reads_the_store(engine: Engine, registry: Registry, repository: str, tmp_path: Path) -> None:
    layers = [tar({"a": b"1"}), tar({"b": b"2"}), tar({"c": b"3"})]
    pushed = registry.push_image(repository, "1", layers, {"Cmd": ["x"]})
    engine.pull(f"{repository}:1")
    engine.images.tag(f"{repository}:1", "other.example/name:2")

    def skopeo(*arguments: str) -> str:
        done = subprocess.run(["skopeo", *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in (f"docker.io/{repository}:1", "other.example/name:2"):
        seen = json.loads(skopeo("inspect", f"oci:{engine.content.path}:{name}"))
        assert (seen["Digest"], seen["Layers"]) == (pushed.manifest_digest, pushed.layer_digests)
    skopeo("copy", f"oci:{engine.content.path}:docker.io/{repository}:1", f"dir:{tmp_path}/copy")
    assert json.loads((tmp_path / "copy" / "manifest.json").read_text()) == pushed.manifest
