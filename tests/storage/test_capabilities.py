"""What a driver says of itself changes what the engine does: one test a flag."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from support.pyrun import Pyrun
from support.registry import Registry, tar

# Drivers of tests: overlay with one more property, installed as a stranger's package would be.
_HEAD = """
import os, io
from pyrun.storage.contract import Caps, Verdict
from pyrun.storage.hookspecs import hookimpl
from pyrun_drivers.overlay import OverlayDriver

class Mine(OverlayDriver):
    name = "mine"
    @classmethod
    def probe(cls, env, options):
        verdict = super().probe(env, options)
        CHANGES
        return verdict
MORE

@hookimpl
def pyrun_storage_drivers():
    return [Mine]
"""


def _install(directory: Path, pyrun: Pyrun, changes: str, more: str = "") -> None:
    code = _HEAD.replace("CHANGES", changes).replace("MORE", more)
    (directory / "mine_driver.py").write_text(code)
    info = directory / "mine_driver-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-driver\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyrun]\nmine = mine_driver\n")
    pyrun.env["PYTHONPATH"] = str(directory)


def test_a_deeper_image_than_the_driver_mounts_is_refused_before_anything_is_pulled(
    empty: Pyrun, registry: Registry, tmp_path: Path
) -> None:
    _install(tmp_path, empty, "verdict.caps.max_layers = 2")
    registry.push_image("deep/three", "latest", [tar({f"f{n}": os.urandom(1000)}) for n in range(3)])
    done = empty("pull", "--storage", "mine", "deep/three")
    assert done.returncode == 1
    assert "3 layers" in done.stderr
    assert "at most 2" in done.stderr
    assert not list(empty.root.glob("layers/mine/[0-9a-f]*"))
    assert all(
        p.stat().st_size < 900 for p in empty.root.glob("content/blobs/sha256/*")
    )  # the documents only
    empty.ok("pull", "-q", "--storage", "overlay", "deep/three")
    done = empty("run", "--rm", "--storage", "mine", "deep/three", "true")
    assert done.returncode == 125
    assert "at most 2" in done.stderr
    assert empty.records() == []


def test_without_idmap_a_container_in_a_user_namespace_is_refused_before_anything_is_written(
    fresh: Pyrun, tmp_path: Path
) -> None:
    _install(tmp_path, fresh, "verdict.caps.idmap = False")
    done = fresh("run", "--rm", "--storage", "mine", "busybox", "true")
    assert done.returncode == 125
    assert "--userns=host" in done.stderr
    assert fresh.records() == []
    assert not (fresh.root / "layers/mine").exists() or not list(
        (fresh.root / "layers/mine").glob("[0-9a-f]*")
    )
    assert fresh.sh("echo yes", "--storage", "mine", "--userns", "host") == "yes\n"


def test_a_size_is_refused_without_quota_and_handed_to_a_driver_that_has_it(
    fresh: Pyrun, tmp_path: Path
) -> None:
    done = fresh("run", "--rm", "--storage-opt", "size=10m", "busybox", "true")
    assert done.returncode == 125
    assert "can't limit the size" in done.stderr
    assert "btrfs" in done.stderr
    log = tmp_path / "sizes"
    more = f"""
    def prepare(self, layers, dest, size=None):
        open({str(log)!r}, "a").write(f"{{size}}\\n")
        super().prepare(layers, dest)
"""
    _install(tmp_path, fresh, "verdict.caps.quota = True", more)
    for option in ("size=10m", "size=3G", "size=1"):
        fresh.sh("true", "--storage", "mine", "--storage-opt", option)
    fresh.sh("true", "--storage", "mine")
    assert log.read_text().split() == [str(10 << 20), str(3 << 30), "1", "None"]


@pytest.mark.parametrize("size", ["", "0", "x", "10q", "-1", "1.5g", "١"])
def test_a_size_that_is_none_is_refused(fresh: Pyrun, size: str) -> None:
    done = fresh("run", "--rm", "--storage-opt", f"size={size}", "busybox", "true")
    assert done.returncode == 125
    assert "invalid size" in done.stderr


def test_a_size_for_a_pull_is_refused(fresh: Pyrun) -> None:
    done = fresh("pull", "--storage-opt", "size=1g", "busybox")
    assert done.returncode == 125
    assert "limits a container" in done.stderr


@pytest.mark.parametrize("flag", ["rename_dir", "hardlinks", "quota", "idmap"])
def test_what_the_configuration_requires_a_driver_must_have(fresh: Pyrun, tmp_path: Path, flag: str) -> None:
    _install(tmp_path, fresh, f"verdict.caps.{flag} = False")
    config = tmp_path / "config.toml"
    config.write_text(f'[storage]\nrequire = ["{flag}"]\n')
    done = fresh(
        "--config", str(config), "run", "--rm", "--storage", "mine", "--userns", "host", "busybox", "true"
    )
    assert done.returncode == 125
    assert f"lacks {flag}" in done.stderr


def test_a_required_capability_steers_the_choice_for_a_new_store(empty: Pyrun, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[storage]\nrequire = ["quota"]\n')
    done = empty("--config", str(config), "run", "--rm", "busybox", "true")
    assert done.returncode == 125
    assert "it lacks quota" in done.stderr
    config.write_text('[storage]\nrequire = ["speed"]\n')
    done = empty("--config", str(config), "run", "--rm", "busybox", "true")
    assert "storage.require" in done.stderr
    assert "rename_dir" in done.stderr


_LAZY = """
    def ingest(self, blob, dest, parent):
        import gzip
        from pyrun.layers.unpack import unpack
        parts, at = [], 0
        while part := blob.range(at, 1000):
            parts.append(part)
            at += len(part)
        data = b"".join(parts)
        assert at == blob.size, (at, blob.size)
        os.mkdir(f"{dest}/fs", 0o755)
        fd = os.open(f"{dest}/fs", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return unpack(io.BytesIO(gzip.decompress(data) if data[:2] == b"\\x1f\\x8b" else data), fd, "overlay")
        finally:
            os.close(fd)
"""


def test_a_lazy_driver_fetches_parts_itself_and_no_blob_is_kept(
    empty: Pyrun, registry: Registry, tmp_path: Path
) -> None:
    registry.push_image("lazy/one", "latest", [tar({"data": os.urandom(5000)})])
    _install(tmp_path, empty, "verdict.caps.lazy = True", _LAZY)
    empty.ok("pull", "-q", "--storage", "mine", "lazy/one")
    image = json.loads(empty.ok("inspect", "lazy/one"))[0]
    (layer,) = image["RootFS"]["Layers"]
    path = empty.root / "layers/mine" / layer.removeprefix("sha256:")
    assert (path / "fs/data").stat().st_size == 5000
    # The config and the manifest only.
    assert all(p.stat().st_size < 2500 for p in (empty.root / "content/blobs/sha256").iterdir())


def test_a_driver_that_is_not_lazy_and_does_not_read_the_blob_has_no_layer(
    empty: Pyrun, registry: Registry, tmp_path: Path
) -> None:
    registry.push_image("lazy/two", "latest", [tar({"data": os.urandom(5000)})])
    _install(tmp_path, empty, "pass", _LAZY)
    done = empty("pull", "-q", "--storage", "mine", "lazy/two")
    assert done.returncode == 1
    assert "did not read layer" in done.stderr
    assert list((empty.root / "layers/mine").glob("[0-9a-f]*")) == []
    assert os.listdir(empty.root / "staging") == []


@pytest.mark.parametrize(
    ("method", "raised", "expected"),
    [
        (
            "ingest(self, blob, dest, parent)",
            "OSError(28, 'No space left on device', '/x')",
            "No space left on device",
        ),
        ("ingest(self, blob, dest, parent)", "KeyError('boom')", "KeyError: 'boom'"),
        ("prepare(self, layers, dest, size=None)", "RuntimeError('no way')", "RuntimeError: no way"),
        ("mount(self, layers, rw, idmap=None)", "OSError(5, 'Input/output error')", "Input/output error"),
    ],
)
def test_what_a_driver_raises_reaches_the_user_as_what_why_and_fix(
    fresh: Pyrun, tmp_path: Path, method: str, raised: str, expected: str
) -> None:
    _install(tmp_path, fresh, "pass", f"\n    def {method}:\n        raise {raised}\n")
    done = fresh("run", "--rm", "--storage", "mine", "busybox", "true")
    assert done.returncode == 125
    assert re.search(r"^pyrun: the storage driver mine can't ", done.stderr, re.M)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) >= 2
    assert fresh.records() == []


def test_a_mount_that_is_no_descriptor_is_refused(fresh: Pyrun, tmp_path: Path) -> None:
    _install(tmp_path, fresh, "pass", "\n    def mount(self, layers, rw, idmap=None):\n        return None\n")
    done = fresh("run", "--rm", "--storage", "mine", "busybox", "true")
    assert done.returncode == 125
    assert "not a file descriptor" in done.stderr


def test_a_layer_keeps_the_attributes_of_directories_that_it_only_goes_through(
    empty: Pyrun, registry: Registry
) -> None:
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, mode in (("tmp", 0o1777), ("secret", 0o700)):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid = tarfile.DIRTYPE, mode, 7
            archive.addfile(info)
    registry.push_image(
        "im/plied", "latest", [out.getvalue(), tar({"tmp/x": b"1", "secret/y": b"2", "new/z": b"3"})]
    )
    for driver in ("overlay", "vfs"):
        empty.ok("pull", "-q", "--storage", driver, "im/plied")
        shown = _stat_through(empty, driver)
        assert shown == {"tmp": (0o1777, 7), "secret": (0o700, 7), "new": (0o755, 0)}


def _stat_through(pyrun: Pyrun, driver: str) -> dict[str, Any]:
    from pyrun.engine import Engine

    engine = Engine(str(pyrun.root), str(pyrun.state), storage=driver)
    store = engine._open()
    fd = store.driver.mount(engine._layers(store, engine.image("im/plied")), None)
    try:
        found = {name: os.stat(name, dir_fd=fd) for name in ("tmp", "secret", "new")}
        return {name: (st.st_mode & 0o7777, st.st_uid) for name, st in found.items()}
    finally:
        os.close(fd)
