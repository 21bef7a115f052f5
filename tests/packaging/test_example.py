"""A stranger's driver, all the way: built, installed beside pyrun's wheel, listed, held to the contract, and used."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.cli.catalog import CATALOG, GroupEntry
from pyrun.cli.group import load
from pyrun.cli.session import Session
from pyrun.storage.contract import Caps
from support.pyrun import Pyrun, mounts_below, processes, wait_for

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins/example"


def run(*command: object, cwd: Path, timeout: float = 110) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Both packages' wheels, built by what the test environment has: nothing is downloaded."""
    out = tmp_path_factory.mktemp("wheels")
    for project in (ROOT, EXAMPLE):
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", out, project, cwd=out)
    return sorted(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with both, and the test environment's other packages in reach."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run(*pip, *wheels, cwd=folder)
    # A plain path in a .pth file adds the directory, and not the editable installation that lies in it.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def pyrun(installed: Path, base: Path, mirror: Path) -> Iterator[Pyrun]:
    """The installed command with a store of its own."""
    found = Pyrun(base / "stranger", base / "stranger-state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
    found.command = str(installed / "bin/pyrun")
    yield found
    for container in found.ok("ps", "-aq", "--no-trunc").split():
        found("rm", "-f", container)
    assert found.records() == []
    assert mounts_below(found.root) == []
    assert processes(str(found.root)) == []


def test_the_wheel_has_the_driver_and_names_it(wheels: list[Path]) -> None:
    (wheel,) = [path for path in wheels if path.name.startswith("pyrun_driver_example-")]
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert archive.read(points).decode().split() == [
            "[pyrun]", "example", "=", "pyrun_driver_example.plugin",
        ]  # fmt: skip
    assert {name.split("/")[0] for name in names} == {
        "pyrun_driver_example",
        "pyrun_driver_example-0.3.0.dist-info",
    }


GUIDE = (ROOT / "docs/writing-a-driver.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.M | re.S)


def test_the_guide_shows_this_package_as_it_is() -> None:
    source = EXAMPLE / "src/pyrun_driver_example"
    shown = _blocks("python")
    assert shown[0] == (source / "driver.py").read_text()
    assert shown[1] == (source / "plugin.py").read_text()
    assert shown[2] == (EXAMPLE / "tests/test_conformance.py").read_text()
    assert _blocks("toml")[0] in (EXAMPLE / "pyproject.toml").read_text()
    code = [line for line in shown[0].splitlines() if line and not line.startswith('"""')]
    assert len(code) <= 30


def test_the_guides_commands_are_commands() -> None:
    lines = [line for block in _blocks("console") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("pyrun ")]
    assert len(commands) > 7
    for words in commands:
        if words[0] == "--root":
            words = words[2:]
        table = CATALOG
        while isinstance(entry := table[words[0]], GroupEntry):
            table, words = entry.entries, words[1:]
        load(words[0], entry).make_context(words[0], words[1:], obj=Session())


def test_the_guide_names_every_capability_and_hook_and_every_case_class() -> None:
    for name in Caps().as_dict():
        assert f"| `{name}` |" in GUIDE
    for hook in ("pyrun_storage_drivers", "pyrun_storage_choose", "pyrun_storage_event"):
        assert hook in GUIDE
    for target in re.findall(r"\]\((\.\./[^)]+)\)", GUIDE):
        assert (ROOT / "docs" / target).exists(), target


def test_it_is_listed_beside_the_built_in_drivers(pyrun: Pyrun) -> None:
    doctor = [json.loads(line) for line in pyrun.ok("storage", "doctor", "--format", "json").splitlines()]
    example = next(found for found in doctor if found["Driver"] == "example")
    assert example["State"] == "usable"
    assert example["Distribution"] == "pyrun-driver-example 0.3.0"
    assert example["Caps"]["chained"] is True
    assert {"overlay", "vfs", "erofs", "btrfs", "fuse-overlayfs", "aufs"} <= {f["Driver"] for f in doctor}
    assert re.search(
        r"^example +pyrun-driver-example +0\.3\.0 +storage_drivers +loaded", pyrun.ok("plugins"), re.M
    )


def test_the_conformance_suite_in_three_lines_is_three_lines() -> None:
    lines = (EXAMPLE / "tests/test_conformance.py").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0] == "from pyrun.testing import StorageConformance"


@pytest.mark.timeout(600)
def test_its_own_tests_pass_in_the_environment_where_it_is_installed(installed: Path, tmp_path: Path) -> None:
    """The suite in three lines among them, as its author runs it."""
    command = [installed / "bin/python", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    place = ["-c", EXAMPLE / "pyproject.toml", "--rootdir", EXAMPLE, EXAMPLE / "tests"]
    said = run(*command, "-k", "test_driver or test_0 or test_1 or test_2", *place, cwd=tmp_path, timeout=500)
    assert re.search(r"\d+ passed", said)


@pytest.mark.timeout(600)
def test_it_passes_the_conformance_suite_by_name(pyrun: Pyrun, base: Path) -> None:
    done = pyrun("storage", "test", "example", "-q", "--root", str(base / "stranger-suite"), timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.fullmatch(r"example: (\d+) passed, 0 failed, \d+ skipped", done.stdout.splitlines()[-1])
    assert found
    assert int(found[1]) > 100


def test_redis_runs_on_it(pyrun: Pyrun) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def cli(*words: str) -> str:
        command = ["redis-cli", "-h", "127.0.0.1", "-p", port, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()

    process = pyrun.start(
        "run", "--storage", "example", "--name", "redis", "--network", "host", "redis",
        "--bind", "127.0.0.1", "--port", port,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: cli("PING") == "PONG", "redis answers", 60)
        assert cli("SET", "key", "value") == "OK"
        assert cli("GET", "key") == "value"
        mounted = Path(f"/proc/{pyrun.pid_of('redis')}/mountinfo").read_text().splitlines()[0]
        assert " / / " not in mounted  # a part of the store's file system, as this driver mounts it
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    assert process.returncode == 0
    assert json.loads((pyrun.root / "storage.json").read_text())["driver"] == "example"
    assert {layer.parent.name for layer in (pyrun.root / "layers").glob("*/[!.]*")} == {"example"}
    # A store that was made with it stays with it, and says so where it is gone.
    pyrun.env["PYRUN_PLUGINS"] = "pyrun"
    done = pyrun("run", "--rm", "redis", "true")
    assert done.returncode == 125
    assert "'example', with which this store was made, is left out by PYRUN_PLUGINS" in done.stderr
    del pyrun.env["PYRUN_PLUGINS"]
    assert pyrun.ok("run", "--rm", "redis", "redis-server", "--version").startswith("Redis server v=")
