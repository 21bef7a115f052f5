"""Checking, moving and pruning the store of an ordinary user: the engine is root in a namespace of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.account import command_of
from support.pyrun import Pyrun

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an account for the test")

SCRIPT = """
set -e
mkdir -p /made/deep; echo new > /made/deep/file; chown 12:34 /made/deep/file; chmod 4711 /made/deep/file
rm -r /etc/init.d 2>/dev/null || true; rm /bin/vi; ln /made/deep/file /made/link; mkfifo /made/fifo
rm -r /home && mkdir /home && echo only > /home/this
"""


@pytest.fixture
def user(account: str, installation: Path, mirror: Path) -> Iterator[Pyrun]:
    with command_of(account, installation, mirror) as pyrun:
        pyrun.ok("pull", "-q", "busybox")
        yield pyrun
        pyrun.ok("system", "prune", "-a", "-f")


def test_a_users_store_moves_with_its_containers_and_stays_sound(user: Pyrun) -> None:
    user.ok("run", "--name", "changer", "busybox", "sh", "-c", SCRIPT)
    (directory,) = (user.root / "containers").iterdir()
    for there, here in (("vfs", "overlay"), ("overlay", "vfs")):
        said = user.ok("storage", "migrate", "-q", there)
        assert said == f"The store was moved from {here} to {there}\n"
        config = json.loads((directory / "config.json").read_text())
        assert (config["driver"], config["rw"]) == (there, f"rw-{there}")
        assert list((user.root / "layers" / here).glob("[0-9a-f]*")) == []
        done = user("system", "check", "--deep", "-q")
        assert (done.returncode, done.stdout.count("left over")) == (0, 0), done.stdout + done.stderr
        assert user.sh("echo fine") == "fine\n"


def test_damage_in_a_users_store_is_found_and_repaired(user: Pyrun) -> None:
    user.ok("system", "check", "-q")  # the first one lists what is in the layers
    blob = max((user.root / "content/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    (layer,) = (user.root / "layers/overlay").glob("[0-9a-f]*")
    (layer / "fs/stranger").write_text("x")
    done = user("system", "check", "-q", "--format", "{{.Kind}}")
    assert (done.returncode, done.stdout) == (1, "blob-damaged\nlayer-damaged\n"), done.stderr
    user.ok("system", "check", "-q", "--repair")
    assert user.ok("system", "check", "-q", "--deep").endswith(": sound\n")
    lines = user.ok("system", "df", "--format", "{{.Type}} {{.TotalCount}}").splitlines()
    assert lines == ["Images 1", "Containers 0", "Local Volumes 0", "Layers (overlay) 1"]
