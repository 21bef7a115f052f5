"""Loading that is killed, runs out of disk, meets other commands, or is an ordinary user's."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.account import command_of
from support.archives import Made, docker_archive, oci_layout, packed
from support.pyrun import Pyrun, processes, terminal
from support.registry import tar

from .conftest import Store

APP = Made(
    [tar({f"d{layer}/f{n}": random.Random(n).randbytes(40_000) for n in range(60)}) for layer in range(4)]
)
NAME = "docker.io/library/app:1"
ARCHIVES = {
    "docker": packed(docker_archive([APP], [["app:1"]])),
    "oci": packed(oci_layout([APP], [NAME])),
}


def whole_or_nothing(store: Store) -> bool:
    """Whether the image is there; then it is whole. Nothing is half made once the next command cleared up."""
    assert store.images() in ([], [f"app:1 {APP.id}"])
    there = store.images() != []
    done = store.pyrun("system", "check", "--deep", "--repair")
    assert "image-" not in done.stdout, done.stdout
    assert "missing" not in done.stdout, done.stdout
    assert "damaged" not in done.stdout, done.stdout
    assert store.unfinished(parts=there) == []
    assert "sound" in store.pyrun.ok("system", "check", "--deep")
    return there


@pytest.mark.parametrize("form", ARCHIVES)
def test_killed_at_any_moment_it_leaves_the_image_or_none(store: Store, form: str) -> None:
    path = store.directory / "archive"
    path.write_bytes(ARCHIVES[form])
    began = time.monotonic()
    store.pyrun.ok("load", "-i", str(path))
    length = time.monotonic() - began
    chance = random.Random(form)
    for _ in range(4):
        store.pyrun("rmi", "app:1")
        with store.pyrun.start(
            "load", "-i", str(path), stdout=subprocess.DEVNULL, start_new_session=True
        ) as process:
            time.sleep(chance.uniform(0.2, 1.0) * length)
            process.kill()
        whole_or_nothing(store)
    store.pyrun.ok("load", "-i", str(path))
    assert whole_or_nothing(store)


def test_interrupted_by_the_user_it_ends_at_once_and_clears_up(store: Store) -> None:
    with store.pyrun.start(
        "load", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(ARCHIVES["docker"][:1_000_000])
        process.stdin.flush()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert store.unfinished() == []
    assert processes(str(store.pyrun.root)) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
@pytest.mark.parametrize(("way", "size"), [("file", "4m"), ("file", "14m"), ("pipe", "4m"), ("pipe", "19m")])
def test_a_full_disk_is_told_and_leaves_no_image(tmp_path: Path, way: str, size: str) -> None:
    """The image takes 9.6 MB as an archive, and as much again as blobs and as files."""
    store = tmp_path / "store"
    store.mkdir()
    archive = tmp_path / "archive"
    archive.write_bytes(ARCHIVES["docker"])
    pyrun = Pyrun(store, tmp_path / "state")
    script = f"""
        mount -t tmpfs -o size={size} tmpfs "$1" || exit 99
        archive=$2; shift 2
        {'"$@" load -i "$archive"' if way == "file" else 'cat "$archive" | "$@" load'}
        echo "exit $?"
        "$@" images -q; ls -A {store}/ingest {store}/staging {store}/images | grep -v :
    """
    done = subprocess.run(
        [
            "unshare",
            "-m",
            "bash",
            "-o",
            "pipefail",
            "-c",
            script,
            "bash",
            str(store),
            str(archive),
            *pyrun.argv(),
        ],
        capture_output=True,
        text=True,
        env=pyrun.env,
        timeout=60,
    )
    assert done.stdout.split() == ["exit", "1"], done.stdout + done.stderr
    assert "no space left" in done.stderr.lower() or "left (beside a reserve)" in done.stderr
    assert "Traceback" not in done.stderr


def test_saving_that_is_killed_leaves_the_file_of_before_or_the_new_one(store: Store) -> None:
    store.pyrun.ok("load", input=ARCHIVES["oci"], text=False)
    began = time.monotonic()
    whole = store.pyrun.ok("save", "app:1", text=False)
    length = time.monotonic() - began
    directory = store.directory / "out"
    directory.mkdir()
    path = directory / "app.tar"
    chance = random.Random(5)
    for _ in range(6):
        path.write_bytes(b"before")
        with store.pyrun.start("save", "-o", str(path), "app:1") as process:
            time.sleep(chance.uniform(0.3, 1.1) * length)
            process.kill()
        assert path.read_bytes() in (b"before", whole)
        assert list(directory.iterdir()) == [path]


def test_a_terminal_shows_how_far_it_is(store: Store) -> None:
    path = store.directory / "archive"
    path.write_bytes(ARCHIVES["docker"])
    with terminal(store.pyrun, "load", "-i", str(path)) as window:
        window.read_until(rb"[0-9a-f]{12}: Loading layer \[")
        window.read_until(b"Load complete")
        window.read_until(b"Loaded image: app:1")
        assert window.wait() == 0
    store.pyrun.ok("rmi", "app:1")
    with terminal(store.pyrun, "load", "-q", "-i", str(path)) as window:
        shown = window.read_until(b"Loaded image: app:1")
        assert b"layer" not in shown
        assert window.wait() == 0


def test_two_at_once_share_the_work(store: Store) -> None:
    path = store.directory / "archive"
    path.write_bytes(ARCHIVES["oci"])
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(store.pyrun.start("load", "-i", str(path), stdout=subprocess.PIPE, text=True))
            for _ in range(3)
        ]
        for process in running:
            assert process.communicate(timeout=60)[0] == "Loaded image: app:1\n"
            assert process.returncode == 0
    assert whole_or_nothing(store)


def test_an_image_that_is_saved_is_not_collected_meanwhile(store: Store) -> None:
    store.pyrun.ok("load", input=ARCHIVES["oci"], text=False)
    with store.pyrun.start("save", "app:1", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.read(4096)  # it waits for a reader now
        store.pyrun.ok("rmi", "app:1")
        rest = process.stdout.read()
        assert process.wait(20) == 0
    assert store.images() == []
    assert store.pyrun.ok("load", input=first + rest, text=False) == b"Loaded image: app:1\n"


@pytest.fixture(scope="module")
def user(account: str, installation: Path) -> Iterator[Store]:
    with command_of(account, installation) as pyrun:
        store = Store(pyrun.root.parent)
        store.pyrun = pyrun
        yield store


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an account for the test")
@pytest.mark.parametrize("form", ARCHIVES)
def test_an_ordinary_user_loads_saves_and_imports(user: Store, form: str) -> None:
    pyrun = user.pyrun
    path = user.directory / "archive"
    path.write_bytes(ARCHIVES[form])
    path.chmod(0o644)
    assert pyrun.ok("load", "-i", str(path)) == "Loaded image: app:1\n"
    saved = user.directory / "saved.tar"
    pyrun.ok("save", "-o", str(saved), "app:1")
    assert saved.stat().st_uid == user.directory.stat().st_uid
    assert pyrun.ok("save", "app:1", text=False) == saved.read_bytes()
    pyrun.ok("rmi", "app:1")
    assert pyrun.ok("load", input=saved.read_bytes(), text=False) == b"Loaded image: app:1\n"
    id = pyrun.ok("import", "-", input=APP.layers[0], text=False).decode().strip()
    assert sorted(line.split()[1] for line in user.images()) == sorted([APP.id, id])
    pyrun.ok("rmi", "-f", APP.id, id)
    assert user.unfinished() == []
