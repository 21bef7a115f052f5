"""What scripts/make-images makes: images such as a registry holds, the same bytes each time."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

import pytest
from imagebuild import bootstrap, tree
from imagebuild.tree import Tree

from .conftest import Script


def blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def document(layout: Path, digest: str) -> Any:
    return json.loads(blob(layout, digest))


def index(layout: Path, name: str) -> Any:
    entries = json.loads((layout / "index.json").read_text(encoding="utf-8"))["manifests"]
    found = [e for e in entries if e["annotations"]["org.opencontainers.image.ref.name"] == name]
    assert len(found) == 1
    return document(layout, found[0]["digest"])


def here(layout: Path, name: str) -> Any:
    wanted = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    found = [m for m in index(layout, name)["manifests"] if m["platform"]["architecture"] == wanted]
    assert len(found) == 1
    return document(layout, found[0]["digest"])


def test_every_blob_has_the_digest_that_names_it(layout: Path) -> None:
    blobs = list((layout / "blobs" / "sha256").iterdir())
    assert len(blobs) > 8
    for path in blobs:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


@pytest.mark.parametrize("name", ["redis:latest", "busybox:latest"])
def test_the_platform_of_the_host_stands_behind_another_one(layout: Path, name: str) -> None:
    listed = index(layout, name)["manifests"]
    assert len(listed) == 2
    configs = [document(layout, document(layout, m["digest"])["config"]["digest"]) for m in listed]
    assert [c["architecture"] for c in configs] == [m["platform"]["architecture"] for m in listed]
    assert document(layout, listed[1]["digest"]) == here(layout, name)


@pytest.mark.parametrize("name", ["redis:latest", "busybox:latest"])
def test_layers_have_the_diff_ids_of_the_config(layout: Path, name: str) -> None:
    manifest = here(layout, name)
    config = document(layout, manifest["config"]["digest"])
    unpacked = [gzip.decompress(blob(layout, layer["digest"])) for layer in manifest["layers"]]
    assert ["sha256:" + hashlib.sha256(tar).hexdigest() for tar in unpacked] == config["rootfs"]["diff_ids"]
    assert len([h for h in config["history"] if not h.get("empty_layer")]) == len(unpacked)


def test_redis_is_what_its_users_know(layout: Path) -> None:
    manifest = here(layout, "redis:latest")
    config = document(layout, manifest["config"]["digest"])["config"]
    assert len(manifest["layers"]) >= 3
    assert config["Entrypoint"] == ["docker-entrypoint.sh"]
    assert config["Cmd"] == ["redis-server"]
    assert config["Volumes"] == {"/data": {}}
    assert config["ExposedPorts"] == {"6379/tcp": {}}
    assert config["WorkingDir"] == "/data"
    assert any(line.startswith("REDIS_VERSION=") for line in config["Env"])
    names = set()
    for layer in manifest["layers"]:
        with tarfile.open(fileobj=io.BytesIO(blob(layout, layer["digest"]))) as tar:
            names |= set(tar.getnames())
    assert {"usr/bin/redis-server", "usr/local/bin/docker-entrypoint.sh", "etc/redis/.wh.redis.conf"} <= names
    # Which mirrors built it stays on the machine that built it.
    assert not {n for n in names if n.startswith(("etc/apt/sources.list", "dev/"))} - {
        "etc/apt/sources.list.d"
    }


def test_a_directory_that_is_no_layout_is_left_alone(script: Script, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine", encoding="ascii")
    done = script("make-images", "--layout", tmp_path)
    assert done.returncode == 1
    assert "neither empty nor an OCI layout" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def archive(path: Path, members: dict[str, str | None]) -> Tree:
    """A tree out of a tar file: None is a directory, "=name" a hard link, other text a file."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo("./" + name)
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            elif content.startswith("="):
                info.type, info.linkname = tarfile.LNKTYPE, "./" + content[1:]
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO((content or "").encode()))
    return tree.read(path)


def test_a_layer_is_what_changed_with_its_parents_and_whiteouts_for_what_went(tmp_path: Path) -> None:
    lower = archive(
        tmp_path / "1", {"a": None, "a/kept": "1", "a/gone": "2", "b": None, "b/x": "3", "b/y": "4"}
    )
    upper = archive(tmp_path / "2", {"a": None, "a/kept": "1", "c": None, "c/new": "5"})
    assert set(tree.difference(lower, upper)) == {"a", "a/.wh.gone", ".wh.b", "c", "c/new"}


def test_all_names_of_a_changed_file_are_in_its_layer(tmp_path: Path) -> None:
    lower = archive(tmp_path / "1", {"one": "old", "two": "=one", "else": "same"})
    upper = archive(tmp_path / "2", {"one": "new", "two": "=one", "else": "same"})
    assert set(tree.difference(lower, upper)) == {"one", "two"}


def test_the_same_tree_gives_the_same_bytes_in_whatever_order_it_was_read(tmp_path: Path) -> None:
    members: dict[str, str | None] = {"d": None, "d/z": "26", "d/a": "1", "d/link": "=d/z"}
    one = tree.write_layer(archive(tmp_path / "1", members).values(), tmp_path / "one")
    shuffled = {name: members[name] for name in ("d", "d/a", "d/z", "d/link")}
    two = tree.write_layer(archive(tmp_path / "2", shuffled).values(), tmp_path / "two")
    assert one == two
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_sources_of_another_release_or_without_a_main_section_are_left_out() -> None:
    text = """\
# the distribution's own
Types: deb deb-src
URIs: http://mirror.invalid/debian
Suites: bookworm bookworm-updates sid
Components: main contrib
Signed-By: /usr/share/keyrings/some.gpg

Types: deb
URIs: http://elsewhere.invalid/
Suites: bookworm
Components: stable

Enabled: no
Types: deb
URIs: http://off.invalid/
Suites: bookworm
Components: main
"""
    (stanza,) = bootstrap.deb822(text, "bookworm")
    assert "Suites: bookworm bookworm-updates\n" in stanza
    assert "Types: deb\n" in stanza
    assert "Signed-By: /usr/share/keyrings/some.gpg" in stanza


def test_one_line_sources_are_read_with_their_options() -> None:
    text = """\
deb [arch=amd64 signed-by=/a.gpg] http://mirror.invalid/debian noble-security main universe # with a word
deb-src http://mirror.invalid/debian noble main
deb http://mirror.invalid/debian jammy main
"""
    (stanza,) = bootstrap.one_line(text, "noble")
    assert "Suites: noble-security\n" in stanza
    assert "Components: main universe\n" in stanza
    assert "Signed-By: /a.gpg\n" in stanza
