"""Driving the real `pyrun` command, on a pipe or on a terminal, and looking at what it leaves behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).parent / "pyrun")
TIMEOUT = 60


def wait_for(condition: Any, what: str, seconds: float = 20) -> Any:
    """Poll ``condition`` until it is true, and return its value; fail with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain: {what}")


class Pyrun:
    """The command with one store. ``prefix`` runs it as somebody else; ``env`` is added to the environment."""

    def __init__(
        self, root: Path, state: Path, *, env: dict[str, str] | None = None, prefix: list[str] | None = None
    ) -> None:
        self.root = root
        self.state = state
        self.env = {**os.environ, **(env or {})}
        self.prefix = prefix or []
        self.command = COMMAND

    def argv(self, *args: str) -> list[str]:
        return [*self.prefix, self.command, "--root", str(self.root), "--state", str(self.state), *args]

    def __call__(
        self, *args: str, timeout: float = TIMEOUT, **options: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Run to the end; stdin is empty unless ``input`` or ``stdin`` is given."""
        options.setdefault("text", True)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        options.setdefault("env", self.env)
        return subprocess.run(self.argv(*args), timeout=timeout, **options)

    def ok(self, *args: str, **options: Any) -> Any:
        """stdout of a command that must succeed."""
        done = self(*args, **options)
        assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def image(self, name: str) -> dict[str, Any]:
        """What ``image inspect`` tells of an image."""
        return dict(json.loads(self.ok("image", "inspect", name))[0])

    def sh(self, script: str, *options: str, image: str = "busybox", **more: Any) -> str:
        """What a shell script in a fresh --rm container prints."""
        return str(self.ok("run", "--rm", *options, image, "sh", "-c", script, **more))

    def start(self, *args: str, **options: Any) -> subprocess.Popen[Any]:
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("env", self.env)
        return subprocess.Popen(self.argv(*args), **options)

    def pid_of(self, name: str) -> int:
        """The pid of a running container's first process, once it executes the container's program."""

        def found() -> int:
            done = self("inspect", name)
            if done.returncode:
                return 0
            state = json.loads(done.stdout)[0]["State"]
            if not state["Running"] or not state["Pid"]:
                return 0
            try:
                return int(state["Pid"]) if os.readlink(f"/proc/{state['Pid']}/exe") != _interpreter() else 0
            except FileNotFoundError:
                return 0

        return int(wait_for(found, f"container {name} runs"))

    def records(self) -> list[str]:
        """Everything of containers that lies in the store: records, names, staging."""
        left = []
        for name in ("containers", "names", "staging"):
            with contextlib.suppress(FileNotFoundError):
                left += [f"{name}/{entry}" for entry in os.listdir(self.root / name)]
        with contextlib.suppress(FileNotFoundError):
            left += [f"running/{entry}" for entry in os.listdir(self.state / "running")]
        return left


def _interpreter() -> str:
    return os.path.realpath(sys.executable)


def mounts_below(path: Path) -> list[str]:
    """Lines of the host's mountinfo that mention ``path``."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(path) in line]


def processes(marker: str) -> list[int]:
    """Pids of processes whose command line contains ``marker``, this one and its ancestors left out."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if marker.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
    return found


class Terminal:
    """`pyrun` on a pseudo-terminal of its own, as in a terminal window."""

    def __init__(self, argv: list[str], env: dict[str, str], size: tuple[int, int] = (24, 80)) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
                os.execvpe(argv[0], argv, env)
            finally:
                os._exit(127)
        self.output = b""
        self.status: int | None = None

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def send(self, keys: bytes) -> None:
        os.write(self.fd, keys)

    def read_until(self, pattern: bytes, seconds: float = 20) -> bytes:
        """Output up to and including the first match of ``pattern`` since the last call."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            match = re.search(pattern, self.output)
            if match:
                seen, self.output = self.output[: match.end()], self.output[match.end() :]
                return seen
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:
                    data = b""
                if not data:
                    break
                self.output += data
        raise AssertionError(f"{pattern!r} never came; got {self.output!r}")

    def send_until(self, keys: bytes, pattern: bytes, seconds: float = 20) -> bytes:
        """Send ``keys`` again and again until ``pattern`` comes: the job they are for may not run yet."""
        deadline = time.monotonic() + seconds
        while True:
            self.send(keys)
            try:
                return self.read_until(pattern, 0.5)
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.fd)

    def wait(self, seconds: float = 20) -> int:
        """The exit code, or 128 + signal."""

        def ended() -> bool:
            # A terminal's reader must keep reading, or the writer can't finish.
            if select.select([self.fd], [], [], 0)[0]:
                with contextlib.suppress(OSError):
                    self.output += os.read(self.fd, 65536)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
            return bool(pid)

        wait_for(ended, "the command on the terminal ends", seconds)
        while select.select([self.fd], [], [], 0)[0]:  # what it wrote last
            try:
                self.output += os.read(self.fd, 65536)
            except OSError:
                break
        assert self.status is not None
        return self.status

    def close(self) -> None:
        os.close(self.fd)
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def terminal(pyrun: Pyrun, *args: str, size: tuple[int, int] = (24, 80)) -> Iterator[Terminal]:
    window = Terminal(pyrun.argv(*args), pyrun.env, size)
    try:
        yield window
    finally:
        window.close()


def tree_digest(path: Path) -> dict[str, tuple[Any, ...]]:
    """Every file below ``path``: type, mode, owner, size, mtime, link target, content hash, xattrs."""
    import hashlib

    found: dict[str, tuple[Any, ...]] = {}
    for directory, names, files in os.walk(path):
        for name in [*names, *files]:
            full = os.path.join(directory, name)
            stat = os.lstat(full)
            content = ""
            if os.path.isfile(full) and not os.path.islink(full):
                with open(full, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            link = os.readlink(full) if os.path.islink(full) else ""
            attributes = tuple(
                (key, os.getxattr(full, key, follow_symlinks=False))
                for key in os.listxattr(full, follow_symlinks=False)
            )
            found[os.path.relpath(full, path)] = (
                stat.st_mode,
                stat.st_uid,
                stat.st_gid,
                stat.st_size,
                stat.st_mtime_ns,
                stat.st_rdev,
                link,
                content,
                attributes,
            )
    return found


def copy_store(source: Path, target: Path) -> None:
    """A copy of a store with everything as it is: owners, devices, xattrs."""
    cp = shutil.which("cp")
    assert cp
    subprocess.run([cp, "-a", "--reflink=auto", str(source), str(target)], check=True)
