"""The changes between two mounts as a layer's `Table`, for a layer whose tar there is not: a container's writable
one, or one whose blob the store does not keep."""

from __future__ import annotations

import os
import stat

from ..layers.dirs import Directories
from ..layers.table import FRESH, IMPLIED, LETTERS, Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .contract import Change

_O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
}


def tabulate(
    changes: Iterable[Change], view: int, owner: Callable[[int, int], tuple[int, int]] | None = None
) -> Table:
    """``changes`` as a table of a layer, with the attributes that the mount ``view`` shows. ``owner`` translates
    user and group ids. What vanishes meanwhile, and sockets, which no layer can hold, are left out.

    A file's ``offset`` is its inode's number: names of one file have the same.
    """
    table = Table()
    found: dict[bytes, os.stat_result | None] = {b"": None}
    top = os.open(".", _O_DIRECTORY, dir_fd=view)
    tree = Directories(top)
    letters = {}
    targets: dict[bytes, bytes] = {}
    first: dict[int, bytes] = {}
    try:
        for change in changes:
            name = change.path
            if change.kind == "delete":
                found[name] = None
                letters[name] = LETTERS["whiteout"]
                continue
            where, _, base = name.rpartition(b"/")
            try:
                fd = tree.open(where)
                st = os.lstat(base, dir_fd=fd) if base else os.fstat(fd)
                kind = _KINDS.get(stat.S_IFMT(st.st_mode))
                if kind is None:
                    continue
                if kind == "symlink":
                    targets[name] = os.readlink(base, dir_fd=fd)
            except (FileNotFoundError, NotADirectoryError):
                continue
            found[name] = st
            letters[name] = LETTERS[kind]
            if kind == "file" and st.st_nlink > 1 and first.setdefault(st.st_ino, name) != name:
                targets[name] = first[st.st_ino]
    finally:
        tree.close()
        os.close(top)
    letters.setdefault(b"", LETTERS["dir"])
    table.names = sorted(found)
    table.kinds = "".join(letters[name] for name in table.names).encode()
    table.entries = len(letters)
    for row, name in enumerate(table.names):
        _fill(table, row, found[name], letters[name], targets.get(name, b""), owner)
    return table


def _fill(
    table: Table,
    row: int,
    st: os.stat_result | None,
    letter: str,
    target: bytes,
    owner: Callable[[int, int], tuple[int, int]] | None,
) -> None:
    file = st is not None and letter == "f"
    table.flags.append(FRESH if letter == "w" else IMPLIED if st is None else 0)
    table.modes.append(stat.S_IMODE(st.st_mode) if st else 0o755 if letter == "d" else 0)
    uid, gid = (st.st_uid, st.st_gid) if st else (0, 0)
    if owner is not None and st is not None:
        uid, gid = owner(uid, gid)
    table.uids.append(uid)
    table.gids.append(gid)
    table.mtimes.append(st.st_mtime_ns if st else 0)
    table.sizes.append(st.st_size if st and file else 0)
    table.stored.append(min(st.st_size, st.st_blocks * 512) if st and file else 0)
    table.offsets.append(st.st_ino if st and file else 0)
    if target:
        table.linked.append(row)
        table.targets.append(target)
    if st is not None and letter in "cb":
        table.devices[row] = (os.major(st.st_rdev), os.minor(st.st_rdev))
