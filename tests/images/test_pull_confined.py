"""While a real pull unpacks a layer that comes in slowly, the kernel is asked what the process that does it can do."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.layers import confinement
from support.faultproxy import Fault, FaultProxy, drip
from support.pyrun import Pyrun, mounts_below
from support.registry import Registry, tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for the drivers")

NOISE = os.urandom(512 << 10)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def descendants(pid: int) -> Iterator[int]:
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        children = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in " ".join(children).split():
        yield int(child)
        yield from descendants(int(child))


def confined_below(pid: int) -> int:
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        assert status(pid)["State"][0] != "Z", "the pull ended"
        for found in descendants(pid):
            try:
                if status(found).get("Seccomp") == "2":
                    return found
            except (FileNotFoundError, ProcessLookupError):
                continue
        time.sleep(0.02)
    raise AssertionError(f"no confined process appeared: {[(p, status(p)) for p in descendants(pid)]}")


def capabilities(pid: int) -> set[str]:
    bits = int(status(pid)["CapEff"], 16)
    return {name for name, number in confinement.CAPABILITIES.items() if bits >> number & 1}


@pytest.fixture
def slow(registry: Registry, tmp_path: Path, base: Path) -> Iterator[Pyrun]:
    """The command, with a registry that sends an image's one layer in six seconds and more."""
    registry.push_image("slow/image", "1", [tar({"noise": NOISE, "more": NOISE})], compression=["gzip"])
    with FaultProxy(registry.host, tmp_path / "log", [Fault(drip(16 << 10, 0.1), "GET .*/blobs/")]) as proxy:
        conf = tmp_path / "registries.conf"
        conf.write_text(f'[[registry]]\nlocation = "{proxy.host}"\ninsecure = true\n')
        root = base / f"slow-{os.getpid()}-{time.monotonic_ns()}"
        pyrun = Pyrun(root, tmp_path / "state", env={"CONTAINERS_REGISTRIES_CONF": str(conf)})
        pyrun.host = proxy.host  # type: ignore[attr-defined]
        yield pyrun
        assert mounts_below(root) == []


UNPACKING = set(confinement.UNPACKING_AS_ROOT)


@pytest.mark.parametrize(
    ("driver", "expected"),
    [("overlay", UNPACKING), ("erofs", set()), ("vfs", set())],
    ids=lambda value: str(value)[:7],
)
def test_a_layer_is_unpacked_by_a_confined_process(slow: Pyrun, driver: str, expected: set[str]) -> None:
    name = f"{slow.host}/slow/image:1"  # type: ignore[attr-defined]
    pull = slow.start("pull", "--storage", driver, name, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        pid = confined_below(pull.pid)
        assert (
            capabilities(pid) == expected
        )  # vfs verifies first, to nowhere, and unpacks when all blobs are there
        found = status(pid)
        assert int(found["CapBnd"], 16) == int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
        assert found["NoNewPrivs"] == "1"
        assert found["Threads"] == "2"
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        assert len(mounts) == 1
        assert {"nosuid", "nodev", "noexec"} <= set(mounts[0].split()[5].split(","))
        where = mounts[0].split()[3]
        if driver != "vfs":
            assert "/staging/" in where or where.endswith(("/fs", "/upper"))
        held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        own = {"/", "/null", "/noise", "/more", "/layer.tar", "/index.erofs"}
        assert [name for name in held if not name.startswith("pipe:") and name not in own] == []
        for kind in ("mnt", "pid", "net", "ipc"):
            assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/{pull.pid}/ns/{kind}")
        os.kill(pid, signal.SIGKILL)
        _, said = pull.communicate(timeout=90)
        assert pull.returncode == 1
        assert b"the process that unpacked it was ended by SIGKILL" in said
        assert os.listdir(slow.root / "staging") == []
    finally:
        if pull.poll() is None:
            pull.kill()
            pull.communicate()


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_no_confined_process_outlives_its_pull(slow: Pyrun, by: signal.Signals) -> None:
    pull = slow.start(
        "pull", f"{slow.host}/slow/image:1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # type: ignore[attr-defined]
    pid = confined_below(pull.pid)
    born = Path(f"/proc/{pid}/stat").read_text().split()[21]
    pull.send_signal(by)
    pull.wait(30)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().split()[21] != born or status(pid)["State"][0] in "ZX":
                break
        except (FileNotFoundError, ProcessLookupError):
            break
        assert by == signal.SIGKILL, "after Ctrl-C it is waited for"
        time.sleep(0.02)
    else:
        raise AssertionError("the confined process lives on")
    if by == signal.SIGINT:
        assert os.listdir(slow.root / "staging") == []
