"""The distribution builds, and an installed wheel works without the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path) -> str:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environ,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that was built from that sdist.

    Without isolation the build backend is the one of the test environment: nothing is downloaded.
    """
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel, and the test environment's dependencies in reach."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    (wheel,) = built.glob("*.whl")
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, wheel, cwd=folder)
    # A plain path in a .pth file adds the directory, not what its own .pth files add: the editable install of
    # the source tree stays out of sight.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


def test_the_wheel_has_the_engine_the_drivers_and_the_licence_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"pyrun/engine/__init__.py", "pyrun/py.typed", "pyrun_drivers/overlay.py"} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pyrun", "pyrun_drivers"}


def test_the_source_distribution_can_be_tested(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "runtime/pyrun/engine/__init__.py",
        "plugins/pyrun_drivers/overlay.py",
    }
    assert wanted | {"scripts/test", "scripts/packages.txt", "tests/packaging/test_distribution.py"} <= names
    assert not [name for name in names if ".venv" in name or name.endswith(".pyc")]


def test_an_installed_wheel_knows_its_version_and_runs_from_its_own_files(
    installed: Path, tmp_path: Path
) -> None:
    assert "0.1.0" in run(installed / "bin" / "pyrun", "version", cwd=tmp_path)
    where = run(installed / "bin" / "python", "-c", "import pyrun; print(pyrun.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)


def test_an_installed_wheel_finds_the_overlay_driver_through_its_entry_point(
    installed: Path, tmp_path: Path
) -> None:
    store = ["--root", tmp_path / "store", "--state", tmp_path / "state"]
    report = run(installed / "bin" / "pyrun", *store, "storage", "doctor", cwd=tmp_path)
    assert [line for line in report.splitlines() if line.split()[:1] == ["overlay"]]
