"""A commit that is killed, has no room, or whose container ends or changes under it: an image or none, and a container
that goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrun.storage import failpoints
from pyrun.testing import disks
from support.pyrun import Pyrun, copy_store, mounts_below, processes, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MiB = 1 << 20

# An engine in a process of its own, in which ``at(name)`` is called at each moment of the commit.
PROGRAM = """
import json, os, signal, subprocess, sys, time
from pyrun.engine import Engine
from pyrun.errors import PyrunError
from pyrun.storage import failpoints

root, state, pyrun, name, moment = sys.argv[1:6]
reached = []

def run(*words):
    return subprocess.run([pyrun, "--root", root, "--state", state, *words], capture_output=True, text=True)

def at(moment_now):
    reached.append(moment_now)
    if moment_now == moment and reached.count(moment_now) == 1:
        do()

{do}

failpoints.armed = at
try:
    print(Engine(root, state).commit(name, "app", {options}).id)
except PyrunError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""
KILLED = "def do(): os.kill(os.getpid(), signal.SIGKILL)"


def committing(
    pyrun: Pyrun, do: str, moment: str, options: str = "", name: str = "made"
) -> subprocess.CompletedProcess[str]:
    """A commit during which ``do`` is done at ``moment``."""
    code = PROGRAM.replace("{do}", do).replace("{options}", options)
    argv = [sys.executable, "-c", code, str(pyrun.root), str(pyrun.state), pyrun.command, name, moment]
    return subprocess.run(argv, env=pyrun.env, capture_output=True, text=True, timeout=60)


def images(pyrun: Pyrun) -> list[str]:
    return sorted(pyrun.ok("images", "--format", "{{.Repository}}").split())


def nothing_half_made(pyrun: Pyrun) -> None:
    """Nothing but whole images, layers and blobs is left once the next command has looked."""
    pyrun.ok("run", "--rm", "busybox", "true")
    assert os.listdir(pyrun.root / "staging") == []
    assert [name for name in os.listdir(pyrun.root / "ingest") if name.startswith("incoming-")] == []
    assert mounts_below(pyrun.root) == []
    assert processes(str(pyrun.root)) == []
    check = pyrun("system", "check")
    assert check.returncode == 0, check.stdout + check.stderr


@pytest.fixture
def made(fresh: Pyrun) -> Pyrun:
    """A store with the container "made"."""
    fresh.ok(
        "run",
        "--name",
        "made",
        "busybox",
        "sh",
        "-c",
        "mkdir /d; echo 1 >/d/one; echo 2 >/d/two; rm /etc/passwd",
    )
    return fresh


@pytest.mark.parametrize("moment", failpoints.IMAGE)
def test_killed_at_any_moment_it_leaves_an_image_or_none(made: Pyrun, moment: str) -> None:
    done = committing(made, KILLED, moment)
    assert done.returncode == -signal.SIGKILL
    assert images(made) == (["app", "busybox"] if moment == "commit.stored" else ["busybox"])
    nothing_half_made(made)
    id = made.ok("commit", "made", "app")
    assert made.ok("run", "--rm", "app", "cat", "/d/one", "/d/two") == "1\n2\n"
    assert made.ok("commit", "made", "app") == id
    made.ok("rm", "made")
    assert images(made) == ["app", "busybox"]
    nothing_half_made(made)


@pytest.fixture
def small(base: Path, mirror: Path, small: Pyrun) -> Iterator[Pyrun]:
    """A store on a small file system."""
    with tempfile.TemporaryDirectory(prefix="small-", dir=base) as directory:
        place = f"{directory}/disk"
        os.mkdir(place)
        disk = disks.make("tmpfs", place, 96 * MiB, "")
        try:
            copy_store(small.root, Path(place) / "store")
            pyrun = Pyrun(
                Path(place) / "store",
                Path(directory) / "state",
                env={"CONTAINERS_REGISTRIES_CONF": str(mirror)},
            )
            yield pyrun
            assert processes(str(pyrun.root)) == []
        finally:
            disk.unmount()


@pytest.mark.parametrize("leave", [0, 2 * MiB, 12 * MiB, 26 * MiB])
def test_without_room_there_is_no_image_and_words(small: Pyrun, leave: int) -> None:
    """It ends in the middle of the blob, or of the layer that is made of it."""
    small.ok(
        "run",
        "--name",
        "made",
        "busybox",
        "sh",
        "-c",
        "dd if=/dev/urandom of=/big bs=1M count=20 2>/dev/null",
    )
    filler = small.root.parent / "filler"
    disks.fill(str(filler), leave)
    done = small("commit", "made", "app")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "no space" in done.stderr.lower() or "Free some space" in done.stderr
    filler.unlink()
    assert images(small) == ["busybox"]
    nothing_half_made(small)
    small.ok("commit", "made", "app")
    assert small.ok("run", "--rm", "app", "stat", "-c", "%s", "/big") == f"{20 * MiB}\n"


@pytest.fixture
def running(fresh: Pyrun) -> Iterator[tuple[Pyrun, subprocess.Popen[Any], int]]:
    """A store, with the container "made" running in it; its pyrun; and the pid of its first process."""
    script = "echo 1 >/one; sleep 1000 & sleep 1001 & sleep 0.3; kill -STOP $!; "
    script += "(while :; do date >/now; done) & echo up; read x"
    process = fresh.start(
        "run",
        "-i",
        "--name",
        "made",
        "busybox",
        "sh",
        "-c",
        script,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    pid = fresh.pid_of("made")
    yield fresh, process, pid
    fresh("rm", "-f", "made")
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=30)


def states(pid: int) -> dict[str, str]:
    """By command line the states of the first process and its children that last."""
    found = {}
    for number in [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]:
        stat = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        line = Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        if number == pid or line.startswith("sleep"):
            found["first" if number == pid else line.split()[1]] = stat[0]
    return found


STATES = """
def do():
    pid = int(run("inspect", "--format", "{{.State.Pid}}", name).stdout)
    for number in [pid, *map(int, open(f"/proc/{pid}/task/{pid}/children").read().split())]:
        print(open(f"/proc/{number}/stat").read().rpartition(")")[2].split()[0])
"""


def test_a_running_container_stands_still_while_it_is_read(running: tuple[Pyrun, Any, int]) -> None:
    pyrun, _, pid = running
    before = states(pid)
    assert before["1001"] == "T"
    assert before["1000"] == "S"
    done = committing(pyrun, STATES, "commit.end")
    assert done.returncode == 0, done.stderr
    seen = done.stdout.splitlines()[:-1]
    assert set(seen) == {"T"}
    assert len(seen) == 4
    assert states(pid) == before  # the one that was stopped before is stopped still
    assert pyrun.sh("cat /one", image="app") == "1\n"


def test_without_a_pause_it_goes_on(running: tuple[Pyrun, Any, int]) -> None:
    pyrun, _, _ = running
    done = committing(pyrun, STATES, "commit.end", "pause=False")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "S"
    pyrun.ok("commit", "--pause=false", "made", "app")


def test_it_goes_on_when_the_commit_is_killed(running: tuple[Pyrun, Any, int]) -> None:
    pyrun, process, pid = running
    before = states(pid)
    assert committing(pyrun, KILLED, "commit.end").returncode == -signal.SIGKILL
    wait_for(lambda: states(pid) == before, "its processes run again")
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.wait(timeout=30) == 0
    assert images(pyrun) == ["busybox"]


def test_a_container_that_ends_meanwhile_is_committed_as_it_was(running: tuple[Pyrun, Any, int]) -> None:
    pyrun, process, _ = running
    end = """
def do():
    os.kill(int(run("inspect", "--format", "{{.State.Pid}}", name).stdout), signal.SIGKILL)
    while run("inspect", "--format", "{{.State.Status}}", name).stdout != "exited\\n":
        time.sleep(0.01)
    assert run("rm", name).returncode == 1  # while it is read
"""
    done = committing(pyrun, end, "commit.begin")
    assert done.returncode == 0, done.stderr
    assert process.wait(timeout=30) == 137
    assert pyrun.ok("commit", "made") == done.stdout
    nothing_half_made(pyrun)


def test_a_container_that_goes_meanwhile_is_an_error(fresh: Pyrun) -> None:
    script = "dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null; echo up; sleep 100"
    process = fresh.start(
        "run", "--rm", "--name", "made", "busybox", "sh", "-c", script, stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    end = """
def do():
    run("rm", "-f", name)
    while run("inspect", name).returncode == 0:
        time.sleep(0.01)
"""
    done = committing(fresh, end, "commit.entry")
    assert done.returncode == 1
    assert "was removed while its files were read" in done.stderr
    process.wait(timeout=30)
    process.stdout.close()
    assert images(fresh) == ["busybox"]
    nothing_half_made(fresh)


def test_a_container_can_not_be_taken_away_meanwhile_nor_its_image(made: Pyrun) -> None:
    take = """
def do():
    for words in (["rm", name], ["rmi", "-f", "busybox"], ["system", "prune", "-af"]):
        done = run(*words)
        print(words[0], done.returncode, file=sys.stderr)
"""
    done = committing(made, take, "commit.entry")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "rm 1"
    assert made.ok("run", "--rm", "app", "cat", "/d/one") == "1\n"
    assert made.ok("ps", "-aq") != ""
    assert made("system", "check").returncode == 0


def test_two_commits_at_once_give_one_image(made: Pyrun) -> None:
    several = [made.start("commit", "made", f"app:{n}", stdout=subprocess.PIPE, text=True) for n in range(4)]
    found = {process.communicate(timeout=60)[0] for process in several}
    assert [process.returncode for process in several] == [0, 0, 0, 0]
    assert len(found) == 1
    nothing_half_made(made)


def test_a_container_that_is_being_made_or_removed_is_told_so(made: Pyrun) -> None:
    id = json.loads(made.ok("inspect", "made"))[0]["Id"]
    fd = os.open(made.root / "containers" / id, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_EX)
        done = made("commit", "made")
    finally:
        os.close(fd)
    assert done.returncode == 1
    assert "the container made is in use" in done.stderr
    made.ok("commit", "made")
