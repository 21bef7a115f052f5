"""`pyrun system df` and `pyrun system prune`: what takes space, and what goes."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest

from pyrun.cli.units import human_size
from pyrun.engine import Engine
from pyrun.errors import UsageError
from pyrun.images.filters import Filters
from pyrun.storage.leases import Lease
from pyrun.storage.locks import SharedLock
from support import copied
from support.pyrun import Pyrun, terminal
from support.registry import Registry, tar


def until_of(filters: list[str]) -> float | None:
    return Filters(filters, ("until",)).until


def df(pyrun: Pyrun) -> dict[str, dict[str, str]]:
    lines = pyrun.ok("system", "df", "--format", "json").splitlines()
    return {line["Type"]: line for line in map(json.loads, lines)}


def allocated(path: Path) -> int:
    """Bytes on the disk below ``path``; each inode once."""
    found = {st.st_ino: st.st_blocks * 512 for st in map(os.lstat, [path, *path.rglob("*")])}
    return sum(found.values())


# --- df


def test_df_is_dockers_table_with_a_line_for_each_drivers_layers(fresh: Pyrun) -> None:
    lines = fresh.ok("system", "df").splitlines()
    assert re.split(r" {2,}", lines[0]) == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert [re.split(r" {2,}", line)[0] for line in lines[1:]] == [
        "Images",
        "Containers",
        "Local Volumes",
        "Layers (overlay)",
    ]


def test_df_counts_what_lies_on_the_disk(fresh: Pyrun, registry: Registry) -> None:
    usage = Engine(str(fresh.root), str(fresh.state)).disk_usage()
    images, containers, volumes, layers = usage.lines()
    blobs = list((fresh.root / "content/blobs/sha256").iterdir())
    assert images.size == images.reclaimable == sum(path.stat().st_size for path in blobs)
    assert (images.total, images.active) == (1, 0)
    assert (containers.total, volumes.total) == (0, 0)
    assert layers.size == sum(allocated(p) for p in (fresh.root / "layers/overlay").glob("[0-9a-f]*"))
    registry.push_image("df/volume", "latest", [tar({"data": None})], {"Volumes": {"/data": {}}})
    fresh.ok("run", "--name", "user", "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=3")
    fresh("run", "--name", "other", "df/volume", "true")
    usage = Engine(str(fresh.root), str(fresh.state)).disk_usage()
    images, containers, volumes, layers = usage.lines()
    assert (images.active, containers.total, containers.active, volumes.total) == (2, 2, 0, 1)
    assert images.reclaimable == 0  # containers were made from both
    assert 3_000_000 < containers.size == containers.reclaimable < 4_000_000
    assert layers.reclaimable == 0
    assert [volume.destination for volume in usage.volumes] == ["/data"]


def test_df_calls_what_runs_active(fresh: Pyrun) -> None:
    running = fresh.start("run", "--rm", "--name", "busy", "busybox", "sleep", "60")
    try:
        fresh.pid_of("busy")
        found = df(fresh)
        assert (found["Containers"]["Active"], found["Containers"]["Reclaimable"]) == ("1", "0B (0%)")
    finally:
        fresh("rm", "-f", "busy")
        running.wait(timeout=20)


def test_df_lists_every_item_with_verbose(fresh: Pyrun, registry: Registry) -> None:
    shared = tar({"shared": os.urandom(50_000)})
    for tag in ("one", "two"):
        registry.push_image("df/share", tag, [shared, tar({tag: os.urandom(9_000)})], compression=("plain",))
        fresh.ok("pull", "-q", f"df/share:{tag}")
    fresh.ok("run", "--name", "user", "busybox", "true")
    text = fresh.ok("system", "df", "-v")
    titles = re.findall(r"^(.*) space usage:$", text, re.M)
    assert titles == ["Images", "Containers", "Local Volumes", "Layers"]
    for tag in ("one", "two"):
        line = next(line for line in text.splitlines() if line.startswith("df/share") and tag in line)
        cells = re.split(r" {2,}", line)
        assert cells[5] == human_size(len(shared))
        assert cells[4] != cells[5]
        assert cells[7] == "0"
    assert re.search(r"Exited \(0\) .* ago +user$", text, re.M)
    done = fresh("system", "df", "-v", "--format", "json")
    assert done.returncode == 1


def test_df_works_where_the_driver_does_not(fresh: Pyrun, tmp_path: Path) -> None:
    copied.install(tmp_path / "plugin", fresh)
    fresh.ok("storage", "migrate", "-q", "copied")
    whole = df(fresh)["Layers (copied)"]
    copied.uninstall(fresh)
    assert df(fresh)["Layers (copied)"] == whole


def test_df_formats_by_template(fresh: Pyrun) -> None:
    assert fresh.ok("system", "df", "--format", "{{.Type}}={{.TotalCount}}").splitlines()[0] == "Images=1"


# --- prune


def test_prune_takes_stopped_containers_dangling_images_and_what_only_they_needed(
    fresh: Pyrun, registry: Registry
) -> None:
    one = registry.push_image("prune/moved", "latest", [tar({"a": os.urandom(9000)})])
    fresh.ok("pull", "-q", "prune/moved")
    registry.push_image("prune/moved", "latest", [tar({"b": b"2"})])
    fresh.ok("pull", "-q", "prune/moved")  # the first has no tag any more
    fresh.ok("run", "--name", "old", "busybox", "true")
    id = (fresh.root / "names/old").read_text()
    text = fresh.ok("system", "prune", "-f")
    assert text.startswith(f"Deleted Containers:\n{id}\n\nDeleted Images:\nuntagged: prune/moved@sha256:")
    assert f"deleted: {one.config_digest}\n" in text
    assert f"overlay {one.diff_ids[0]}\n" in text
    assert re.search(r"^Total reclaimed space: [0-9.]+kB$", text, re.M)
    assert fresh.ok("images", "-q") != ""
    assert fresh.records() == []
    assert fresh.ok("system", "prune", "-f") == "Total reclaimed space: 0B\n"
    assert fresh.sh("echo there") == "there\n"


def test_prune_all_takes_images_without_a_container_and_leaves_the_others(
    fresh: Pyrun, registry: Registry
) -> None:
    registry.push_image("prune/idle", "latest", [tar({"a": b"1"})])
    fresh.ok("pull", "-q", "prune/idle")
    fresh.ok("tag", "prune/idle", "elsewhere.example/name:2")
    running = fresh.start("run", "--rm", "--name", "busy", "busybox", "sleep", "60")
    try:
        fresh.pid_of("busy")
        text = fresh.ok("system", "prune", "-a", "-f")
        assert "untagged: elsewhere.example/name:2\n" in text
        assert "untagged: prune/idle:latest\n" in text
        assert "Deleted Containers" not in text
        assert fresh.ok("images", "--format", "{{.Repository}}") == "busybox\n"
        assert fresh.ok("ps", "--format", "{{.Names}}") == "busy\n"
    finally:
        fresh("rm", "-f", "busy")
        running.wait(timeout=20)


def test_prune_frees_what_it_says(fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "user", "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=5")
    before = sum(line["bytes"] for line in _taken(fresh))
    done = Engine(str(fresh.root), str(fresh.state)).prune(all=True)
    after = sum(line["bytes"] for line in _taken(fresh))
    assert done.bytes > 5_000_000
    assert abs(before - after - done.bytes) < 200_000  # records and directories of the engine's own


def _taken(pyrun: Pyrun) -> list[dict[str, int]]:
    return [{"bytes": allocated(pyrun.root / name)} for name in ("layers", "content/blobs", "containers")]


def test_prune_takes_the_layers_of_a_driver_that_is_not_the_stores(fresh: Pyrun, tmp_path: Path) -> None:
    copied.install(tmp_path / "plugin", fresh)
    fresh.ok("pull", "-q", "--storage", "copied", "busybox")
    fresh.ok("run", "--rm", "--storage", "copied", "busybox", "true")
    made = {path.name for path in (fresh.root / "layers/copied").glob("[0-9a-f]*")}
    assert made
    text = fresh.ok("system", "prune", "-f")
    for name in made:
        assert f"copied sha256:{name}\n" in text
    assert list((fresh.root / "layers/copied").glob("[0-9a-f]*")) == []
    assert fresh.sh("echo mine") == "mine\n"
    assert fresh.sh("echo again", "--storage", "copied") == "again\n"


def test_prune_spares_what_a_lease_holds(fresh: Pyrun, tmp_path: Path) -> None:
    key = Engine(str(fresh.root), str(fresh.state)).image("busybox").layers[0].diff_id
    with Lease(str(fresh.root), "overlay", [key]):
        fresh.ok("system", "prune", "-a", "-f")
        assert (fresh.root / "layers/overlay" / key.partition(":")[2]).is_dir()
    fresh.ok("system", "prune", "-a", "-f")
    assert not (fresh.root / "layers/overlay" / key.partition(":")[2]).exists()


def test_prune_leaves_images_alone_while_somebody_pulls(
    fresh: Pyrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyrun.upkeep import prune

    monkeypatch.setattr(prune, "PATIENCE", 0.2)
    with SharedLock(f"{fresh.root}/locks/store"):
        done = Engine(str(fresh.root), str(fresh.state)).prune(all=True)
    assert "in use" in done.deferred
    assert (done.images, done.layers) == ([], [])
    assert fresh.sh("echo there") == "there\n"


def test_prune_asks_first(fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "old", "busybox", "true")
    done = fresh("system", "prune", input="n\n")
    assert done.returncode == 1
    assert done.stdout.startswith("WARNING! This will remove:\n  - all stopped containers\n")
    assert done.stdout.endswith("Are you sure you want to continue? [y/N] ")
    assert fresh("system", "prune").returncode == 1  # nobody answers
    assert fresh.ok("ps", "-aq") != ""
    done = fresh("system", "prune", "-a", input="y\n")
    assert done.returncode == 0
    assert "all images without at least one container" in done.stdout
    assert fresh.ok("ps", "-aq") == ""
    with terminal(fresh, "system", "prune") as window:
        window.read_until(rb"\[y/N\] ")
        window.send(b"y\n")
        window.read_until(rb"Total reclaimed space: 0B")
        assert window.wait() == 0


def test_prune_until_spares_what_is_younger(fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "young", "busybox", "true")
    fresh.ok("system", "prune", "-a", "-f", "--filter", "until=1h")
    assert fresh.ok("ps", "-aq") != ""
    time.sleep(1.1)
    fresh.ok("system", "prune", "-f", "--filter", "until=1s")
    assert fresh.ok("ps", "-aq") == ""
    assert fresh.ok("images", "-q") != ""
    fresh.ok("system", "prune", "-a", "-f", "--filter", "until=2000-01-01")
    assert fresh.ok("images", "-q") != ""
    fresh.ok("system", "prune", "-a", "-f", "--filter", "until=24h")
    assert fresh.ok("images", "-q") == ""


@pytest.mark.parametrize(
    "text",
    ["until", "until=", "until=yesterday", "until=5", "until=1h,2m", "dangling=true", "until=1h 2m", "=1h"],
)
def test_a_filter_that_is_none_is_refused(fresh: Pyrun, text: str) -> None:
    if text == "until=5":  # seconds since the epoch: a moment long ago
        assert until_of([text]) == 5.0
        return
    done = fresh("system", "prune", "-f", "--filter", text)
    assert done.returncode == 125
    assert "--filter" in done.stderr
    with pytest.raises(UsageError):
        until_of(["until=1h", "until=2h"])


@pytest.mark.parametrize(
    ("text", "ago"), [("90m", 5400), ("1h30m", 5400), ("10s", 10), ("1.5h", 5400), ("24h0m0s", 86400)]
)
def test_durations_count_back_from_now(text: str, ago: float) -> None:
    moment = until_of([f"until={text}"])
    assert moment is not None
    assert abs(time.time() - ago - moment) < 5


def test_moments_are_read_in_every_form() -> None:
    assert until_of(["until=2025-01-31T12:00:00Z"]) == 1738324800.0
    assert until_of(["until=2025-01-31T13:00:00+01:00"]) == 1738324800.0
    assert until_of(["until=1738324800"]) == 1738324800.0
    assert until_of([]) is None


def test_prune_works_where_the_driver_does_not(fresh: Pyrun, tmp_path: Path) -> None:
    copied.install(tmp_path / "plugin", fresh)
    fresh.ok("storage", "migrate", "-q", "copied")
    fresh.ok("run", "--name", "old", "busybox", "true")
    copied.uninstall(fresh)
    fresh.ok("system", "prune", "-a", "-f")
    assert fresh.records() == []
    assert list((fresh.root / "layers/copied").glob("[0-9a-f]*")) == []


def test_prune_clears_up_after_the_dead(fresh: Pyrun) -> None:
    (fresh.root / "ingest/sha256-00.part").write_text("")
    (fresh.root / "staging/overlay.00").mkdir()
    (fresh.root / "locks/layer-overlay-00").write_text("")
    fresh.ok("system", "prune", "-f")
    assert os.listdir(fresh.root / "ingest") == os.listdir(fresh.root / "staging") == []
    assert os.listdir(fresh.root / "locks") in (["store"], [])
