"""vfs: copies, what they cost, and what the driver says of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.kernel import btrfs
from pyrun.storage.contract import Change
from pyrun.testing import disks
from pyrun.testing.rig import Rig, environment
from pyrun.testing.tars import Dir, File, Link, Whiteout, tar
from pyrun_drivers.vfs import VfsDriver
from support.pyrun import Pyrun
from support.rootless import FIRST, as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

MiB = 1 << 20


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pyrun-vfs-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@contextlib.contextmanager
def new_disk(kind: str, place: Path) -> Iterator[str]:
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"mkfs.{kind} is not installed")
    (place / "disk").mkdir()
    made = disks.make(kind, str(place / "disk"), 400 * MiB, str(place / "image"))
    try:
        yield made.path
    finally:
        made.unmount()


@pytest.fixture
def disk(place: Path) -> Iterator[str]:
    """A btrfs, on which copies share their blocks."""
    with new_disk("btrfs", place) as path:
        yield path


def used(path: str) -> int:
    """Bytes in use on the file system of ``path``, once all is written."""
    os.sync()
    fs = os.statvfs(path)
    return (fs.f_blocks - fs.f_bfree) * fs.f_frsize


def test_the_warning_names_the_cost(place: Path, disk: str) -> None:
    with Rig(VfsDriver, str(place / "copied")) as rig:
        assert "N times its space" in rig.verdict.found["warning"]
        assert not rig.verdict.found["reflink"]
    with Rig(VfsDriver, f"{disk}/cloned") as rig:
        assert "blocks are shared" in rig.verdict.found["warning"]
        assert "reflinks" in rig.verdict.why


def test_every_layer_and_every_container_is_a_copy_of_its_own(place: Path) -> None:
    with Rig(VfsDriver, str(place / "store")) as rig:
        stack = rig.stack(tar(File("a", b"one"), Dir("d", 0o1777)), tar(File("b", b"two"), Whiteout("a")))
        assert set(os.listdir(f"{stack[0].path}/fs")) == {"a", "d"}
        assert set(os.listdir(f"{stack[1].path}/fs")) == {"b", "d"}
        assert stat.S_IMODE(os.stat(f"{stack[1].path}/fs/d").st_mode) == 0o1777
        with rig.rootfs(stack) as one, rig.rootfs(stack) as two:
            Path(one.path, "b").write_text("changed")
            assert Path(two.path, "b").read_text() == "two"
        assert Path(stack[1].path, "fs/b").read_text() == "two"


def test_the_whole_copy_counts_where_blocks_are_not_shared(place: Path) -> None:
    with Rig(VfsDriver, str(place / "store")) as rig:
        stack = rig.stack(tar(File("big", os.urandom(3 * MiB))), tar(File("small", b"x")))
        assert rig.driver.usage(stack[1].path).bytes >= 3 * MiB
        with rig.rootfs(stack) as root:
            assert root.usage().bytes >= 3 * MiB


@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_copies_share_blocks_where_the_file_system_can_and_usage_leaves_them_out(
    kind: str, place: Path
) -> None:
    with new_disk(kind, place) as disk, Rig(VfsDriver, f"{disk}/store") as rig:
        stack = rig.stack(
            tar(File("big", os.urandom(20 * MiB)), Link("again", "big")), tar(File("small", b"x"))
        )
        before = used(disk)
        with rig.rootfs(stack) as root:
            assert used(disk) - before < 2 * MiB
            assert root.usage().bytes == 0
            os.chmod(f"{root.path}/big", 0o600)  # touched, and still shares all its blocks
            assert root.usage().bytes < MiB
            with open(f"{root.path}/again", "r+b") as file:
                file.write(os.urandom(2 * MiB))
            assert 2 * MiB <= root.usage().bytes < 3 * MiB
            with open(f"{root.path}/new", "wb") as file:
                file.write(os.urandom(MiB))
            os.link(f"{root.path}/new", f"{root.path}/new2")
            assert 3 * MiB <= root.usage().bytes < 4 * MiB


def test_a_write_that_follows_the_copy_at_once_is_no_less_a_change(place: Path) -> None:
    """Same size, same mtime, and a kernel clock that may not have ticked: only the content differs."""
    with Rig(VfsDriver, str(place / "store")) as rig:
        stack = rig.stack(tar(File("file", b"old"), File("other", b"old")))
        for _ in range(25):
            with rig.rootfs(stack) as root:
                before = os.stat(f"{root.path}/file")
                fd = os.open(f"{root.path}/file", os.O_WRONLY)
                os.write(fd, b"new")
                os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
                os.close(fd)
                assert root.changes() == [Change(b"file", "modify")]


def test_telling_changes_reads_no_file_that_nobody_touched(place: Path) -> None:
    def read() -> int:
        fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
        return int(fields["rchar"])

    with Rig(VfsDriver, str(place / "store")) as rig:
        stack = rig.stack(tar(*(File(f"f{n}", b"x" * MiB) for n in range(20))))
        with rig.rootfs(stack) as root:
            os.utime(f"{root.path}/f3", (5, 5))
            before = read()
            assert root.changes() == [Change(b"f3", "modify")]
            assert read() - before < 4 * MiB


def test_holes_stay_holes(place: Path) -> None:
    with Rig(VfsDriver, str(place / "store")) as rig:
        base = rig.stack(tar(File("x", b"x")))
        with rig.rootfs(base) as root:
            with open(f"{root.path}/holes", "wb") as file:
                file.write(b"begin")
                file.seek(8 << 30)
                file.write(b"end")
            layer = rig.ingest(root.commit(), base[-1])
        with rig.rootfs([*base, layer]) as root:
            st = os.stat(f"{root.path}/holes")
            assert st.st_size == (8 << 30) + 3
            assert st.st_blocks * 512 < MiB


def test_the_root_directory_does_not_depend_on_umask_or_on_the_directory_above(place: Path) -> None:
    store = place / "store"
    store.mkdir()
    os.chown(store, 7, 7)
    store.chmod(0o2777)
    previous = os.umask(0o077)
    try:
        with Rig(VfsDriver, str(store)) as rig:
            for name in ("staging", "containers"):
                (store / name).chmod(0o2700)
            layers = rig.stack(tar(File("f", b"x")))
            for stack in ([], layers):
                with rig.rootfs(stack) as root, rig.view(stack) as view:
                    for st in (os.stat(root.path), os.stat(view.path)):
                        assert (oct(st.st_mode), st.st_uid, st.st_gid) == ("0o40755", 0, 0)
    finally:
        os.umask(previous)


def test_what_a_container_made_of_the_file_system_goes_with_it(disk: str) -> None:
    """The container sees btrfs itself, and anybody may make subvolumes there; one is deep, one is read-only."""
    with Rig(VfsDriver, f"{disk}/store") as rig:
        rw = rig.prepare(rig.stack(tar(Dir("d"))))
        above = os.open(f"{rw}/fs/d", os.O_RDONLY | os.O_DIRECTORY)
        btrfs.create(above, "sub")
        os.makedirs(f"{rw}/fs/d/sub/" + "/".join("n" * 200 for _ in range(19)))
        at = os.open(f"{rw}/fs/d/sub", os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(100):
            os.mkdir("x", dir_fd=at)
            below = os.open("x", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        btrfs.create(at, "deep")
        inner = os.open("deep", os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        btrfs.set_readonly(inner, True)
        for fd in (above, at, inner):
            os.close(fd)
        rig.discard(rw)
        assert os.listdir(f"{disk}/store/containers") == os.listdir(f"{disk}/store/staging") == []
    listed = subprocess.run(["btrfs", "subvolume", "list", disk], capture_output=True, text=True, check=True)
    assert listed.stdout == ""


def test_it_works_in_a_user_namespace(place: Path) -> None:
    os.chown(place, FIRST, FIRST)

    def work() -> None:
        with Rig(VfsDriver, str(place / "store")) as rig:
            assert rig.env.userns
            stack = rig.stack(tar(File("a", b"x", uid=5, gid=6), Dir("d", 0o1777)), tar(File("d/b", b"y")))
            with rig.rootfs(stack) as root:
                st = os.stat(f"{root.path}/a")
                assert (st.st_uid, st.st_gid) == (5, 6)
                os.unlink(f"{root.path}/a")
                os.chown(f"{root.path}/d/b", 1000, 1000)
                assert root.changes() == [Change(b"a", "delete"), Change(b"d/b", "modify")]
        assert os.listdir(place / "store/containers") == []

    as_user(work)


def test_a_root_that_can_not_be_written_is_a_reason_not_an_exception(place: Path) -> None:
    (place / "store/staging").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place / "store")], check=True)
    try:
        verdict = VfsDriver.probe(environment(str(place / "store")), {})
    finally:
        subprocess.run(["umount", str(place / "store")], check=True)
    assert not verdict.ok
    assert "trial copy" in verdict.why
    assert verdict.fix


@pytest.mark.parametrize("userns", [[], ["--userns=host"]], ids=["own", "host"])
def test_a_container_runs_on_vfs_and_leaves_nothing(empty: Pyrun, userns: list[str]) -> None:
    empty.ok("pull", "-q", "--storage", "vfs", "busybox")
    script = "echo hello > /tmp/f && rm -rf /home && mkdir /home && cat /tmp/f && stat -c %u:%g /tmp/f /bin"
    out = empty.sh(script, *userns)
    assert out.split() == ["hello", "0:0", "0:0"]
    assert empty.records() == []
    empty.ok("rmi", "busybox")
    assert [p.name for p in (empty.root / "layers/vfs").iterdir() if not p.name.startswith(".")] == []


def test_a_container_that_is_started_again_finds_what_it_wrote(empty: Pyrun) -> None:
    empty.ok("pull", "-q", "--storage", "vfs", "busybox")
    empty.ok("run", "--name", "kept", "busybox", "sh", "-c", "echo kept > /file; rm /bin/ls")
    (rw,) = (empty.root / "containers").glob("*/rw/fs")
    assert (rw / "file").read_text() == "kept\n"
    assert os.stat(rw / "file").st_uid == 0  # stored by the image's ids, whatever the container's namespace
    assert not (rw / "bin/ls").exists()
    empty.ok("rm", "kept")
    assert empty.records() == []
