"""What is this driver's own; what every driver must do is in test_conformance.py."""

import errno
import os

import pytest
from pyrun.storage.contract import Env
from pyrun.storage.plugins import Plugins
from pyrun.testing import Rig
from pyrun.testing.tars import Dir, File, Whiteout, tar

from pyrun_driver_example.driver import ExampleDriver


def test_the_engine_finds_it_by_its_entry_point():
    found = {f.name: f for f in Plugins().drivers()}["example"]
    assert found.driver is ExampleDriver
    assert found.distribution.startswith("pyrun-driver-example ")


def test_a_layer_is_the_whole_tree_below_it_too(tmp_path):
    with Rig(ExampleDriver, str(tmp_path)) as rig:
        below, above = rig.stack(
            tar(File("kept", b"1"), File("gone"), Dir("d")), tar(Whiteout("gone"), File("d/new"))
        )
        assert sorted(os.listdir(f"{below.path}/tree")) == ["d", "gone", "kept"]
        assert sorted(os.listdir(f"{above.path}/tree")) == ["d", "kept"]
        assert os.listdir(f"{above.path}/tree/d") == ["new"]


def test_a_container_has_a_copy_of_its_own(tmp_path):
    with Rig(ExampleDriver, str(tmp_path)) as rig:
        (layer,) = rig.stack(tar(File("a", b"as it was")))
        with rig.rootfs([layer]) as root, open(f"{root.path}/a", "w") as file:
            file.write("changed")
        with open(f"{layer.path}/tree/a") as file:
            assert file.read() == "as it was"


def test_a_read_only_view_refuses_writes(tmp_path):
    with Rig(ExampleDriver, str(tmp_path)) as rig, rig.view(rig.stack(tar(File("a")))) as root:
        with pytest.raises(OSError) as raised:
            open(f"{root.path}/b", "w")
        assert raised.value.errno == errno.EROFS


def test_a_probe_says_why_it_refuses_and_leaves_nothing(tmp_path):
    verdict = ExampleDriver.probe(Env(str(tmp_path / "missing")), {})
    assert not verdict.ok
    assert "No such file or directory" in verdict.why
    (tmp_path / "staging").mkdir()
    assert ExampleDriver.probe(Env(str(tmp_path)), {}).ok
    assert os.listdir(tmp_path / "staging") == []
