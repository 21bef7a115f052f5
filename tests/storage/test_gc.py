"""What garbage collection takes and what it spares: layers of every driver, containers, leases, running pulls."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyrun.engine import Engine
from pyrun.errors import Conflict, NotFound
from pyrun.storage import leases
from pyrun.storage.layers import chain_id
from pyrun.storage.leases import Lease
from support import copied
from support.pyrun import Pyrun, wait_for
from support.registry import Registry, tar


def layer_names(pyrun: Pyrun, driver: str) -> set[str]:
    return {path.name for path in (pyrun.root / "layers" / driver).glob("[0-9a-f]*")}


def hexes(digests: list[str]) -> set[str]:
    return {digest.partition(":")[2] for digest in digests}


def engine_of(pyrun: Pyrun) -> Engine:
    return Engine(str(pyrun.root), str(pyrun.state))


def hold(pyrun: Pyrun, driver: str, key: str) -> subprocess.Popen[bytes]:
    """A process that holds a lease until it is killed."""
    code = (
        "import sys, time\nfrom pyrun.storage.leases import Lease\n"
        f"with Lease({str(pyrun.root)!r}, {driver!r}, [{key!r}], work='a benchmark'):\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_rmi_takes_the_layers_of_every_driver(fresh: Pyrun, registry: Registry, tmp_path: Path) -> None:
    copied.install(tmp_path / "plugin", fresh)
    pushed = registry.push_image("gc/two", "latest", [tar({"a": b"1"}), tar({"b": b"2"})])
    before = layer_names(fresh, "overlay")
    fresh.ok("pull", "-q", "gc/two")
    fresh.ok("pull", "-q", "--storage", "copied", "gc/two")
    assert layer_names(fresh, "overlay") - before == hexes(pushed.diff_ids)
    chained = [pushed.diff_ids[0], chain_id(pushed.diff_ids[0], pushed.diff_ids[1])]
    assert layer_names(fresh, "copied") == hexes(chained)
    fresh.ok("rmi", "gc/two")
    assert layer_names(fresh, "overlay") == before
    assert layer_names(fresh, "copied") == set()


def test_the_layers_of_a_removed_plugin_go_too(fresh: Pyrun, registry: Registry, tmp_path: Path) -> None:
    copied.install(tmp_path / "plugin", fresh)
    registry.push_image("gc/gone", "latest", [tar({"a": b"1"})])
    fresh.ok("pull", "-q", "--storage", "copied", "gc/gone")
    copied.uninstall(fresh)
    assert layer_names(fresh, "copied")
    fresh.ok("rmi", "gc/gone")
    assert layer_names(fresh, "copied") == set()


def test_a_container_keeps_the_layers_of_its_own_driver(
    fresh: Pyrun, registry: Registry, tmp_path: Path
) -> None:
    copied.install(tmp_path / "plugin", fresh)
    fresh.ok("run", "--name", "mine", "--storage", "copied", "busybox", "true")
    mine = layer_names(fresh, "copied")
    assert mine
    assert layer_names(fresh, "overlay")
    fresh.ok("rmi", "-f", "busybox")
    assert layer_names(fresh, "copied") == mine
    assert layer_names(fresh, "overlay") == set()
    fresh.ok("rm", "mine")
    assert layer_names(fresh, "copied") == set()


def test_layers_that_mend_a_stack_live_as_long_as_the_stack(fresh: Pyrun, registry: Registry) -> None:
    """The upper layer uses /tmp without listing it, so a further layer restores its mode."""
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        directory = tarfile.TarInfo("tmp")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(directory)
    registry.push_image("gc/mended", "latest", [out.getvalue(), tar({"tmp/file": b"x"})])
    before = layer_names(fresh, "overlay")
    fresh.ok("pull", "-q", "gc/mended")
    engine = engine_of(fresh)
    stack = engine._layers(engine._open(), engine.image("gc/mended"))
    assert len(stack) == 3
    patch = os.path.basename(stack[-1].path)
    fresh.ok("tag", "busybox", "other:1")
    fresh.ok("rmi", "other:1")  # collects nothing
    assert patch in layer_names(fresh, "overlay")
    fresh.ok("rmi", "gc/mended")
    assert layer_names(fresh, "overlay") == before
    assert list((fresh.root / "layers/overlay/.mended").glob("*")) == []


def test_what_somebody_put_among_the_layers_by_hand_stops_nothing(fresh: Pyrun) -> None:
    (fresh.root / "layers/notes.txt").write_text("mine")
    (fresh.root / "layers/overlay/not.a.layer").mkdir()
    fresh.ok("rmi", "busybox")
    assert layer_names(fresh, "overlay") == set()
    assert (fresh.root / "layers/notes.txt").exists()


def test_a_lease_keeps_a_layer_until_its_holder_is_dead(fresh: Pyrun, registry: Registry) -> None:
    pushed = registry.push_image("gc/leased", "latest", [tar({"a": b"1"})])
    fresh.ok("pull", "-q", "gc/leased")
    key = pushed.diff_ids[0]
    holder = hold(fresh, "overlay", key)
    try:
        fresh.ok("rmi", "gc/leased")
        assert hexes([key]) <= layer_names(fresh, "overlay")
        store = engine_of(fresh)._open()
        with pytest.raises(Conflict, match=rf"a benchmark \(process {holder.pid}\)"):
            store.layers.remove(key)
        with Lease(str(fresh.root), "overlay", ["sha256:" + "0" * 64]):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert len(leases.dead(str(fresh.root))) == 1
    fresh.ok("pull", "-q", "gc/leased")
    fresh.ok("rmi", "gc/leased")
    assert not hexes([key]) & layer_names(fresh, "overlay")
    assert os.listdir(fresh.root / "leases") == []


def test_a_lease_on_one_drivers_layer_says_nothing_of_anothers(fresh: Pyrun) -> None:
    engine = engine_of(fresh)
    key = engine.image("busybox").layers[0].diff_id
    with Lease(str(fresh.root), "copied", [key]):
        engine._open().layers.remove(key)
    assert fresh.sh("echo again") == "again\n"


def test_a_layer_in_use_by_a_container_is_refused(fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "user", "busybox", "true")
    engine = engine_of(fresh)
    key = engine.image("busybox").layers[0].diff_id
    with pytest.raises(Conflict, match="used by container user"):
        engine.remove_layer(key)
    with pytest.raises(NotFound):
        engine.remove_layer("sha256:" + "0" * 64)
    fresh.ok("rm", "user")
    engine.remove_layer(key)
    assert not hexes([key]) & layer_names(fresh, "overlay")
    assert fresh.sh("echo made anew") == "made anew\n"


def test_nothing_goes_while_a_containers_record_is_damaged(fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "user", "busybox", "true")
    (record,) = fresh.root.glob("containers/*/config.json")
    good = record.read_bytes()
    before = layer_names(fresh, "overlay")
    record.write_bytes(b"{")
    fresh.ok("rmi", "-f", "busybox")
    assert layer_names(fresh, "overlay") == before
    record.write_bytes(good)
    fresh.ok("rm", "user")
    assert layer_names(fresh, "overlay") == set()


@pytest.mark.parametrize("name", ["gc.begin", "gc.layer", "gc.blob", "gc.end"])
def test_a_death_in_the_midst_loses_nothing_that_is_needed(
    fresh: Pyrun, registry: Registry, name: str
) -> None:
    registry.push_image("gc/killed", "latest", [tar({"a": os.urandom(5000)}), tar({"b": b"2"})])
    needed = layer_names(fresh, "overlay")
    fresh.ok("pull", "-q", "gc/killed")
    code = (
        "import os, signal\nfrom pyrun.engine import Engine\nfrom pyrun.storage import failpoints\n"
        "def die(name):\n"
        f"    if name == {name!r}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "failpoints.armed = die\n"
        f"Engine({str(fresh.root)!r}, {str(fresh.state)!r}).remove_image('gc/killed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert fresh.sh("echo fine") == "fine\n"
    fresh.ok("tag", "busybox", "again:1")
    fresh.ok("system", "prune", "-f")
    assert layer_names(fresh, "overlay") == needed
    assert fresh.sh("echo fine", image="again:1") == "fine\n"


def test_nothing_is_missing_after_pulls_and_collections_side_by_side(
    fresh: Pyrun, registry: Registry
) -> None:
    shared = tar({"shared": os.urandom(200_000)})
    for number in range(3):
        registry.push_image("gc/race", str(number), [shared, tar({f"f{number}": os.urandom(100_000)})])
    script = (
        "import sys, time\nfrom pyrun.engine import Engine\nfrom pyrun.errors import PyrunError\n"
        "end = time.monotonic() + 6\nrounds = 0\n"
        f"engine = Engine({str(fresh.root)!r}, {str(fresh.state)!r})\n"
        "while time.monotonic() < end or not rounds:\n"
        "    for n in '012':\n"
        "        {}\n"
        "    rounds += 1\n"
        "print(rounds)\n"
    )
    pull = "engine.pull(f'gc/race:{n}')"
    remove = "\n        ".join(
        ["try: engine.remove_image(f'gc/race:{n}')", "except PyrunError: pass", "engine.prune()"]
    )
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", script.replace("{}", body)],
            env=fresh.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for body in (pull, pull, remove)
    ]
    for job in jobs:
        output, _ = job.communicate(timeout=90)
        assert job.returncode == 0, output
        assert int(output.split()[-1]) > 0
    for number in "012":
        fresh.ok("pull", "-q", f"gc/race:{number}")
    check = fresh("system", "check", "--deep", "-q")
    assert check.returncode == 0, check.stdout
    assert fresh.sh("echo fine") == "fine\n"


def test_a_lease_waits_for_a_collection(fresh: Pyrun) -> None:
    """It can't come between the look at the leases and the removal of what they would name."""
    from pyrun.images.gc import exclusively

    with exclusively(str(fresh.root)) as alone:
        assert alone
        code = (
            "from pyrun.storage.leases import Lease\n"
            f"with Lease({str(fresh.root)!r}, 'overlay', ['sha256:x']):\n    print('held', flush=True)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        time.sleep(0.5)
        assert process.poll() is None
        assert leases.held(str(fresh.root)) == []
    output, _ = process.communicate(timeout=20)
    assert output == "held\n"
    wait_for(lambda: not re.findall(r"\.json", " ".join(os.listdir(fresh.root / "leases"))), "given back")
