"""The Python API: what the command line does, without the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyrun.containers.options import ContainerOptions
from pyrun.engine import Engine
from pyrun.errors import CommandNotFound, Conflict, NotFound, Unsupported, UsageError
from pyrun.kernel.userns import IdMap, hold
from pyrun.sandbox.box import Box
from support.pyrun import Pyrun


@pytest.fixture
def engine(pyrun: Pyrun, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", pyrun.env["CONTAINERS_REGISTRIES_CONF"])
    return Engine(str(pyrun.root), str(pyrun.state))


def test_run_returns_the_exit_code(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        engine.run("busybox", ["sh", "-c", "echo from a container; exit 3"], ContainerOptions(rm=True)) == 3
    )
    assert capfd.readouterr().out == "from a container\n"


def test_several_containers_one_after_the_other_leak_no_descriptor_and_no_child(engine: Engine) -> None:
    engine.run("busybox", ["true"], ContainerOptions(rm=True))
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        assert engine.run("busybox", ["true"], ContainerOptions(rm=True)) == 0
        with pytest.raises(CommandNotFound):
            engine.run("busybox", ["not-there"], ContainerOptions(rm=True))
    assert os.listdir("/proc/self/fd") == before
    assert os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None, "no zombie"


def test_signal_handlers_are_put_back_after_a_run(engine: Engine) -> None:
    import signal

    def mine(number: int, frame: object) -> None: ...

    old = signal.signal(signal.SIGUSR1, mine)
    try:
        engine.run("busybox", ["true"], ContainerOptions(rm=True))
        assert signal.getsignal(signal.SIGUSR1) is mine
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_records_show_themselves_in_an_interactive_session(engine: Engine, tmp_path: Path) -> None:
    image = engine.image("redis")
    engine.save(["busybox:latest"], str(tmp_path / "saved.tar"))
    loaded = engine.load(str(tmp_path / "saved.tar"))
    assert repr(loaded).endswith(", names=['busybox:latest'], replaced={})]")
    assert repr(image) == f"Image({image.reference!r}, id={image.id!r}, platform={image.platform!r})"
    assert f"digest={image.layers[0].digest!r}" in repr(image.layers[0])
    assert repr(engine.pull("redis")) == f"PullResult(image={image!r}, newer=False)"
    assert repr(engine.history("redis")[0]).startswith("HistoryEntry(comment=")
    engine.run("busybox", ["true"], ContainerOptions(name="shown"))
    shown = engine.container("shown")
    engine.remove_container("shown")
    assert repr(shown) == f"Container('shown', id='{shown.id}', image='busybox', status='exited')"


def test_images_and_containers_are_plain_records(engine: Engine) -> None:
    image = engine.image("redis")
    assert image.reference == "docker.io/library/redis:latest"
    assert len(image.layers) == 3
    assert image.config["Volumes"] == {"/data": {}}
    engine.run("busybox", ["true"], ContainerOptions(name="api"))
    (container,) = engine.containers(all=True)
    assert (container.name, container.status, container.exit_code) == ("api", "exited", 0)
    assert engine.container(container.id[:8]).id == container.id
    engine.remove_container("api")
    with pytest.raises(NotFound):
        engine.container("api")


def test_an_image_in_use_is_only_removed_by_force_and_its_container_still_has_its_layers(
    fresh: Pyrun,
) -> None:
    engine = Engine(str(fresh.root), str(fresh.state))
    engine.run("busybox", ["touch", "/x"], ContainerOptions(name="user"))
    with pytest.raises(Conflict):
        engine.remove_image("busybox")
    removed = engine.remove_image("busybox", force=True)
    assert ("Untagged", "busybox:latest") in removed
    (container,) = engine.containers(all=True)
    assert all(
        (fresh.root / "layers/overlay" / id.removeprefix("sha256:")).is_dir() for id in container.layers
    )
    engine.remove_container("user")
    assert [p.name for p in (fresh.root / "layers/overlay").iterdir() if not p.name.startswith(".")] == []


def test_a_pull_tells_its_progress(empty: Pyrun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", empty.env["CONTAINERS_REGISTRIES_CONF"])
    steps = []
    result = Engine(str(empty.root), str(empty.state)).pull("busybox", progress=steps.append)
    assert result.newer
    assert [s.status for s in steps if s.id == result.image.layers[0].digest[7:19]][-1] == "Pull complete"


def test_bad_options_are_errors_of_their_own_kind(engine: Engine) -> None:
    with pytest.raises(UsageError, match="invalid storage option"):
        Engine(storage_opts=["nonsense"])
    with pytest.raises(UsageError):
        engine.run("busybox", ["true"], ContainerOptions(name="a b"))
    with pytest.raises(Unsupported):
        engine.run("busybox", ["true"], ContainerOptions(network="bridge"))


def test_a_process_with_several_threads_is_told_that_it_cannot_start_containers(engine: Engine) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(Unsupported, match="threads"):
            engine.run("busybox", ["true"], ContainerOptions(rm=True))
    finally:
        stop.set()
        thread.join()


def test_the_sandbox_starts_a_spec_with_no_new_privileges_and_an_ambient_capability(engine: Engine) -> None:
    """What no option of `run` asks for yet, asked of the sandbox directly."""
    engine.run("busybox", ["true"], ContainerOptions(name="model"))
    spec = engine.spec("model")
    read, write = os.pipe()
    spec["mounts"] = [m for m in spec["mounts"] if m["type"] != "bind"]
    spec["process"]["args"] = ["grep", "-E", "^(NoNewPrivs|CapAmb|CapEff|Uid)", "/proc/self/status"]
    spec["process"]["noNewPrivileges"] = True
    spec["process"]["user"] = {"uid": 1000, "gid": 1000}
    spec["process"]["capabilities"] = {
        key: ["CAP_KILL"] for key in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    store = engine._open()
    container = engine.container("model")
    from pyrun.storage.contract import Layer

    with Box(spec, nodes=True) as box:
        layers = [Layer(id, store.layers.path(id)) for id in container.layers]
        rootfs = store.driver.mount(layers, None, box.userns)
        # A rootfs without a writable layer: its mount targets are all there.
        spec["mounts"] = [m for m in spec["mounts"] if m["destination"] == "/proc"]
        spec["linux"]["maskedPaths"] = spec["linux"]["readonlyPaths"] = []
        box.start(rootfs, (0, write, 2))
        os.close(write)
        os.close(rootfs)
        assert box.wait() == 0
    lines = dict(line.split(":", 1) for line in os.read(read, 65536).decode().splitlines())
    os.close(read)
    assert lines["NoNewPrivs"].strip() == "1"
    assert int(lines["CapAmb"], 16) == int(lines["CapEff"], 16) == 1 << 5
    assert lines["Uid"].split()[0] == "1000"
    engine.remove_container("model")


def test_a_box_that_is_never_started_leaves_no_process(engine: Engine) -> None:
    spec = {"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}}
    with Box(spec, nodes=True) as box:
        pid = box.pid
        assert os.path.exists(f"/proc/{pid}")
    assert not os.path.exists(f"/proc/{pid}")


def test_namespaces_that_the_sandbox_does_not_know_are_refused() -> None:
    with pytest.raises(Unsupported):
        Box({"linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "time"}]}}, nodes=True)
    with pytest.raises(Unsupported):
        Box({"linux": {"namespaces": [{"type": "mount"}]}}, nodes=True)


def test_a_held_user_namespace_has_its_maps_and_no_process() -> None:
    fd = hold([IdMap(0, 100000, 10)], [IdMap(0, 200000, 10)])
    try:
        code = f"import ctypes; ctypes.CDLL(None).setns({fd}, 0); print(open('/proc/self/uid_map').read().split())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, pass_fds=[fd])
        assert done.stdout.strip() == "['0', '100000', '10']", done.stderr
    finally:
        os.close(fd)


def test_info_describes_the_host_and_the_store(engine: Engine) -> None:
    info = engine.info()
    assert info["store"]["driver"] == "overlay"
    assert info["host"]["kernel"] == os.uname().release
    assert info["host"]["cgroups"] in ("v1", "v2", "hybrid")
    assert Path(info["store"]["root"]).is_dir()
