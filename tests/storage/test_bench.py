"""`pyrun storage bench`: every figure is there, in every form, and nothing is left."""

from __future__ import annotations

import csv
import json
import os
import platform
import pwd
import re
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrun.lab import sample
from pyrun.lab.bench import Report, Result, measures
from pyrun.lab.chart import chart
from pyrun.lab.figures import as_csv, human, notes, table
from pyrun.lab.program import program
from support.account import as_account
from support.plugins import install
from support.pyrun import Pyrun, mounts_below, processes, wait_for

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a file system of its own")
MEASURES = [measure.key for measure in measures(sample.SIZES["tiny"], 20)]


def _loops() -> str:
    return subprocess.run(["losetup", "--all"], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def place(base: Path) -> Iterator[Path]:
    """A directory to measure in; afterwards nothing of the measuring is left in it, nor anywhere else."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir=base) as directory:
        os.chmod(directory, 0o755)
        (Path(directory) / "work").mkdir()
        yield Path(directory)
        assert os.listdir(f"{directory}/work") == []
        assert mounts_below(Path(directory)) == []
        assert processes(directory) == []
        assert directory not in _loops()


@pytest.fixture
def pyrun(place: Path) -> Pyrun:
    return Pyrun(place / "store", place / "state")


def _bench(pyrun: Pyrun, place: Path, *words: str, **more: Any) -> Any:
    fixed = ["--root", str(place / "work"), "--size", "tiny", "-n", "1", "--parallel", "3"]
    return pyrun("storage", "bench", *fixed, *words, timeout=110, **more)


@root_only
def test_two_drivers_in_every_form(pyrun: Pyrun, place: Path) -> None:
    sheet, picture = place / "figures.csv", place / "figures.svg"
    done = _bench(pyrun, place, "overlay", "vfs", "-n", "2", "--csv", str(sheet), "--chart", str(picture))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["MEASURE", "OVERLAY", "VFS"]
    assert lines[len(MEASURES) + 1] == ""
    assert "Medians of 2 rounds" in done.stdout
    assert re.search(r"^unpack the image +[\d.]+ m?s +[\d.]+ m?s \([\d.]+x\)$", done.stdout, re.M)
    assert re.search(r"^3 parallel starts +[\d.]+ m?s +[\d.]+ m?s \([\d.]+x\)$", done.stdout, re.M)

    rows = list(csv.DictReader(sheet.open()))
    kept = [
        row for row in rows if row["measure"] != "page_cache"
    ]  # others may have let go of memory meanwhile
    expected = {
        (d, m, r) for d in ("overlay", "vfs") for m in MEASURES for r in ("1", "2") if m != "page_cache"
    }
    assert {(row["driver"], row["measure"], row["round"]) for row in kept} == expected
    assert len(kept) == len(expected)
    assert all(float(row["value"]) > 0 for row in rows)
    assert {row["file_system"] for row in rows} == {"ext4"}

    root = ElementTree.parse(picture).getroot()
    assert root.get("role") == "img"
    text = " ".join(root.itertext())
    assert "Unpack the image" in text
    assert "overlay" in text
    assert not (place / "store").exists()


@root_only
def test_what_copying_costs_shows(pyrun: Pyrun, place: Path) -> None:
    """The figures are of the drivers, not of something else: a copy of an image is slower than a mount of it."""
    done = _bench(pyrun, place, "overlay", "vfs", "--size", "small", "--format", "json")
    assert done.returncode == 0, done.stderr
    overlay, vfs = (
        {key: measure["Median"] for key, measure in driver["Measures"].items()}
        for driver in json.loads(done.stdout)["Drivers"]
    )
    assert vfs["mount"] > 5 * overlay["mount"]
    assert vfs["first_byte"] > overlay["first_byte"]
    assert vfs["copy_up_large"] < overlay["copy_up_large"]


@root_only
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_other_file_systems_by_request(pyrun: Pyrun, place: Path, kind: str) -> None:
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"mkfs.{kind} is not installed")
    done = _bench(pyrun, place, "overlay", "--fs", kind, "--format", "json")
    assert done.returncode == 0, done.stderr
    (driver,) = json.loads(done.stdout)["Drivers"]
    assert driver["FileSystem"] == kind
    assert driver["Measures"]["unpack"]["Median"] > 0


_PICKY = """
import os
from pyrun.storage.contract import Verdict
from pyrun.storage.hookspecs import hookimpl
from pyrun_drivers.overlay import OverlayDriver

class Picky(OverlayDriver):
    name = "picky"

    @classmethod
    def probe(cls, env, options):
        for line in open("/proc/self/mountinfo"):
            fields = line.split()
            if env.root.startswith(fields[4] + "/") and "- xfs" in line:
                return super().probe(env, options)
        return Verdict(False, "this is no xfs")

class Never(OverlayDriver):
    name = "never"

    @classmethod
    def probe(cls, env, options):
        return Verdict(False, "not in this life")

@hookimpl
def pyrun_storage_drivers():
    return [Picky, Never]
"""


@root_only
@pytest.mark.skipif(not shutil.which("mkfs.xfs"), reason="mkfs.xfs is not installed")
def test_a_driver_gets_the_file_system_it_wants_and_what_works_nowhere_is_left_out(
    pyrun: Pyrun, place: Path, tmp_path: Path
) -> None:
    install(tmp_path, "picky", _PICKY)
    pyrun.env |= {"PYTHONPATH": str(tmp_path), "PYRUN_PLUGINS": "overlay,picky"}
    done = _bench(pyrun, place, "--format", "json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {d["Driver"]: d["FileSystem"] for d in found["Drivers"]} == {"overlay": "ext4", "picky": "xfs"}
    said = "\n".join(found["Notes"])
    assert "picky ran on xfs: on ext4: this is no xfs" in said
    assert "left out: never can't be used here (on ext4: not in this life" in said

    named = _bench(pyrun, place, "never")
    assert named.returncode == 1
    assert "not in this life" in named.stderr


def test_in_a_directory_it_says_what_is_missing(pyrun: Pyrun, place: Path) -> None:
    done = _bench(pyrun, place, "vfs", "--fs", "none")
    assert done.returncode == 0, done.stderr
    assert "nothing is read cold, and the page cache is not measured" in done.stdout
    assert re.search(r"^page cache of 2 containers +-$", done.stdout, re.M)
    assert re.search(r"^3 parallel starts +[\d.]+ m?s$", done.stdout, re.M)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an account for the test")
def test_an_ordinary_user_measures_in_a_directory(account: str, installation: Path, place: Path) -> None:
    entry = pwd.getpwnam(account)
    os.chown(place / "work", entry.pw_uid, entry.pw_gid)
    user = Pyrun(place / "store", place / "state", prefix=as_account(account), env={"HOME": str(place)})
    user.command = str(installation / "bin/pyrun")
    done = _bench(user, place, "overlay", "--format", "json")
    assert done.returncode == 0, done.stderr
    (driver,) = json.loads(done.stdout)["Drivers"]
    assert driver["FileSystem"] == "directory"
    assert driver["Measures"]["starts"]["Median"] > 0
    refused = _bench(user, place, "overlay", "--fs", "ext4")
    assert refused.returncode == 1
    assert "--fs none" in refused.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--size", "huge"], 125, "One of tiny, small, medium."),
        (["--fs", "zfs"], 125, "One of ext4, btrfs, xfs, none."),
        (["--chart", "x.gif"], 125, "FILE.svg or FILE.png"),
        (["--csv", "/no/such/dir/x.csv"], 1, "can't write /no/such/dir/x.csv"),
        (["zfs"], 1, "there is no storage driver zfs"),
        (["overlay", "--storage-opt", "vfs.a=1"], 125, "none of the drivers to measure"),
        (["-n", "0"], 125, "--rounds 0 is not between 1 and 1000"),
        (["--parallel", "1001"], 125, "--parallel 1001 is not"),
    ],
)
def test_a_mistake_shows_before_anything_is_measured(
    pyrun: Pyrun, place: Path, words: list[str], code: int, said: str
) -> None:
    done = _bench(pyrun, place, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


_FAILING = """
from pyrun.storage.hookspecs import hookimpl
from pyrun_drivers.vfs import VfsDriver

class Failing(VfsDriver):
    name = "failing"

    def mount(self, layers, rw, idmap=None):
        if layers:
            raise KeyError("lost")
        return super().mount(layers, rw, idmap)

@hookimpl
def pyrun_storage_drivers():
    return [Failing]
"""


@root_only
def test_a_failure_in_a_measurement_is_told_and_cleared_up(pyrun: Pyrun, place: Path, tmp_path: Path) -> None:
    install(tmp_path, "failing", _FAILING)
    pyrun.env["PYTHONPATH"] = str(tmp_path)
    done = _bench(pyrun, place, "failing")
    assert done.returncode == 1
    assert "lost" in done.stderr
    assert "Traceback" not in done.stderr


@root_only
def test_where_no_file_system_can_be_mounted_it_says_what_else_there_is(
    pyrun: Pyrun, place: Path, tmp_path: Path
) -> None:
    losetup = tmp_path / "losetup"
    losetup.write_text("#!/bin/sh\necho 'losetup: cannot find an unused loop device' >&2; exit 1\n")
    losetup.chmod(0o755)
    pyrun.env["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    done = _bench(pyrun, place, "overlay")
    assert done.returncode == 1
    assert "cannot find an unused loop device" in done.stderr
    assert "--fs none" in done.stderr


@root_only
def test_sigterm_leaves_nothing(pyrun: Pyrun, place: Path) -> None:
    work = place / "work"
    process = pyrun.start("storage", "bench", "overlay", "--root", str(work), "--size", "small",
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        wait_for(lambda: list(work.glob(".bench-*/disk")), "there is a disk to measure on")
    finally:
        process.terminate()
    assert process.wait(60) == 143


# --- figures and pictures


def _report() -> Report:
    report = Report("tiny", 3, measures(sample.SIZES["tiny"], 20), [])
    slow, fast = Result("slow & <odd>", "ext4"), Result("fast", "btrfs")
    slow.values = {"unpack": [3.0, 1.0, 2.0], "page_cache": [124.4, 120.0, 128.0]}
    fast.values = {"unpack": [0.001, 0.001, 0.001]}
    report.results = [slow, fast]
    report.notes.append("fast ran on btrfs")
    return report


def test_figures_have_three_digits_and_a_unit() -> None:
    assert [human(value, "s") for value in (12.345, 1.2345, 0.12345, 0.0012345, 0.0000012)] == [
        "12.3 s", "1.23 s", "123 ms", "1.23 ms", "1.20 µs",
    ]  # fmt: skip
    assert human(123.6, "MiB") == "124 MiB"


def test_the_table_has_medians_and_ratios_to_the_first_driver() -> None:
    rows = {row[0]: row[1:] for row in table(_report())}
    assert rows["unpack the image"] == ["2.00 s", "1.00 ms (<0.01x)"]
    assert rows["page cache of 2 containers"] == ["124 MiB", "-"]
    assert "fast ran on btrfs" in notes(_report())
    assert as_csv(_report()).splitlines()[1].split(",")[4:] == ["unpack", "s", "1", "3"]


def test_the_picture_is_well_formed_says_all_in_words_and_has_a_bar_a_figure() -> None:
    picture = chart(_report())
    root = ElementTree.fromstring(picture.svg())
    space = "{http://www.w3.org/2000/svg}"
    description = root.findtext(f"{space}desc") or ""
    assert "unpack the image: slow & <odd> 2.00 s, fast 1.00 ms." in description
    assert root.findtext(f"{space}title")
    labels = {root.get("aria-labelledby")}
    assert labels == {"title description"}
    bars = [rect for rect in picture.rects if rect[4] not in ("#eef1f4",)]
    assert len(bars) == 3
    longest, shortest = (max(bars, key=lambda bar: bar[2]), min(bars, key=lambda bar: bar[2]))
    assert longest[2] / shortest[2] > 100
    for x, y, width, height, _ in picture.rects:
        assert 0 <= x <= x + width <= picture.width
        assert 0 <= y <= y + height <= picture.height


def test_a_png_is_drawn_where_pillow_is_installed_and_asked_for_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pyrun.errors import Unsupported

    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(Unsupported, match="Pillow") as raised:
        chart(_report()).png()
    assert "pip install 'pyrun[bench]'" in raised.value.hint
    monkeypatch.undo()
    image = pytest.importorskip("PIL.Image", reason="needs Pillow (pip install pillow)")
    import io

    picture = image.open(io.BytesIO(chart(_report()).png()))
    picture.load()
    assert picture.format == "PNG"
    assert picture.size[0] == 2 * 960
    assert len({pixel for _, pixel in picture.getcolors(1 << 24)}) > 5


# --- what is measured with


def test_the_sample_is_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths = sample.write(str(tmp_path / name), sample.SIZES["tiny"])
        contents.append([Path(path).read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert len(contents[0]) == 3


def test_the_smallest_program_exits_with_0(tmp_path: Path) -> None:
    code = program()
    if code is None:
        pytest.skip(f"needs a program for {platform.machine()}")
    path = tmp_path / "exit"
    path.write_bytes(code)
    path.chmod(0o755)
    assert subprocess.run([path], timeout=10).returncode == 0
