"""The driver erofs: mounts from files and from loop devices, shared by whoever stands on a layer; nothing extracted,
nothing left. What every driver must do is in the conformance suite."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.errors import UsageError
from pyrun.kernel import userns
from pyrun.storage.contract import Env, typed_options
from pyrun.testing.children import Child, Gate, gate, gather
from pyrun.testing.rig import Rig, Unusable
from pyrun.testing.tars import Dir, File, Link, Opaque, Sparse, Symlink, Whiteout, tar
from pyrun.testing.trees import difference, snapshot
from pyrun_drivers import erofs_mounts
from pyrun_drivers.erofs import ErofsDriver
from pyrun_drivers.overlay import OverlayDriver
from support.pyrun import Pyrun, mounts_below, processes, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount EROFS")

BASE = tar(
    Dir("etc", 0o750),
    File("etc/motd", b"hello\n", 0o640, uid=5, gid=6),
    File("etc/gone", b"gone"),
    Link("etc/same", "etc/motd"),
    Dir("var"),
    File("var/old", b"old"),
    Dir("usr"),
    File("usr/big", bytes(range(256)) * 4096),
    Symlink("bin", "usr/bin"),
    Sparse("hole", 8 << 20, {1 << 20: b"data" * 256}),
)
TOP = tar(
    Dir("etc", 0o755),
    Whiteout("etc/gone"),
    Dir("var"),
    Opaque("var"),
    File("var/new", b"new", xattrs={"user.note": b"kept"}),
)


@pytest.fixture
def place(base: Path) -> Iterator[str]:
    path = base / f"erofs-{os.urandom(4).hex()}"
    yield str(path)
    assert mounts_below(path) == []
    wait_for(lambda: loops(path) == [], "all loop devices were freed")
    shutil.rmtree(path, ignore_errors=True)


def loops(path: Path | str) -> list[str]:
    """Loop devices whose file lies below ``path``."""
    found = []
    for name in os.listdir("/sys/block"):
        try:
            with open(f"/sys/block/{name}/loop/backing_file") as file:
                if file.read().startswith(os.path.realpath(path)):
                    found.append(name)
        except OSError:
            continue
    return found


def device(rig: Rig, path: str) -> int:
    """The number of the EROFS that a mount of the layer ``path`` is of."""
    fd = rig.driver._open(path)  # type: ignore[attr-defined]
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


# --- ways to mount


@pytest.mark.parametrize("options", [{}, {"backing": "file", "directio": True}, {"backing": "loop"}], ids=str)
@pytest.mark.parametrize("route", ["1", "2", "3"])
def test_every_way_to_mount_shows_what_the_overlay_driver_shows(
    place: str, route: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRUN_OVERLAY_ROUTE", route)
    namespace = userns.hold([userns.IdMap(0, 0x71000000, 65536)], [userns.IdMap(0, 0x71000000, 65536)])
    try:
        with (
            Rig(ErofsDriver, f"{place}/erofs", options) as rig,
            Rig(OverlayDriver, f"{place}/plain") as plain,
        ):
            layers, wanted = rig.stack(BASE, TOP), plain.stack(BASE, TOP)
            for idmap in (None, namespace):
                with rig.rootfs(layers, idmap=idmap) as one, plain.rootfs(wanted, idmap=idmap) as two:
                    for root in (one, two):
                        with open(f"{root.path}/etc/motd", "a") as file:
                            file.write("more\n")
                        os.rename(f"{root.path}/usr", f"{root.path}/moved")
                        os.unlink(f"{root.path}/var/new")
                    problem = difference(
                        snapshot(one.path, times=False), snapshot(two.path, times=False), ("erofs", "overlay")
                    )
                    assert not problem, problem
                with rig.view(layers, idmap=idmap) as one, plain.view(wanted, idmap=idmap) as two:
                    assert not difference(snapshot(one.path), snapshot(two.path))
    finally:
        os.close(namespace)


def test_the_probe_says_what_it_found_and_leaves_nothing(place: str) -> None:
    with Rig(ErofsDriver, place) as rig:
        assert rig.verdict.why.startswith(("read from files", "read from loop devices"))
        assert "500 layers" in rig.verdict.why
        assert os.listdir(f"{place}/staging") == []
        assert not os.path.exists(f"{place}/layers/erofs") or os.listdir(f"{place}/layers/erofs") == []
    with Rig(ErofsDriver, place, {"backing": "loop"}) as rig:
        assert rig.verdict.why.startswith("read from loop devices;")


def test_a_user_namespace_is_refused_in_words(place: str) -> None:
    options = typed_options(ErofsDriver, {})
    verdict = ErofsDriver.probe(Env(place, userns=True), options)
    assert (verdict.ok, verdict.why) == (False, "mounting EROFS in a user namespace: EPERM")
    assert "root" in verdict.fix


def test_an_option_that_does_not_work_is_refused_by_the_probe(place: str) -> None:
    with pytest.raises(Unusable, match="directio does not work here: loop devices have none"):
        Rig(ErofsDriver, place, {"backing": "loop", "directio": "true"})
    with pytest.raises(UsageError, match="backing"):
        Rig(ErofsDriver, place, {"backing": "tape"})


def test_a_probe_on_a_full_disk_says_so(place: str) -> None:
    from pyrun.kernel import mount as m

    os.makedirs(place)
    fd = m.new_mount("tmpfs", {"size": "16k"})
    try:
        root = f"/proc/self/fd/{fd}"
        os.mkdir(f"{root}/staging")
        verdict = ErofsDriver.probe(Env(root), typed_options(ErofsDriver, {}))
        assert not verdict.ok
        assert verdict.why
        assert "space" in verdict.fix
        assert os.listdir(f"{root}/staging") == []
    finally:
        os.close(fd)


# --- what is kept


def test_a_layer_is_its_tar_and_an_index(place: str) -> None:
    with Rig(ErofsDriver, place) as rig:
        layer = rig.ingest(BASE)
        assert {"index.erofs", "layer.tar"} == set(os.listdir(layer.path)) - {"meta.json", "notes.json"}
        content = Path(layer.path, "layer.tar").read_bytes()
        assert content == BASE
        assert f"sha256:{hashlib.sha256(content).hexdigest()}" == layer.id


def test_a_tampered_tar_is_told_as_that(place: str) -> None:
    from pyrun.errors import DigestMismatch
    from pyrun.storage.tarblob import TarBlob

    with Rig(ErofsDriver, place) as rig:
        for content in (BASE[:-1024] + b"x" * 1024, BASE[:1000], b"x" * 2048):
            with pytest.raises(DigestMismatch):
                rig.ingest(TarBlob(content, diff_id="sha256:" + "0" * 64))
        assert os.listdir(f"{place}/staging") == []


# --- one file system for each layer


def test_a_layer_is_mounted_once_in_a_process(place: str) -> None:
    with Rig(ErofsDriver, place) as rig:
        if not rig.verdict.found["clones"]:
            pytest.skip("this kernel does not clone detached mounts (6.15)")
        base, top = rig.ingest(BASE), rig.ingest(TOP)
        assert device(rig, base.path) == device(rig, base.path) != device(rig, top.path)
        with rig.rootfs([base, top]) as one, rig.rootfs([base, top]) as two:
            assert snapshot(one.path) == snapshot(two.path)


@pytest.mark.parametrize("backing", ["file", "loop"])
def test_a_layer_is_mounted_once_among_processes_and_their_death_hurts_nobody(
    place: str, backing: str
) -> None:
    with Rig(ErofsDriver, place, {"backing": backing}) as rig, gate() as ready, gate() as done:
        if backing == "file" and not rig.verdict.found["clones"]:
            pytest.skip("this kernel does not clone detached mounts (6.15)")
        layer = rig.ingest(BASE)
        child = Child(lambda: hold(place, backing, layer.path, ready, done))
        ready.wait_for(child)
        with open(f"{place}/device") as file:
            theirs = int(file.read())
        ours = rig.driver._open(layer.path)  # type: ignore[attr-defined]
        try:
            assert os.fstat(ours).st_dev == theirs
            child.kill(signal.SIGKILL)
            child.wait()
            with open(f"/proc/self/fd/{ours}/etc/motd") as opened:
                assert opened.read() == "hello\n"
            # Now the file system is ours; the next one gets it from us.
            assert device(rig, layer.path) == theirs
        finally:
            os.close(ours)
        later = Child(lambda: one_device(place, backing, layer.path))
        found = later.wait().result()
        if backing == "file":
            assert found == theirs
            told = os.listdir(f"{place}/layers/erofs/.mounts")
            assert all(int(name.partition(".")[0]) not in (child.pid,) for name in told)
    assert (
        not os.path.exists(f"{place}/layers/erofs/.mounts")
        or os.listdir(f"{place}/layers/erofs/.mounts") == []
    )


def hold(place: str, backing: str, path: str, ready: Gate, done: Gate) -> None:
    rig = Rig(ErofsDriver, place, {"backing": backing})
    fd = rig.driver._open(path)  # type: ignore[attr-defined]
    with open(f"{place}/device", "w") as file:
        file.write(str(os.fstat(fd).st_dev))
    ready.open()
    done.wait()


def one_device(place: str, backing: str, path: str) -> int:
    return device(Rig(ErofsDriver, place, {"backing": backing}), path)


@pytest.mark.parametrize("backing", ["file", "loop"])
def test_processes_that_start_at_once_share_too(place: str, backing: str) -> None:
    with Rig(ErofsDriver, place, {"backing": backing}) as rig, gate() as go, gate() as done:
        if backing == "file" and not rig.verdict.found["clones"]:
            pytest.skip("this kernel does not clone detached mounts (6.15)")
        layer = rig.ingest(BASE)
        # Each has what it needs; the mount alone is left.
        children = [Child(lambda: mount_at_once(place, rig, layer.path, go, done)) for _ in range(6)]
        go.open()
        found = Path(place, "devices")
        wait_for(
            lambda: found.exists() and found.read_text().count("\n") == len(children), "all have mounted"
        )
        done.open()
        gather(children)
        assert len(set(found.read_text().split())) == 1


def mount_at_once(place: str, rig: Rig, path: str, go: Gate, done: Gate) -> None:
    driver = ErofsDriver(rig.env, rig.options, rig.verdict)
    go.wait()
    fd = driver._open(path)
    with open(f"{place}/devices", "a") as file:
        file.write(f"{os.fstat(fd).st_dev}\n")
    done.wait()
    os.close(fd)


def test_a_false_word_about_mounts_misleads_nobody(place: str) -> None:
    """Another file under the number, a number of nobody, rubbish: the layer is mounted afresh."""
    with Rig(ErofsDriver, place) as rig:
        if not rig.verdict.found["clones"]:
            pytest.skip("this kernel does not clone detached mounts (6.15)")
        layer = rig.ingest(BASE)
        told = Path(place, "layers/erofs/.mounts")
        told.mkdir(parents=True, exist_ok=True)
        identity = erofs_mounts._identity(layer.path)
        name = os.path.basename(layer.path)
        tmp = os.open("/", os.O_RDONLY)
        files = []
        import fcntl

        for number, text in enumerate(
            (
                f"{tmp} {os.fstat(tmp).st_dev}/{identity}/{name}\n",
                f"999999 1/{identity}/{name}\n",
                f"x y/{identity}/{name}\n\0\n",
                "",
            )
        ):
            path = told / f"{os.getpid()}.{9000 + number}"
            path.write_text(text)
            files.append(os.open(path, os.O_RDONLY))
            fcntl.flock(files[-1], fcntl.LOCK_EX)
        (told / "4194304.1").write_text(f"3 4/{identity}/{name}\n")
        with rig.view([layer]) as view, open(f"{view.path}/etc/motd") as opened:
            assert opened.read() == "hello\n"
        assert not (told / "4194304.1").exists()
        for fd in (tmp, *files):
            os.close(fd)


def test_a_layer_that_was_made_again_is_mounted_again(place: str) -> None:
    with Rig(ErofsDriver, place) as rig:
        layer = rig.ingest(BASE)
        first = os.stat(f"{layer.path}/index.erofs").st_ino
        with rig.view([layer]):
            pass
        kept = Path(layer.path).rename(f"{place}/moved")
        again = rig.ingest(BASE)
        assert os.stat(f"{again.path}/index.erofs").st_ino != first
        shutil.rmtree(kept)
        with rig.view([again]) as view, open(f"{view.path}/usr/big", "rb") as opened:
            assert opened.read() == bytes(range(256)) * 4096


def test_a_removed_layer_frees_its_space_at_once(place: str) -> None:
    with Rig(ErofsDriver, place) as rig:
        layer = rig.ingest(BASE)
        before = set(os.listdir("/proc/self/fd"))
        with rig.rootfs([layer]):
            pass
        rig.layers.remove(layer.id)
        assert set(os.listdir("/proc/self/fd")) <= before


# --- the command


@pytest.fixture
def erofs(empty: Pyrun) -> Iterator[Pyrun]:
    """The command on a store of this driver with busybox."""
    empty.ok("pull", "--storage", "erofs", "-q", "busybox")
    yield empty
    wait_for(lambda: loops(empty.root) == [], "all loop devices were freed")
    assert os.listdir(empty.root / "staging") == []


def layers_of(pyrun: Pyrun) -> list[Path]:
    directory = pyrun.root / "layers/erofs"
    return [directory / name for name in os.listdir(directory) if not name.startswith(".")]


def test_containers_run_and_write_without_anything_extracted(erofs: Pyrun) -> None:
    script = "id -u; stat -c %u /bin/busybox; echo new > /etc/made; rm /bin/sh; cat /etc/made; ls -d /bin"
    assert erofs.sh(script).split() == ["0", "0", "new", "/bin"]
    script = "mkdir /d; mv /usr /moved; ls -d /moved; touch -d @0 /moved; stat -c %Y /moved"
    assert erofs.sh(script).split() == ["/moved", "0"]
    assert erofs.ok("run", "--rm", "--userns", "host", "busybox", "cat", "/etc/passwd").startswith("root:")
    for layer in layers_of(erofs):
        assert set(os.listdir(layer)) <= {"index.erofs", "layer.tar", "meta.json", "notes.json"}
        digest = hashlib.sha256((layer / "layer.tar").read_bytes()).hexdigest()
        assert layer.name == digest
    assert json.loads((erofs.root / "storage.json").read_bytes())["driver"] == "erofs"


def test_containers_of_an_image_stand_on_one_file_system(erofs: Pyrun) -> None:
    running = [erofs.start("run", "--rm", "--name", f"c{n}", "busybox", "sleep", "60") for n in range(2)]
    try:
        for n in range(2):
            erofs.pid_of(f"c{n}")
        told = erofs.root / "layers/erofs/.mounts"
        wait_for(lambda: len(os.listdir(told)) == 2, "both tell of their mounts")
        devices = set()
        for name in os.listdir(told):
            for line in (told / name).read_text().splitlines():
                numbers, _, layer = line.split("/")
                fd, number = numbers.split()
                assert os.stat(f"/proc/{name.partition('.')[0]}/fd/{fd}").st_dev == int(number)
                devices.add((layer, number))
        assert len(devices) == len(layers_of(erofs))
        # The first, whose mounts the second cloned, dies without a word.
        running[0].kill()
        running[0].wait()
        assert erofs.sh("cat /etc/passwd").startswith("root:")
    finally:
        for process in running:
            process.kill()
            process.wait()
    erofs.ok("ps", "-a")  # the next command clears up after the dead
    wait_for(lambda: processes(str(erofs.root)) == [], "no process is left")
    erofs.sh("true")
    assert len(os.listdir(told)) <= 1


def test_a_supervisor_that_is_killed_leaves_nothing_mounted(erofs: Pyrun) -> None:
    process = erofs.start("run", "--rm", "--name", "killed", "busybox", "sleep", "60")
    pid = erofs.pid_of("killed")
    process.kill()
    process.wait()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the container is dead")
    erofs.ok("ps", "-a")
    assert mounts_below(erofs.root) == []


def test_an_image_is_removed_and_pulled_again(erofs: Pyrun) -> None:
    erofs.ok("rmi", "busybox")
    assert layers_of(erofs) == []
    erofs.ok("pull", "-q", "busybox")
    assert erofs.sh("echo again") == "again\n"


def test_redis_shows_what_the_overlay_driver_shows(pulled: Pyrun, empty: Pyrun) -> None:
    """Every name of the image, its attributes and its content, as seen in a container."""
    script = (
        "cd /; find . -xdev ! -path './proc*' ! -path './sys*' ! -path './dev*' ! -path './etc/host*' "
        "! -path './etc/resolv.conf' ! -path './data*' -printf '%p %y %m %U %G %l %n ' "
        "\\( -type f -printf '%s %T@\\n' -exec md5sum {} \\; -o -printf '\\n' \\) | sort"
    )
    empty.ok("pull", "--storage", "erofs", "-q", "redis")
    wanted = pulled.sh(script, image="redis").splitlines()
    found = empty.sh(script, image="redis").splitlines()
    assert len(wanted) > 1000
    assert found == wanted
