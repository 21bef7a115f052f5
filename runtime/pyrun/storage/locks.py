"""Locks and staging directories that free themselves when their holder dies. On the path of `run`.

flock(2) locks belong to an open file; the kernel drops them when the last copy of its descriptor is closed,
however the process ends.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time

from ..errors import PyrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


_LOOK = 0.05  # seconds between two looks at a lock whose waiter wants to hear of it


class Lock:
    """An exclusive lock by name, a file that exists only while somebody holds or waits for it.

    A holder unlinks the file before it lets go; a waiter that then gets the lock of the unlinked file sees
    by the inode that it must try again with the new one. ``waiting`` is called now and then while it waits.
    """

    __slots__ = ("_fd", "_waiting", "path")

    def __init__(self, path: str, waiting: Callable[[], None] | None = None) -> None:
        self.path = path
        self._fd = -1
        self._waiting = waiting

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; without ``wait`` return False where somebody else has it."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                looking = self._waiting is not None or not wait
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB if looking else fcntl.LOCK_EX)
                if os.fstat(fd).st_ino == os.stat(self.path).st_ino:
                    self._fd = fd
                    return True
            except BlockingIOError:
                os.close(fd)
                if self._waiting is None or not wait:
                    return False
                self._waiting()
                time.sleep(_LOOK)
                continue
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def release(self) -> None:
        if self._fd >= 0:
            os.unlink(self.path)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class SharedLock:
    """A lock on an existing path, shared among users or exclusive (for garbage collection)."""

    __slots__ = ("_exclusive", "_fd", "path")

    def __init__(self, path: str, *, exclusive: bool = False) -> None:
        self.path = path
        self._exclusive = exclusive
        self._fd = -1

    def __enter__(self) -> SharedLock:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX if self._exclusive else fcntl.LOCK_SH)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)
        self._fd = -1


def lock_directory(path: str) -> int | None:
    """An fd that holds the exclusive lock of the directory ``path``; None where somebody else holds it.

    Raises FileNotFoundError. The lock moves with the directory when that is renamed.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise


class Staging:
    """The directory in which everything is made before one rename puts it in place.

    Entries are called ``<driver>.<random>``, so that whoever clears up after a dead process knows which
    driver can remove them. An entry that nobody holds locked is rubbish.
    """

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def new(self, driver: str) -> Stage:
        """A fresh, empty, locked entry, mode 0700."""
        # Shared against `sweep`, which must not see the entry between its making and its locking.
        with _Flocked(self.path, fcntl.LOCK_SH):
            path = f"{self.path}/{driver}.{os.urandom(8).hex()}"
            os.mkdir(path, 0o700)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        return Stage(path, fd)

    def receive(self, path: str, driver: str) -> Stage:
        """Move ``path`` here to be removed: from now on it is rubbish, whoever dies."""
        with _Flocked(self.path, fcntl.LOCK_SH):
            target = f"{self.path}/{driver}.{os.urandom(8).hex()}"
            os.rename(path, target)
            fd = lock_directory(target)
        return Stage(target, -1 if fd is None else fd)

    def dead(self) -> list[str]:
        """The paths of entries that nobody holds; nothing is removed."""
        found = []
        with _Flocked(self.path, fcntl.LOCK_EX):
            for name in os.listdir(self.path):
                path = f"{self.path}/{name}"
                try:
                    fd = lock_directory(path)
                except NotADirectoryError:
                    found.append(path)
                    continue
                except FileNotFoundError:
                    continue
                if fd is not None:
                    found.append(path)
                    os.close(fd)
        return found

    def sweep(self, remove: Callable[[str, str], None]) -> list[str]:
        """Call ``remove(path, driver)`` for every entry of a dead process; returns what was removed."""
        if not os.listdir(self.path):
            return []
        dead: list[tuple[str, int]] = []
        with _Flocked(self.path, fcntl.LOCK_EX):
            for name in os.listdir(self.path):
                path = f"{self.path}/{name}"
                try:
                    fd = lock_directory(path)
                except NotADirectoryError:
                    os.unlink(path)
                    continue
                except FileNotFoundError:
                    continue  # it was being renamed into place, or removed
                if fd is not None:
                    dead.append((path, fd))
        removed = []
        for path, fd in dead:
            try:
                remove(path, os.path.basename(path).partition(".")[0])
                removed.append(path)
            except (OSError, PyrunError) as error:
                # One that can't be removed must not stop every command; it is tried again each time.
                print(f"pyrun: warning: can't clear up {path}: {error}", file=sys.stderr)
            finally:
                os.close(fd)
        return removed


class Stage:
    """One entry of `Staging`, held until `close`. Rename ``path`` away to keep it; the lock goes along."""

    __slots__ = ("fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Flocked:
    __slots__ = ("fd", "how", "path")

    def __init__(self, path: str, how: int) -> None:
        self.path = path
        self.how = how

    def __enter__(self) -> None:
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self.fd, self.how)

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
