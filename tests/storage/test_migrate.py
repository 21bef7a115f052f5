"""Moving a store to another driver: images and containers arrive whole, or the store is as it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyrun.engine import Engine
from pyrun.errors import StorageError
from pyrun.storage import failpoints
from pyrun.storage.contract import Layer
from pyrun.storage.store import open_store
from pyrun.testing.trees import difference, snapshot
from support import copied
from support.pyrun import Pyrun, mounts_below, wait_for
from support.registry import Registry, tar

# What a container does to its image, in every way that a layer can tell.
SCRIPT = """
set -e
echo new > /new; chmod 4750 /new; chown 12:34 /new
mkdir -p /made/deep/er; chmod 1777 /made/deep; touch -d 2001-02-03 /made/deep/er/old
rm -r /data/gone; rm /data/file
rm -r /data/opaque; mkdir /data/opaque; echo only > /data/opaque/this
chown 5:6 /data/owned; chmod 600 /data/mode
echo appended >> /data/appended
ln /made/deep/er/old /made/link; ln -s ../new /made/symlink
mkfifo /made/fifo
rm -r /data/turned; echo file > /data/turned
rm /data/back; mkdir /data/back; echo x > /data/back/inside
dd if=/dev/zero of=/sparse bs=1 count=1 seek=5000000 2>/dev/null
"""
LAYERS = [
    {"data": None, "data/gone": None, "data/gone/a": b"1", "data/file": b"2", "data/opaque": None},
    {
        "data/opaque/hidden": b"3",
        "data/owned": b"4",
        "data/mode": b"5",
        "data/appended": b"6",
        "data/turned": None,
        "data/turned/x": b"7",
        "data/back": b"8",
        "data/.wh.nothing": b"",
    },
]


@pytest.fixture
def changed(fresh: Pyrun, registry: Registry, tmp_path: Path) -> Pyrun:
    """A store with an image of several layers and a stopped container that changed it in many ways."""
    copied.install(tmp_path / "plugin", fresh)
    blobs = json.loads((fresh.root / "content/index.json").read_text())
    busybox = _layers_of(fresh, blobs["manifests"][0]["digest"])
    registry.push_image("library/changes", "latest", [*busybox, *map(tar, LAYERS)])
    fresh.ok("pull", "-q", "changes")
    fresh.ok("run", "--name", "changer", "changes", "sh", "-c", SCRIPT)
    with rootfs(fresh, "changer") as path:
        os.setxattr(f"{path}/new", "user.note", b"kept")
        os.setxattr(f"{path}/made", "user.dir", b"kept too")
        os.setxattr(f"{path}/data/mode", "trusted.note", b"of root")
    return fresh


def _layers_of(pyrun: Pyrun, manifest: str) -> list[bytes]:
    import gzip

    def blob(digest: str) -> bytes:
        return (pyrun.root / "content/blobs/sha256" / digest.partition(":")[2]).read_bytes()

    tars = [blob(layer["digest"]) for layer in json.loads(blob(manifest))["layers"]]
    return [gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in tars]


def container_of(pyrun: Pyrun, name: str) -> tuple[Path, dict[str, Any]]:
    id = (pyrun.root / "names" / name).read_text()
    directory = pyrun.root / "containers" / id
    return directory, json.loads((directory / "config.json").read_text())


@contextmanager
def rootfs(pyrun: Pyrun, name: str) -> Iterator[str]:
    """The container's tree, mounted by the driver that its record names."""
    directory, config = container_of(pyrun, name)
    previous = sys.path[:]
    sys.path[:0] = [pyrun.env["PYTHONPATH"]] if "PYTHONPATH" in pyrun.env else []
    try:
        engine = Engine(str(pyrun.root), str(pyrun.state))
        store = open_store(engine._enter(), config["driver"], {})
        layers = [Layer(id, store.layers.path(id)) for id in config["layers"]]
        mount = store.driver.mount(layers, f"{directory}/{config.get('rw', 'rw')}")
        try:
            yield f"/proc/self/fd/{mount}"
        finally:
            os.close(mount)
    finally:
        sys.path[:] = previous


def tree(pyrun: Pyrun, name: str) -> Any:
    with rootfs(pyrun, name) as path:
        return snapshot(path)


def same(one: Any, two: Any) -> str:
    return difference(one, two, ("before", "after"))


def driver_of(pyrun: Pyrun) -> str:
    return str(json.loads((pyrun.root / "storage.json").read_text())["driver"])


def layers_under(pyrun: Pyrun, driver: str) -> set[str]:
    return {path.name for path in (pyrun.root / "layers" / driver).glob("[0-9a-f]*")}


def migrate_and_die_at(pyrun: Pyrun, to: str, name: str) -> None:
    code = (
        "import os, signal\nfrom pyrun.engine import Engine\nfrom pyrun.storage import failpoints\n"
        "def die(name):\n"
        f"    if name == {name!r}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "failpoints.armed = die\n"
        f"Engine({str(pyrun.root)!r}, {str(pyrun.state)!r}).migrate({to!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=pyrun.env, timeout=90, check=False)
    assert done.returncode == -signal.SIGKILL, f"{name} was never reached"


@pytest.mark.parametrize("to", ["vfs", "copied", "erofs", "fuse-overlayfs"])
def test_there_and_back_nothing_is_lost(changed: Pyrun, to: str) -> None:
    reports = map(json.loads, changed.ok("storage", "doctor", "--format", "json").splitlines())
    unusable = {report["Driver"]: report["Why"] for report in reports if report["State"] == "no"}
    if to in unusable:
        pytest.skip(f"needs the storage driver {to}: {unusable[to]}")
    before = tree(changed, "changer")
    said = changed.ok("storage", "migrate", to)
    assert said == f"The store was moved from overlay to {to}\n"
    assert driver_of(changed) == to
    assert layers_under(changed, "overlay") == set()
    directory, config = container_of(changed, "changer")
    assert config["driver"] == to
    assert sorted(path.name for path in directory.glob("rw*")) == [f"rw-{to}"]
    assert same(before, tree(changed, "changer")) == ""
    assert changed.sh("cat /data/appended", image="changes") == "6"
    check = changed("system", "check", "--deep", "-q")
    assert (check.returncode, "left over" in check.stdout) == (0, False), check.stdout

    changed.ok("storage", "migrate", "-q", "overlay")
    assert driver_of(changed) == "overlay"
    assert layers_under(changed, to) == set()
    assert sorted(path.name for path in directory.glob("rw*")) == ["rw-overlay"]
    assert same(before, tree(changed, "changer")) == ""
    assert changed.sh("cat /data/appended", image="changes") == "6"
    changed.ok("rm", "changer")
    assert changed.records() == []
    assert changed("system", "check", "-q").returncode == 0


@pytest.mark.parametrize("name", failpoints.MIGRATE)
def test_a_death_at_any_step_leaves_a_store_that_works_and_the_next_try_completes_it(
    changed: Pyrun, name: str
) -> None:
    before = tree(changed, "changer")
    migrate_and_die_at(changed, "copied", name)
    moved = failpoints.MIGRATE.index(name) >= failpoints.MIGRATE.index("migrate.switched")
    assert driver_of(changed) == ("copied" if moved else "overlay")
    assert changed.sh("cat /data/appended", image="changes") == "6"
    assert same(before, tree(changed, "changer")) == ""
    check = changed("system", "check", "-q")
    assert check.returncode == 0, check.stdout
    changed.ok("storage", "migrate", "copied")
    assert driver_of(changed) == "copied"
    assert same(before, tree(changed, "changer")) == ""
    directory, _ = container_of(changed, "changer")
    assert sorted(path.name for path in directory.glob("rw*")) == ["rw-copied"]
    assert layers_under(changed, "overlay") == set()
    check = changed("system", "check", "-q")
    assert (check.returncode, "left over" in check.stdout) == (0, False), check.stdout
    assert mounts_below(changed.root) == []


def test_what_is_there_is_not_made_again(changed: Pyrun) -> None:
    migrate_and_die_at(changed, "copied", "migrate.layers")
    made = {path.name: path.stat().st_ino for path in (changed.root / "layers/copied").glob("[0-9a-f]*")}
    assert made
    changed.ok("storage", "migrate", "-q", "copied")
    after = {path.name: path.stat().st_ino for path in (changed.root / "layers/copied").glob("[0-9a-f]*")}
    assert after == made


def test_a_running_container_is_named_and_nothing_is_written(changed: Pyrun) -> None:
    running = changed.start("run", "--rm", "--name", "busy", "busybox", "sleep", "60")
    try:
        changed.pid_of("busy")
        done = changed("storage", "migrate", "copied")
        assert done.returncode == 1
        assert "container busy is running" in done.stderr
        assert "--without-containers" in done.stderr
        assert layers_under(changed, "copied") == set()
        assert driver_of(changed) == "overlay"
        # Left alone it goes on, and so do its layers.
        done = changed("storage", "migrate", "--without-containers", "copied")
        assert done.returncode == 0, done.stderr
        assert "busy stays with its storage driver" in done.stderr
        assert driver_of(changed) == "copied"
        assert layers_under(changed, "overlay") != set()
        assert Path(f"/proc/{changed.pid_of('busy')}/root/bin").is_dir()
    finally:
        changed("rm", "-f", "busy")
        running.wait(timeout=20)
    assert container_of(changed, "changer")[1]["driver"] == "overlay"
    changed.ok("storage", "migrate", "copied")
    assert container_of(changed, "changer")[1]["driver"] == "copied"
    assert layers_under(changed, "overlay") == set()


def test_a_container_whose_image_is_gone_takes_its_layers_along_as_one(changed: Pyrun) -> None:
    before = tree(changed, "changer")
    changed.ok("rmi", "-f", "changes")
    changed.ok("storage", "migrate", "copied")
    assert same(before, tree(changed, "changer")) == ""
    assert len(container_of(changed, "changer")[1]["layers"]) == 1
    assert changed("system", "check", "-q").returncode == 0


def test_a_socket_is_left_behind_and_stops_nothing(changed: Pyrun) -> None:
    with rootfs(changed, "changer") as path:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{path}/made/socket")
        listener.close()
    before = tree(changed, "changer")
    changed.ok("storage", "migrate", "copied")
    assert same(before, tree(changed, "changer")) == ""
    with rootfs(changed, "changer") as path:
        assert not os.path.lexists(f"{path}/made/socket")


def test_a_store_whose_driver_cannot_run_says_so_and_moves_what_can_be_moved(changed: Pyrun) -> None:
    changed.ok("storage", "migrate", "-q", "copied")
    changed.env["COPIED_REFUSES"] = "yes"
    done = changed("run", "--rm", "busybox", "true")
    assert done.returncode == 125
    assert "it was told to refuse" in done.stderr
    assert "pyrun storage migrate" in done.stderr
    assert driver_of(changed) == "copied"

    done = changed("storage", "migrate", "overlay")
    assert done.returncode == 1
    assert "can't be read" in done.stderr
    assert "changer" in done.stderr
    assert "--without-containers" in done.stderr
    assert driver_of(changed) == "copied"

    done = changed("storage", "migrate", "--without-containers", "overlay")
    assert done.returncode == 0, done.stderr
    assert driver_of(changed) == "overlay"
    assert changed.sh("echo works") == "works\n"
    assert layers_under(changed, "copied") != set()  # the container's, until its driver works again
    del changed.env["COPIED_REFUSES"]
    changed.ok("storage", "migrate", "overlay")
    assert container_of(changed, "changer")[1]["driver"] == "overlay"
    assert layers_under(changed, "copied") == set()


def test_a_driver_that_cannot_be_used_here_is_no_place_to_go(changed: Pyrun) -> None:
    changed.env["COPIED_REFUSES"] = "yes"
    done = changed("storage", "migrate", "copied")
    assert (done.returncode, driver_of(changed)) == (1, "overlay")
    assert "it was told to refuse\nunset COPIED_REFUSES" in done.stderr
    done = changed("storage", "migrate", "nonesuch")
    assert (done.returncode, driver_of(changed)) == (1, "overlay")
    assert "'nonesuch' is not installed" in done.stderr


def test_a_damaged_blob_stops_it_with_the_way_out(changed: Pyrun) -> None:
    blob = max((changed.root / "content/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = changed("storage", "migrate", "copied")
    assert done.returncode == 1
    assert "system check --repair" in done.stderr
    assert driver_of(changed) == "overlay"
    assert changed.sh("echo still", image="changes") == "still\n"
    changed.ok("system", "check", "--repair", "-q")
    changed.ok("storage", "migrate", "copied")
    assert driver_of(changed) == "copied"


def test_a_full_disk_changes_nothing_and_with_more_space_it_goes_on(changed: Pyrun) -> None:
    """On a file system of its own, in a mount namespace of its own."""
    script = """
set -e
mkdir disk && mount -t tmpfs -o size=64m tmpfs disk
cp -a "$STORE" disk/store
dd if=/dev/zero of=disk/ballast bs=64k 2>/dev/null || true
truncate -s -500k disk/ballast
pyrun() { "$PYRUN" --root "$PWD/disk/store" --state "$PWD/disk/state" "$@"; }
pyrun storage migrate -q copied && exit 9
pyrun run --rm changes cat /data/appended
rm disk/ballast
pyrun storage migrate -q copied
pyrun run --rm changes cat /data/appended
pyrun system check -q --deep
"""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        cwd=changed.root.parent,
        env={**changed.env, "STORE": str(changed.root), "PYRUN": changed.command},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("space|bytes", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "6The store was moved from overlay to copied"
    assert lines[1].startswith("6")
    assert lines[1].endswith(": sound")


def test_a_configuration_that_chooses_another_driver_is_pointed_out(changed: Pyrun, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[storage]\ndriver = "overlay"\n')
    argv = changed.argv("storage", "migrate", "copied")
    argv[argv.index("storage") : argv.index("storage")] = ["--config", str(config)]
    done = subprocess.run(argv, env=changed.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"storage.driver in {config} still chooses overlay: change it to copied" in done.stderr


def test_two_migrations_at_once_are_one(changed: Pyrun) -> None:
    from pyrun.storage.locks import Lock

    with Lock(f"{changed.root}/locks/upkeep"):
        done = changed("storage", "migrate", "copied")
    assert done.returncode == 1
    assert "another repair or migration" in done.stderr


def test_images_pulled_meanwhile_come_along(changed: Pyrun, registry: Registry) -> None:
    """A pull between the making of the layers and the move."""
    registry.push_image("library/late", "latest", [tar({"late": b"1"})])
    mark = changed.root.parent / "ready"
    code = (
        "import os, sys, time\nfrom pyrun.engine import Engine\nfrom pyrun.storage import failpoints\n"
        "root, state, mark = sys.argv[1:]\n"
        "def wait(name):\n"
        "    if name != 'migrate.layers': return\n"
        "    failpoints.armed = None\n"
        "    open(mark, 'w').close()\n"
        "    end = time.monotonic() + 20\n"
        "    while os.path.exists(mark) and time.monotonic() < end: time.sleep(0.02)\n"
        "failpoints.armed = wait\n"
        "Engine(root, state).migrate('copied')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(changed.root), str(changed.state), str(mark)], env=changed.env
    )
    wait_for(mark.exists, "the layers are made")
    changed.ok("pull", "-q", "late")
    mark.unlink()
    assert process.wait(timeout=60) == 0
    assert driver_of(changed) == "copied"
    late = Engine(str(changed.root), str(changed.state)).image("late")
    assert late.layers[0].diff_id.partition(":")[2] in layers_under(changed, "copied")
    assert layers_under(changed, "overlay") == set()


def test_the_api_says_what_was_done(changed: Pyrun) -> None:
    engine = Engine(str(changed.root), str(changed.state))
    said: list[str] = []
    done = engine.migrate("vfs", progress=said.append)
    assert (done.before, done.containers, done.left, done.notes) == ("overlay", ["changer"], [], [])
    assert done.layers > 0
    assert any("changer" in line for line in said)
    again = engine.migrate("vfs")
    assert (again.before, again.layers, again.containers) == ("vfs", 0, [])
    with pytest.raises(StorageError, match="not installed"):
        engine.migrate("nonesuch")


def test_a_container_that_could_not_be_started_there_is_pointed_out(changed: Pyrun, tmp_path: Path) -> None:
    module = tmp_path / "plugin/copied_driver.py"
    module.write_text(module.read_text().replace("Caps(chained=True)", "Caps(chained=True, idmap=False)"))
    done = changed("storage", "migrate", "copied")
    assert done.returncode == 0, done.stderr
    assert "container changer has a user namespace of its own" in done.stderr


def test_a_deeper_image_than_the_driver_mounts_is_refused_before_anything_is_written(
    changed: Pyrun, tmp_path: Path
) -> None:
    module = tmp_path / "plugin/copied_driver.py"
    module.write_text(module.read_text().replace("Caps(chained=True)", "Caps(chained=True, max_layers=2)"))
    done = changed("storage", "migrate", "copied")
    assert (done.returncode, driver_of(changed)) == (1, "overlay")
    assert "at most 2" in done.stderr
    assert layers_under(changed, "copied") == set()


def test_snapshots_of_btrfs_are_moved_to_and_from_and_leave_nothing(changed: Pyrun) -> None:
    """On a loop file system of its own, in a mount namespace of its own; every move compares the trees itself."""
    if shutil.which("mkfs.btrfs") is None or "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs btrfs in the kernel, and mkfs.btrfs (package btrfs-progs)")
    script = """
set -e
truncate -s 300m image && mkfs.btrfs -q image
mkdir disk && mount -o loop image disk
cp -a "$STORE" disk/store
pyrun() { "$PYRUN" --root "$PWD/disk/store" --state "$PWD/disk/state" "$@"; }
for driver in btrfs vfs btrfs overlay; do
    pyrun storage migrate -q $driver
    pyrun run --rm changes cat /data/appended
    pyrun system check -q --deep
    btrfs subvolume list -o disk | wc -l
done
pyrun system prune -a -f
"""
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        cwd=changed.root.parent,
        env={**changed.env, "STORE": str(changed.root), "PYRUN": changed.command},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": sound\n") == 4
    snapshots = [int(line) for line in done.stdout.splitlines() if line.isdecimal()]
    assert snapshots[0] == snapshots[2] > 0
    assert snapshots[1] == snapshots[3] == 0
