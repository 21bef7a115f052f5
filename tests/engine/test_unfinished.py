"""What an unfinished download leaves, as seen by the commands that look after the store."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from pyrun.images import parts
from support.faultproxy import Fault, FaultProxy, close_after, status
from support.pyrun import Pyrun
from support.registry import Pushed, Registry, tar


@pytest.fixture
def image(registry: Registry) -> Pushed:
    return registry.push_image(
        "library/unfinished", "latest", [tar({"f": random.randbytes(3_000_000)})],
        other_platform=False, compression=("gzip",),
    )  # fmt: skip


@pytest.fixture
def part(fresh: Pyrun, registry: Registry, image: Pushed, tmp_path: Path) -> Path:
    """Two megabytes of the image's layer, as a pull through a proxy left them."""
    blob = f"GET .*/blobs/{image.layer_digests[0]}"
    faults = [Fault(close_after(2_000_000), blob, times=1), Fault(status(404), blob, after=1)]
    with FaultProxy(registry.host, tmp_path / "log", faults) as proxy:
        conf = tmp_path / "broken.conf"
        conf.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "{proxy.host}"\n')
        done = fresh("pull", "unfinished", env={**fresh.env, "CONTAINERS_REGISTRIES_CONF": str(conf)})
    assert done.returncode == 1
    assert "broke off" in done.stderr or "not found" in done.stderr
    found = fresh.root / "ingest" / parts.file_name(image.layer_digests[0])
    assert found.stat().st_size == 2_000_000
    return found


def test_nothing_shows_it_as_an_image_or_as_damage(fresh: Pyrun, image: Pushed, part: Path) -> None:
    assert "unfinished" not in fresh.ok("images", "-a")
    done = fresh("system", "check")
    assert done.returncode == 0
    assert part.name not in done.stdout
    fresh.ok("system", "check", "--repair")
    assert part.exists()


def test_commands_that_write_the_store_leave_it_alone(fresh: Pyrun, part: Path) -> None:
    fresh.ok("run", "--rm", "busybox", "true")
    fresh.ok("tag", "busybox", "other")
    fresh.ok("rmi", "other")
    fresh.ok("rmi", "busybox")  # collects garbage
    assert part.stat().st_size == 2_000_000


def test_disk_usage_counts_it_and_prune_frees_it(fresh: Pyrun, part: Path) -> None:
    line = next(line for line in fresh.ok("system", "df").splitlines() if line.startswith("Unfinished"))
    assert line.split()[-2:] == ["2MB", "(100%)"]
    fresh.ok("system", "prune", "-f")
    assert not part.exists()
    assert "Unfinished" not in fresh.ok("system", "df")


def test_the_next_pull_uses_it(
    fresh: Pyrun, registry: Registry, image: Pushed, part: Path, tmp_path: Path
) -> None:
    with FaultProxy(registry.host, tmp_path / "again") as proxy:
        conf = tmp_path / "good.conf"
        conf.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "{proxy.host}"\n')
        fresh.ok("pull", "-q", "unfinished", env={**fresh.env, "CONTAINERS_REGISTRIES_CONF": str(conf)})
        (seen,) = proxy.requests(f"GET .*/blobs/{image.layer_digests[0]}")
    assert seen.headers["range"] == "bytes=2000000-"
    assert not part.exists()
    assert json.loads(fresh.ok("inspect", "unfinished"))[0]["Id"] == image.config_digest
    assert os.listdir(fresh.root / "ingest") == []


def test_after_a_week_it_is_rubbish(fresh: Pyrun, part: Path) -> None:
    old = time.time() - parts.KEPT - 3600
    os.utime(part, (old, old))
    assert "half-made" in fresh.ok("system", "check")
    fresh.ok("run", "--rm", "busybox", "true")
    assert not part.exists()
