"""Which driver a new store gets, and what a store says whose driver can't work any more."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.pyrun import Pyrun

PROGRAM = str(Path(sys.executable).parent / "pyrun")

# A store on overlayfs, where the kernel's overlay can't be used, in a mount namespace of the command's own.
_ON_OVERLAY = """
cd "$1" && mkdir -p lower upper work merged || exit 99
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 99
shift
exec "$@"
"""


def _on_overlay(directory: Path, pyrun: Pyrun, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    store = ["--root", f"{directory}/merged/store", "--state", f"{directory}/state"]
    script = ["unshare", "--mount", "sh", "-c", _ON_OVERLAY, "sh", str(directory)]
    return subprocess.run(
        [*script, PROGRAM, *store, *args],
        env={**pyrun.env, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def directory(base: Path, request: pytest.FixtureRequest) -> Path:
    path = base / request.node.name[:60]
    path.mkdir()
    return path


def test_the_kernels_overlay_comes_first(empty: Pyrun) -> None:
    done = empty("run", "--rm", "busybox", "echo", "fine")
    assert done.stdout == "fine\n"
    assert "warning" not in done.stderr
    assert json.loads((empty.root / "storage.json").read_text())["driver"] == "overlay"


def test_where_the_kernels_overlay_cannot_work_its_fuse_twin_does(directory: Path, empty: Pyrun) -> None:
    done = _on_overlay(
        directory, empty, "run", "--rm", "--userns", "host", "busybox", "sh", "-c", "rm /etc/passwd; ls /etc"
    )
    assert done.returncode == 0, done.stderr
    assert "passwd" not in done.stdout.split()
    record = json.loads((directory / "upper/store/storage.json").read_text())
    assert record["driver"] == "fuse-overlayfs"
    assert record["verdicts"]["overlay"]["ok"] is False


def test_copying_is_the_last_resort_and_says_what_it_costs(directory: Path, empty: Pyrun) -> None:
    done = _on_overlay(
        directory,
        empty,
        "run",
        "--rm",
        "--userns",
        "host",
        "busybox",
        "echo",
        "copied",
        PYRUN_PLUGINS="overlay,vfs",
    )
    assert done.stdout == "copied\n", done.stderr
    assert "warning: the storage driver vfs" in done.stderr
    assert "full copy" in done.stderr
    # It is the store's own driver now, and chosen by nobody: no word about it the second time.
    again = _on_overlay(directory, empty, "run", "--rm", "--userns", "host", "busybox", "echo", "again")
    assert again.stdout == "again\n"
    assert "warning" not in again.stderr


def test_erofs_and_btrfs_are_taken_only_by_request(empty: Pyrun) -> None:
    done = empty("run", "--rm", "busybox", "true", env={**empty.env, "PYRUN_PLUGINS": "erofs,btrfs"})
    assert done.returncode == 125
    assert "no storage driver" in done.stderr
    empty.ok("pull", "-q", "--storage", "erofs", "busybox", env={**empty.env, "PYRUN_PLUGINS": "erofs,btrfs"})


def test_without_any_usable_driver_each_reason_is_told(directory: Path, empty: Pyrun) -> None:
    done = _on_overlay(directory, empty, "run", "--rm", "busybox", "true", PYRUN_PLUGINS="overlay,btrfs")
    assert done.returncode == 125
    assert "overlay: a trial mount" in done.stderr
    assert "btrfs: " in done.stderr
    assert "--root" in done.stderr


def test_a_store_whose_driver_cannot_work_any_more_says_so_and_names_the_way_out(
    directory: Path, empty: Pyrun
) -> None:
    """As when a store made elsewhere is used on a file system that its driver can't use."""
    done = _on_overlay(directory, empty, "pull", "-q", "--storage", "vfs", "busybox")
    assert done.returncode == 0, done.stderr
    record = directory / "upper/store/storage.json"
    content = json.loads(record.read_text())
    content["driver"] = "overlay"
    record.write_text(json.dumps(content))
    done = _on_overlay(directory, empty, "run", "--rm", "busybox", "true")
    assert done.returncode == 125
    assert "overlay, with which this store was made, can't be used" in done.stderr
    assert "pyrun storage migrate" in done.stderr
    assert json.loads(record.read_text())["driver"] == "overlay"


def test_the_doctor_names_the_stores_driver_and_a_command_can_name_another(fresh: Pyrun) -> None:
    lines = {line.split()[0]: line.split()[1] for line in fresh.ok("storage", "doctor").splitlines()[1:]}
    assert lines["overlay"] == "selected"
    assert lines["vfs"] == "usable"
    assert fresh.sh("echo there", "--storage", "vfs") == "there\n"
    assert json.loads((fresh.root / "storage.json").read_text())["driver"] == "overlay"
