"""What a container changed: two mounted trees compared, and what a directory takes on disk.

Both walk by fd and follow no symbolic link, so a running container can't lead them astray.
"""

from __future__ import annotations

import os
import stat
from errno import ENODATA, ENOTSUP

from ..layers.dirs import Directories
from ..layers.names import PRIVATE_XATTRS
from .contract import Change, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_O_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_O_FILE = os.O_RDONLY | os.O_CLOEXEC
_CHUNK = 1 << 20
# Overlayfs' own, and the host's labels: no layer carries them.


def compare(
    below: int,
    view: int,
    *,
    unchanged_since: int | None = None,
    places: Mapping[bytes, int] | None = None,
) -> Iterator[Change]:
    """The changes that turn the tree of directory ``below`` into that of ``view``, both mounts with the same
    id mapping. Sorted by path, a directory before what is in it.

    Files are the same where type, mode, owner, size, mtime, link target, device and extended attributes are,
    and the content: it is read where the ctimes or the inode numbers differ. ``unchanged_since`` (ns) spares
    that for files of ``view`` whose ctime is not later, when the caller knows they were copies then; ``places``
    are the inode numbers that the view's directories had at that time, for to move a directory does not touch
    what is in it. A directory's own mtime alone is no change. What vanishes from ``view`` meanwhile is left out,
    or told as deleted.

    Where other names are one file than were before, those that are unchanged in themselves are told as
    modified, too: a layer can say what is one file only of what it holds. These changes come last.
    """
    links = _Links()
    with _Trees(below, view) as trees:
        one, two = trees.below.open(b""), trees.view.open(b"")
        if _attributes_differ(one, two, os.fstat(one), os.fstat(two)):
            yield Change(b"", "modify")
        yield from _walk(trees, b"", True, unchanged_since, links, places)
    yield from links.changes()


def added(view: int, name: bytes) -> Iterator[Change]:
    """Everything below the directory ``name`` (root-relative) of the mount ``view``, told as added; not
    ``name`` itself."""
    with _Trees(view, view) as trees:
        yield from _walk(trees, name, False, None, _Links())


class _Trees:
    """The two trees' directories by name; a bounded number of them is open at any time."""

    def __init__(self, below: int, view: int) -> None:
        self.below = Directories(_open(below))
        self.view = Directories(_open(view))

    def __enter__(self) -> _Trees:
        return self

    def __exit__(self, *exc: object) -> None:
        for tree in (self.below, self.view):
            tree.close()
            os.close(tree.fds[b""])


class _Links:
    """Which names were one file below, and which are one in the view."""

    def __init__(self) -> None:
        # By inode of the view: names, with their inode below where they are unchanged.
        self.files: dict[tuple[int, int], list[tuple[bytes, tuple[int, int] | None]]] = {}

    def note(self, path: bytes, old: os.stat_result | None, new: os.stat_result, changed: bool) -> None:
        if new.st_nlink > 1 or (old is not None and old.st_nlink > 1):
            before = (old.st_dev, old.st_ino) if old is not None and not changed else None
            self.files.setdefault((new.st_dev, new.st_ino), []).append((path, before))

    def changes(self) -> Iterator[Change]:
        """The unchanged names that a layer must have all the same, to show what is one file and what is not."""
        told: list[bytes] = []
        keeps: set[tuple[int, int]] = set()
        for names in self.files.values():
            before = {inode for _, inode in names}
            if None in before or len(before) > 1:
                # It got a name that it did not have.
                told += [path for path, inode in names if inode is not None]
            elif before <= keeps:
                # It was one file with another, which stays what it is below.
                told += [path for path, _ in names]
            else:
                keeps |= {inode for inode in before if inode is not None}
        for path in sorted(told):
            yield Change(path, "modify")


def _open(fd: int) -> int:
    return os.open(".", _O_DIRECTORY, dir_fd=fd)


def _walk(
    trees: _Trees,
    where: bytes,
    is_below: bool,
    since: int | None,
    links: _Links,
    places: Mapping[bytes, int] | None = None,
) -> Iterator[Change]:
    """Compare directory ``where`` of both trees; ``is_below`` False takes the lower one for empty."""
    # An explicit stack of (directory, whether it is below, since when what is in it is unchanged, names to do): a
    # tree may be as deep as it likes.
    stack = [(where, is_below, since, _names(trees, where, is_below))]
    while stack:
        where, is_below, since, names = stack[-1]
        if not names:
            stack.pop()
            continue
        name = names.pop()
        path = where + b"/" + name if where else name
        # Looked up each time: the cache may have closed them meanwhile.
        try:
            view = trees.view.open(where)
        except (FileNotFoundError, NotADirectoryError):
            names.clear()  # the container took it away
            continue
        below = trees.below.open(where) if is_below else -1
        old = _lstat(below, name) if is_below else None
        new = _lstat(view, name)
        if new is None:
            if old is not None:
                yield Change(path, "delete")
            continue
        changed = old is None or _differs(below, view, name, old, new, since)
        if changed:
            yield Change(path, "add" if old is None else "modify")
        if not stat.S_ISDIR(new.st_mode):
            links.note(path, old, new, changed)
        else:
            both = old is not None and stat.S_ISDIR(old.st_mode)
            if places is not None and places.get(path) != new.st_ino:
                since = None
            try:
                stack.append((path, both, since, _names(trees, path, both)))
            except (FileNotFoundError, NotADirectoryError):
                continue


def _names(trees: _Trees, where: bytes, is_below: bool) -> list[bytes]:
    names = set(map(os.fsencode, os.listdir(trees.view.open(where))))
    if is_below:
        names.update(map(os.fsencode, os.listdir(trees.below.open(where))))
    return sorted(names, reverse=True)


def _lstat(dirfd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=dirfd)
    except FileNotFoundError:
        return None


def _differs(
    below: int, view: int, name: bytes, old: os.stat_result, new: os.stat_result, since: int | None
) -> bool:
    if old.st_mode != new.st_mode or old.st_uid != new.st_uid or old.st_gid != new.st_gid:
        return True
    kind = stat.S_IFMT(new.st_mode)
    if kind != stat.S_IFDIR and old.st_mtime_ns != new.st_mtime_ns:
        return True
    if kind in (stat.S_IFCHR, stat.S_IFBLK) and old.st_rdev != new.st_rdev:
        return True
    try:
        if kind == stat.S_IFLNK:
            return os.readlink(name, dir_fd=below) != os.readlink(name, dir_fd=view) or _xattrs(
                below, name
            ) != _xattrs(view, name)
        if kind != stat.S_IFREG and kind != stat.S_IFDIR:
            return _xattrs(below, name) != _xattrs(view, name)
        if kind == stat.S_IFREG:
            if old.st_size != new.st_size:
                return True
            # Two files of one layer may have one ctime, and change places with their directories.
            if old.st_ctime_ns == new.st_ctime_ns and old.st_ino == new.st_ino:
                return False
            if since is not None and new.st_ctime_ns <= since:
                return False
        return _xattrs(below, name) != _xattrs(view, name) or (
            kind == stat.S_IFREG and _content_differs(below, view, name)
        )
    except FileNotFoundError:
        return True  # replaced or removed just now; whoever reads the view sees what is there


def _attributes_differ(below: int, view: int, old: os.stat_result, new: os.stat_result) -> bool:
    return (
        old.st_mode != new.st_mode
        or old.st_uid != new.st_uid
        or old.st_gid != new.st_gid
        or _xattrs(below, b"") != _xattrs(view, b"")
    )


def _xattrs(dirfd: int, name: bytes) -> dict[str, bytes]:
    """The extended attributes of ``name`` in ``dirfd``, of the directory itself for the empty name."""
    # What is no file or directory can't be opened, and an O_PATH fd has no flistxattr.
    path = b"/proc/self/fd/%d/%s" % (dirfd, name or b".")
    found = {}
    try:
        for key in os.listxattr(path, follow_symlinks=False):
            if not key.startswith(PRIVATE_XATTRS):
                try:
                    found[key] = os.getxattr(path, key, follow_symlinks=False)
                except OSError as error:
                    if error.errno != ENODATA:
                        raise
    except OSError as error:
        if error.errno != ENOTSUP:
            raise
    return found


def _content_differs(below: int, view: int, name: bytes) -> bool:
    handles: list[int] = []
    files: list[int] = []
    try:
        for dirfd in (below, view):
            handles.append(os.open(name, _O_HANDLE, dir_fd=dirfd))
            # Only a regular file is opened: by now the name may be a device's, and opening one may do something.
            if not stat.S_ISREG(os.fstat(handles[-1]).st_mode):
                return True
            files.append(os.open(b"/proc/self/fd/%d" % handles[-1], _O_FILE))
        while True:
            first, second = (os.read(fd, _CHUNK) for fd in files)
            if first != second:
                return True
            if not first:
                return False
    except FileNotFoundError:
        return True
    finally:
        for fd in handles + files:
            os.close(fd)


def allocated(path: str) -> Usage:
    """Allocated bytes and inodes of the tree ``path``, each inode once. What vanishes meanwhile is not counted,
    and a missing path takes nothing."""
    try:
        total, inodes = os.stat(path, follow_symlinks=False).st_blocks * 512, 1
    except FileNotFoundError:
        return Usage(0, 0)
    for _, _, found in each_inode(path):
        total += found.st_blocks * 512
        inodes += 1
    return Usage(total, inodes)


def each_inode(path: str) -> Iterator[tuple[int, bytes, os.stat_result]]:
    """(directory fd, name, status) of everything below the directory ``path``, each inode once. What vanishes
    meanwhile is left out, and a missing path has nothing. Use the fd before the next step."""
    try:
        top = os.open(path, _O_DIRECTORY)
    except FileNotFoundError:
        return
    tree = Directories(top)
    seen: set[tuple[int, int]] = set()
    stack = [b""]
    try:
        while stack:
            where = stack.pop()
            try:
                fd = tree.open(where)
                names = os.listdir(fd)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for base in map(os.fsencode, names):
                found = _lstat(fd, base)
                if found is None:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    stack.append(where + b"/" + base if where else base)
                elif found.st_nlink > 1:
                    if (found.st_dev, found.st_ino) in seen:
                        continue
                    seen.add((found.st_dev, found.st_ino))
                yield fd, base, found
    finally:
        tree.close()
        os.close(top)
