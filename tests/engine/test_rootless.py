"""pyrun as an ordinary user with subordinate ids: an account of the test's own, a venv outside /root."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.account import ACCOUNT, FIRST, command_of
from support.pyrun import Pyrun, processes, terminal, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an account for the test")


@pytest.fixture(scope="module")
def user(account: str, installation: Path, mirror: Path) -> Iterator[Pyrun]:
    with command_of(account, installation, mirror, nodes=True) as pyrun:
        pyrun.ok("pull", "-q", "busybox")
        pyrun.ok("pull", "-q", "redis")
        yield pyrun


def test_the_accounts_commands_may_open_the_nodes_and_the_machines_own_are_untouched(user: Pyrun) -> None:
    before = {path: os.stat(path).st_mode for path in ("/dev/fuse", "/dev/net/tun") if os.path.exists(path)}
    for path in before:
        done = subprocess.run([*user.prefix, "test", "-w", path], env=user.env)
        assert done.returncode == 0
    assert {path: os.stat(path).st_mode for path in before} == before


def test_a_container_runs_and_its_root_is_the_user(user: Pyrun, account: str) -> None:
    out = user.sh("id -u; touch /made; stat -c %u /made; cat /proc/self/uid_map")
    lines = out.split()
    assert lines[:2] == ["0", "0"]
    assert lines[5:8] == ["1", "1", "65536"]


def test_files_of_other_owners_belong_to_subordinate_ids_on_disk(user: Pyrun) -> None:
    owner = user.ok("run", "--rm", "--entrypoint", "stat", "redis", "-c", "%u", "/data").strip()
    assert int(owner) > 0
    data = [path for path in user.root.glob("layers/overlay/*/fs/data") if path.is_dir()]
    assert [os.stat(path).st_uid for path in data] == [FIRST + int(owner) - 1]


def test_a_deleted_directory_of_a_layer_stays_deleted_and_can_be_made_again(user: Pyrun) -> None:
    assert (
        user.sh(
            "rm -rf /etc/../home /tmp && mkdir /tmp && ls -A /tmp; rm /bin/vi; ls /bin/vi 2>&1; true"
        ).count("No such")
        == 1
    )


def test_the_entrypoint_may_change_its_user(user: Pyrun) -> None:
    out = user.ok(
        "run",
        "--rm",
        "--entrypoint",
        "setpriv",
        "redis",
        "--reuid=redis",
        "--regid=redis",
        "--clear-groups",
        "id",
        "-un",
    )
    assert out.strip() == "redis"


def test_devices_work_though_nodes_cannot_be_made(user: Pyrun) -> None:
    assert user.sh(
        "echo x >/dev/null && head -c 3 /dev/zero | wc -c && test -c /dev/urandom && echo yes"
    ).split() == ["3", "yes"]


def test_a_terminal_works(user: Pyrun) -> None:
    with terminal(user, "run", "-it", "--rm", "busybox", "tty") as window:
        window.read_until(rb"/dev/pts/0\r\n")
        assert window.wait() == 0


def test_bind_mounts_and_host_network_work(user: Pyrun) -> None:
    shared = user.root.parent / "shared"
    subprocess.run([*user.prefix, "mkdir", "-p", str(shared)], check=True, env=user.env)
    out = user.sh("touch /mnt/file; ls /sys/class/net", "-v", f"{shared}:/mnt", "--network", "host")
    assert "lo" in out.split()
    assert os.stat(shared / "file").st_uid == pwd.getpwnam(ACCOUNT).pw_uid


def test_userns_host_is_the_users_own_namespace(user: Pyrun) -> None:
    assert user.sh("id -u", "--userns", "host").strip() == "0"


def test_the_container_cannot_touch_the_engines_mounts(user: Pyrun) -> None:
    done = user("run", "--rm", "busybox", "umount", "/proc")
    assert done.returncode != 0


def test_a_killed_pyrun_takes_its_container_along(user: Pyrun) -> None:
    process = user.start("run", "--rm", "--name", "killme", "busybox", "sleep", "777888")
    # The container's id 0 is the user's own.
    wait_for(lambda: processes("sleep\x00777888"), "the container runs")
    process.kill()
    process.wait(20)
    wait_for(lambda: not processes("sleep\x00777888"), "the container is gone")
    assert user.ok("ps", "-aq") == ""
    assert user.records() == []


def test_devices_of_another_user_and_trusted_attributes_are_out_of_reach(user: Pyrun) -> None:
    done = user("run", "--rm", "busybox", "mknod", "/sda", "b", "8", "0")
    assert done.returncode != 0


def test_every_overlay_route_works_rootless(user: Pyrun) -> None:
    for route in ("1", "2", "3"):
        out = user.sh(
            "rm -rf /home /tmp && mkdir /tmp && ls -A /tmp && echo fine",
            env={**user.env, "PYRUN_OVERLAY_ROUTE": route},
        )
        assert out == "fine\n"


def test_without_subordinate_ids_the_remedy_is_printed(user: Pyrun) -> None:
    kept = {path: Path(path).read_text() for path in ("/etc/subuid", "/etc/subgid")}
    try:
        for path, text in kept.items():
            Path(path).write_text(
                "".join(line for line in text.splitlines(True) if not line.startswith(ACCOUNT))
            )
        done = user("run", "--rm", "busybox", "true")
    finally:
        for path, text in kept.items():
            Path(path).write_text(text)
    assert done.returncode == 125
    assert f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {ACCOUNT}" in done.stderr


def test_the_stores_of_root_and_of_a_user_are_not_mixed(user: Pyrun) -> None:
    done = subprocess.run(
        [user.command, "--root", str(user.root), "--state", "/run/pyrun-test-mixed", "run", "--rm", "busybox", "true"],
        capture_output=True, text=True, env=user.env,
    )  # fmt: skip
    shutil.rmtree("/run/pyrun-test-mixed", ignore_errors=True)
    assert done.returncode == 125
    assert "made by an ordinary user" in done.stderr


def test_where_apparmor_restricts_user_namespaces_the_profile_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ubuntu 24.04's sysctl; this kernel can't be made to have it, so the file is a stand-in."""
    from pyrun.sandbox import rootless

    sysctl = tmp_path / "sysctl"
    sysctl.write_text("1\n")
    monkeypatch.setattr(rootless, "APPARMOR_SYSCTL", str(sysctl))
    text = rootless._remedy()
    assert "/etc/apparmor.d/pyrun" in text
    assert os.path.realpath(sys.executable) in text
    assert "userns," in text


@pytest.mark.parametrize(
    "words",
    ["images", "images --tree", "ps", "history x", "inspect x", "commit x", "rm x", "push x", "save x"],
)
def test_a_store_that_is_another_users_is_told_from_an_empty_one(
    user: Pyrun, tmp_path: Path, words: str
) -> None:
    other = tmp_path / "roots"
    for name in ("images", "containers", "names", "staging"):
        (other / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    other.chmod(0o700)
    done = user("--root", str(other), *words.split())
    assert done.returncode == 1
    assert (
        f"can't use {other} as the store: Permission denied\nChoose another with --root DIR.\n" in done.stderr
    )


def test_images_are_named_listed_checked_and_removed(user: Pyrun) -> None:
    user.ok("tag", "busybox", "mine:1")
    assert "mine:1" in user.ok("images", "--tree")
    assert user.ok("images", "-f", "reference=mine", "--format", "{{.Tag}}") == "1\n"
    assert user.ok("system", "check", "-q", "mine:1").endswith("1 image: sound\n")
    user.ok("untag", "busybox", "mine:1")
    user.ok("tag", "busybox", "mine:2")
    assert user.ok("rmi", "mine:2") == "Untagged: mine:2\n"
    assert user.ok("image", "prune", "-f").endswith("Total reclaimed space: 0B\n")
    assert "latest" in user.ok("tags", "-q", "busybox").split()
