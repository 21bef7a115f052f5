"""podman as a peer that reads what pyrun wrote: with a store, a run directory and settings of its own.

It runs in a private mount namespace without a cgroup v2 tree beside v1 ("hybrid"), which crun of Debian 12 refuses.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .pyrun import mounts_below

_WITHOUT_HYBRID = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'


class Podman:
    """A context manager. Skips the test where podman is missing, or can't be used."""

    def __init__(self, directory: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, as podman does for its containers here")
        if shutil.which("podman") is None:
            pytest.skip("needs podman (package podman)")
        self.directory = directory
        directory.mkdir()
        (directory / "containers.conf").write_text(
            '[containers]\ndefault_ulimits = []\n[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        )

    def __call__(self, *args: str, env: dict[str, str] | None = None) -> str:
        """stdout of a command that must succeed."""
        done = self.run(*args, env=env)
        assert done.returncode == 0, f"podman {args}: {done.stdout}{done.stderr}"
        return done.stdout

    def run(self, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        own = [
            f"--root={self.directory}/graph",
            f"--runroot={self.directory}/run",
            "--storage-driver=overlay",
        ]
        return subprocess.run(
            [
                "unshare",
                "-m",
                "--propagation=private",
                "sh",
                "-c",
                _WITHOUT_HYBRID,
                "sh",
                "podman",
                *own,
                *args,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            env={
                **os.environ,
                "CONTAINERS_CONF": str(self.directory / "containers.conf"),
                "TMPDIR": str(self.directory),
                **(env or {}),
            },
        )

    def output(self, image: str, *command: str) -> str:
        """What ``command`` prints in a container of ``image``."""
        limits = ("--ulimit", "host", "--pids-limit", "-1")
        return self("run", "--rm", "--network", "none", *limits, image, *command)

    def __enter__(self) -> Podman:
        return self

    def __exit__(self, *_: object) -> None:
        self.run("rm", "-fa")
        self.run("rmi", "-fa")
        for line in reversed(mounts_below(self.directory)):
            subprocess.run(["umount", line.split()[4]], check=False)
        shutil.rmtree(self.directory)
