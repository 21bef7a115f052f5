"""Archives between pyrun and the tools that people use: each reads what the other wrote, IDs and digests stay."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.archives import Made, Special, descriptor, docker_archive, index, oci_layout, packed
from support.podman import Podman
from support.pyrun import Pyrun, copy_store, terminal
from support.registry import (
    HOST_ARCHITECTURE,
    OCI_MANIFEST,
    OTHER_ARCHITECTURE,
    Pushed,
    Registry,
    sha256,
    tar,
    zstd,
)

from .conftest import Store

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
ONE = tar({"etc/motd": b"one"})
TWO = tar({"etc/motd": b"two", "bin/tool": b"x" * 5000})


def skopeo(*args: str) -> bytes:
    done = subprocess.run(["skopeo", *args], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def facts(pyrun: Pyrun, name: str) -> tuple[str, list[str]]:
    found = pyrun.image(name)
    return found["Id"], found["RootFS"]["Layers"]


def load(store: Store, data: bytes, *options: str) -> str:
    path = store.directory / "archive"
    path.write_bytes(data)
    return str(store.pyrun.ok("load", "-i", str(path), *options))


@pytest.fixture(scope="module")
def source(small: Pyrun, base: Path) -> Pyrun:
    """A store with busybox, and an image whose layers are compressed in every way."""
    pyrun = Pyrun(base / "source", base / "source-state", env=small.env)
    copy_store(small.root, pyrun.root)
    app = Made([tar({"app/number": str(n).encode() * 100_000}) for n in range(3)], compression="turns")
    pyrun.ok("load", input=packed(oci_layout([app], ["docker.io/library/app:1"])), text=False)
    return pyrun


@pytest.fixture(scope="module")
def archive(source: Pyrun, base: Path) -> Path:
    """busybox and app, saved."""
    path = base / "both.tar"
    source.ok("save", "-o", str(path), "busybox", "app:1")
    return path


# --- save, read by others


@needs_skopeo
@pytest.mark.parametrize("name", ["busybox:latest", "app:1"])
def test_skopeo_reads_a_saved_archive_as_dockers_and_as_an_oci_archive(
    source: Pyrun, archive: Path, tmp_path: Path, name: str
) -> None:
    id, diff_ids = facts(source, name)
    for place in (f"docker-archive:{archive}:{name}", f"oci-archive:{archive}:docker.io/library/{name}"):
        config = skopeo("inspect", "--config", "--raw", place)
        assert sha256(config) == id
        assert json.loads(config)["rootfs"]["diff_ids"] == diff_ids
        target = tmp_path / place.partition(":")[0]
        skopeo("copy", "-q", place, f"dir:{target}")  # which checks every byte


@needs_skopeo
@pytest.mark.parametrize("form", ["oci-archive", "oci-dir", "docker-dir"])
def test_skopeo_reads_the_other_formats(source: Pyrun, tmp_path: Path, form: str) -> None:
    path = tmp_path / "saved"
    source.ok("save", "--format", form, "-o", str(path), "busybox")
    transport = {"oci-archive": "oci-archive", "oci-dir": "oci", "docker-dir": "dir"}[form]
    assert (
        sha256(skopeo("inspect", "--config", "--raw", f"{transport}:{path}")) == facts(source, "busybox")[0]
    )
    skopeo("copy", "-q", f"{transport}:{path}", f"dir:{tmp_path}/copy")
    kind = json.loads(skopeo("inspect", "--raw", f"{transport}:{path}"))["mediaType"]
    assert ("docker" in kind) == (form == "docker-dir")


@pytest.fixture(scope="module")
def podman(archive: Path, base: Path) -> Iterator[Podman]:
    """With the images of the archive, loaded."""
    with Podman(base / "p") as podman:  # it takes no long names
        podman("load", "-q", "-i", str(archive))
        yield podman


def test_podman_loads_a_saved_archive(source: Pyrun, podman: Podman) -> None:
    for name in ("busybox:latest", "app:1"):
        found = json.loads(podman("inspect", f"docker.io/library/{name}"))[0]
        assert f"sha256:{found['Id']}" == facts(source, name)[0]


def test_the_same_images_give_the_same_bytes(source: Pyrun, archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    with open(again, "wb") as file:
        source.ok("save", "busybox", "app:1", stdout=file)
    with open(archive, "rb") as one, open(again, "rb") as other:
        assert hashlib.file_digest(one, "sha256").digest() == hashlib.file_digest(other, "sha256").digest()


def test_manifests_and_blobs_stand_in_it_as_they_are_in_the_store(source: Pyrun, archive: Path) -> None:
    digest = source.image("busybox")["Descriptor"]["digest"].partition(":")[2]
    stored = (source.root / "content/blobs/sha256" / digest).read_bytes()
    with tarfile.open(archive) as file:
        names = file.getnames()
        assert names == sorted(names)
        member = file.extractfile(f"blobs/sha256/{digest}")
        assert member is not None
        assert member.read() == stored
        for info in file:
            assert (info.uid, info.gid, info.mtime) == (0, 0, 0)


def tags_in(data: bytes) -> list[list[str] | None]:
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        member = file.extractfile("manifest.json")
        assert member is not None
        return [entry["RepoTags"] for entry in json.load(member)]


def test_a_repository_means_all_of_its_tags_and_an_id_none(store: Store) -> None:
    load(store, packed(docker_archive([Made([ONE]), Made([TWO])], [["app:1", "app:2"], ["app:3", "lib:1"]])))
    save = lambda *names: tags_in(store.pyrun.ok("save", *names, text=False))  # noqa: E731
    full = "docker.io/library/"
    assert save("app:2") == [[f"{full}app:2"]]
    assert save("app") == [[f"{full}app:1", f"{full}app:2"], [f"{full}app:3"]]
    assert save("app:3", "lib:1") == [[f"{full}app:3", f"{full}lib:1"]]
    id = store.pyrun.image("app:1")["Id"]
    assert save(id) == [None]
    assert save(id.partition(":")[2][:12]) == [None]
    assert save(id, "app:1") == [[f"{full}app:1"]]


def test_of_a_name_that_was_pulled_for_several_platforms_the_one_asked_for_is_saved(
    empty: Pyrun, registry: Registry
) -> None:
    pushed = registry.push_image("library/several", "1", [ONE])
    (other,) = {entry["digest"] for entry in _index_entries(registry, pushed)} - {pushed.manifest_digest}
    for architecture in (OTHER_ARCHITECTURE, HOST_ARCHITECTURE):
        empty.ok("pull", "-q", "--platform", f"linux/{architecture}", "several:1")
    for architecture, digest in ((OTHER_ARCHITECTURE, other), (HOST_ARCHITECTURE, pushed.manifest_digest)):
        data = empty.ok("save", "--platform", f"linux/{architecture}", "several:1", text=False)
        with tarfile.open(fileobj=io.BytesIO(data)) as file:
            member = file.extractfile("index.json")
            assert member is not None
            assert [entry["digest"] for entry in json.load(member)["manifests"]] == [digest]
        assert tags_in(data) == [["docker.io/library/several:1"]]


def _index_entries(registry: Registry, pushed: Pushed) -> list[dict[str, Any]]:
    status, _, body = registry.request(
        "GET",
        f"/v2/{pushed.repository}/manifests/{pushed.digest}",
        Accept="application/vnd.oci.image.index.v1+json",
    )
    assert status == 200
    return list(json.loads(body)["manifests"])


@pytest.mark.parametrize("driver", ["vfs", "erofs"])
def test_it_loads_into_the_store_of_any_driver(archive: Path, store: Store, driver: str) -> None:
    if driver == "erofs" and os.geteuid() != 0:
        pytest.skip("needs root, to mount erofs")
    pyrun = store.pyrun
    pyrun.ok("load", "--storage", driver, "-i", str(archive))
    assert pyrun.sh("echo it runs") == "it runs\n"
    pyrun.ok("import", "-c", 'CMD ["x"]', "-", "made", input=ONE, text=False)
    pyrun.ok("load", input=packed(docker_archive([Made([TWO])], [["two"]])), text=False)
    assert "sound" in pyrun.ok("system", "check", "--deep")
    assert len(store.images()) == 4


def test_what_can_not_be_saved_is_refused_in_words(source: Pyrun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for args, code, words in (
        (("nothing-like-it",), 1, "no such image"),
        (("busybox", "--format", "zip"), 125, "docker-archive"),
        (("busybox", "app:1", "--format", "docker-dir", "-o", str(out)), 125, "one image"),
        (("busybox", "-m", "--format", "docker-dir", "-o", str(out)), 125, "one image"),
        (("busybox", "--format", "oci-dir"), 125, "-o"),
        (("busybox", "--platform", f"linux/{OTHER_ARCHITECTURE}", "-o", str(out)), 1, "not for"),
        (("busybox", "-o", str(tmp_path / "gone/out")), 1, "can't be written"),
        (("busybox", "-o", str(tmp_path)), 125, "is a directory"),
        (("busybox", "--format", "oci-dir", "-o", str(source.root)), 125, "is there already"),
    ):
        done = source("save", *args)
        assert done.returncode == code, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_no_archive(source: Pyrun) -> None:
    with terminal(source, "save", "busybox") as window:
        window.read_until(b"not written to a terminal")
        assert window.wait() == 125
    with terminal(source, "load") as window:
        window.read_until(b"not read from a terminal")
        assert window.wait() == 125


def test_a_file_is_replaced_only_by_a_whole_archive(fresh: Pyrun, tmp_path: Path) -> None:
    path = tmp_path / "saved.tar"
    path.write_bytes(b"before")
    path.chmod(0o600)
    fresh.ok("save", "-o", str(path), "busybox")
    assert path.stat().st_size > 1_000_000
    assert path.stat().st_mode & 0o777 == 0o600
    whole = path.read_bytes()
    layer = max((fresh.root / "content/blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    with open(layer, "r+b") as file:
        file.seek(5000)
        file.write(b"rot")
    for args in (("-o", str(path)), ("--format", "oci-dir", "-o", str(tmp_path / "dir"))):
        done = fresh("save", *args, "busybox")
        assert done.returncode == 1
        assert "is damaged" in done.stderr
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_or_device_is_written_to_and_not_replaced(source: Pyrun, tmp_path: Path) -> None:
    source.ok("save", "-o", "/dev/null", "busybox")
    assert not os.path.isfile("/dev/null")
    assert source.ok("save", "-o", "/dev/stdout", "busybox", text=False) == source.ok(
        "save", "busybox", text=False
    )
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    source.ok("save", "-o", str(link), "busybox")
    assert link.is_symlink()
    assert (tmp_path / "file").is_file()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
def test_a_full_disk_costs_nothing_but_the_archive(source: Pyrun, tmp_path: Path) -> None:
    script = (
        'mount -t tmpfs -o size=600k tmpfs "$1" || exit 99; echo old > "$1/x"; shift;'
        '"$@"; echo $?; ls -A "$0"; cat "$0/x"'
    )
    target = str(tmp_path)
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "sh",
            "-c",
            script,
            target,
            target,
            *source.argv("save", "-o", f"{target}/x", "busybox"),
        ],
        capture_output=True,
        text=True,
        env=source.env,
        timeout=60,
    )
    assert done.stdout == "1\nx\nold\n", done.stdout + done.stderr
    assert "no space left" in done.stderr


# --- load, written by others


def test_what_was_saved_loads_again_with_the_same_id_and_digest(
    source: Pyrun, archive: Path, store: Store
) -> None:
    out = store.pyrun.ok("load", "-i", str(archive))
    assert out == "Loaded image: busybox:latest\nLoaded image: app:1\n"
    for name in ("busybox", "app:1"):
        before, after = source.image(name), store.pyrun.image(name)
        for key in ("Id", "Created", "Config", "RootFS", "Size", "Architecture", "Descriptor"):
            assert before[key] == after[key]
    assert store.pyrun.sh("echo it runs") == "it runs\n"
    assert "sound" in store.pyrun.ok("system", "check", "--deep")
    assert store.unfinished() == []
    again = store.pyrun.ok("save", "busybox", "app:1", text=False)
    assert again == archive.read_bytes()


@needs_skopeo
@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "oci", "dir"])
def test_what_skopeo_wrote_loads(source: Pyrun, store: Store, transport: str) -> None:
    path = store.directory / "archive"
    name = "busybox:latest" if transport == "docker-archive" else "app:1"  # it can't write zstd there
    suffix = {"dir": "", "docker-archive": f":docker.io/library/{name}"}.get(transport, f":{name}")
    keep = [] if transport == "docker-archive" else ["--preserve-digests"]  # else it compresses what is plain
    skopeo(
        "copy",
        "-q",
        *keep,
        f"oci:{source.root}/content:docker.io/library/{name}",
        f"{transport}:{path}{suffix}",
    )
    out = store.pyrun.ok("load", "-i", str(path))
    id, diff_ids = facts(source, name)
    if transport == "dir":
        assert out == f"Loaded image ID: {id}\n"
        assert store.images() == [f"<none>:<none> {id}"]
    else:
        assert out == f"Loaded image: {name}\n"
    assert facts(store.pyrun, id) == (id, diff_ids)
    if transport != "docker-archive":  # which holds no manifest
        assert store.pyrun.image(id)["Descriptor"] == source.image(name)["Descriptor"]
    assert "sound" in store.pyrun.ok("system", "check", "--deep")


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir", "docker-dir"])
def test_what_podman_saved_loads(podman: Podman, store: Store, form: str) -> None:
    path = store.directory / "archive"
    podman("save", "-q", "--format", form, "-o", str(path), "docker.io/library/busybox:latest")
    store.pyrun.ok("load", "-i", str(path))
    wanted = json.loads(podman("inspect", "docker.io/library/busybox:latest"))[0]
    line = store.images()[0]
    id = line.split()[1]
    assert facts(store.pyrun, id)[1] == wanted["RootFS"]["Layers"]
    if form.startswith("docker"):
        assert id == f"sha256:{wanted['Id']}"
    if form == "docker-archive":
        assert line.startswith("busybox:latest")
    assert store.pyrun.sh("echo it runs", image=id) == "it runs\n"


def test_what_podman_saved_as_several_images_loads(podman: Podman, store: Store) -> None:
    path = store.directory / "archive"
    names = ["docker.io/library/busybox:latest", "docker.io/library/app:1"]
    podman("save", "-q", "-m", "-o", str(path), *names)
    assert store.pyrun.ok("load", "-i", str(path)) == "Loaded image: busybox:latest\nLoaded image: app:1\n"


@pytest.mark.parametrize("compression", ["none", "gzip", "bzip2", "xz", "zstd"])
def test_an_archive_may_be_compressed_as_a_whole_and_come_through_a_pipe(
    store: Store, compression: str
) -> None:
    compress = {
        "none": bytes,
        "gzip": gzip.compress,
        "bzip2": bz2.compress,
        "xz": lzma.compress,
        "zstd": zstd.compress,
    }
    image = Made([ONE, TWO])
    data = compress[compression](packed(docker_archive([image], [["app:1"]])))
    assert store.pyrun.ok("load", input=data, text=False) == b"Loaded image: app:1\n"
    store.pyrun.ok("rmi", "app:1")
    load(store, data)
    assert store.images() == [f"app:1 {image.id}"]
    assert store.unfinished() == []


def test_a_redirected_file_is_read_from_where_it_stands(store: Store) -> None:
    path = store.directory / "archive"
    path.write_bytes(b"x" * 512 + packed(docker_archive([Made([ONE])], [["app:1"]])))
    with open(path, "rb") as file:
        file.seek(512)
        os.lseek(file.fileno(), 512, os.SEEK_SET)
        assert store.pyrun.ok("load", stdin=file) == "Loaded image: app:1\n"


def test_layers_that_are_links_to_another_images_load(store: Store) -> None:
    """Docker writes a layer once, and links where it is needed again."""
    one, two = Made([ONE, TWO]), Made([ONE])
    members = docker_archive([one, two], [["one:1"], ["two:1"]])
    first, second = (f"{image.hex[:40]}{0:024}/layer.tar" for image in (one, two))
    members[second] = Special(tarfile.SYMTYPE, f"../{first}")
    third = f"{one.hex[:40]}{1:024}/layer.tar"
    members["again.tar"] = members[third]
    members[third] = Special(tarfile.LNKTYPE, "again.tar")
    load(store, packed(members))
    assert store.images() == sorted([f"one:1 {one.id}", f"two:1 {two.id}"])


@pytest.mark.parametrize("compression", ["gzip", "zstd", "plain"])
def test_blobs_of_an_oci_layout_stay_as_they_are(store: Store, compression: str) -> None:
    image = Made([ONE, TWO, ONE], compression=compression)
    load(store, packed(oci_layout([image], ["docker.io/library/app:1"])))
    found = store.pyrun.image("app:1")
    assert found["Descriptor"]["digest"] == sha256(image.manifest)
    blobs = store.pyrun.root / "content/blobs/sha256"
    for data in (image.config, image.manifest, *(blob for blob, _ in image.blobs)):
        assert (blobs / sha256(data).partition(":")[2]).read_bytes() == data
    store.pyrun.ok("image", "inspect", f"app@{sha256(image.manifest)}")


def test_layers_of_dockers_archive_are_kept_compressed_and_the_same_each_time(
    store: Store, base: Path
) -> None:
    big = tar({f"f{n}": b"hello\n" * 2000 for n in range(50)})
    data = packed(docker_archive([Made([big])], [["app:1"]]))
    load(store, data)
    digests = {store.pyrun.image("app:1")["Descriptor"]["digest"]}
    blobs = sorted(
        (store.pyrun.root / "content/blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size
    )
    assert blobs[-1].stat().st_size < len(big) / 3
    assert blobs[-1].read_bytes()[:8] == b"\x1f\x8b\x08\0\0\0\0\0"  # neither name nor time
    store.pyrun.ok("rmi", "app:1")
    load(store, data)
    digests.add(store.pyrun.image("app:1")["Descriptor"]["digest"])
    assert len(digests) == 1


def test_of_an_index_the_platforms_image_is_taken(store: Store) -> None:
    own, other = Made([ONE]), Made([TWO], architecture=OTHER_ARCHITECTURE)
    members = {**oci_layout([own]), **oci_layout([other])}
    entries = [
        descriptor(image.manifest, OCI_MANIFEST, platform={"os": "linux", "architecture": image.architecture})
        for image in (other, own)
    ]
    entries.append(
        descriptor(
            b"{}",
            OCI_MANIFEST,
            platform={"os": "unknown", "architecture": "unknown"},
            annotations={"vnd.docker.reference.type": "attestation-manifest"},
        )
    )
    inner = index(entries)
    members[f"blobs/{sha256(inner).replace(':', '/')}"] = inner
    outer = descriptor(inner, "application/vnd.oci.image.index.v1+json")
    members["index.json"] = index(
        [{**outer, "annotations": {"io.containerd.image.name": "docker.io/library/app:1"}}]
    )
    for data in (packed(members), packed({**members, "index.json": index(entries)})):
        load(store, data)
        assert [line.split()[1] for line in store.images()] == [own.id]
        load(store, data, "--platform", f"linux/{OTHER_ARCHITECTURE}")
        assert other.id in [line.split()[1] for line in store.images()]
        store.pyrun.ok("rmi", "-f", own.id, other.id)


def test_dockers_manifest_beside_an_index_may_speak_of_other_platforms(store: Store) -> None:
    own, other = Made([ONE]), Made([TWO], architecture=OTHER_ARCHITECTURE)
    entries = [
        descriptor(image.manifest, OCI_MANIFEST, platform={"os": "linux", "architecture": image.architecture})
        for image in (own, other)
    ]
    members = {**oci_layout([own]), **oci_layout([other]), "index.json": index(entries)}
    members["manifest.json"] = json.dumps(
        [{"Config": f"blobs/sha256/{image.hex}", "RepoTags": None, "Layers": []} for image in (own, other)]
    ).encode()
    load(store, packed(members))
    assert [line.split()[1] for line in store.images()] == [own.id]


def test_an_image_of_another_platform_loads_unless_one_is_asked_for(store: Store) -> None:
    data = packed(docker_archive([Made([ONE], architecture=OTHER_ARCHITECTURE)], [["other:1"]]))
    path = store.directory / "archive"
    path.write_bytes(data)
    done = store.pyrun("load", "-i", str(path), "--platform", f"linux/{HOST_ARCHITECTURE}")
    assert done.returncode == 1
    assert f"is for linux/{OTHER_ARCHITECTURE}" in done.stderr
    assert store.images() == []
    load(store, data)
    assert store.pyrun.image("other:1")["Architecture"] == OTHER_ARCHITECTURE


def test_a_name_moves_and_the_image_that_had_it_stays(store: Store) -> None:
    one, two = Made([ONE]), Made([TWO])
    load(store, packed(docker_archive([one], [["app:1"]])))
    out = load(store, packed(docker_archive([two], [["app:1"]])))
    short = one.id.partition(":")[2][:12]
    assert (
        out.splitlines()[0] == f"The image app:1 already exists, the old one with ID {short} loses that name"
    )
    assert store.images() == sorted([f"<none>:<none> {one.id}", f"app:1 {two.id}"])


@pytest.mark.parametrize("form", ["docker", "oci"])
def test_a_damaged_blob_is_replaced_by_the_archives(store: Store, form: str) -> None:
    image = Made([ONE])
    made = (
        docker_archive([image], [["app:1"]])
        if form == "docker"
        else oci_layout([image], ["docker.io/library/app:1"])
    )
    load(store, packed(made))
    manifest = store.pyrun.image("app:1")["Descriptor"]["digest"]
    blobs = store.pyrun.root / "content/blobs/sha256"
    layer = json.loads((blobs / manifest.partition(":")[2]).read_bytes())["layers"][0]
    blob = blobs / layer["digest"].partition(":")[2]
    store.pyrun.ok("rmi", "app:1")
    blob.write_bytes(b"x" * layer["size"])
    load(store, packed(made))
    assert sha256(blob.read_bytes()) == layer["digest"]
    assert "sound" in store.pyrun.ok("system", "check", "--deep")
