"""`pyrun storage compare`: the same command on two drivers, and what differs."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from support.account import as_account
from support.plugins import install
from support.pyrun import Pyrun

# Overlay, but for one file of each layer that has it.
_CARELESS = """
import os
import pwd
from pyrun.storage.hookspecs import hookimpl
from pyrun_drivers.overlay import OverlayDriver

class Careless(OverlayDriver):
    name = "careless"

    def ingest(self, blob, dest, parent):
        made = super().ingest(blob, dest, parent)
        passwd = f"{dest}/fs/etc/passwd"
        if os.path.exists(passwd):
            os.chmod(passwd, 0o600)
            os.chown(passwd, 7, 8)
            with open(passwd, "a") as file:
                file.write("# careless\\n")
            with open(f"{dest}/fs/left-over", "w"):
                pass
        return made

@hookimpl
def pyrun_storage_drivers():
    return [Careless]
"""


def _tree(root: Path) -> list[str]:
    found = []
    for directory, names, files in os.walk(root):
        found += [os.path.join(directory, name) for name in (*names, *files)]
    return sorted(name for name in found if "/locks" not in name)


def test_what_two_sound_drivers_do_is_the_same_and_nothing_is_left(fresh: Pyrun) -> None:
    before = _tree(fresh.root)
    script = "rm -rf /tmp; mkdir /tmp; echo new >/new; chmod 4755 /new; ln /new /other; rm /etc/group; echo out; exit 7"
    done = fresh("storage", "compare", "overlay", "vfs", "--", "busybox", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No differences." in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["DRIVER", "EXIT", "CODE", "SECONDS", "STDOUT", "STDERR", "CHANGES", "NAMES"]
    assert [line.split()[:2] for line in lines[1:3]] == [["overlay", "7"], ["vfs", "7"]]
    assert _tree(fresh.root) == before


def test_every_kind_of_difference_is_shown(fresh: Pyrun, tmp_path: Path) -> None:
    install(tmp_path, "careless", _CARELESS)
    fresh.env["PYTHONPATH"] = str(tmp_path)
    script = "tail -n 1 /etc/passwd; test ! -e /left-over"
    words = ["storage", "compare", "overlay", "careless", "--", "busybox", "sh", "-c", script]
    done = fresh(*words)
    assert done.returncode == 1
    text = done.stdout
    assert "exit code: overlay 0, careless 1" in text
    assert "+# careless" in text
    assert "/etc/passwd: mode: overlay 0644, careless 0600" in text
    assert "/etc/passwd: owner: overlay 0:0, careless 7:8" in text
    assert "/etc/passwd: content: overlay " in text
    assert "/left-over: a file that only careless has" in text

    document = json.loads(fresh("storage", "compare", "--format", "json", *words[2:]).stdout)
    assert document["Same"] is False
    assert [side["ExitCode"] for side in document["Sides"]] == [0, 1]
    found: dict[tuple[str, Any], list[str]] = {
        (d["What"], d["Path"]): d["Values"] for d in document["Differences"]
    }
    assert found["owner", "/etc/passwd"] == ["0:0", "7:8"]
    assert found["tree", "/left-over"] == ["", "file"]
    # The times of what the command didn't write are the layer's own.
    assert ("mtime", "/etc/passwd") in found

    ignored = fresh("storage", "compare", "--ignore", "/etc/*", "--ignore", "left-over", *words[2:-1], "true")
    assert ignored.returncode == 0, ignored.stdout


def test_times_of_written_files_count_only_where_asked_for(fresh: Pyrun) -> None:
    words = ["--", "busybox", "sh", "-c", "echo x >/new"]
    assert fresh("storage", "compare", "overlay", "overlay", *words).returncode == 0
    done = fresh("storage", "compare", "--times", "overlay", "overlay", *words)
    assert done.returncode == 1
    assert "/new: mtime: " in done.stdout


def test_options_of_run_stand_before_the_image(fresh: Pyrun) -> None:
    words = ["--", "-e", "WORD=given", "--user", "5", "busybox", "sh", "-c", "echo $WORD; id -u"]
    done = fresh("storage", "compare", "--format", "{{len .Differences}} {{(index .Sides 0).ExitCode}}",
                 "overlay", "overlay", *words)  # fmt: skip
    assert done.stdout == "0 0\n", done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["overlay", "zfs", "--", "busybox", "true"], "'zfs'"),
        (["overlay", "overlay", "--", "--rm", "busybox", "true"], "--rm of run can't be used with compare"),
        (["overlay", "overlay", "--", "--nope", "busybox"], "unknown flag: --nope"),
        (["overlay", "overlay", "--", "--user", "nobody-here", "busybox", "true"], "nobody-here"),
        (["--storage-opt", "vfs.x=1", "overlay", "overlay", "--", "busybox"], "neither overlay nor overlay"),
        (["overlay", "overlay", "--", "no-such-image"], "no-such-image"),
    ],
)
def test_what_can_not_be_compared_is_an_error_of_its_own_code(
    fresh: Pyrun, words: list[str], said: str
) -> None:
    done = fresh("storage", "compare", *words)
    assert done.returncode == 125, done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(fresh.root.glob(".compare-*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an account for the test")
def test_an_ordinary_user_compares_in_a_user_namespace(
    account: str, installation: Path, mirror: Path, base: Path
) -> None:
    entry = pwd.getpwnam(account)
    home = base / "compare-home"
    home.mkdir()
    os.chown(home, entry.pw_uid, entry.pw_gid)
    user = Pyrun(
        home / "store", home / "state", prefix=as_account(account),
        env={"HOME": str(home), "CONTAINERS_REGISTRIES_CONF": str(mirror)},
    )  # fmt: skip
    user.command = str(installation / "bin/pyrun")
    # The image is fetched first; what the fetching says is no part of either container's output.
    script = "rm -r /tmp; mkdir /tmp; echo x >/new; chown 5:6 /new; id -u"
    done = user("storage", "compare", "overlay", "vfs", "--", "busybox", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No differences." in done.stdout
    assert not list(user.root.glob(".compare-*"))
