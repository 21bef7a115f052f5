"""What the overlay driver turns on, what it turns off, and what it does when the layers below are not the same files
any more."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrun.storage.contract import Env
from pyrun.testing import Rig
from pyrun.testing.tars import Dir, File, Link, tar
from pyrun_drivers.overlay import FEATURES, OverlayDriver
from support.pyrun import Pyrun

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")

LAYER = tar(
    Dir("d"),
    File("d/file", b"inside"),
    File("one", b"before"),
    Link("two", "one"),
    File("big", bytes(8 << 20)),
)


@pytest.fixture
def rig(base: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    options: dict[str, Any] = getattr(request, "param", {})
    with Rig(OverlayDriver, str(base / request.node.name.replace("/", "-")[:80]), options) as rig:
        yield rig


def test_everything_that_passes_its_trial_is_on_and_said(rig: Rig) -> None:
    assert rig.verdict.found["features"] == list(FEATURES)
    assert all(f"{name}=on" in rig.verdict.why for name in FEATURES)
    assert rig.caps.rename_dir
    assert rig.caps.hardlinks


@pytest.mark.parametrize("rig", [dict.fromkeys(FEATURES, "off")], indirect=True)
def test_everything_can_be_turned_off_and_is_denied_then(rig: Rig) -> None:
    assert rig.verdict.found["features"] == []
    assert not rig.caps.rename_dir
    assert not rig.caps.hardlinks
    with rig.rootfs([rig.ingest(LAYER)]) as root:
        with pytest.raises(OSError) as failed:
            os.rename(f"{root.path}/d", f"{root.path}/e")
        assert failed.value.errno == errno.EXDEV
        Path(f"{root.path}/one").write_bytes(b"after")
        assert Path(f"{root.path}/two").read_bytes() == b"before"


def test_a_change_of_mode_copies_no_content(rig: Rig) -> None:
    with rig.rootfs([rig.ingest(LAYER)]) as root:
        before = root.usage().bytes
        os.chmod(f"{root.path}/big", 0o600)
        assert root.usage().bytes - before < 1 << 20
        assert os.stat(f"{root.path}/big").st_size == 8 << 20


@pytest.mark.parametrize("rig", [{"metacopy": "off"}], indirect=True)
def test_without_metacopy_it_does(rig: Rig) -> None:
    with rig.rootfs([rig.ingest(LAYER)]) as root:
        before = root.usage().bytes
        os.chmod(f"{root.path}/big", 0o600)
        assert root.usage().bytes - before >= 8 << 20


def test_a_container_keeps_what_it_wrote_when_its_layers_were_made_again(rig: Rig) -> None:
    """With index=on the kernel remembers which files the lower layers are, and refuses others: ESTALE."""
    layer = rig.ingest(LAYER)
    rw = rig.prepare([layer])
    with rig.rootfs([layer], rw) as root:
        Path(f"{root.path}/one").write_bytes(b"after")
        os.rename(f"{root.path}/d", f"{root.path}/moved")
        os.chmod(f"{root.path}/big", 0o600)
    # So that the new layer gets other inodes than the old one had.
    os.rename(layer.path, f"{layer.path}.old")
    again = rig.ingest(LAYER)
    with rig.rootfs([again], rw) as root:
        assert Path(f"{root.path}/one").read_bytes() == b"after"
        assert Path(f"{root.path}/moved/file").read_bytes() == b"inside"
        assert not os.path.exists(f"{root.path}/d")
        assert os.stat(f"{root.path}/big").st_mode & 0o777 == 0o600
        assert os.stat(f"{root.path}/big").st_size == 8 << 20
        Path(f"{root.path}/later").write_bytes(b"new")
    with rig.rootfs([again], rw) as root:
        assert Path(f"{root.path}/later").read_bytes() == b"new"
    rig.driver.remove(f"{layer.path}.old")


def test_a_writable_layer_that_is_mounted_is_not_mounted_a_second_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyrun_drivers.overlay as module

    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
    layer = rig.ingest(LAYER)
    rw = rig.prepare([layer])
    with rig.rootfs([layer], rw) as root:
        with pytest.raises(OSError) as failed:
            rig.driver.mount([layer], rw)
        assert failed.value.errno == errno.EBUSY
        assert Path(f"{root.path}/one").read_bytes() == b"before"


def test_a_feature_that_is_asked_for_and_does_not_work_is_a_refusal(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: Any, **more: Any) -> str:
        return "the trial says no" if len(arguments) > 3 and "index" in arguments[3] else ""

    monkeypatch.setattr(OverlayDriver, "_trial", classmethod(lambda cls, *a, **m: refused(*a, **m)))
    given = {"volatile": False, "redirect_dir": "auto", "index": "on", "metacopy": "auto"}
    verdict = OverlayDriver.probe(Env(rig.root), given)
    assert not verdict.ok
    assert "index=on does not work here: the trial says no" in verdict.why
    assert "overlay.index=auto" in verdict.fix
    verdict = OverlayDriver.probe(Env(rig.root), {**given, "index": "auto"})
    assert verdict.ok
    assert not verdict.caps.hardlinks
    assert "hard links part when written" in verdict.why


def test_features_are_options_of_a_command(fresh: Pyrun) -> None:
    assert "index=on" in fresh.sh("grep ' / ' /proc/self/mountinfo")
    off = fresh.sh("grep ' / ' /proc/self/mountinfo", "--storage-opt", "overlay.index=off")
    assert "index=on" not in off
    done = fresh("run", "--rm", "--storage-opt", "overlay.index=maybe", "busybox", "true")
    assert done.returncode == 125
    assert "One of auto, on, off" in done.stderr
