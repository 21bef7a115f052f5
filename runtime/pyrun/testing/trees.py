"""Directory trees as values: what two of them differ in, name by name. The oracle of the conformance suite is a
plain directory, compared so with what a driver shows."""

from __future__ import annotations

import hashlib
import os
import stat
from errno import ENODATA, ENOTSUP
from typing import Any, NamedTuple

# Not of the file, but of how it is kept.
_PRIVATE = ("trusted.overlay.", "user.overlay.", "security.selinux", "btrfs.")

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


class Node(NamedTuple):
    """One name of a tree.

    mode    type and permissions, in octal digits
    what    (size, `digest` of the content) of a file, a symbolic link's target, a device's number, or None
    mtime   in ns; 0 where it was not asked for
    xattrs  (name, value), sorted; a union file system's own are left out
    same    the smallest name of the same inode, where it has several
    """

    mode: str
    uid: int
    gid: int
    what: Any
    mtime: int
    xattrs: tuple[tuple[str, bytes], ...]
    same: bytes

    @property
    def kind(self) -> str:
        """ "file", "dir", "symlink", "fifo", "char" or "block"."""
        return _KINDS[stat.S_IFMT(int(self.mode, 8))]

    @property
    def permissions(self) -> int:
        return stat.S_IMODE(int(self.mode, 8))

    def holds(self, content: bytes) -> bool:
        """Whether this is a file with this content."""
        return bool(self.what == (len(content), digest(content)))


Tree = dict[bytes, Node]


def snapshot(
    path: str, *, times: bool = True, directory_times: bool = False, content: bool = True, links: bool = True
) -> Tree:
    """Everything below ``path`` and the directory itself (the empty name), by root-relative name.

    ``times`` of what is no directory, ``directory_times`` of those, ``content`` of files, and hard ``links``
    may be left out. Sockets are: no layer has them.
    """
    found: Tree = {}
    names: dict[tuple[int, int], list[bytes]] = {}
    root = os.fsencode(path)
    todo = [b""]
    while todo:
        name = todo.pop()
        full = root + b"/" + name if name else root + b"/."
        st = os.lstat(full)
        kind = stat.S_IFMT(st.st_mode)
        if kind == stat.S_IFSOCK:
            continue
        what: Any = None
        if kind == stat.S_IFREG:
            what = (st.st_size, _digest_of(full) if content else "")
        elif kind == stat.S_IFLNK:
            what = os.readlink(full)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            what = st.st_rdev
        elif kind == stat.S_IFDIR:
            todo += [name + b"/" + n if name else n for n in os.listdir(full)]
        if links and kind != stat.S_IFDIR and st.st_nlink > 1:
            names.setdefault((st.st_dev, st.st_ino), []).append(name)
        timed = directory_times if kind == stat.S_IFDIR else times
        mtime = st.st_mtime_ns if timed else 0
        found[name] = Node(oct(st.st_mode), st.st_uid, st.st_gid, what, mtime, xattrs(full), b"")
    # A union's link counts are those of a layer's files, hidden names included: only names that are here count.
    for linked in names.values():
        if len(linked) > 1:
            for name in linked:
                found[name] = found[name]._replace(same=min(linked))
    return found


def difference(one: Tree, two: Tree, names: tuple[str, str] = ("left", "right")) -> str:
    """What distinguishes two snapshots, a line each, at most 20; "" where nothing does."""
    lines = []
    for name in sorted(one.keys() | two.keys()):
        left, right = one.get(name), two.get(name)
        if left is None or right is None:
            lines.append(f"{name!r}: {names[0]} {left}, {names[1]} {right}")
        elif left != right:
            parts = [part for part in Node._fields if getattr(left, part) != getattr(right, part)]
            lines += [
                f"{name!r}: {names[0]} {part}={getattr(left, part)!r}, {names[1]} {getattr(right, part)!r}"
                for part in parts
            ]
    if len(lines) > 20:
        lines[20:] = [f"... and {len(lines) - 20} more"]
    return "\n".join(lines)


def assert_same(path: str, oracle: str, **more: bool) -> None:
    """The tree ``path``, a driver's, is that of ``oracle``, the plain directory."""
    found = difference(snapshot(path, **more), snapshot(oracle, **more), ("the driver", "the oracle"))
    assert not found, found


def xattrs(path: bytes | str) -> tuple[tuple[str, bytes], ...]:
    """The extended attributes of ``path``, not followed, sorted; a union file system's own are left out."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != ENOTSUP:
            raise
        return ()
    found = []
    for name in sorted(names):
        if not name.startswith(_PRIVATE):
            try:
                found.append((name, os.getxattr(path, name, follow_symlinks=False)))
            except OSError as error:
                if error.errno != ENODATA:
                    raise
    return tuple(found)


def digest(content: bytes) -> str:
    """Of a file's content, as `Node.what` has it."""
    return hashlib.sha256(content).hexdigest()


def _digest_of(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
