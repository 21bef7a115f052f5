"""``pyrun diff``: which files a container or an image added, changed and deleted."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from pyrun.testing.tars import Dir, File, Link, Symlink, tar
from support.pyrun import Pyrun, terminal
from support.registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def changed(
    pyrun: Pyrun, script: str, *options: str, image: str = "busybox", name: str = "changed"
) -> list[str]:
    """The lines of `diff` of a container that ran ``script``."""
    pyrun.ok("run", "--name", name, *options, image, "sh", "-c", script)
    return str(pyrun.ok("diff", name)).splitlines()


def test_nothing_is_told_of_a_container_that_changed_nothing(pyrun: Pyrun) -> None:
    assert changed(pyrun, "cat /etc/passwd /etc/hosts; ls -R /bin >/dev/null") == []


def test_directories_in_which_something_changed_are_told_but_not_the_root(pyrun: Pyrun) -> None:
    assert changed(pyrun, "echo >/new; echo >/etc/new; rm /etc/passwd; mkdir -p /d/e; echo >/d/e/f") == [
        "A /d",
        "A /d/e",
        "A /d/e/f",
        "C /etc",
        "A /etc/new",
        "D /etc/passwd",
        "A /new",
    ]


def test_a_file_is_changed_by_its_content_its_mode_its_owner_and_its_type(pyrun: Pyrun) -> None:
    script = "echo x >>/etc/passwd; chmod 600 /etc/group; chown 5 /root; rm -r /home; echo >/home"
    assert changed(pyrun, script) == ["C /etc", "C /etc/group", "C /etc/passwd", "C /home", "C /root"]


def test_a_deleted_directory_is_one_line(pyrun: Pyrun) -> None:
    assert changed(pyrun, "rm -r /home /root") == ["D /home", "D /root"]


def test_what_was_made_to_mount_things_on_is_no_change(pyrun: Pyrun) -> None:
    options = (
        "-v",
        "/vol/deep",
        "-v",
        "/etc:/host/etc:ro",
        "-v",
        "/etc/hostname:/a/file:ro",
        "--tmpfs",
        "/t/m",
    )
    assert changed(pyrun, "touch /vol/deep/in-the-volume /t/m/in-the-tmpfs", *options) == []


def test_a_directory_on_the_way_to_a_mount_is_told_once_the_container_put_something_there(
    pyrun: Pyrun,
) -> None:
    found = changed(pyrun, "echo >/vol/mine; chmod 700 /other", "-v", "/vol/deep/er", "-v", "/other/deep")
    assert found == ["A /other", "A /vol", "A /vol/mine"]


def test_a_mount_over_what_the_image_has_hides_it_and_changes_nothing(pyrun: Pyrun) -> None:
    assert changed(pyrun, "rm -rf /home/* ; touch /home/x", "-v", "/home") == []


def test_links_to_where_the_engine_mounts_its_files_are_followed_as_it_did(
    fresh: Pyrun, registry: Registry
) -> None:
    program = fresh.ok("run", "--rm", "busybox", "cat", "/bin/busybox", text=False)
    layer = tar(
        Dir("bin"),
        File("bin/busybox", program, 0o755),
        Link("bin/sh", "bin/busybox"),
        Dir("etc"),
        Symlink("etc/resolv.conf", "../run/resolve/conf"),
        Symlink("etc/hosts", "/run/hosts"),
        Symlink("w", "v/x"),
    )
    registry.push_image("links", "1", [layer], {"Cmd": ["sh"]})
    image = f"{registry.host}/links:1"
    fresh.ok("pull", "-q", image)
    assert changed(fresh, ":", "-v", "/w/y", image=image, name="none") == []
    # The container's own links, which come later, lead nobody anywhere.
    found = changed(fresh, "echo >/run/mine; busybox rm /w; busybox ln -s /etc /w", "-v", "/w/y", image=image)
    assert found == ["A /run", "A /run/mine", "C /w"]


def test_formats(pyrun: Pyrun) -> None:
    changed(pyrun, "echo >/new; rm /etc/passwd")
    assert json.loads(pyrun.ok("diff", "--format", "json", "changed")) == {
        "changed": ["/etc"],
        "added": ["/new"],
        "deleted": ["/etc/passwd"],
    }
    assert pyrun.ok("container", "diff", "--format", "{{.Kind}}:{{.Path}}", "changed").splitlines() == [
        "C:/etc",
        "D:/etc/passwd",
        "A:/new",
    ]
    pyrun.ok("run", "--name", "unchanged", "busybox", "true")
    assert pyrun.ok("diff", "--format", "json", "unchanged") == "{}\n"
    wrong = pyrun("diff", "--format", "{{.Size}}", "changed")
    assert wrong.returncode == 1
    assert "template parsing error" in wrong.stderr


def test_names_can_not_drive_a_terminal(pyrun: Pyrun) -> None:
    script = "touch \"/$(printf 'a\\033[31m\\nb\\377')\""
    assert changed(pyrun, script) == ["A /a\\x1b[31m\\nb\\udcff"]
    assert json.loads(pyrun.ok("diff", "--format", "json", "changed")) == {"added": ["/a\x1b[31m\nb\udcff"]}
    with terminal(pyrun, "diff", "--format", "{{.Path}}", "changed") as window:
        window.wait()
        assert b"\x1b" not in window.output


def test_a_running_container(pyrun: Pyrun) -> None:
    process = pyrun.start("run", "-i", "--name", "runs", "busybox", "sh", "-c", "echo >/new; echo up; cat",
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == b"up\n"
    assert pyrun.ok("diff", "runs") == "A /new\n"
    process.stdin.close()
    assert process.wait() == 0
    process.stdout.close()
    assert pyrun.ok("diff", "runs") == "A /new\n"


@pytest.fixture
def step(fresh: Pyrun) -> Pyrun:
    """A store with an image "step", one layer on top of busybox."""
    fresh.ok("run", "--name", "step", "busybox", "sh", "-c", "echo >/new; rm /etc/passwd")
    fresh.ok("commit", "step", "step")
    return fresh


def test_an_image_is_told_by_what_its_topmost_layer_does(step: Pyrun) -> None:
    assert step.ok("diff", "step").splitlines() == ["C /etc", "D /etc/passwd", "A /new"]
    lowest = step.ok("image", "diff", "busybox").splitlines()
    assert "A /bin/busybox" in lowest
    assert {line[0] for line in lowest} == {"A"}


def test_two_images_and_a_container_against_an_image(step: Pyrun) -> None:
    assert step.ok("diff", "step", "busybox").splitlines() == ["C /etc", "D /etc/passwd", "A /new"]
    assert step.ok("diff", "busybox", "step").splitlines() == ["C /etc", "A /etc/passwd", "D /new"]
    assert step.ok("diff", "step", "step") == ""
    assert changed(step, "echo >/newer", image="step") == ["A /newer"]
    assert step.ok("diff", "changed", "busybox").splitlines() == [
        "C /etc",
        "D /etc/passwd",
        "A /new",
        "A /newer",
    ]
    assert step.ok("diff", "changed", "step") == "A /newer\n"


def test_what_there_is_not(pyrun: Pyrun) -> None:
    for words in (("missing",), ("busybox", "missing")):
        done = pyrun("diff", *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert "no such" in done.stderr
        assert "missing" in done.stderr
    done = pyrun("diff")
    assert done.returncode == 125
