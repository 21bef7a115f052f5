"""An ordinary user with subordinate ids for tests, and pyrun where such a user may read it: not below /root."""

from __future__ import annotations

import contextlib
import fcntl
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

from .pyrun import Pyrun, mounts_below, processes, wait_for

# Of this run alone, so that two runs on one host don't meet.
_NUMBER = os.getpid() % 1000
ACCOUNT = f"pyruntest{_NUMBER:03}"
FIRST = 1_400_000_000 + _NUMBER * 65536  # of a range that no distribution gives out by itself

# /dev/fuse and /dev/net/tun as every user may open them on an ordinary host, in a mount namespace of the command's
# own: on this one they may be 0600, and nothing of the machine is changed.
WITH_NODES = """
    mount -t tmpfs -o mode=755 tmpfs "$1" || exit 99
    mknod -m 666 "$1/fuse" c 10 229 && mknod -m 666 "$1/tun" c 10 200 || exit 99
    if test -e /dev/fuse; then mount --bind "$1/fuse" /dev/fuse || exit 99; fi
    if test -e /dev/net/tun; then mount --bind "$1/tun" /dev/net/tun || exit 99; fi
    shift
    exec "$@"
"""


def _free_id() -> int:
    taken = {p.pw_uid for p in pwd.getpwall()} | {g.gr_gid for g in grp.getgrall()}
    return next(number for number in range(54321, 60000) if number not in taken)


@pytest.fixture(scope="session")
def account() -> Iterator[str]:
    """A user with 65,536 subordinate ids, removed afterwards."""
    with _alone():
        number = str(_free_id())
        subprocess.run(["groupadd", "-g", number, ACCOUNT], check=True)
        subprocess.run(["useradd", "-u", number, "-g", number, "-m", "-s", "/bin/sh", ACCOUNT], check=True)
        _subordinate(f"{ACCOUNT}:{FIRST}:65536")  # useradd may have given a range already
    try:
        yield ACCOUNT
    finally:
        for pid in processes_of(int(number)):
            os.kill(pid, 9)
        wait_for(lambda: not processes_of(int(number)), "the account's processes end")
        with _alone():
            subprocess.run(["userdel", "-r", ACCOUNT], check=True, stderr=subprocess.DEVNULL)
            _subordinate()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """While entered, no other run of the tests changes the files of accounts."""
    with open(f"{tempfile.gettempdir()}/pyrun-test-accounts.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _subordinate(*own: str) -> None:
    """Let ``own`` be the account's lines in /etc/subuid and /etc/subgid."""
    for path in ("/etc/subuid", "/etc/subgid"):
        lines = [line for line in Path(path).read_text().splitlines() if not line.startswith(f"{ACCOUNT}:")]
        Path(path).write_text("".join(f"{line}\n" for line in [*lines, *own]))


def processes_of(uid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                owner = os.stat(f"/proc/{entry}").st_uid
                if owner == uid or FIRST <= owner < FIRST + 65536:
                    found.append(int(entry))
            except FileNotFoundError:
                continue
    return found


@pytest.fixture(scope="session")
def installation(base: Path) -> Path:
    """pyrun in a venv that every user may read; its packages are those of the venv that runs the tests."""
    venv = base / "venv"
    interpreter = os.path.realpath(sys.executable)
    subprocess.run([interpreter, "-m", "venv", "--without-pip", str(venv)], check=True)
    (site,) = venv.glob("lib/python3*/site-packages")
    source = next(Path(p) for p in sys.path if p.endswith("site-packages") and Path(p, "typer").exists())
    # Half of what is there is for developers.
    tools = shutil.ignore_patterns(
        "mypy*", "*__mypyc*", "pip*", "setuptools*", "pkg_resources", "grimp*", "ast_serialize*"
    )
    shutil.copytree(source, site, dirs_exist_ok=True, ignore=tools)
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


def as_account(name: str) -> list[str]:
    """The words before a command that make it that user's, without root's groups and capabilities."""
    entry = pwd.getpwnam(name)
    return [
        "setpriv",
        f"--reuid={entry.pw_uid}",
        f"--regid={entry.pw_gid}",
        "--clear-groups",
        "--inh-caps=-all",
    ]


@contextlib.contextmanager
def command_of(
    name: str, installation: Path, mirror: Path | None = None, *, nodes: bool = False
) -> Iterator[Pyrun]:
    """The command as the account's, its store and state in directories that go with it; with a home of its own.
    ``mirror`` is a registries.conf; ``nodes``: the user may open /dev/fuse. Nothing of its containers may be left."""
    entry = pwd.getpwnam(name)
    with (
        tempfile.TemporaryDirectory(prefix="home-", dir=entry.pw_dir) as home,
        tempfile.TemporaryDirectory(prefix="pyrun-state-") as state,
    ):
        for directory in (home, state):
            os.chown(directory, entry.pw_uid, entry.pw_gid)
        env = {"HOME": home, "USER": name, "XDG_RUNTIME_DIR": state}
        if mirror is not None:
            conf = Path(home, "registries.conf")
            conf.write_bytes(mirror.read_bytes())
            conf.chmod(0o644)
            env["CONTAINERS_REGISTRIES_CONF"] = str(conf)
        prefix = [*as_account(name), "env", "-C", home]
        if nodes:
            os.mkdir(f"{home}/nodes")
            private = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", WITH_NODES, "sh"]
            prefix = [*private, f"{home}/nodes", *prefix]
        pyrun = Pyrun(Path(home, "store"), Path(state, "pyrun"), env=env, prefix=prefix)
        pyrun.command = str(installation / "bin/pyrun")
        yield pyrun
        assert pyrun.records() == []
        assert mounts_below(pyrun.root) == []
        assert processes(str(pyrun.root)) == []
