"""btrfs: snapshots, quotas and the removal of subvolumes, on a file system of the test's own."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.kernel import btrfs
from pyrun.storage.contract import Change
from pyrun.testing import disks
from pyrun.testing.rig import Rig, environment
from pyrun.testing.tars import Dir, File, Whiteout, tar
from pyrun_drivers.btrfs import BtrfsDriver
from support.pyrun import Pyrun, mounts_below, processes
from support.rootless import FIRST, as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

MiB = 1 << 20


@contextlib.contextmanager
def new_disk(options: str = "") -> Iterator[str]:
    if not shutil.which("mkfs.btrfs"):
        pytest.skip("mkfs.btrfs is not installed")
    with tempfile.TemporaryDirectory(prefix="pyrun-btrfs-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        os.mkdir(f"{directory}/disk")
        made = disks.make("btrfs", f"{directory}/disk", 512 * MiB, f"{directory}/image", options)
        try:
            yield made.path
        finally:
            made.unmount()


@pytest.fixture(scope="module")
def disk() -> Iterator[str]:
    with new_disk() as path:
        yield path


@pytest.fixture
def place(disk: str) -> Iterator[str]:
    """A directory for a store. Afterwards no subvolume is left anywhere on the disk."""
    directory = tempfile.mkdtemp(dir=disk)
    os.chmod(directory, 0o755)
    yield directory
    assert subvolumes(disk) == []
    subprocess.run(["rm", "-rf", directory], check=True)


def subvolumes(disk: str) -> list[str]:
    done = subprocess.run(["btrfs", "subvolume", "list", disk], capture_output=True, text=True, check=True)
    return [line.rpartition(" path ")[2] for line in done.stdout.splitlines()]


def used(path: str) -> int:
    """Bytes in use on the file system of ``path``, once all is written."""
    os.sync()
    fs = os.statvfs(path)
    return (fs.f_blocks - fs.f_bfree) * fs.f_frsize


def directory(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def test_another_file_system_is_named_and_the_way_to_a_btrfs_told(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "t")], check=True)
    try:
        verdict = BtrfsDriver.probe(environment(str(tmp_path / "t")), {})
    finally:
        subprocess.run(["umount", str(tmp_path / "t")], check=True)
    assert not verdict.ok
    assert "is on tmpfs, which is not btrfs" in verdict.why
    assert "mkfs.btrfs" in verdict.fix
    assert "--root" in verdict.fix


def test_a_probe_leaves_nothing_and_says_what_works(place: str) -> None:
    with Rig(BtrfsDriver, f"{place}/store") as rig:
        assert rig.verdict.why == "snapshots; no quotas (btrfs quota enable turns them on)"
        assert rig.caps.chained
        assert rig.caps.idmap
        assert not rig.caps.quota
        assert os.listdir(f"{place}/store/staging") == []
    assert subvolumes(place) == []


def test_a_layer_is_a_read_only_snapshot_of_its_parent(place: str, disk: str) -> None:
    with Rig(BtrfsDriver, f"{place}/store") as rig:
        stack = rig.stack(tar(File("big", os.urandom(20 * MiB)), File("gone", b"x")))
        before = used(disk)
        stack = rig.stack(
            tar(File("big", os.urandom(20 * MiB)), File("gone", b"x")), tar(File("b", b"y"), Whiteout("gone"))
        )
        stack += [rig.ingest(tar(Dir("d", 0o1777)), stack[-1])]
        assert used(disk) - before < 22 * MiB  # the first layer again, and next to nothing for the others
        assert rig.driver.usage(stack[1].path).bytes < MiB
        assert set(os.listdir(f"{stack[2].path}/fs")) == {"big", "b", "d"}
        for layer in stack:
            with pytest.raises(OSError, match="Read-only file system"):
                Path(layer.path, "fs/big").write_text("x")
        rig.layers.remove(stack[0].id)  # a snapshot doesn't need what it was taken of
        with rig.rootfs(stack[1:]) as root:
            assert os.stat(f"{root.path}/big").st_size == 20 * MiB


def test_a_container_is_a_snapshot_and_takes_what_it_writes(place: str, disk: str) -> None:
    with Rig(BtrfsDriver, f"{place}/store") as rig:
        stack = rig.stack(
            tar(File("big", os.urandom(30 * MiB)), *(File(f"s{n}", b"x" * 900) for n in range(50)))
        )
        before = used(disk)
        with rig.rootfs(stack) as root:
            assert used(disk) - before < 2 * MiB
            assert root.usage().bytes == 0
            os.chmod(f"{root.path}/big", 0o600)
            os.rename(f"{root.path}/s1", f"{root.path}/s1000")
            assert root.usage().bytes < MiB
            with open(f"{root.path}/big", "r+b") as file:
                file.write(os.urandom(4 * MiB))
            with open(f"{root.path}/new", "wb") as file:
                file.write(os.urandom(2 * MiB))
            os.link(f"{root.path}/new", f"{root.path}/new2")
            assert 6 * MiB <= root.usage().bytes < 7 * MiB
            assert [(c.path, c.kind) for c in root.changes()] == [
                (b"big", "modify"),
                (b"new", "add"),
                (b"new2", "add"),
                (b"s1", "delete"),
                (b"s1000", "add"),
            ]


def test_quota_ends_what_a_container_writes_and_not_what_its_image_has() -> None:
    with new_disk("commit=1") as disk:
        subprocess.run(["btrfs", "quota", "enable", disk], check=True)
        with Rig(BtrfsDriver, f"{disk}/store") as rig:
            assert rig.caps.quota
            assert rig.verdict.why == "snapshots; quotas"
            stack = rig.stack(tar(File("big", os.urandom(20 * MiB))))
            with rig.rootfs(stack, size=4 * MiB) as root, rig.rootfs(stack) as free:
                with open(f"{root.path}/fits", "wb") as file:
                    file.write(os.urandom(2 * MiB))
                    os.fsync(file.fileno())
                with pytest.raises(OSError, match="quota") as caught:
                    fill(f"{root.path}/more", 8)
                assert caught.value.errno == errno.EDQUOT
                assert os.stat(f"{root.path}/fits").st_size == 2 * MiB
                fill(f"{free.path}/more", 8)  # another container is not limited
                os.unlink(f"{root.path}/more")
                os.sync()
                fill(f"{root.path}/again", 1)
        subprocess.run(["btrfs", "subvolume", "sync", disk], check=True, capture_output=True, timeout=60)
        os.sync()
        shown = subprocess.run(["btrfs", "qgroup", "show", disk], capture_output=True, text=True, check=True)
        assert [line.split()[0] for line in shown.stdout.splitlines()[2:]] == ["0/5"]


def test_a_size_is_refused_until_quotas_are_enabled_and_again_when_they_are_not(mirror: Path) -> None:
    with new_disk("commit=1") as disk:
        pyrun = Pyrun(
            Path(disk, "store"), Path(disk, "state"), env={"CONTAINERS_REGISTRIES_CONF": str(mirror)}
        )
        pyrun.ok("pull", "-q", "--storage", "btrfs", "busybox")
        write = ["busybox", "sh", "-c", "dd if=/dev/urandom of=/file bs=64k count=64 conv=fsync"]
        done = pyrun("run", "--rm", "--storage-opt", "size=2m", *write)
        assert done.returncode == 125
        assert "no quotas (btrfs quota enable turns them on)" in done.stderr
        subprocess.run(["btrfs", "quota", "enable", disk], check=True)
        done = pyrun("run", "--rm", "--storage-opt", "size=2m", *write)
        assert done.returncode == 1
        assert "quota" in done.stderr.lower()
        assert pyrun("run", "--rm", "--storage-opt", "size=8m", *write).returncode == 0
        subprocess.run(["btrfs", "quota", "disable", disk], check=True)
        done = pyrun("run", "--rm", "--storage-opt", "size=2m", *write)
        assert done.returncode not in (0, 1)
        assert "quotas are no longer enabled" in done.stderr
        assert f"btrfs quota enable {disk}" in done.stderr
        assert pyrun.records() == []


def fill(path: str, megabytes: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(megabytes):
            file.write(os.urandom(MiB))
            os.fsync(file.fileno())


def plant(rw: str) -> None:
    """What a container can do to make its subvolume hard to delete: others in it, in each other, read-only, deep
    down and below names that take much room."""
    top = directory(f"{rw}/fs")
    btrfs.create(top, "one")
    one = directory(f"{rw}/fs/one")
    btrfs.create(one, "two")
    two = directory(f"{rw}/fs/one/two")
    os.mkdir("file-" + "n" * 200, dir_fd=two)
    btrfs.snapshot(two, one, "copy")
    copy = directory(f"{rw}/fs/one/copy")
    btrfs.set_readonly(copy, True)
    at = os.dup(two)
    for _ in range(150):
        os.mkdir("d" * 100, dir_fd=at)
        below = os.open("d" * 100, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        os.close(at)
        at = below
    btrfs.create(at, "deep")
    for fd in (top, one, two, copy, at):
        os.close(fd)


def test_subvolumes_that_a_container_made_go_with_it(place: str) -> None:
    with Rig(BtrfsDriver, f"{place}/store") as rig:
        stack = rig.stack(tar(Dir("d")))
        rw = rig.prepare(stack)
        plant(rw)
        rig.discard(rw)
        assert subvolumes(place) == [os.path.relpath(f"{stack[0].path}/fs", os.path.dirname(place))]
        rig.driver.remove(rw)  # once more is success


@pytest.mark.parametrize("option", ["", "user_subvol_rm_allowed"], ids=["not-allowed", "allowed"])
def test_an_ordinary_user_can_remove_what_was_made(option: str) -> None:
    """Without the mount option such users can't delete subvolumes, only empty them and remove the directory."""

    def work() -> None:
        with Rig(BtrfsDriver, f"{place}/store") as rig:
            assert rig.env.userns
            assert not rig.caps.quota
            assert "rootless" in rig.verdict.why
            stack = rig.stack(tar(File("a", b"x", uid=5), Dir("d", 0o1777)), tar(File("d/b", b"y")))
            with rig.rootfs(stack) as root:
                os.unlink(f"{root.path}/a")
                assert root.changes() == [Change(b"a", "delete")]
            rw = rig.prepare(stack)
            plant(rw)
            rig.discard(rw)
        assert os.listdir(f"{place}/store/staging") == os.listdir(f"{place}/store/containers") == []

    with new_disk(option) as disk:
        place = f"{disk}/user"
        os.mkdir(place)
        os.chown(place, FIRST, FIRST)
        as_user(work)
        assert subvolumes(disk) == []


def test_something_half_made_is_removed(place: str) -> None:
    with Rig(BtrfsDriver, f"{place}/store") as rig:
        for _ in range(2):
            stage = rig.staging.new("btrfs")
            top = directory(stage.path)
            btrfs.create(top, "fs")
            Path(stage.path, "fs/file").write_text("half")
            os.mkdir(f"{stage.path}/rw")
            os.close(top)
            stage.close()
        assert len(rig.sweep()) == 2
        assert os.listdir(f"{place}/store/staging") == []


def test_names_that_are_none_are_refused_before_the_kernel_cuts_them_short(place: str) -> None:
    fd = directory(place)
    try:
        for name in ("", ".", "..", "a/b", "a\0b"):
            with pytest.raises(OSError, match="not the name of a subvolume"):
                btrfs.create(fd, name)
        with pytest.raises(OSError, match="too long"):
            btrfs.create(fd, "n" * 256)
        btrfs.create(fd, "n" * 255)
        btrfs.destroy(fd, b"n" * 255)
    finally:
        os.close(fd)


@pytest.mark.parametrize("userns", [[], ["--userns=host"]], ids=["own", "host"])
def test_a_container_runs_on_snapshots_and_leaves_nothing(
    place: str, mirror: Path, userns: list[str]
) -> None:
    pyrun = Pyrun(Path(place, "store"), Path(place, "state"), env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
    pyrun.ok("pull", "-q", "--storage", "btrfs", "busybox")
    script = "echo hello > /tmp/f && rm -rf /home && mkdir /home && cat /tmp/f && stat -c %u:%g /tmp/f /bin"
    assert pyrun.sh(script, *userns).split() == ["hello", "0:0", "0:0"]
    assert pyrun.records() == []
    pyrun.ok("run", "--name", "kept", *userns, "busybox", "sh", "-c", "echo kept > /file")
    (kept,) = Path(place, "store/containers").glob("*/rw/fs/file")
    assert (kept.read_text(), kept.stat().st_uid) == ("kept\n", 0)
    pyrun.ok("rm", "kept")
    assert pyrun.records() == []
    assert mounts_below(Path(place)) == []
    assert processes(place) == []
    pyrun.ok("rmi", "busybox")  # and no subvolume is left, as the fixture looks
