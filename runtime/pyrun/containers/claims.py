"""Claims to container names: ``<root>/names/<name>`` holds the id of its container. On the path of `run`."""

from __future__ import annotations

import fcntl
import os


class Name:
    """A claimed name. `keep` makes the claim last; otherwise `close` gives the name back."""

    __slots__ = ("_fd", "_kept", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._kept = False

    def keep(self) -> None:
        self._kept = True

    def close(self) -> None:
        if self._fd >= 0:
            if not self._kept:
                os.unlink(self.path)
            os.close(self._fd)
            self._fd = -1


def claim(root: str, name: str, id: str) -> Name | None:
    """Claim ``name`` for the container ``id``; None where another container has it."""
    path = f"{root}/names/{name}"
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Locked: somebody is making a container of that name. Unlocked: the id in it tells whether its
            # container came to be; if not, its maker died, and the claim is free.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            owner = os.read(fd, 64).decode(errors="replace")
            if owner and os.path.exists(f"{root}/containers/{owner}"):
                os.close(fd)
                return None
            if _same(fd, path):
                os.ftruncate(fd, 0)
                os.pwrite(fd, id.encode(), 0)
                return Name(path, fd)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # given back between the opening and the locking: the next try makes it anew


def release(root: str, name: str, id: str) -> None:
    """Give ``name`` back if it is still ``id``'s, and nobody is about to take it over."""
    path = f"{root}/names/{name}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.read(fd, 64).decode(errors="replace") in (id, "") and _same(fd, path):
            os.unlink(path)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)


def _same(fd: int, path: str) -> bool:
    try:
        return os.fstat(fd).st_ino == os.stat(path).st_ino
    except FileNotFoundError:
        return False
