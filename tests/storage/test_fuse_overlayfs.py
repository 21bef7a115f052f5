"""fuse-overlayfs: real mounts, real servers. The suite of the contract, and what only a driver with servers has."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.kernel import mount as m
from pyrun.kernel import userns
from pyrun.storage.contract import Verdict
from pyrun.testing import StorageConformance
from pyrun.testing.rig import Rig
from pyrun.testing.tars import Dir, File, Link, Opaque, Whiteout, tar
from pyrun_drivers.fuse_overlayfs import FuseOverlayfsDriver
from support.pyrun import Pyrun, copy_store, wait_for

pytestmark = [
    pytest.mark.skipif(not shutil.which("fuse-overlayfs"), reason="fuse-overlayfs is not installed"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse"),
]

BASE = 0x71000000  # the first host id of a container's user namespace in these tests


class TestConformance(StorageConformance):
    driver = FuseOverlayfsDriver
    must_work = True


@pytest.fixture
def rig(base: Path) -> Iterator[Rig]:
    with Rig(FuseOverlayfsDriver, str(base / f"store-{os.urandom(4).hex()}")) as rig:
        yield rig
        wait_for(lambda: not servers(rig.root), "all servers ended")
    shutil.rmtree(rig.root)


@pytest.fixture
def namespace() -> Iterator[int]:
    fd = userns.hold([userns.IdMap(0, BASE, 65536)], [userns.IdMap(0, BASE, 65536)])
    yield fd
    os.close(fd)


def servers(marker: str) -> list[int]:
    """Pids of the fuse-overlayfs servers whose command line mentions ``marker``."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
                if command.startswith(b"fuse-overlayfs") and marker.encode() in command:
                    found.append(int(entry))
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def fuse(base: Path, mirror: Path, request: pytest.FixtureRequest) -> Iterator[Pyrun]:
    """The command with a store of this driver and busybox in it."""
    store = base / "fuse-store"
    pyrun = Pyrun(store, base / "fuse-state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
    if not store.exists():
        pyrun.ok("pull", "--storage", "fuse-overlayfs", "-q", "busybox")
    yield pyrun
    wait_for(lambda: not servers(str(store)), "all servers ended")
    assert pyrun.records() == []


# --- running containers


def test_a_container_runs_in_a_user_namespace_of_its_own(fuse: Pyrun) -> None:
    script = (
        "cat /proc/self/uid_map; touch /new; chown 7:8 /new; stat -c %u:%g /new /bin; rm /bin/vi; ls /bin"
    )
    said = fuse.sh(script).split()
    assert said[0] == "0" and int(said[1]) >= 0x70000000
    assert said[3:5] == ["7:8", "0:0"]
    assert "vi" not in said
    assert "cat" in said


def test_a_container_runs_with_the_hosts_ids(fuse: Pyrun) -> None:
    assert fuse.sh("touch /new; chown 7 /new; stat -c %u /new", "--userns=host") == "7\n"


def test_a_readonly_container_refuses_writes(fuse: Pyrun) -> None:
    done = fuse("run", "--rm", "--read-only", "busybox", "touch", "/new")
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


def test_no_image_puts_device_nodes_into_reach(fuse: Pyrun) -> None:
    said = fuse.sh("mknod /null c 1 3 && cat /null || echo refused", stderr=subprocess.STDOUT)
    assert "refused" in said


def test_when_the_server_dies_the_container_ends_and_the_error_says_so(fuse: Pyrun) -> None:
    run = fuse.start("run", "--name", "lost", "busybox", "sleep", "1000", stderr=subprocess.PIPE, text=True)
    container = fuse.pid_of("lost")
    (server,) = servers(str(fuse.root))
    os.kill(server, signal.SIGKILL)
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 125
    assert "fuse-overlayfs" in errors
    assert "died" in errors
    assert "pyrun storage doctor" in errors
    assert "Traceback" not in errors
    assert not alive(container)
    state = json.loads(fuse.ok("inspect", "lost"))[0]["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 125)
    fuse.ok("rm", "lost")


def test_a_server_that_is_told_to_end_ends_the_container_too(fuse: Pyrun) -> None:
    run = fuse.start("run", "--rm", "--name", "lost", "busybox", "sleep", "1000", stderr=subprocess.PIPE)
    fuse.pid_of("lost")
    (server,) = servers(str(fuse.root))
    os.kill(server, signal.SIGTERM)
    run.communicate(timeout=20)
    assert run.returncode == 125


def test_a_program_that_falls_over_the_dead_server_is_not_taken_for_its_own_end(fuse: Pyrun) -> None:
    script = "echo ready; while cat /etc/passwd >/dev/null 2>&1 && test -e /bin/$RANDOM$RANDOM || true; do "
    script += "ls / >/dev/null 2>&1 || exit 3; done"
    run = fuse.start("run", "--rm", "--name", "busy", "busybox", "sh", "-c", script, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    (server,) = servers(str(fuse.root))
    os.kill(server, signal.SIGKILL)
    run.communicate(timeout=20)
    assert run.returncode == 125


def test_the_death_of_pyrun_ends_container_and_server(fuse: Pyrun) -> None:
    run = fuse.start("run", "--rm", "--name", "orphan", "busybox", "sleep", "1000")
    container = fuse.pid_of("orphan")
    (server,) = servers(str(fuse.root))
    run.kill()
    run.wait()
    wait_for(lambda: not alive(container) and not alive(server), "container and server end")
    fuse.ok("ps")


def test_ten_containers_have_ten_servers_and_leave_none(fuse: Pyrun) -> None:
    runs = [
        fuse.start(
            "run", "--rm", "--name", f"many{number}", "busybox", "sh", "-c", f"echo {number} >/x; sleep 3"
        )
        for number in range(10)
    ]
    wait_for(lambda: len(servers(str(fuse.root))) == 10, "ten servers run at once", 40)
    assert [run.wait(timeout=60) for run in runs] == [0] * 10


def test_what_a_container_wrote_is_there_when_it_has_ended(fuse: Pyrun) -> None:
    fuse.ok(
        "run", "--name", "kept", "busybox", "sh", "-c", "head -c 3000000 /dev/urandom >/data; sha256sum /data"
    )
    config = fuse.root / "containers" / json.loads(fuse.ok("inspect", "kept"))[0]["Id"]
    assert (config / "rw/upper/data").stat().st_size == 3000000
    assert (config / "rw/upper/data").stat().st_uid == 0
    fuse.ok("rm", "kept")
