"""Files of layers that have several names, whose names fuse-overlayfs parts.

When such a file is first written, the server copies it up under one of its names, and as long as it runs, it knows
the others for the same file. The next server does not: it takes the copy and the names that are left in the layer
for one inode, and shows the content of either. A write is lost, or half of it.

So `record` notes at ingest which names of a layer share a file, and before each mount of a writable directory
`mend` gives the copy all the names that it should have. Both work on what is on disk, with no server about.
"""

from __future__ import annotations

import os
import stat
from errno import ENODATA, ENOTSUP

from pyrun.layers.dirs import Directories
from pyrun.storage import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NOTES = "links.json"
_ORIGIN = "user.fuseoverlayfs.origin"
_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")
_OPAQUE_FILE = b".wh..wh..opq"
PRIVATE = ("trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "security.selinux")
_O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (FileNotFoundError, NotADirectoryError)

# What a tree says of a name: it has it; it has nothing there; it hides what lower layers have.
_PRESENT, _ABSENT, _HIDDEN = "present", "absent", "hidden"


def record(layer: str) -> None:
    """Write ``links.json`` into the layer directory where names in its ``fs`` share a file."""
    groups: dict[int, list[bytes]] = {}
    with _Tree(f"{layer}/fs") as tree:
        todo = [b""]
        while todo:
            where = todo.pop()
            fd = tree.directories.open(where)
            for text in os.listdir(fd):
                base = os.fsencode(text)
                name = where + b"/" + base if where else base
                found = os.lstat(base, dir_fd=fd)
                if stat.S_ISDIR(found.st_mode):
                    todo.append(name)
                elif stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
                    groups.setdefault(found.st_ino, []).append(name)
    shared = sorted(sorted(names) for names in groups.values() if len(names) > 1)
    if shared:
        records.write(
            f"{layer}/{NOTES}", [[os.fsdecode(name) for name in names] for names in shared], durable=False
        )


def mend(rw: str, layers: Sequence[str]) -> None:
    """Make the names of each file of ``layers`` (layer directories, bottom to top) one file again in ``rw``,
    where it was copied up under some of them. Atomic name by name; may be repeated at any time."""
    if not os.listdir(f"{rw}/upper"):
        return
    for at, layer in enumerate(layers):
        for names in _groups(layer):
            with _Tree(f"{rw}/upper") as upper:
                written = _written(upper, names)
                if written:
                    _join(upper, rw, layers, at, names, written)


def _groups(layer: str) -> list[list[bytes]]:
    try:
        return [[os.fsencode(name) for name in names] for names in records.read(f"{layer}/{NOTES}")]
    except FileNotFoundError:
        return []


def _written(upper: _Tree, names: Sequence[bytes]) -> list[bytes]:
    """Those of ``names`` that are copies of the file that all of them share."""
    known, found = set(names), []
    for name in names:
        st = upper.lstat(name)
        if st is not None and stat.S_ISREG(st.st_mode) and upper.origin(name) in known:
            found.append(name)
    return found


def _join(
    upper: _Tree,
    rw: str,
    layers: Sequence[str],
    at: int,
    names: Sequence[bytes],
    written: Sequence[bytes],
) -> None:
    """Give the copy that was changed last the names of ``layers[at]`` that still show the old content."""
    above = [_Tree(f"{layer}/fs") for layer in layers[at:]]
    try:
        # What a higher layer has under one of the names is another file.
        shown = [name for name in names if all(tree.look(name) == _ABSENT for tree in above[1:])]
        sources = [name for name in written if name in shown]
        missing = [name for name in shown if upper.look(name) == _ABSENT]
        if not sources or not missing:
            return
        source = max(sources, key=upper.changed)
        with _Workshop(rw) as workshop:
            for name in missing:
                parent, _, base = name.rpartition(b"/")
                _make_directories(upper, above, workshop, parent)
                workshop.link(upper, source, parent, base)
    finally:
        for tree in above:
            tree.close()


def _make_directories(upper: _Tree, above: Sequence[_Tree], workshop: _Workshop, name: bytes) -> None:
    """Copy up the directory ``name`` and what leads to it, with the attributes of the topmost layer's."""
    done = b""
    for part in filter(None, name.split(b"/")):
        path = done + b"/" + part if done else part
        if upper.lstat(path) is None:
            source = next(tree for tree in reversed(above) if tree.lstat(path) is not None)
            workshop.copy_directory(source, upper, path)
        done = path


class _Tree:
    """A directory tree looked at by name; nothing in it is followed."""

    def __init__(self, path: str) -> None:
        self._root = os.open(path, _O_DIRECTORY)
        self.directories = Directories(self._root)

    def __enter__(self) -> _Tree:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.directories.close()
        os.close(self._root)

    def parent(self, name: bytes) -> tuple[int, bytes]:
        parent, _, base = name.rpartition(b"/")
        return self.directories.open(parent), base

    def lstat(self, name: bytes) -> os.stat_result | None:
        try:
            fd, base = self.parent(name)
            return os.lstat(base, dir_fd=fd)
        except _GONE:
            return None

    def changed(self, name: bytes) -> int:
        st = self.lstat(name)
        return st.st_mtime_ns if st else 0

    def origin(self, name: bytes) -> bytes:
        """The name that the file was copied up from, root-relative; b"" where it is no copy."""
        fd, base = self.parent(name)
        return (_xattr(b"/proc/self/fd/%d/%s" % (fd, base), _ORIGIN) or b"").rstrip(b"\0").removeprefix(b"./")

    def look(self, name: bytes) -> str:
        """What this tree says of ``name`` to the trees below it."""
        hidden = False
        for path in _steps(name):
            try:
                fd, base = self.parent(path)
            except _GONE:
                return _HIDDEN if hidden else _ABSENT
            if _exists(fd, b".wh." + base):
                return _HIDDEN
            try:
                found = os.lstat(base, dir_fd=fd)
            except FileNotFoundError:
                return _HIDDEN if hidden else _ABSENT
            if path == name:
                whiteout = stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
                return _HIDDEN if whiteout else _PRESENT
            if not stat.S_ISDIR(found.st_mode):
                return _HIDDEN
            hidden = hidden or self._opaque(path)
        return _ABSENT

    def _opaque(self, name: bytes) -> bool:
        fd = self.directories.open(name)
        return any(_xattr(fd, key) == b"y" for key in _OPAQUE) or _exists(fd, _OPAQUE_FILE)


class _Workshop:
    """Where things are made that one rename puts in place. The server empties it when it starts."""

    def __init__(self, rw: str) -> None:
        os.makedirs(f"{rw}/work/work", mode=0o700, exist_ok=True)
        self._fd = os.open(f"{rw}/work/work", _O_DIRECTORY)

    def __enter__(self) -> _Workshop:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def link(self, tree: _Tree, source: bytes, parent: bytes, base: bytes) -> None:
        """Give the file ``source`` of ``tree`` the further name ``base`` in the directory ``parent``."""
        name = b"link-" + os.urandom(8).hex().encode()
        fd, old = tree.parent(source)
        os.link(old, name, src_dir_fd=fd, dst_dir_fd=self._fd, follow_symlinks=False)
        target = tree.directories.open(parent)
        before = os.fstat(target)
        os.rename(name, base, src_dir_fd=self._fd, dst_dir_fd=target)
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))

    def copy_directory(self, source: _Tree, target: _Tree, name: bytes) -> None:
        made = b"dir-" + os.urandom(8).hex().encode()
        os.mkdir(made, 0o700, dir_fd=self._fd)
        old, new = source.directories.open(name), os.open(made, _O_DIRECTORY, dir_fd=self._fd)
        try:
            st = os.fstat(old)
            os.fchown(new, st.st_uid, st.st_gid)
            os.fchmod(new, stat.S_IMODE(st.st_mode))
            for key in os.listxattr(old):
                if not key.startswith(PRIVATE):
                    os.setxattr(new, key, os.getxattr(old, key))
            os.utime(new, ns=(st.st_atime_ns, st.st_mtime_ns))
        finally:
            os.close(new)
        fd, base = target.parent(name)
        before = os.fstat(fd)
        os.rename(made, base, src_dir_fd=self._fd, dst_dir_fd=fd)
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))


def _steps(name: bytes) -> Iterator[bytes]:
    """ "a", "a/b", "a/b/c" of "a/b/c"."""
    for at, byte in enumerate(name):
        if byte == 0x2F:
            yield name[:at]
    yield name


def _exists(fd: int, name: bytes) -> bool:
    try:
        os.lstat(name, dir_fd=fd)
    except OSError:  # one that is longer than names can be is not there either
        return False
    return True


def _xattr(target: int | bytes, name: str) -> bytes | None:
    try:
        return os.getxattr(target, name, follow_symlinks=isinstance(target, int))
    except OSError as error:
        if error.errno in (ENODATA, ENOTSUP):
            return None
        raise
