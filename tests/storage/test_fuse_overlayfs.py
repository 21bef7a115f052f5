"""fuse-overlayfs: what only a driver with servers has, on real mounts. The suite of the contract is run on it by
test_conformance.py, as root, and test_conformance_rootless.py."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import shutil
import signal
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrun.errors import StorageError
from pyrun.kernel import mount as m
from pyrun.kernel import process as p
from pyrun.kernel import userns
from pyrun.storage.contract import Change
from pyrun.testing import children
from pyrun.testing.rig import Rig, environment
from pyrun.testing.tars import Dir, File, Link, Opaque, Symlink, Whiteout, tar
from pyrun_drivers import fuse_overlayfs, fuse_server
from pyrun_drivers.fuse_overlayfs import FuseOverlayfsDriver
from support.account import command_of
from support.pyrun import Pyrun, wait_for

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount"),
    pytest.mark.skipif(not shutil.which("fuse-overlayfs"), reason="fuse-overlayfs is not installed"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse"),
]

FIRST = 0x71000000  # the host's number of a container's root in these tests
OPTIONS = {"volatile": False}


@pytest.fixture
def rig(base: Path) -> Iterator[Rig]:
    place = str(base / f"fuse-{os.urandom(4).hex()}")
    with Rig(FuseOverlayfsDriver, place) as rig:
        yield rig
        wait_for(lambda: not servers(rig.root), "all servers end")
    shutil.rmtree(place)


@pytest.fixture
def namespace() -> Iterator[int]:
    maps = [userns.IdMap(0, FIRST, 65536)]
    fd = userns.hold(maps, maps)
    yield fd
    os.close(fd)


def servers(marker: str) -> list[int]:
    """Pids of the servers for stores whose path contains ``marker``."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{entry}/cmdline").read_bytes()
                if command.startswith(b"fuse-overlayfs of ") and marker.encode() in command:
                    found.append(int(entry))
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write(path: str, content: bytes) -> None:
    """Into the file that is there."""
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()


def inside(namespace: int, work: Callable[[], Any]) -> Any:
    """What ``work`` returns as root of that user namespace."""

    def run() -> Any:
        p.setns(namespace, p.CLONE_NEWUSER)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        return work()

    return children.run(run).result()


@pytest.fixture
def fuse(base: Path, mirror: Path) -> Iterator[Pyrun]:
    """The command with a store of this driver and busybox in it."""
    store = base / "fuse-store"
    pyrun = Pyrun(store, base / "fuse-state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
    if not store.exists():
        pyrun.ok("pull", "--storage", "fuse-overlayfs", "-q", "busybox")
    yield pyrun
    wait_for(lambda: not servers(str(store)), "all servers end")
    assert pyrun.records() == []


@pytest.fixture(scope="module")
def user(account: str, installation: Path, mirror: Path) -> Iterator[Pyrun]:
    """The command of an ordinary user who may open /dev/fuse, with such a store."""
    with command_of(account, installation, mirror, nodes=True) as pyrun:
        pyrun.ok("pull", "--storage", "fuse-overlayfs", "-q", "busybox")
        yield pyrun
        wait_for(lambda: not servers(str(pyrun.root)), "all servers end")


# --- the probe


def test_the_probe_says_what_the_installed_version_gets_wrong(rig: Rig) -> None:
    version = subprocess.run(["fuse-overlayfs", "--version"], capture_output=True, text=True).stdout
    (number,) = [
        line.split()[-1] for line in version.splitlines() if line.startswith("fuse-overlayfs: version")
    ]
    assert f"version {number}" in rig.verdict.why
    flaws = rig.verdict.found.get("flaws", {})
    for words in flaws.values():
        assert words in rig.verdict.why
        assert words in rig.verdict.found["warning"]


def test_the_first_use_warns_of_it_and_later_ones_do_not(base: Path, mirror: Path) -> None:
    with tempfile.TemporaryDirectory(dir=base) as directory:
        env = {"CONTAINERS_REGISTRIES_CONF": str(mirror)}
        pyrun = Pyrun(Path(directory) / "store", Path(directory) / "state", env=env)
        first = pyrun("pull", "--storage", "fuse-overlayfs", "-q", "busybox")
        assert first.returncode == 0
        assert "fuse-overlayfs" in first.stderr
        assert "flaws" in first.stderr
        assert pyrun("run", "--rm", "busybox", "true").stderr == ""
        wait_for(lambda: not servers(directory), "the server ends")


def test_without_the_program_the_probe_says_how_to_install_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(fuse_overlayfs, "_PATH", str(tmp_path))
    verdict = FuseOverlayfsDriver.probe(rig.env, OPTIONS)
    assert not verdict.ok
    assert "not installed" in verdict.why
    assert "apt-get install fuse-overlayfs" in verdict.fix


def test_a_program_that_fails_is_told_in_its_own_words(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "fuse-overlayfs"
    program.write_text("#!/bin/sh\necho the moon is full >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    verdict = FuseOverlayfsDriver.probe(rig.env, OPTIONS)
    assert not verdict.ok
    assert "the moon is full" in verdict.why
    assert os.listdir(f"{rig.root}/staging") == []


def test_a_device_that_the_user_may_not_open_is_named_with_its_mode(rig: Rig) -> None:
    def work() -> list[str]:
        os.mkdir(f"{rig.root}/nodes")
        nodes = m.new_mount("tmpfs", {"mode": "0755"})
        m.move_mount(nodes, m.AT_FDCWD, f"{rig.root}/nodes")
        os.mknod(f"{rig.root}/nodes/fuse", stat.S_IFCHR | 0o600, os.makedev(10, 229))
        m.mount(f"{rig.root}/nodes/fuse".encode(), b"/dev/fuse", None, m.MS_BIND)
        maps = [userns.IdMap(0, FIRST, 65536)]
        p.setns(userns.hold(maps, maps), p.CLONE_NEWUSER)
        os.setresuid(0, 0, 0)
        verdict = FuseOverlayfsDriver.probe(environment(rig.root), OPTIONS)
        return [str(verdict.ok), verdict.why, verdict.fix]

    ok, why, fix = children.run(work, mounts=True).result()
    assert ok == "False"
    assert "/dev/fuse is 0600" in why
    assert "chmod 666 /dev/fuse" in fix


# --- the server


def test_the_last_descriptor_ends_the_server_and_nothing_else_does(rig: Rig) -> None:
    layers = rig.stack(tar(File("f", b"x")))
    mount = rig.driver.mount(layers, None)
    copy = os.dup(mount)
    pidfd = rig.driver.server(mount)
    assert pidfd is not None
    os.close(mount)
    assert read(f"/proc/self/fd/{copy}/f") == b"x"
    assert not select.select([pidfd], [], [], 0.1)[0]
    os.close(copy)
    assert select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)


def test_a_mount_whose_server_died_says_so(rig: Rig) -> None:
    with rig.rootfs(rig.stack(tar(File("f", b"x")))) as root:
        pidfd = rig.driver.server(root.fd)
        assert pidfd is not None
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 5)[0]
        os.close(pidfd)
        with pytest.raises(OSError) as caught:
            os.listdir(root.path)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        with pytest.raises(OSError, match="has ended"):
            rig.driver.server(root.fd)


@pytest.mark.parametrize("own", [True, False], ids=["own-ids", "hosts-ids"])
def test_the_server_can_do_little_and_reach_little(rig: Rig, namespace: int, own: bool) -> None:
    layers = rig.stack(tar(File("one")), tar(File("two")))
    with rig.rootfs(layers, idmap=namespace if own else None):
        (server,) = servers(rig.root)
        status = Path(f"/proc/{server}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        assert fields["NoNewPrivs"].strip() == "1"
        assert int(fields["CapEff"], 16) == 0x8820001B  # of 41 and more
        assert os.getsid(server) not in (os.getsid(0), server)
        assert (
            Path(f"/proc/{server}/oom_score_adj").read_text() == Path("/proc/self/oom_score_adj").read_text()
        )
        # Standard streams, the device, the lock, a directory a layer, upper, work; nothing of the engine's.
        targets = {fd: os.readlink(f"/proc/{server}/fd/{fd}") for fd in os.listdir(f"/proc/{server}/fd")}
        assert targets["0"] == targets["1"] == "/dev/null"
        assert targets["3"] == "/dev/fuse"
        assert not [target for target in targets.values() if "socket" in target]
        clones = [
            line for line in Path(f"/proc/{server}/mountinfo").read_text().splitlines() if "/fuse-" in line
        ]
        assert len(clones) == 3  # two layers and the writable directory
        assert sorted(line.split()[5].split(",")[0] for line in clones) == ["ro", "ro", "rw"]
        if own:
            assert userns.read_map(f"/proc/{server}/uid_map")[0].outside == FIRST
            assert fields["Uid"].split() == [str(FIRST)] * 4


def test_one_server_at_a_time_writes_a_directory(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work directory is emptied by a server that starts, under the hands of one that still runs."""
    layers = rig.stack(tar(File("f")))
    rw = rig.prepare(layers)
    monkeypatch.setattr(fuse_server, "_PATIENCE", 0.1)
    with rig.rootfs(layers, rw), pytest.raises(StorageError, match="still serves"):
        rig.driver.mount(layers, rw)
    monkeypatch.undo()
    for turn in range(20):  # at once after the last one, again and again
        with rig.rootfs(layers, rw) as root:
            assert os.listdir(root.path).count("f") == 1
            Path(f"{root.path}/{turn}").write_bytes(b"x" * 100_000)
    with rig.rootfs(layers, rw) as root:
        assert len(os.listdir(root.path)) == 21
        assert read(f"{root.path}/19") == b"x" * 100_000
    rig.discard(rw)


# --- ids


def test_owners_capabilities_and_acls_are_the_containers_both_ways(rig: Rig, namespace: int) -> None:
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    entries = [(1, 6, -1), (2, 4, 9), (4, 4, -1), (16, 4, -1), (32, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    layers = rig.stack(
        tar(
            File("owned", b"x", uid=5, gid=6),
            File("capable", b"#!", mode=0o755, xattrs={"security.capability": capability}),
        )
    )
    rw = rig.prepare(layers)
    with rig.rootfs(layers, rw, idmap=namespace) as root:
        st = os.stat(f"{root.path}/owned")
        assert (st.st_uid, st.st_gid) == (FIRST + 5, FIRST + 6)
        # For the container's root, and for nobody else: revision 3 names the root user it counts for.
        value = os.getxattr(f"{root.path}/capable", "security.capability")
        assert struct.unpack_from("<I", value, 20) == (FIRST,)

        def work() -> list[Any]:
            os.close(os.open(f"{root.path}/new", os.O_CREAT | os.O_WRONLY, 0o755))
            os.chown(f"{root.path}/new", 7, 8)
            os.setxattr(f"{root.path}/new", "security.capability", capability)
            os.setxattr(f"{root.path}/new", "system.posix_acl_access", acl)
            return [
                os.stat(f"{root.path}/owned").st_uid,
                os.getxattr(f"{root.path}/capable", "security.capability").hex(),
                os.getxattr(f"{root.path}/new", "security.capability").hex(),
                os.getxattr(f"{root.path}/new", "system.posix_acl_access").hex(),
            ]

        assert inside(namespace, work) == [5, capability.hex(), capability.hex(), acl.hex()]
    st = os.stat(f"{rw}/upper/new")
    assert (st.st_uid, st.st_gid) == (7, 8)
    assert os.getxattr(f"{rw}/upper/new", "system.posix_acl_access") == acl
    # Another container's ids, later: the same files, nothing to shift.
    maps = [userns.IdMap(0, FIRST + (1 << 20), 65536)]
    other = userns.hold(maps, maps)
    with rig.rootfs(layers, rw, idmap=other) as root:
        assert inside(other, lambda: os.stat(f"{root.path}/new").st_gid) == 8
        assert inside(other, lambda: os.getxattr(f"{root.path}/new", "security.capability").hex()) == (
            capability.hex()
        )
    os.close(other)
    rig.discard(rw)


# --- what the program forgets


def test_names_of_one_file_stay_one_over_remounts(rig: Rig) -> None:
    layers = rig.stack(
        tar(
            Dir("d", 0o750, uid=3),
            File("a", b"old"),
            Link("b", "a"),
            Link("d/c", "a"),
            Link("d/replaced", "a"),
            Link("gone", "a"),
            File("z", b"apart"),
        ),
        tar(Dir("d", 0o711, uid=4), File("d/replaced", b"other")),
    )
    rw = rig.prepare(layers)
    with rig.rootfs(layers, rw) as root:
        os.unlink(f"{root.path}/gone")
        write(f"{root.path}/b", b"written")
    for _ in range(2):
        with rig.rootfs(layers, rw) as root:
            for name in ("a", "b", "d/c"):
                assert read(f"{root.path}/{name}") == b"written", name
            assert read(f"{root.path}/d/replaced") == b"other"
            assert not os.path.lexists(f"{root.path}/gone")
            st = os.stat(f"{root.path}/d")
            assert (st.st_mode & 0o7777, st.st_uid) == (0o711, 4)
            assert {change.path for change in root.changes()} <= {b"a", b"b", b"d/c", b"gone"}
    with rig.rootfs(layers, rw) as root:
        write(f"{root.path}/d/c", b"again")
    with rig.rootfs(layers, rw) as root:
        assert read(f"{root.path}/a") == b"again"
    rig.discard(rw)


def test_no_link_that_a_container_plants_leads_the_mending_astray(rig: Rig) -> None:
    layers = rig.stack(tar(File("a", b"old"), Dir("d"), Link("d/c", "a")))
    rw = rig.prepare(layers)
    os.mkdir(f"{rig.root}/outside")
    with rig.rootfs(layers, rw) as root:
        os.unlink(f"{root.path}/d/c")
        os.rmdir(f"{root.path}/d")
        os.symlink(f"{rig.root}/outside", f"{root.path}/d")
        write(f"{root.path}/a", b"written")
    with rig.rootfs(layers, rw) as root:
        assert os.readlink(f"{root.path}/d") == f"{rig.root}/outside"
        assert read(f"{root.path}/a") == b"written"
    assert os.listdir(f"{rig.root}/outside") == []
    rig.discard(rw)


@pytest.mark.parametrize("kind", ["opaque", "deleted between"])
def test_what_layers_hide_is_not_found_by_name(rig: Rig, kind: str) -> None:
    """Asked for before anybody lists the directory, which is when version 1.10 looks into every layer."""
    lower = tar(Dir("d"), File("d/old"), Dir("d/sub"), File("d/sub/deep"), Symlink("d/link", "old"))
    if kind == "opaque":
        above = [tar(Dir("d"), Opaque("d"), File("d/new"), Dir("d/sub"))]
    else:
        above = [tar(Whiteout("d")), tar(Dir("d"), File("d/new"), Dir("d/sub"))]
    layers = rig.stack(lower, *above)
    rw = rig.prepare(layers)
    for _ in range(2):
        for shown in (rig.rootfs(layers, rw), rig.view(layers)):
            with shown as root:
                for name in ("old", "sub/deep", "link"):
                    assert not os.path.lexists(f"{root.path}/d/{name}"), name
                assert sorted(os.listdir(f"{root.path}/d")) == ["new", "sub"]
    rig.discard(rw)


def test_a_directory_made_again_is_empty_after_a_remount_and_in_the_image(rig: Rig) -> None:
    layers = rig.stack(tar(Dir("d"), File("d/old"), Dir("d/sub"), File("d/sub/deep"), File("stays")))
    rw = rig.prepare(layers)
    with rig.rootfs(layers, rw) as root:
        shutil.rmtree(f"{root.path}/d")
        os.mkdir(f"{root.path}/d")
        os.mkdir(f"{root.path}/d/sub")
        for _ in range(3):
            for directory in ("d", "", "d/sub"):
                os.listdir(f"{root.path}/{directory}")
        assert [c for c in root.changes() if c.kind == "delete"] == [
            Change(b"d/old", "delete"),
            Change(b"d/sub/deep", "delete"),
        ]
    with rig.rootfs(layers, rw) as root:
        for name in ("old", "sub/deep"):
            assert not os.path.lexists(f"{root.path}/d/{name}"), name
        assert os.listdir(f"{root.path}/d") == ["sub"]
        above = rig.ingest(root.commit())
    with rig.view([*layers, above]) as view:
        assert not os.path.lexists(f"{view.path}/d/old")
        assert os.listdir(f"{view.path}/d/sub") == []
        assert sorted(os.listdir(view.path)) == ["d", "stays"]
    rig.discard(rw)


# --- running containers


def test_a_container_runs_in_a_user_namespace_of_its_own(fuse: Pyrun) -> None:
    script = (
        "cat /proc/self/uid_map; touch /new; chown 7:8 /new; stat -c %u:%g /new /bin; rm /bin/vi; ls /bin"
    )
    said = fuse.sh(script).split()
    assert said[0] == "0"
    assert int(said[1]) >= 0x70000000
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


def test_an_ordinary_users_container_runs_and_leaves_no_server(user: Pyrun) -> None:
    script = "touch /new; chown 7:8 /new; stat -c %u:%g /new; rm /bin/vi; test -e /bin/vi || echo gone"
    assert user.sh(script).split() == ["7:8", "gone"]


def test_when_an_ordinary_users_server_dies_the_container_ends(user: Pyrun) -> None:
    run = user.start(
        "run", "--rm", "--name", "lost", "busybox", "sleep", "1000", stderr=subprocess.PIPE, text=True
    )
    (server,) = wait_for(lambda: servers(str(user.root)), "the server runs")
    user.pid_of("lost")
    os.kill(server, signal.SIGKILL)
    _, errors = run.communicate(timeout=20)
    assert run.returncode == 125
    assert "fuse-overlayfs" in errors
