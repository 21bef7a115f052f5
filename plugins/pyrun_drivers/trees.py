"""What drivers have in common whose layer is a whole tree: vfs, which copies it, and btrfs, which snapshots it.

A layer or a container's state is a directory with the tree in ``fs``, and in ``made`` the file-system time at
which the tree was a copy of its parent and nothing more: whatever was touched later has a later ctime.
"""

from __future__ import annotations

import os
import stat
import time

from pyrun.errors import StorageError
from pyrun.kernel import userns
from pyrun.kernel.extents import unshared
from pyrun.storage import tree as plain
from pyrun.storage.contract import Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.storage.contract import Env

O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_O_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

# An id that no host gives to anybody, for the trial of idmapped mounts only.
_TRIAL_MAP = [userns.IdMap(0, 0x7FFD0000, 65536)]
detached = plain.mount

# The coarsest kernel clock ticks every 10 ms; ctimes come from it.
_TICKS = 200


def own_root(path: str) -> None:
    """Make the fresh directory ``path`` what the root of an empty tree is: 0755, 0:0, whatever umask or setgid
    directory it was made under."""
    os.chown(path, 0, 0)
    os.chmod(path, 0o755)


def empty(env: Env, name: str) -> str:
    """A directory of driver ``name`` in which there is never anything."""
    path = f"{env.root}/layers/{name}/.empty"
    if not os.path.isdir(path):
        os.makedirs(path, mode=0o755, exist_ok=True)
        own_root(path)
    return path


def idmap_trial(path: str) -> str:
    """ "" where the file system of the directory ``path``, root's, can be mounted idmapped; else why not."""
    try:
        namespace = userns.hold(_TRIAL_MAP, _TRIAL_MAP)
    except OSError as error:
        return f"user namespaces: {error.strerror}"
    try:
        fd = detached(path, readonly=False, idmap=namespace)
    except OSError as error:
        return f"no idmapped mounts here: {error.strerror}"
    finally:
        os.close(namespace)
    try:
        seen = os.stat(fd).st_uid
        return "" if seen == _TRIAL_MAP[0].outside else f"a directory of root appears as {seen}"
    finally:
        os.close(fd)


def mark(path: str) -> None:
    """Write ``path``/made: now, on the clock that ctimes come from, and let that clock tick once.

    So a file is unchanged exactly where its ctime is not later, even if the next write follows at once.
    """
    name = f"{path}/made"
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.utime(fd)
        now = os.fstat(fd).st_ctime_ns
        os.write(fd, b"%d\n" % now)
        for _ in range(_TICKS):
            os.utime(fd)
            if os.fstat(fd).st_ctime_ns > now:
                return
            time.sleep(0.001)
    finally:
        os.close(fd)
    raise StorageError(f"the clock of the file system of {path} stands still, so changes can't be told")


def marked(path: str) -> int | None:
    """What `mark` wrote in ``path``; None where it is not there, as in something half-made."""
    try:
        with open(f"{path}/made") as file:
            return int(file.read())
    except (FileNotFoundError, ValueError):
        return None


def exclusive(path: str) -> Usage:
    """What the tree ``path``/fs takes beside what it shares with others: of the files that were touched since
    `mark`, the blocks that are theirs alone, each inode once.

    Files that are still what was copied or snapshotted cost a few bytes of metadata, which is not counted.
    """
    from pyrun.storage.changes import each_inode

    since = marked(path)
    total = inodes = 0
    for fd, base, found in each_inode(f"{path}/fs"):
        if since is None or found.st_ctime_ns > since:
            inodes += 1
            total += _own_bytes(fd, base, found)
    return Usage(total, inodes)


def _own_bytes(dirfd: int, base: bytes, found: os.stat_result) -> int:
    allocated = found.st_blocks * 512
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return allocated
    try:
        fd = os.open(base, _O_FILE, dir_fd=dirfd)
    except OSError:
        return allocated  # gone, or replaced by what can't be opened: it may race
    try:
        own = unshared(fd)
        return allocated if own is None else own
    finally:
        os.close(fd)
