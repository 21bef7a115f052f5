"""Images without a name: shown as <none>, used by their ID, kept until they are removed or pruned."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from support.archives import Made, docker_archive, packed
from support.pyrun import Pyrun
from support.registry import tar

from .conftest import Store

IMAGE = Made([tar({"etc/motd": b"hello"})])
ARCHIVE = packed(docker_archive([IMAGE]))
SHORT = IMAGE.id.partition(":")[2][:12]


def load(store: Store, data: bytes = ARCHIVE) -> str:
    return str(store.pyrun.ok("load", input=data, text=False).decode())


def test_it_is_shown_without_a_name_and_inspected_by_its_id(store: Store) -> None:
    assert load(store) == f"Loaded image ID: {IMAGE.id}\n"
    lines = store.pyrun.ok("images").splitlines()
    assert lines[1].split()[:3] == ["<none>", "<none>", SHORT]
    for name in (IMAGE.id, IMAGE.id.partition(":")[2], SHORT, SHORT[:4]):
        found = json.loads(store.pyrun.ok("image", "inspect", name))[0]
        assert (found["Id"], found["RepoTags"], found["RepoDigests"]) == (IMAGE.id, [], [])
    assert store.pyrun.ok("images", "-q").split() == [SHORT]
    assert store.pyrun.ok("images", "-q", "-f", "dangling=true").split() == [SHORT]
    assert store.pyrun.ok("history", SHORT).count("\n") == 2
    assert "sound" in store.pyrun.ok("system", "check", "--deep")
    store.pyrun.ok("system", "df", "-v")


def test_it_runs_by_its_id(fresh: Pyrun) -> None:
    archive = fresh.ok("save", fresh.ok("images", "-q").strip(), text=False)
    id = fresh.ok("images", "-q", "--no-trunc").strip()
    fresh.ok("rmi", "busybox")
    assert fresh.ok("load", input=archive, text=False).decode() == f"Loaded image ID: {id}\n"
    assert fresh.sh("echo hi", image=id[7:19]) == "hi\n"
    assert fresh.ok("images").splitlines()[1].startswith("<none>")


def test_loaded_twice_it_is_there_once(store: Store) -> None:
    load(store)
    load(store)
    assert len(store.images()) == 1
    assert len(list((store.pyrun.root / "images").glob("*.json"))) == 1


def test_a_tag_takes_the_place_of_no_name(store: Store) -> None:
    load(store)
    store.pyrun.ok("tag", SHORT, "app:1")
    assert store.images() == [f"app:1 {IMAGE.id}"]
    load(store)  # it has a name already
    assert store.images() == [f"app:1 {IMAGE.id}"]
    assert store.pyrun.ok("rmi", "app:1").splitlines() == [
        "Untagged: app:1",
        f"Deleted: {IMAGE.id}",
        f"Deleted: {json.loads(IMAGE.config)['rootfs']['diff_ids'][0]}",
    ]
    assert store.images() == []


def test_it_is_removed_by_its_id(store: Store) -> None:
    load(store)
    lines = store.pyrun.ok("rmi", SHORT).splitlines()
    assert lines[0] == f"Deleted: {IMAGE.id}"
    assert not any(line.startswith("Untagged") for line in lines)
    assert store.images() == []
    assert list((store.pyrun.root / "content/blobs/sha256").iterdir()) == []


def test_pruning_finds_it(store: Store) -> None:
    load(store)
    named = Made([tar({"etc/motd": b"named"})])
    load(store, packed(docker_archive([named], [["app:1"]])))
    out = store.pyrun.ok("image", "prune", "-f")
    assert IMAGE.id in out
    assert store.images() == [f"app:1 {named.id}"]


def test_an_image_no_registry_has_loses_its_last_name_and_stays(store: Store) -> None:
    one, two = Made([tar({"a": b"1"})]), Made([tar({"a": b"2"})])
    load(store, packed(docker_archive([one, two], [["app:1"], ["app:2"]])))
    store.pyrun.ok("tag", "app:2", "app:1")
    assert store.images() == sorted([f"<none>:<none> {one.id}", f"app:1 {two.id}", f"app:2 {two.id}"])
    store.pyrun.ok("tag", one.id, "app:2")
    assert store.images() == sorted([f"app:1 {two.id}", f"app:2 {one.id}"])


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
def test_the_layout_lists_it_without_a_name(store: Store) -> None:
    load(store)
    with open(store.pyrun.root / "content/index.json", "rb") as file:
        (entry,) = json.load(file)["manifests"]
    assert "annotations" not in entry
    found = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{store.pyrun.root}/content"], capture_output=True, check=True
    )
    assert json.loads(found.stdout)["config"]["digest"] == IMAGE.id


def test_a_damaged_record_of_it_is_found_and_mended(store: Store) -> None:
    load(store)
    (record,) = (store.pyrun.root / "images").glob("*.json")
    record.write_text("{")
    done = store.pyrun("system", "check")
    assert done.returncode == 1
    assert "image-damaged" in done.stdout
    store.pyrun("system", "check", "--repair")
    assert store.images() == [f"<none>:<none> {IMAGE.id}"]
    assert "sound" in store.pyrun.ok("system", "check", "--deep")
