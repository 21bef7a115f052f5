"""Files of every kind and owner come out of a container as it sees them: in a tar, and in an image that runs.

For every driver; in a user namespace of the container's own, with the host's ids, and as an ordinary user. Of the
container while it runs, when ids are seen shifted, and of the stopped one.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import Files, Site, end, files_of

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def owned(files: Files) -> Files:
    """Without what both containers have for themselves: the mount points that the engine makes."""
    made = ("/dev", "/proc", "/sys", "/lib", "/lib64", "/usr", "/inside.py")
    return {name: node for name, node in files.items() if name not in made}


def same(one: Files, two: Files) -> None:
    assert sorted(one) == sorted(two)
    assert {name: node for name, node in one.items() if node != two[name]} == {
        name: node for name, node in two.items() if node != one[name]
    }


ids: dict[str, str] = {}  # of what the cases below committed, by store


def test_a_tar_and_an_image_have_what_the_container_sees(
    site: Site, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pyrun = site.pyrun
    pyrun.env = {**pyrun.env, "SOURCE_DATE_EPOCH": "1700000000"}
    os.chmod(tmp_path.parent, 0o755)
    process, seen = site.start("files", "make")
    try:
        assert seen["/tree/other"][1:3] == [1000, 2000]
        assert seen["/tree/capable"][6]["security.capability"]
        with open(tmp_path / "running.tar", "wb") as file:
            pyrun.ok("export", "files", stdout=file)
        running = pyrun.ok("commit", "files", "committed:running")
        listed = pyrun.ok("diff", "files")
    finally:
        end(process)
    with open(tmp_path / "stopped.tar", "wb") as file:
        pyrun.ok("export", "files", stdout=file)
    assert pyrun.ok("diff", "files") == listed
    assert (tmp_path / "running.tar").read_bytes() == (tmp_path / "stopped.tar").read_bytes()
    assert pyrun.ok("commit", "files", "committed:stopped") == running
    # Whoever committed it, and however it is stored, it is the same image.
    ids[request.node.name] = running
    assert len(set(ids.values())) == 1, ids
    squashed = pyrun.ok("commit", "--squash", "files", "squashed")
    assert pyrun.ok("commit", "--squash", "files") == squashed
    exported = files_of(tmp_path / "stopped.tar")
    same(owned({name: node for name, node in exported.items() if name in seen}), owned(seen))
    for name in ("/proc", "/dev", "/inside.py", "/etc/hosts"):  # what is mounted there is left out
        assert exported[name][3] == 0
        assert not any(other.startswith(f"{name}/") for other in exported)
    same(owned(site.look("committed:stopped")), owned(seen))
    same(owned(site.look("squashed")), owned(seen))
    for line in ("A /tree/other", "D /etc/passwd", "C /etc/group", "C /root", "C /etc", "A /tree"):
        assert line in listed.splitlines()
    for hidden in ("/proc", "/dev", "/sys", "/inside.py", "/etc/hosts"):
        assert not any(line[2:].startswith(hidden) for line in listed.splitlines())
    subprocess.run(["tar", "-tf", str(tmp_path / "stopped.tar")], check=True, stdout=subprocess.DEVNULL)
    pyrun.ok("rm", "files")
