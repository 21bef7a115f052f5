"""Leases: while one lives, garbage collection and `LayerStore.remove` spare what it names.

For work that needs layers before any record names them: a migration, a benchmark, a comparison. A lease is a
file below ``<root>/leases`` that its holder keeps locked (flock), so it ends with its holder, however that ends.
"""

from __future__ import annotations

import fcntl
import json
import os

from ..errors import StorageError
from ..kernel.files import write_all
from .locks import SharedLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_TEMPORARY = "."


class Held:
    """A living lease. ``holder`` names the work and its process, for messages."""

    __slots__ = ("blobs", "driver", "holder", "keys")

    def __init__(self, driver: str, keys: frozenset[str], blobs: frozenset[str], holder: str) -> None:
        self.driver = driver
        self.keys = keys
        self.blobs = blobs
        self.holder = holder


class Lease:
    """Holds the layers ``keys`` of ``driver`` and the blobs ``blobs`` (digests) of the store ``root``.

    A context manager. Entering waits for a garbage collection that is going on, so afterwards what is there
    stays; what is not there, the holder makes. The caller must not hold ``locks/store`` exclusively. ``work``
    says what for. Children that inherit the descriptor hold it, too.
    """

    __slots__ = ("_fd", "_record", "_root", "path")

    def __init__(
        self, root: str, driver: str, keys: Iterable[str], *, blobs: Iterable[str] = (), work: str = "pyrun"
    ) -> None:
        self._root = root
        self._record = {
            "driver": driver,
            "keys": sorted(set(keys)),
            "blobs": sorted(set(blobs)),
            "holder": f"{work} (process {os.getpid()})",
        }
        self._fd = -1
        self.path = f"{root}/leases/{os.urandom(8).hex()}.json"

    def __enter__(self) -> Lease:
        directory, name = os.path.split(self.path)
        temporary = f"{directory}/{_TEMPORARY}{name}"
        data = json.dumps(self._record, separators=(",", ":")).encode()
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            with SharedLock(f"{self._root}/locks/store"):
                while self._fd < 0:
                    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX)
                        write_all(fd, data)
                        # Locked and whole before it has its name.
                        os.rename(temporary, self.path)
                        self._fd = fd
                    except FileNotFoundError:
                        os.close(fd)  # swept between its making and its locking
                    except BaseException:
                        os.close(fd)
                        raise
        except OSError as error:
            raise StorageError(
                f"can't take a lease on layers in {directory}: {error.strerror}",
                hint="Free some space, or check the store's directory.",
            ) from error
        return self

    def __exit__(self, *exc: object) -> None:
        if self._fd >= 0:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
            os.close(self._fd)
            self._fd = -1


def held(root: str) -> list[Held]:
    """Every living lease. What dead holders left is removed."""
    found, dead = _look(root)
    for path in dead:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
    return found


def dead(root: str) -> list[str]:
    """The paths of leases whose holders are gone, for `pyrun system check`; nothing is removed."""
    return _look(root)[1]


def holder(root: str, driver: str, key: str) -> str:
    """Who holds the layer ``key`` of ``driver`` by a living lease; "" for nobody."""
    return next((lease.holder for lease in held(root) if lease.driver == driver and key in lease.keys), "")


def _look(root: str) -> tuple[list[Held], list[str]]:
    living: list[Held] = []
    dead: list[str] = []
    try:
        names = os.listdir(f"{root}/leases")
    except FileNotFoundError:
        return living, dead
    for name in names:
        path = f"{root}/leases/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue  # given back just now
        try:
            # Shared, so that two who look don't take each other for the holder.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            dead.append(path)
        except BlockingIOError:
            if not name.startswith(_TEMPORARY):
                record = _read(fd, path)
                living.append(
                    Held(
                        record["driver"],
                        frozenset(record["keys"]),
                        frozenset(record["blobs"]),
                        record["holder"],
                    )
                )
        finally:
            os.close(fd)
    return living, dead


def _read(fd: int, path: str) -> dict[str, str]:
    data = b""
    while chunk := os.read(fd, 1 << 20):
        data += chunk
    try:
        record: dict[str, str] = json.loads(data)
        _ = record["driver"], record["keys"], record["blobs"], record["holder"]
        return record
    except (ValueError, KeyError, TypeError) as error:
        # Nobody can tell what it holds: nothing may go.
        raise StorageError(f"the lease {path} is damaged", hint="End its holder, or wait for it.") from error
