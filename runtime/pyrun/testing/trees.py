"""Directory trees as values: what two of them differ in, name by name. The oracle of the conformance suite is a
plain directory, compared so with what a driver shows."""

from __future__ import annotations

import hashlib
import os
import stat
from errno import ENODATA, ENOTSUP
from typing import Any

# Not of the file, but of how it is kept.
_PRIVATE = ("trusted.overlay.", "user.overlay.", "security.selinux", "btrfs.")


def snapshot(path: str, *, times: bool = True, content: bool = True) -> dict[bytes, tuple[Any, ...]]:
    """Everything below ``path`` and the directory itself (the empty name), by root-relative name.

    A value has type and mode, owner, size or target or device, mtime in ns (of what is no directory, where
    ``times``), a digest of the content (where ``content``), extended attributes, and the smallest name of the
    same inode, so that hard links compare, too. Sockets are left out: no layer has them.
    """
    found: dict[bytes, tuple[Any, ...]] = {}
    first: dict[tuple[int, int], bytes] = {}
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
            what = (st.st_size, _digest(full) if content else "")
        elif kind == stat.S_IFLNK:
            what = os.readlink(full)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            what = st.st_rdev
        elif kind == stat.S_IFDIR:
            todo += [name + b"/" + n if name else n for n in os.listdir(full)]
        same = b""
        if kind != stat.S_IFDIR and st.st_nlink > 1:
            same = min(first.get((st.st_dev, st.st_ino), name), name)
            first[st.st_dev, st.st_ino] = same
        mtime = st.st_mtime_ns if times and kind != stat.S_IFDIR else 0
        found[name] = (
            oct(st.st_mode),
            st.st_uid,
            st.st_gid,
            what,
            mtime,
            xattrs(full),
            (st.st_dev, st.st_ino),
        )
    return {name: (*value[:-1], first.get(value[-1], b"")) for name, value in found.items()}


def difference(
    one: dict[bytes, tuple[Any, ...]],
    two: dict[bytes, tuple[Any, ...]],
    names: tuple[str, str] = ("left", "right"),
) -> str:
    """What distinguishes two snapshots, a line each, at most 20; "" where nothing does."""
    lines = []
    for name in sorted(one.keys() | two.keys()):
        if one.get(name) != two.get(name):
            lines.append(f"{name!r}: {names[0]} {one.get(name)}, {names[1]} {two.get(name)}")
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


def _digest(path: bytes) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
