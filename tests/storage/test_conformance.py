"""The conformance suite on the built-in drivers, as root: each on the file system that it is for."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from pyrun.storage.plugins import Plugins
from pyrun.testing import StorageConformance

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

DRIVERS = {found.name: found.driver for found in Plugins().drivers() if found.driver is not None}

_FUSE = [
    pytest.mark.skipif(not shutil.which("fuse-overlayfs"), reason="fuse-overlayfs is not installed"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse"),
]
_BTRFS = pytest.mark.skipif(not shutil.which("mkfs.btrfs"), reason="mkfs.btrfs is not installed")


def test_every_built_in_driver_is_here() -> None:
    assert set(DRIVERS) == {"aufs", "btrfs", "erofs", "fuse-overlayfs", "overlay", "vfs"}


class _OnDisk(StorageConformance):
    must_work = True

    @pytest.fixture
    def above(self, base: Path) -> str:
        return str(base)


class TestOverlay(_OnDisk):
    driver = DRIVERS["overlay"]


@pytest.mark.long
class TestOverlayBySecondRoute(TestOverlay):
    """As on kernels that take layers as strings only."""

    @pytest.fixture(autouse=True)
    def route(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYRUN_OVERLAY_ROUTE", "2")


@pytest.mark.long
class TestOverlayByThirdRoute(TestOverlay):
    """As on kernels before 6.7."""

    @pytest.fixture(autouse=True)
    def route(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYRUN_OVERLAY_ROUTE", "3")


@pytest.mark.long
class TestOverlayWithoutFeatures(TestOverlay):
    options: ClassVar[Mapping[str, str]] = {"redirect_dir": "off", "index": "off", "metacopy": "off"}


class TestErofs(_OnDisk):
    driver = DRIVERS["erofs"]


class TestFuseOverlayfs(_OnDisk):
    pytestmark = _FUSE
    driver = DRIVERS["fuse-overlayfs"]


class TestVfs(_OnDisk):
    driver = DRIVERS["vfs"]


@pytest.fixture(scope="module")
def btrfs(base: Path) -> Iterator[str]:
    """A btrfs in a file, with quotas."""
    above = Path(tempfile.mkdtemp(prefix="btrfs-", dir=base))
    image, place = above / "image", above / "mounted"
    with image.open("wb") as file:
        file.truncate(2 << 30)
    place.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", image], check=True)
    subprocess.run(["mount", "-t", "btrfs", "-o", "loop", image, place], check=True)
    try:
        subprocess.run(["btrfs", "quota", "enable", place], check=True, stdout=subprocess.DEVNULL)
        yield str(place)
        assert sorted(os.listdir(place)) == []
    finally:
        subprocess.run(["umount", place], check=True)
        image.unlink()


class TestBtrfs(_OnDisk):
    pytestmark = _BTRFS
    driver = DRIVERS["btrfs"]

    @pytest.fixture
    def above(self, btrfs: str) -> str:
        return btrfs
