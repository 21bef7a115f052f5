"""aufs: its mount protocol, call by call, on kernels without it; the real thing where /proc/filesystems lists it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pyrun.errors import TooManyLayers, Unsupported
from pyrun.kernel import aufs, syscall, userns
from pyrun.kernel import mount as m
from pyrun.storage.contract import Change, Env, Layer, Verdict
from pyrun.storage.layers import LayerStore
from pyrun.storage.locks import Staging
from pyrun.storage.store import make_directories
from pyrun.storage.tarblob import TarBlob
from pyrun.testing import StorageConformance, disks
from pyrun.testing.fixtures import child_processes, descriptors, mounts_below
from pyrun.testing.rig import Rig, environment
from pyrun.testing.tars import Dir, File, Opaque, Whiteout, tar
from pyrun_drivers.aufs import MAX_LAYERS, AufsDriver
from support.pyrun import Pyrun
from support.rootless import FIRST, as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

PAGE = os.sysconf("SC_PAGE_SIZE")
KNOWN = any(line.split()[-1:] == ["aufs"] for line in Path("/proc/filesystems").read_text().splitlines())
without = pytest.mark.skipif(KNOWN, reason="the kernel has aufs")
real = pytest.mark.skipif(not KNOWN, reason="the kernel has no aufs")

MS_RDONLY, MS_REMOUNT = 1, 32


@pytest.fixture
def place() -> Iterator[Path]:
    # A name full of what aufs's options are made of.
    with tempfile.TemporaryDirectory(prefix="pyrun-aufs-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        root = Path(directory) / "a:b,c=d+e"
        root.mkdir()
        yield root


# --- the probe


def probe(root: Path | str) -> Verdict:
    return AufsDriver.probe(environment(str(root)), {})


@without
def test_the_probe_says_that_the_kernel_has_none(place: Path) -> None:
    make_directories(str(place))
    verdict = probe(place)
    assert not verdict.ok
    assert verdict.why == "this kernel has no aufs"
    assert "overlay" in verdict.fix
    assert os.listdir(place / "staging") == []


def test_it_is_refused_in_a_user_namespace(place: Path) -> None:
    os.chown(place, FIRST, FIRST)

    def work() -> list[Any]:
        make_directories(str(place))
        verdict = probe(place)
        return [verdict.ok, verdict.why, verdict.fix]

    ok, why, fix = as_user(work)
    assert not ok
    assert "aufs can't be mounted in a user namespace" in why
    assert "Run pyrun as root" in fix


@pytest.mark.skipif(not shutil.which("mkfs.btrfs"), reason="mkfs.btrfs is not installed")
def test_it_is_refused_on_btrfs(place: Path) -> None:
    (place / "disk").mkdir()
    disk = disks.make("btrfs", str(place / "disk"), 128 << 20, str(place.parent / "image"))
    try:
        verdict = probe(disk.path)
    finally:
        disk.unmount()
    assert not verdict.ok
    assert f"aufs doesn't work on btrfs, where {disk.path} is" in verdict.why
    assert "ext4 or xfs" in verdict.fix


def test_it_is_refused_on_overlayfs(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(f"{directory}/{name}")
        options = f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/work"
        merged = f"{directory}/merged"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
        try:
            verdict = probe(merged)
        finally:
            subprocess.run(["umount", merged], check=True)
    assert not verdict.ok
    assert "aufs doesn't work on overlayfs" in verdict.why


def test_every_kind_of_file_system_that_moby_refused_is(place: Path) -> None:
    from pyrun_drivers.aufs import _UNFIT

    # linux/magic.h, and fs/ecryptfs/ecryptfs_kernel.h
    assert _UNFIT == {0x61756673: "aufs", 0x9123683E: "btrfs", 0xF15F: "ecryptfs", 0x794C7630: "overlayfs"}


# --- the mount protocol


class Recorder:
    """Stands for aufs in the kernel: answers mount(2) of that type with success, or ``fails`` (call number →
    errno), and passes everything else on. It notes what `pyrun.kernel.syscall.trace` tells of the calls.

    A call is (source, target, type, flags, data); in the data, an fd's number is replaced by the path that
    it leads to then and there.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, root: Path, fails: dict[int, int] | None = None
    ) -> None:
        self._log = os.memfd_create("calls")
        self._root = root
        self._fails = fails or {}
        self._count = 0
        monkeypatch.setattr(m, "function", self._answer(m.function))
        monkeypatch.setattr(syscall, "trace", self._trace)

    def _answer(self, real: Callable[..., int]) -> Callable[..., int]:
        def function(name: str, *args: Any, path: object = None) -> int:
            if name != "mount" or args[2] != b"aufs":
                return real(name, *args, path=path)
            number = self._fails.get(self._count, 0)
            self._count += 1
            error = OSError(number, f"mount: {os.strerror(number)}")
            self._trace(name, args, error if number else 0)
            if number:
                raise error
            return 0

        return function

    def _trace(self, name: str, args: tuple[Any, ...], result: int | OSError) -> None:
        if name == "mount" and args[2] == b"aufs":
            source, target, kind, flags, data = args
            shown = re.sub(rb"(?<=[:=])\d+(?=[=/])", lambda match: self._leads(match[0]), data)
            line = (source.decode(), target.decode(), kind.decode(), flags, len(data), shown.decode())
            os.write(self._log, repr(line).encode() + b"\n")

    def _leads(self, number: bytes) -> bytes:
        path = os.readlink(b"/proc/self/fd/" + number)
        return path.removeprefix(os.fsencode(self._root) + b"/")

    def calls(self) -> list[tuple[Any, ...]]:
        text = os.pread(self._log, 1 << 24, 0).decode()
        return [eval(line, {}) for line in text.splitlines()]


@pytest.fixture
def branches(place: Path) -> list[str]:
    """500 directories, and one called rw."""
    names = [f"layer{n}" for n in range(500)]
    for name in [*names, "rw"]:
        (place / name).mkdir()
    return names


def mounted(place: Path, layers: Sequence[str], writable: str | None, **more: bool) -> None:
    before = descriptors(), child_processes()
    os.close(aufs.mount_aufs(aufs.Branches(str(place), layers, writable, **more)))
    assert (descriptors(), child_processes()) == before
    assert mounts_below(str(place)) == []


def recorded(calls: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """The calls, without the length of the text that was really handed over, which is checked here."""
    assert all(0 < length < PAGE for *_, length, _ in calls)
    return [(*call[:4], call[5]) for call in calls]


XINO = "xino=//xino"  # the root of a file system that is attached nowhere reads as "/"


def test_one_layer_and_a_writable_branch(
    monkeypatch: pytest.MonkeyPatch, place: Path, branches: list[str]
) -> None:
    recorder = Recorder(monkeypatch, place)
    mounted(place, branches[:1], "rw")
    assert recorded(recorder.calls()) == [
        ("none", str(place), "aufs", 0, f"br:rw=rw:layer0=ro+wh,dio,{XINO}")
    ]


def test_three_layers_top_to_bottom_and_a_writable_branch(
    monkeypatch: pytest.MonkeyPatch, place: Path, branches: list[str]
) -> None:
    recorder = Recorder(monkeypatch, place)
    mounted(place, branches[:3], "rw", dirperm1=True)
    assert recorded(recorder.calls()) == [
        (
            "none",
            str(place),
            "aufs",
            0,
            f"br:rw=rw:layer0=ro+wh:layer1=ro+wh:layer2=ro+wh,dio,{XINO},dirperm1",
        )
    ]


def test_no_layer_at_all(monkeypatch: pytest.MonkeyPatch, place: Path, branches: list[str]) -> None:
    recorder = Recorder(monkeypatch, place)
    mounted(place, [], "rw")
    assert recorded(recorder.calls()) == [("none", str(place), "aufs", 0, f"br:rw=rw,dio,{XINO}")]


def test_a_view_is_mounted_read_only_of_read_only_branches(
    monkeypatch: pytest.MonkeyPatch, place: Path, branches: list[str]
) -> None:
    recorder = Recorder(monkeypatch, place)
    mounted(place, branches[:3], None)
    assert recorded(recorder.calls()) == [
        (
            "none",
            str(place),
            "aufs",
            MS_RDONLY,
            f"br:layer0=ro+wh:layer1=ro+wh:layer2=ro+wh,dio,{XINO}",
        )
    ]


def test_two_hundred_layers_fit_one_page_by_the_numbers_of_fds(
    monkeypatch: pytest.MonkeyPatch, place: Path, branches: list[str]
) -> None:
    recorder = Recorder(monkeypatch, place)
    mounted(place, branches[:200], "rw")
    text = "br:rw=rw:" + ":".join(f"layer{n}=ro+wh" for n in range(200)) + f",dio,{XINO}"
    assert recorded(recorder.calls()) == [("none", str(place), "aufs", 0, text)]


@pytest.mark.parametrize("writable", ["rw", None], ids=["writable", "view"])
def test_past_one_page_branches_are_appended_by_remounts(
    monkeypatch: pytest.MonkeyPatch, place: Path, branches: list[str], writable: str | None
) -> None:
    recorder = Recorder(monkeypatch, place)
    mounted(place, branches, writable, dirperm1=True)
    calls = recorder.calls()
    first, second = recorded(calls)
    flags = 0 if writable else MS_RDONLY
    # One more branch would not have fitted the first call.
    assert PAGE - len(":1234=ro+wh") <= calls[0][4] < PAGE
    count = first[4].count("=ro+wh")
    assert 300 < count < 500
    names = [*(["rw=rw"] if writable else []), *(f"layer{n}=ro+wh" for n in range(count))]
    assert first == ("none", str(place), "aufs", flags, f"br:{':'.join(names)},dio,{XINO},dirperm1")
    more = ",".join(f"append:layer{n}=ro+wh" for n in range(count, 500))
    assert second == ("none", str(place), "aufs", MS_REMOUNT | flags, more)


@pytest.mark.parametrize("size", [60, 75, 100, 4096])
@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_texts_for_any_page_hold_every_branch_once_and_in_order(size: int, count: int) -> None:
    names = [b"%d=ro+wh" % n for n in range(count)]
    texts = aufs.calls(names, b",dio,xino=7/xino", size)
    assert all(len(text) < size for text in texts)
    assert texts[0].startswith(b"br:0=ro+wh")
    assert texts[0].endswith(b",dio,xino=7/xino")
    assert all(text.startswith(b"append:") for text in texts[1:])
    assert [found for text in texts for found in re.findall(rb"\d+=ro\+wh", text)] == names


def test_every_mount_has_a_file_of_inode_numbers_of_its_own(
    monkeypatch: pytest.MonkeyPatch, place: Path, branches: list[str]
) -> None:
    """Aufs makes that file O_EXCL: two mounts at once with one path would fail. Here each makes it in a memory
    file system that only its own child has."""
    seen = os.memfd_create("seen")
    real = m.function

    def function(name: str, *args: Any, path: object = None) -> int:
        if name != "mount" or args[2] != b"aufs":
            return real(name, *args, path=path)
        found = re.search(rb"xino=(\d+/xino)", args[4])
        assert found
        fd = os.open(
            found[1], os.O_RDWR | os.O_CREAT | os.O_EXCL
        )  # as aufs does, relative to the working directory
        assert m.fstatfs_type(fd) == 0x01021994
        os.write(seen, b"%d\n" % os.fstat(fd).st_dev)
        return 0

    monkeypatch.setattr(m, "function", function)
    for _ in range(2):
        mounted(place, branches[:2], "rw")
    one, two = os.pread(seen, 100, 0).split()
    assert int(one) != 0 != int(two)


@pytest.mark.parametrize(("call", "number"), [(0, errno.EINVAL), (1, errno.ENOSPC)], ids=["first", "append"])
def test_a_refused_call_ends_it_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, place: Path, branches: list[str], call: int, number: int
) -> None:
    recorder = Recorder(monkeypatch, place, {call: number})
    before = descriptors(), child_processes()
    with pytest.raises(OSError, match="mount") as caught:
        aufs.mount_aufs(aufs.Branches(str(place), branches, "rw"))
    assert caught.value.errno == number
    assert len(recorder.calls()) == call + 1
    assert (descriptors(), child_processes()) == before
    assert mounts_below(str(place)) == []


def test_a_branch_that_is_missing_is_told_before_anything_is_mounted(
    monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    recorder = Recorder(monkeypatch, place)
    with pytest.raises(FileNotFoundError):
        aufs.mount_aufs(aufs.Branches(str(place), ["none"], None))
    assert recorder.calls() == []


# --- the driver, as far as it goes without aufs


@pytest.fixture
def driver(place: Path) -> AufsDriver:
    make_directories(str(place))
    verdict = Verdict(True, "for the test", found={"dirperm1": True})
    return AufsDriver(Env(str(place)), {}, verdict)


def ingested(driver: AufsDriver, *tars: bytes) -> list[Layer]:
    root = driver.env.root
    store = LayerStore(root, driver, Staging(f"{root}/staging"))
    return [store.ingest(TarBlob(data)) for data in tars]


def test_the_driver_stacks_its_layers_below_the_writable_branch(
    monkeypatch: pytest.MonkeyPatch, place: Path, driver: AufsDriver
) -> None:
    one, two = ingested(
        driver,
        tar(Dir("", 0o711, uid=3), File("a", b"x")),
        tar(Dir("", 0o750, uid=4), Whiteout("a"), Opaque("d")),
    )
    assert set(os.listdir(f"{two.path}/fs")) == {".wh.a", "d"}
    assert os.listdir(f"{two.path}/fs/d") == [".wh..wh..opq"]
    (place / "rw").mkdir()
    driver.prepare([one, two], str(place / "rw"))
    st = os.stat(place / "rw/upper")
    assert (oct(st.st_mode), st.st_uid) == ("0o40750", 4)
    recorder = Recorder(monkeypatch, place)
    os.close(driver.mount([one, two, one], str(place / "rw")))
    lower = [os.path.relpath(layer.path, place) + "/fs=ro+wh" for layer in (one, two)]
    assert recorded(recorder.calls()) == [
        ("none", str(place), "aufs", 0, f"br:rw/upper=rw:{':'.join(lower)},dio,{XINO},dirperm1")
    ]


def test_the_driver_shows_an_empty_stack(
    monkeypatch: pytest.MonkeyPatch, place: Path, driver: AufsDriver
) -> None:
    recorder = Recorder(monkeypatch, place)
    os.close(driver.mount([], None))
    assert recorded(recorder.calls()) == [
        ("none", str(place), "aufs", MS_RDONLY, f"br:layers/aufs/.empty=ro+wh,dio,{XINO},dirperm1")
    ]
    assert os.listdir(place / "layers/aufs/.empty") == []


@without
def test_a_kernel_without_aufs_is_named_where_a_store_was_made_with_it(
    place: Path, driver: AufsDriver
) -> None:
    layers = ingested(driver, tar(File("a", b"x")))
    with pytest.raises(Unsupported, match="this kernel has no aufs, with which the store was made") as caught:
        driver.mount(layers, None)
    assert "--root" in caught.value.hint
    with pytest.raises(OSError, match="No such device") as failed:
        aufs.mount_aufs(aufs.Branches(str(place), [os.path.relpath(f"{layers[0].path}/fs", place)], None))
    assert failed.value.errno == errno.ENODEV


def test_too_many_layers_and_id_maps_are_refused_in_words(driver: AufsDriver) -> None:
    (layer,) = ingested(driver, tar(File("a", b"x")))
    with pytest.raises(TooManyLayers, match=f"at most {MAX_LAYERS}"):
        driver.mount([layer] * (MAX_LAYERS + 1), None)
    maps = [userns.IdMap(0, FIRST, 65536)]
    namespace = userns.hold(maps, maps)
    try:
        with pytest.raises(Unsupported, match="user namespace") as caught:
            driver.mount([layer], None, namespace)
    finally:
        os.close(namespace)
    assert "--userns=host" in caught.value.hint


@without
def test_the_command_says_why_it_can_not_be_used(fresh: Pyrun) -> None:
    doctor = fresh.ok("storage", "doctor")
    assert re.search(r"^aufs\s+no\s+this kernel has no aufs\s+Use overlay", doctor, re.M)
    done = fresh("run", "--rm", "--storage", "aufs", "busybox", "true")
    assert done.returncode == 125
    assert "this kernel has no aufs" in done.stderr
    assert "overlay" in done.stderr


# --- the real thing


@real
def test_layers_deletions_and_changes_on_real_aufs(place: Path) -> None:
    with Rig(AufsDriver, str(place / "store")) as rig:
        stack = rig.stack(
            tar(Dir("d", 0o1777), File("d/old", b"old"), File("gone", b"x"), File("kept", b"kept")),
            tar(Whiteout("gone"), Opaque("d"), File("d/new", b"new")),
        )
        with rig.rootfs(stack) as root, rig.view(stack) as view:
            assert set(os.listdir(root.path)) == set(os.listdir(view.path)) == {"d", "kept"}
            assert os.listdir(f"{root.path}/d") == ["new"]
            with pytest.raises(OSError, match="Read-only"):
                Path(view.path, "x").touch()
            Path(root.path, "kept").write_text("changed")
            os.unlink(f"{root.path}/d/new")
            with pytest.raises(PermissionError):
                Path(root.path, ".wh.name").touch()
            assert root.changes() == [Change(b"d/new", "delete"), Change(b"kept", "modify")]
            stack.append(rig.ingest(root.commit()))
        with rig.view(stack) as view:
            assert os.listdir(f"{view.path}/d") == []
            assert Path(view.path, "kept").read_text() == "changed"


@real
def test_as_many_layers_as_declared_mount_on_real_aufs(place: Path) -> None:
    with Rig(AufsDriver, str(place / "store")) as rig:
        stack = rig.stack(*(tar(File(f"f{n}", b"x")) for n in range(MAX_LAYERS)))
        with rig.rootfs(stack) as root:
            assert len(os.listdir(root.path)) == MAX_LAYERS


@real
def test_a_container_runs_on_real_aufs(empty: Pyrun) -> None:
    empty.ok("pull", "-q", "--storage", "aufs", "busybox")
    assert empty.sh(
        "echo hello > /tmp/f && rm -rf /home && mkdir /home && ls -A /home && cat /tmp/f", "--userns=host"
    )
    done = empty("run", "--rm", "busybox", "true")
    assert done.returncode == 125
    assert "--userns=host" in done.stderr
    assert empty.records() == []


if KNOWN:  # else one skip a case would tell the same again and again

    class TestAufs(StorageConformance):
        driver = AufsDriver
        must_work = True

        @pytest.fixture
        def above(self, base: Path) -> str:
            return str(base)
