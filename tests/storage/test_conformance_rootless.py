"""The conformance suite as an ordinary user: an author's own three lines, run by pytest in the user namespace that
`pyrun.sandbox.rootless.enter` makes."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from support.account import WITH_NODES, as_account

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an account for the test")

# {driver} {home}
_FILE = """\
from pyrun.storage.plugins import Plugins
from pyrun.testing import StorageConformance

class TestMine(StorageConformance):
    driver = next(found.driver for found in Plugins().drivers() if found.name == "{driver}")
    root = "{root}"
    must_work = True
"""

_RUN = """\
import sys
from pyrun.sandbox.rootless import enter
enter()
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir=.", "--tb=short", *sys.argv[1:]]))
"""

# In the mount namespace that the command has of its own: a btrfs in a file, the user's.
_WITH_BTRFS = """
    truncate -s 2G "$1/image" && mkfs.btrfs -q "$1/image" && mkdir "$1/disk" || exit 99
    mount -t btrfs -o loop,user_subvol_rm_allowed "$1/image" "$1/disk" || exit 99
    chown "$2" "$1/disk" || exit 99
    shift 2
    exec "$@"
"""


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "driver",
    [
        "overlay",
        "fuse-overlayfs",
        pytest.param("vfs", marks=pytest.mark.long),
        pytest.param("btrfs", marks=pytest.mark.long),
    ],
)
def test_an_ordinary_user_runs_the_suite(driver: str, account: str, installation: Path, base: Path) -> None:
    if driver == "fuse-overlayfs" and not shutil.which("fuse-overlayfs"):
        pytest.skip("fuse-overlayfs is not installed")
    if driver == "btrfs" and not shutil.which("mkfs.btrfs"):
        pytest.skip("mkfs.btrfs is not installed")
    uid, home = pwd.getpwnam(account).pw_uid, Path(pwd.getpwnam(account).pw_dir)
    place = home / f"suite-{driver}"
    nodes = base / f"nodes-{driver}"
    for made in (place, nodes):
        made.mkdir()
    root = place / "disk" if driver == "btrfs" else place / "stores"
    (place / "test_mine.py").write_text(_FILE.format(driver=driver, root=root))
    os.chown(place, uid, uid)
    command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", WITH_NODES, "sh", str(nodes)]
    if driver == "btrfs":
        command += ["sh", "-c", _WITH_BTRFS, "sh", str(place), str(uid)]
    command += [*as_account(account), "env", "-C", str(place), str(installation / "bin/python"), "-c", _RUN]
    env = {"HOME": str(home), "USER": account, "PATH": os.environ["PATH"], "TMPDIR": str(place)}
    done = subprocess.run([*command, "test_mine.py"], env=env, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert " passed" in done.stdout
    assert " failed" not in done.stdout
    assert root.name == "disk" or not root.exists()
