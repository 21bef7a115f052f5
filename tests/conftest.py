"""Fixtures of the tests that drive the whole engine: a registry with real images, stores, and the command."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.storage.contract import Env
from pyrun.storage.store import open_store
from support.account import account, installation
from support.pyrun import Pyrun, copy_store, mounts_below, processes
from support.registry import Registry, registry

__all__ = ["account", "installation", "registry"]

# A registry is asked again after 2 s, 4 s, ...: of tests, only those that measure that wait so long.
os.environ.setdefault("PYRUN_RETRY_DELAY", "0.01")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def base() -> Iterator[Path]:
    """A directory on the disk that ordinary users may pass through; overlayfs can't be stacked on itself."""
    with tempfile.TemporaryDirectory(prefix="pyrun-test-", dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def mirror(registry: Registry, base: Path) -> Path:
    """A registries.conf by which docker.io is the test's own registry, which has busybox and redis."""
    subprocess.run(
        [str(REPOSITORY / "scripts/make-images"), "--registry", registry.host],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return registry.registries_conf(base / "registries.conf")


@pytest.fixture(scope="session")
def pulled(mirror: Path, base: Path) -> Pyrun:
    """A store with busybox and redis. Tests that change images take `fresh` instead."""
    pyrun = Pyrun(base / "store", base / "state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
    pyrun.ok("pull", "-q", "busybox")
    pyrun.ok("pull", "-q", "redis")
    return pyrun


@pytest.fixture
def pyrun(pulled: Pyrun) -> Iterator[Pyrun]:
    """The command with busybox and redis at hand; afterwards nothing of its containers may be left."""
    yield pulled
    for container in pulled.ok("ps", "-aq", "--no-trunc").split():
        pulled("rm", "-f", container)
    assert pulled.records() == []
    assert mounts_below(pulled.root) == []
    assert processes(str(pulled.root)) == []


@pytest.fixture(scope="session")
def small(mirror: Path, base: Path) -> Pyrun:
    """A store with busybox alone, to be copied."""
    pyrun = Pyrun(base / "small", base / "small-state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
    pyrun.ok("pull", "-q", "busybox")
    return pyrun


@pytest.fixture(scope="session")
def opened(base: Path) -> Path:
    """A store that was opened once, to be copied: the trials of its driver need not be made for each test."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount overlays")
    root = base / "opened"
    open_store(Env(str(root)), "", {})
    return root


@pytest.fixture
def fresh(base: Path, mirror: Path, small: Pyrun) -> Iterator[Pyrun]:
    """The command with busybox at hand, in a store that the test may do with as it likes."""
    with tempfile.TemporaryDirectory(prefix="fresh-", dir=base) as directory:
        root = Path(directory) / "store"
        copy_store(small.root, root)
        yield Pyrun(root, Path(directory) / "state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
        assert processes(str(root)) == []
        assert mounts_below(root) == []


@pytest.fixture
def empty(base: Path, mirror: Path) -> Iterator[Pyrun]:
    """The command with a store that does not exist yet."""
    with tempfile.TemporaryDirectory(prefix="empty-", dir=base) as directory:
        root = Path(directory) / "store"
        yield Pyrun(root, Path(directory) / "state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
        assert processes(str(root)) == []
        assert mounts_below(root) == []
