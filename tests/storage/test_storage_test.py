"""`pyrun storage test`: the conformance suite on any installed driver, from the command line."""

from __future__ import annotations

import os
import pwd
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.account import as_account
from support.plugins import install
from support.pyrun import Pyrun, mounts_below

# Vfs, but what it shows read-only can be written.
_LEAKY = """
from pyrun.kernel import mount as m
from pyrun.storage.hookspecs import hookimpl
from pyrun_drivers.vfs import VfsDriver

class Leaky(VfsDriver):
    name = "leaky-vfs"

    def mount(self, layers, rw, idmap=None):
        fd = super().mount(layers, rw, idmap)
        if rw is None:
            m.mount_setattr(fd, clear=m.MOUNT_ATTR_RDONLY)
        return fd

@hookimpl
def pyrun_storage_drivers():
    return [Leaky]
"""
# An interpreter in which pytest is not installed.
_WITHOUT = "import sys\nsys.modules['pytest'] = None\n"

FEW = "test_04 or test_06 or test_07"


@pytest.fixture
def place(base: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="suite-", dir=base) as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)
        assert mounts_below(Path(directory)) == []


@pytest.fixture
def pyrun(place: Path) -> Pyrun:
    """The command with a store that does not exist; none of these commands should make one."""
    return Pyrun(place / "store", place / "state")


def _counts(output: str, name: str) -> list[int]:
    last = output.splitlines()[-1]
    found = re.fullmatch(rf"{name}: (\d+) passed, (\d+) failed, (\d+) skipped", last)
    assert found, output
    return [int(number) for number in found.groups()]


def test_the_suite_runs_below_the_root_that_is_given_and_leaves_nothing(pyrun: Pyrun, place: Path) -> None:
    done = pyrun("storage", "test", "overlay", "--root", str(place / "own"), "-v", "-k", FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    passed, failed, skipped = _counts(done.stdout, "overlay")
    assert passed >= 3
    assert (failed, skipped) == (0, 0)
    assert re.search(r"test_07\w* PASSED", done.stdout)
    assert list(place.iterdir()) == []


def test_without_a_root_of_its_own_it_runs_where_the_store_would_be(pyrun: Pyrun) -> None:
    seen = pyrun("storage", "test", "vfs", "-q", "-k", "test_04", "--storage-opt", "vfs.nope=1")
    assert seen.returncode == 125
    assert "vfs has no option 'nope'" in seen.stderr
    pyrun.root.mkdir()
    (pyrun.root / "mine").touch()
    done = pyrun("storage", "test", "vfs", "-q", "-k", "test_04")
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(pyrun.root) == ["mine"]


def test_a_drivers_fault_fails_the_case_that_looks_for_it(pyrun: Pyrun, tmp_path: Path) -> None:
    install(tmp_path, "leaky", _LEAKY)
    pyrun.env["PYTHONPATH"] = str(tmp_path)
    done = pyrun("storage", "test", "leaky-vfs", "-q", "-k", FEW)
    assert done.returncode == 1
    passed, failed, _ = _counts(done.stdout, "leaky-vfs")
    assert passed >= 1
    assert failed >= 1
    assert re.search(r"FAILED test_leakyvfs.py::TestLeakyVfs::test_07", done.stdout)
    stopped = pyrun("storage", "test", "leaky-vfs", "-x", "-k", "test_07 or test_08")
    assert _counts(stopped.stdout, "leaky-vfs")[:2] == [0, 1]


def test_chaos_adds_its_cases(pyrun: Pyrun) -> None:
    words = ["storage", "test", "overlay", "-q", "-k", "Chaos and prepare and placed"]
    assert _counts(pyrun(*words).stdout, "overlay") == [0, 0, 0]
    done = pyrun(*words, "--chaos")
    assert done.returncode == 0, done.stdout + done.stderr
    assert _counts(done.stdout, "overlay")[0] >= 1


def test_options_reach_the_driver_under_test_and_no_other(pyrun: Pyrun) -> None:
    done = pyrun(
        "storage", "test", "overlay", "-q", "-k", "test_04", "--storage-opt", "overlay.volatile=true"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    done = pyrun("storage", "test", "overlay", "--storage-opt", "vfs.x=1")
    assert done.returncode == 125
    assert "not for the driver under test" in done.stderr


def test_the_callers_own_pytest_settings_do_not_matter(pyrun: Pyrun, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('not mine')\n")
    done = pyrun("storage", "test", "vfs", "-q", "-k", "test_04", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_selection_of_nothing_is_no_success(pyrun: Pyrun) -> None:
    done = pyrun("storage", "test", "vfs", "-q", "-k", "no_case_has_this_name")
    assert done.returncode == 1
    assert _counts(done.stdout, "vfs") == [0, 0, 0]


def test_an_unknown_driver_lists_those_there_are(pyrun: Pyrun, place: Path) -> None:
    done = pyrun("storage", "test", "zfs")
    assert done.returncode == 1
    assert "no storage driver zfs" in done.stderr
    assert re.search(r"Installed drivers: .*overlay.*vfs", done.stderr)
    assert list(place.iterdir()) == []


def test_a_driver_that_can_not_be_used_says_why_and_what_to_do(pyrun: Pyrun, tmp_path: Path) -> None:
    install(
        tmp_path,
        "acme",
        _LEAKY.replace("leaky-vfs", "acme")
        + "\nfrom pyrun.storage.contract import Verdict\n"
        + "Leaky.probe = classmethod(lambda *a: Verdict(False, 'there is no ZFS here', 'install ZFS'))\n",
    )
    pyrun.env["PYTHONPATH"] = str(tmp_path)
    done = pyrun("storage", "test", "acme")
    assert done.returncode == 1
    assert "there is no ZFS here\ninstall ZFS" in done.stderr
    assert done.stdout == ""


def test_without_pytest_it_says_what_to_install(pyrun: Pyrun, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT)
    pyrun.env["PYTHONPATH"] = str(tmp_path)
    done = pyrun("storage", "test", "vfs")
    assert done.returncode == 1
    assert "needs pytest" in done.stderr
    assert "pip install 'pyrun[testing]'" in done.stderr


def test_a_root_that_can_not_be_made_is_named(pyrun: Pyrun, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = pyrun("storage", "test", "vfs", "--root", str(tmp_path / "file" / "below"))
    assert done.returncode == 1
    assert f"can't work in {tmp_path}/file/below: Not a directory" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an account for the test")
def test_an_ordinary_user_runs_it_in_a_user_namespace(account: str, installation: Path, place: Path) -> None:
    entry = pwd.getpwnam(account)
    os.chown(place, entry.pw_uid, entry.pw_gid)
    user = Pyrun(place / "store", place / "state", prefix=as_account(account), env={"HOME": str(place)})
    user.command = str(installation / "bin/pyrun")
    done = user("storage", "test", "overlay", "-q", "-k", FEW)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _counts(done.stdout, "overlay")[0] >= 3
