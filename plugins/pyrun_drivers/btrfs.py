"""btrfs: a layer is a subvolume, a snapshot of its parent; a container is a snapshot of the topmost layer.

Making one takes milliseconds whatever its size, and content is shared until it is written. The tree lies in
the subvolume ``fs`` of a layer's or container's directory; a layer's is read-only.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import EDQUOT, EINVAL, ENOSPC, ENOTCONN, ENOTEMPTY, EPERM, EROFS

from pyrun.errors import PyrunError, Unsupported
from pyrun.kernel import btrfs
from pyrun.kernel import mount as m
from pyrun.layers.dirs import Directories
from pyrun.layers.remove import remove_at, remove_tree
from pyrun.storage.contract import Caps, Driver, Verdict
from pyrun.storage.locks import Staging

from . import trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pyrun.storage.contract import Blob, Env, Layer, Usage

_FIX = (
    "Put the store on a btrfs file system with --root DIR, or make one: truncate -s 20G FILE; mkfs.btrfs FILE; "
    "mount -o loop FILE DIR."
)
# What the kernel says to a limit where quotas are not enabled: before and since Linux 5.9.
_NO_QUOTAS = (EINVAL, ENOTCONN)
_KINDS = {
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x01021994: "tmpfs",
    0x794C7630: "overlayfs",
    0x2FC12FC1: "zfs",
    0xF2F52010: "f2fs",
    0x6969: "NFS",
    0x65735546: "FUSE",
    0xCA451A4E: "bcachefs",
}


class BtrfsDriver(Driver):
    """Snapshots. ``--storage-opt size=`` works where quotas are enabled: a container's own blocks are limited
    by its subvolume's quota group."""

    name = "btrfs"

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        try:
            fd = os.open(env.root, trees.O_DIRECTORY)
            try:
                magic = m.fstatfs_type(fd)
            finally:
                os.close(fd)
            if magic != btrfs.SUPER_MAGIC:
                kind = _KINDS.get(magic, f"a file system of type 0x{magic:x}")
                return Verdict(False, f"{env.root} is on {kind}, which is not btrfs", _FIX)
            unmapped, unlimited = _trial(env)
        except (OSError, PyrunError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            fix = "Choose another store with --root."
            if isinstance(error, OSError):
                if error.errno in (ENOSPC, EDQUOT):
                    fix = "Free some space."
                elif error.errno == EROFS:
                    fix = "Mount it writable."
            return Verdict(False, f"a trial subvolume below {env.root} failed: {why}", fix)
        why = "snapshots; " + (unlimited or "quotas")
        if unmapped:
            why += f"; {unmapped}"
        return Verdict(True, why, "", Caps(chained=True, idmap=not unmapped, quota=not unlimited))

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> None:
        _branch(parent, dest)
        fd = os.open(f"{dest}/fs", trees.O_DIRECTORY)
        try:
            blob.unpack(fd, "apply")
            btrfs.set_readonly(fd, True)
        finally:
            os.close(fd)

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        _branch(layers[-1] if layers else None, dest)
        if size is not None:
            fd = os.open(f"{dest}/fs", trees.O_DIRECTORY)
            try:
                btrfs.limit(fd, size)
            except OSError as error:
                if error.errno not in _NO_QUOTAS:
                    raise
                raise Unsupported(
                    "quotas are no longer enabled on the store's file system, so no container's size can be limited",
                    hint=f"Turn them on: btrfs quota enable {self.env.root}",
                ) from error
            finally:
                os.close(fd)

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if rw is not None:
            return trees.detached(f"{rw}/fs", readonly=False, idmap=idmap)
        below = f"{layers[-1].path}/fs" if layers else trees.empty(self.env, self.name)
        return trees.detached(below, readonly=True, idmap=idmap)

    def usage(self, path: str) -> Usage:
        """What was written since the snapshot and is shared with no other. Blocks that lie in the parent are
        the parent's, also when files of the snapshot that have them were renamed or chmodded."""
        return trees.exclusive(path)

    def remove(self, path: str) -> None:
        remove(path)


def _branch(layer: Layer | None, dest: str) -> None:
    """``dest``/fs, a writable snapshot of the layer, and the time at which it was one."""
    fd = os.open(dest, trees.O_DIRECTORY)
    try:
        if layer is None:
            btrfs.create(fd, "fs")
            trees.own_root(f"{dest}/fs")
        else:
            source = os.open(f"{layer.path}/fs", trees.O_DIRECTORY)
            try:
                btrfs.snapshot(source, fd, "fs")
            finally:
                os.close(source)
    finally:
        os.close(fd)
    trees.mark(dest)


def remove(path: str) -> None:
    """Remove the tree ``path`` with the subvolumes in it: those of the store, and those that a container made
    in its own. Idempotent; a missing path is success."""
    parent, _, base = path.rstrip("/").rpartition("/")
    try:
        above = os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        # A store that was copied to another file system has no subvolumes.
        if m.fstatfs_type(above) == btrfs.SUPER_MAGIC:
            with suppress(FileNotFoundError):
                _remove_subvolumes(above, os.fsencode(base))
    finally:
        os.close(above)
    remove_tree(path)


def _remove_subvolumes(above: int, base: bytes) -> None:
    """Delete every subvolume at or below ``base`` of the directory ``above``; other directories are left.

    What can be deleted at once, millions of files perhaps, goes without a walk. One that has others in it is
    searched for them.
    """
    found = os.lstat(base, dir_fd=above)
    if btrfs.is_subvolume(found) and _destroyed(above, base):
        return
    try:
        top = os.open(base, trees.O_DIRECTORY, dir_fd=above)
    except NotADirectoryError:
        return
    tree = Directories(top)
    inner: list[bytes] = []
    try:
        todo = [b""]
        while todo:
            where = todo.pop()
            fd = tree.open(where)
            for text in os.listdir(fd):
                name = os.fsencode(text)
                st = os.lstat(name, dir_fd=fd)
                path = where + b"/" + name if where else name
                if btrfs.is_subvolume(st):
                    if _destroyed(fd, name):
                        continue
                    inner.append(path)
                if stat.S_ISDIR(st.st_mode):
                    todo.append(path)
        # Those with others in them, the deepest first.
        for path in sorted(inner, key=lambda name: name.count(b"/"), reverse=True):
            where, _, name = path.rpartition(b"/")
            tree.forget(path)
            _empty(tree.open(where), name)
    finally:
        tree.close()
        os.close(top)
    if btrfs.is_subvolume(found):
        _empty(above, base)


def _destroyed(dirfd: int, name: bytes) -> bool:
    """Delete one subvolume; False where it can't be done so: others lie in it, or the user may not."""
    fd = os.open(name, trees.O_DIRECTORY, dir_fd=dirfd)
    try:
        number = btrfs.subvolume_id(fd)
        try:
            btrfs.destroy(dirfd, name)
        except OSError as error:
            if error.errno not in (EPERM, EROFS, ENOTEMPTY):
                raise
            # An ordinary user can neither delete nor empty it before.
            btrfs.set_readonly(fd, False)
            return False
    finally:
        os.close(fd)
    # Before Linux 6.11 its quota group stays. Without quotas there is none, and where the kernel still needs it,
    # it deletes it itself.
    with suppress(OSError):
        btrfs.forget_quota(dirfd, number)
    return True


def _empty(dirfd: int, name: bytes) -> None:
    """Delete a subvolume that has no other in it, file by file where the user may not do otherwise."""
    if not _destroyed(dirfd, name):
        remove_at(dirfd, name)


def _trial(env: Env) -> tuple[str, str]:
    """Make a subvolume, snapshot it, write, protect, limit, mount, delete; why no idmapped mount works, and why
    no quota does ("" each where it works)."""
    stage = Staging(f"{env.root}/staging").new("btrfs")
    try:
        place = stage.path
        _branch(None, place)
        with open(f"{place}/fs/file", "w") as file:
            file.write("x")
        fds = [os.open(place, trees.O_DIRECTORY)]
        try:
            fds.append(os.open(f"{place}/fs", trees.O_DIRECTORY))
            btrfs.set_readonly(fds[1], True)
            btrfs.snapshot(fds[1], fds[0], "snapshot")
            os.unlink("snapshot/file", dir_fd=fds[0])
            os.stat("fs/file", dir_fd=fds[0])
            unlimited = ""
            try:
                fds.append(os.open(f"{place}/snapshot", trees.O_DIRECTORY))
                btrfs.limit(fds[2], 1 << 30)
            except OSError as error:
                if error.errno == EPERM:
                    unlimited = "no quotas (rootless)"
                elif error.errno in _NO_QUOTAS:
                    unlimited = "no quotas (btrfs quota enable turns them on)"
                else:
                    unlimited = f"no quotas ({error.strerror})"
            fds.append(trees.detached(f"{place}/snapshot", readonly=True, idmap=None))
        finally:
            for fd in fds:
                os.close(fd)
        return "" if env.userns else trees.idmap_trial(f"{place}/snapshot"), unlimited
    finally:
        remove(stage.path)
        stage.close()
