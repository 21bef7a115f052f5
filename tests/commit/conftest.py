"""A container with files of every kind, made and looked at from inside by the host's Python."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrun.testing import disks
from support.account import command_of
from support.pyrun import Pyrun, mounts_below, processes

HERE = Path(__file__).parent
MiB = 1 << 20

# path → [mode, uid, gid, size, mtime in ns, link target or digest, xattrs in hex, first name of the same file]
Files = dict[str, list[Any]]


def with_python(script: Path) -> list[str]:
    """Options of `run` by which a container has the host's Python, with its libraries, and the script."""
    prefix = os.path.realpath(sys.base_prefix)
    options = ["-v", f"{prefix}:{prefix}:ro", "-v", f"{script}:/inside.py:ro"]
    for library in ("/lib", "/lib64"):
        if os.path.isdir(library) and not library.startswith(prefix):
            options += ["-v", f"{os.path.realpath(library)}:{library}:ro"]
    return options


INTERPRETER = [os.path.realpath(sys.executable), "-I", "-S", "/inside.py"]


class Site:
    """A store of one driver with busybox, and how to look into its containers."""

    def __init__(self, pyrun: Pyrun, script: Path, *options: str) -> None:
        self.pyrun = pyrun
        self.options = [*options, *with_python(script)]

    def start(self, name: str, *words: str, image: str = "busybox") -> tuple[subprocess.Popen[Any], Files]:
        """A running container that did ``words`` and waits, and what it saw."""
        process = self.pyrun.start(
            "run", "-i", "--name", name, *self.options, image, *INTERPRETER, *words, "look", "wait",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"exit {process.wait()}"
        return process, json.loads(line)

    def look(self, image: str) -> Files:
        """What a fresh container of ``image`` sees."""
        return dict(json.loads(self.pyrun.ok("run", "--rm", *self.options, image, *INTERPRETER, "look")))


def end(process: subprocess.Popen[Any]) -> None:
    """Let a container of `Site.start` end."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    assert process.wait(timeout=30) == 0


def files_of(archive: Path) -> Files:
    """The files of a tar, as `inside.look` tells them."""
    import hashlib
    import stat

    kinds = {
        tarfile.REGTYPE: stat.S_IFREG, tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK,
        tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK,
        tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    }  # fmt: skip
    found: Files = {}
    with tarfile.open(archive, encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            name = "/" + member.name.removeprefix("./").removeprefix(".")
            if member.islnk():
                first = found["/" + member.linkname]
                found[name] = first
                first[-1] = min(first[-1] or "/" + member.linkname, name, "/" + member.linkname)
                continue
            text = member.linkname if member.issym() else ""
            if member.isreg():
                content = tar.extractfile(member)
                assert content is not None
                text = hashlib.file_digest(content, "sha256").hexdigest()
            xattrs = {
                key.removeprefix("SCHILY.xattr."): value.encode("utf-8", "surrogateescape").hex()
                for key, value in member.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            whole, _, part = member.pax_headers.get("mtime", str(member.mtime)).partition(".")
            times = int(whole) * 10**9 + int(part.ljust(9, "0")[:9])
            if member.isdir() and not name.startswith("/tree"):
                times = 0
            size = len(os.fsencode(text)) if member.issym() else member.size
            mode = kinds[member.type] | (0o777 if member.issym() else member.mode)
            found[name] = [mode, member.uid, member.gid, size, times, text, xattrs, ""]
    return found


@pytest.fixture(scope="session")
def script(base: Path) -> Path:
    """`inside.py` where everybody may read it."""
    copy = base / "inside.py"
    shutil.copyfile(HERE / "inside.py", copy)
    copy.chmod(0o644)
    return copy


@contextlib.contextmanager
def store_of(driver: str, mirror: Path, directory: str) -> Iterator[Pyrun]:
    """A store of ``driver`` with busybox; on a file system of its own where the driver wants one."""
    disk = None
    place = directory
    if driver == "btrfs":
        if not shutil.which("mkfs.btrfs"):
            pytest.skip("mkfs.btrfs is not installed")
        os.mkdir(f"{directory}/disk")
        disk = disks.make("btrfs", f"{directory}/disk", 512 * MiB, f"{directory}/image")
        place = disk.path
    try:
        if driver == "fuse-overlayfs" and not shutil.which("fuse-overlayfs"):
            pytest.skip("fuse-overlayfs is not installed")
        pyrun = Pyrun(
            Path(place) / "store", Path(directory) / "state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)}
        )
        done = pyrun("pull", "-q", "--storage", driver, "busybox")
        if done.returncode and "can't be used" in done.stderr:
            pytest.skip(f"{driver} can't be used here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        yield pyrun
        assert processes(str(pyrun.root)) == []
        assert mounts_below(pyrun.root) == []
        assert os.listdir(pyrun.root / "staging") == []
    finally:
        if disk is not None:
            disk.unmount()


DRIVERS = ("overlay", "erofs", "vfs", "fuse-overlayfs", "btrfs")


@pytest.fixture(params=[*DRIVERS, "host", "user"])
def site(request: pytest.FixtureRequest, mirror: Path, script: Path, base: Path) -> Iterator[Site]:
    """Stores of each driver as root; overlay with the host's ids; and as an ordinary user."""
    if request.param == "user":
        who = request.getfixturevalue("account"), request.getfixturevalue("installation")
        with command_of(*who, mirror, nodes=True) as pyrun:
            pyrun.ok("pull", "-q", "busybox")
            yield Site(pyrun, script)
        return
    driver = "overlay" if request.param == "host" else request.param
    with (
        tempfile.TemporaryDirectory(prefix="commit-", dir=base) as directory,
        store_of(driver, mirror, directory) as p,
    ):
        yield Site(p, script, *(["--userns=host"] if request.param == "host" else []))
