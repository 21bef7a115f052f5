"""Committed images are read by other programs, and by another pyrun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from support.pyrun import Pyrun
from support.registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

SCRIPT = "mkdir /d; echo 1 >/d/one; chown 5:6 /d/one; ln /d/one /d/two; rm /etc/passwd"
LOOK = "stat -c %u:%g:%h /d/two; ls /etc/passwd 2>/dev/null; echo $WHO"


@pytest.fixture
def committed(fresh: Pyrun) -> Pyrun:
    fresh.ok("run", "--name", "made", "busybox", "sh", "-c", SCRIPT)
    fresh.ok("commit", "-c", "ENV WHO=me", "made", "app:1")
    fresh.ok("commit", "-f", "docker", "-c", "ENV WHO=docker", "made", "app:2")
    fresh.ok("commit", "-c", "ENV WHO=nobody", "made")
    return fresh


@pytest.mark.skipif(not shutil.which("skopeo"), reason="skopeo is not installed")
def test_skopeo_copies_it_from_the_store_and_checks_each_digest(committed: Pyrun, tmp_path: Path) -> None:
    source = f"oci:{committed.root}/content:docker.io/library/app:1"
    subprocess.run(["skopeo", "copy", "-q", source, f"dir:{tmp_path}/copy"], check=True)
    found = subprocess.run(["skopeo", "inspect", "--config", source], check=True, capture_output=True)
    assert json.loads(found.stdout)["config"]["Env"][-1] == "WHO=me"


@pytest.mark.parametrize("tag", ["1", "2"])
def test_it_is_pushed_and_runs_elsewhere(
    committed: Pyrun, empty: Pyrun, registry: Registry, tag: str, tmp_path: Path
) -> None:
    name = f"{registry.host}/committed/app:{tag}"
    committed.ok("tag", f"app:{tag}", name)
    committed.ok("push", "-q", name)
    if shutil.which("skopeo"):
        copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path}/copy"]
        subprocess.run(copy, check=True)
    assert empty.sh(LOOK, image=name) == ("5:6:2\nme\n" if tag == "1" else "5:6:2\ndocker\n")
    assert (
        json.loads(empty.ok("inspect", name))[0]["Id"] == json.loads(committed.ok("inspect", name))[0]["Id"]
    )


@pytest.mark.parametrize("format", ["docker-archive", "oci-archive"])
def test_it_is_saved_and_loaded(committed: Pyrun, empty: Pyrun, tmp_path: Path, format: str) -> None:
    committed.ok("save", "--format", format, "-o", str(tmp_path / "a.tar"), "app:1")
    empty.ok("load", "-i", str(tmp_path / "a.tar"))
    assert empty.sh(LOOK, image="app:1") == "5:6:2\nme\n"


def test_an_exported_tree_is_imported_again(committed: Pyrun, tmp_path: Path) -> None:
    committed.ok("export", "-o", str(tmp_path / "a.tar"), "made")
    committed.ok("import", "-c", "ENV WHO=import", str(tmp_path / "a.tar"), "imported")
    assert committed.sh(LOOK, image="imported") == "5:6:2\nimport\n"


def test_a_chain_of_commits_keeps_every_layer(fresh: Pyrun) -> None:
    image = "busybox"
    for number in range(5):
        fresh.ok(
            "run",
            "--name",
            f"step{number}",
            image,
            "sh",
            "-c",
            f"echo {number} >/n{number}; rm -f /n{number - 2}",
        )
        image = f"chain:{number}"
        fresh.ok("commit", "-m", f"step {number}", f"step{number}", image)
    assert fresh.sh("cat /n*", image=image) == "3\n4\n"
    lines = fresh.ok("history", "--format", "{{.Comment}}", image).splitlines()
    assert lines[:5] == [f"step {number}" for number in (4, 3, 2, 1, 0)]
    fresh.ok("rmi", "chain:4")
    fresh.ok("rm", *(f"step{number}" for number in range(5)))
    assert fresh.sh("cat /n*", image="chain:3") == "2\n3\n"


def test_a_container_of_another_driver_than_the_stores(fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "made", "busybox", "sh", "-c", SCRIPT)
    id = fresh.ok("commit", "made", "before")
    fresh.ok("storage", "migrate", "--without-containers", "vfs")
    assert "C /etc" in fresh.ok("diff", "made").splitlines()
    assert fresh.ok("commit", "made", "after") == id
    assert fresh.sh("cat /d/one", image="after") == "1\n"
    fresh.ok("storage", "migrate", "vfs")
    assert fresh.ok("commit", "made") == id
