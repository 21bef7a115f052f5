"""pyrun as an ordinary user with subordinate ids: an account of the test's own, a venv outside /root."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pyrun import Pyrun, mounts_below, processes, terminal, wait_for

ACCOUNT = "pyruntest"
FIRST = 1_400_000_000  # a range that no distribution gives out by itself

# /dev/fuse and /dev/net/tun as every user may open them on an ordinary host, in a mount namespace of the command's
# own: on this one they may be 0600, and nothing of the machine is changed.
_WITH_NODES = """
    mount -t tmpfs -o mode=755 tmpfs "$1" || exit 99
    mknod -m 666 "$1/fuse" c 10 229 && mknod -m 666 "$1/tun" c 10 200 || exit 99
    if test -e /dev/fuse; then mount --bind "$1/fuse" /dev/fuse || exit 99; fi
    if test -e /dev/net/tun; then mount --bind "$1/tun" /dev/net/tun || exit 99; fi
    shift
    exec "$@"
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an account for the test")


def _free_id() -> int:
    taken = {p.pw_uid for p in pwd.getpwall()} | {g.gr_gid for g in grp.getgrall()}
    return next(number for number in range(54321, 60000) if number not in taken)


@pytest.fixture(scope="module")
def account() -> Iterator[str]:
    """A user with 65,536 subordinate ids, removed afterwards."""
    number = str(_free_id())
    subprocess.run(["groupadd", "-g", number, ACCOUNT], check=True)
    subprocess.run(["useradd", "-u", number, "-g", number, "-m", "-s", "/bin/sh", ACCOUNT], check=True)
    try:
        for path in ("/etc/subuid", "/etc/subgid"):  # useradd may have given a range already
            lines = [
                line for line in Path(path).read_text().splitlines() if not line.startswith(f"{ACCOUNT}:")
            ]
            Path(path).write_text("\n".join([*lines, f"{ACCOUNT}:{FIRST}:65536"]) + "\n")
        yield ACCOUNT
    finally:
        for pid in _processes_of(int(number)):
            os.kill(pid, 9)
        wait_for(lambda: not _processes_of(int(number)), "the account's processes end")
        subprocess.run(["userdel", "-r", ACCOUNT], check=True, stderr=subprocess.DEVNULL)
        for path in ("/etc/subuid", "/etc/subgid"):
            lines = [
                line for line in Path(path).read_text().splitlines() if not line.startswith(f"{ACCOUNT}:")
            ]
            Path(path).write_text("".join(f"{line}\n" for line in lines))


def _processes_of(uid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                if os.stat(f"/proc/{entry}").st_uid in (uid, *range(FIRST, FIRST + 65536)):
                    found.append(int(entry))
            except FileNotFoundError:
                continue
    return found


@pytest.fixture(scope="module")
def installation(base: Path) -> Path:
    """pyrun in a venv that every user may read; its packages are those of the venv that runs the tests."""
    venv = base / "venv"
    interpreter = os.path.realpath(sys.executable)
    subprocess.run([interpreter, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    source = next(Path(p) for p in sys.path if p.endswith("site-packages") and Path(p, "typer").exists())
    shutil.copytree(source, site, dirs_exist_ok=True)
    repository = Path(__file__).resolve().parents[2]
    for package in ("runtime/pyrun", "plugins/pyrun_drivers"):
        shutil.copytree(repository / package, site / Path(package).name, dirs_exist_ok=True)
    for link in site.glob("*pyrun*.pth"):
        link.unlink()
    script = venv / "bin/pyrun"
    script.write_text(f"#!{venv}/bin/python\nfrom pyrun.cli.main import main\nmain()\n")
    script.chmod(0o755)
    subprocess.run(["chmod", "-R", "go+rX", str(venv)], check=True)
    return venv


@pytest.fixture(scope="module")
def user(account: str, installation: Path, mirror: Path) -> Iterator[Pyrun]:
    entry = pwd.getpwnam(account)
    home = Path(entry.pw_dir)
    conf = home / "registries.conf"
    conf.write_bytes(mirror.read_bytes())
    os.chmod(conf, 0o644)
    nodes = home / "nodes"
    nodes.mkdir()
    prefix = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _WITH_NODES, "sh", str(nodes)]
    prefix += [
        "setpriv",
        f"--reuid={entry.pw_uid}",
        f"--regid={entry.pw_gid}",
        "--clear-groups",
        "--inh-caps=-all",
    ]
    prefix += ["env", "-C", str(home)]
    with tempfile.TemporaryDirectory(prefix="pyrun-state-") as state:
        os.chown(state, entry.pw_uid, entry.pw_gid)
        env = {
            "HOME": str(home),
            "CONTAINERS_REGISTRIES_CONF": str(conf),
            "USER": account,
            "XDG_RUNTIME_DIR": state,
        }
        pyrun = Pyrun(home / "store", Path(state) / "pyrun", env=env, prefix=prefix)
        pyrun.command = str(installation / "bin/pyrun")
        pyrun.ok("pull", "-q", "busybox")
        pyrun.ok("pull", "-q", "redis")
        yield pyrun
        assert pyrun.records() == []
        assert mounts_below(pyrun.root) == []
        assert processes(str(pyrun.root)) == []


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
