"""Looking at trees in fuse-overlayfs' form, and what a driver notes of a layer once, when it is ingested.

``fuse.json`` in the layer's directory, lists of root-relative names:

links      names that share a file, a list each
opaque     directories that hide what lower layers have in them
whiteouts  names that are deleted from lower layers
"""

from __future__ import annotations

import os
import stat
from errno import ENODATA, ENOTSUP

from pyrun.layers.dirs import Directories
from pyrun.layers.names import PRIVATE_XATTRS
from pyrun.storage import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_FILE = "fuse.json"
# What marks an opaque directory: of a layer, and of an upper directory, where a container can set the first itself.
_LAYERS_MARKS = ("user.overlay.opaque",)
_SERVERS_MARKS = ("trusted.overlay.opaque", "user.fuseoverlayfs.opaque")
_OPAQUE_FILE = b".wh..wh..opq"
_ORIGIN = "user.fuseoverlayfs.origin"
PRIVATE = (*PRIVATE_XATTRS, "user.fuseoverlayfs.")
O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_GONE = (FileNotFoundError, NotADirectoryError)

# What a tree says of a name: it has it; it has nothing there; it hides what lower layers have.
PRESENT, ABSENT, HIDDEN = "present", "absent", "hidden"


class Notes:
    """What `record` wrote; empty lists where it found nothing."""

    __slots__ = ("links", "opaque", "whiteouts")

    def __init__(self, links: list[list[bytes]], opaque: list[bytes], whiteouts: list[bytes]) -> None:
        self.links = links
        self.opaque = opaque
        self.whiteouts = whiteouts


def record(layer: str) -> None:
    """Note what is in the layer directory's ``fs``."""
    groups: dict[int, list[bytes]] = {}
    opaque, whiteouts = [], []
    with Tree(f"{layer}/fs") as tree:
        for name, found in tree.walk():
            if stat.S_ISDIR(found.st_mode):
                if tree.opaque(name):
                    opaque.append(name)
            elif stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
                groups.setdefault(found.st_ino, []).append(name)
            elif is_whiteout(found):
                whiteouts.append(name)
    links = sorted(sorted(names) for names in groups.values() if len(names) > 1)
    if links or opaque or whiteouts:
        notes = {
            "links": [_texts(names) for names in links],
            "opaque": _texts(opaque),
            "whiteouts": _texts(whiteouts),
        }
        records.write(f"{layer}/{_FILE}", notes, durable=False)


def read(layer: str) -> Notes:
    try:
        found = records.read(f"{layer}/{_FILE}")
    except FileNotFoundError:
        return Notes([], [], [])
    return Notes(
        [_names(texts) for texts in found["links"]], _names(found["opaque"]), _names(found["whiteouts"])
    )


def _texts(names: list[bytes]) -> list[str]:
    return [os.fsdecode(name) for name in sorted(names)]


def _names(texts: list[str]) -> list[bytes]:
    return [os.fsencode(text) for text in texts]


def is_whiteout(st: os.stat_result) -> bool:
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


class Tree:
    """A directory tree looked at by root-relative name; nothing in it is followed. ``upper``: a server wrote it."""

    def __init__(self, path: str, *, upper: bool = False) -> None:
        self._marks = _SERVERS_MARKS if upper else _LAYERS_MARKS
        self._upper = upper
        self._root = os.open(path, O_DIRECTORY)
        self.directories = Directories(self._root)

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.directories.close()
        os.close(self._root)

    def walk(self) -> Iterator[tuple[bytes, os.stat_result]]:
        """All that is below the root: name and lstat."""
        todo = [b""]
        while todo:
            where = todo.pop()
            for name in self.names(where):
                found = self.lstat(name)
                if found is not None:
                    if stat.S_ISDIR(found.st_mode):
                        todo.append(name)
                    yield name, found

    def names(self, where: bytes) -> list[bytes]:
        """The names, from the root, of what is in the directory ``where``."""
        prefix = where + b"/" if where else b""
        return [prefix + os.fsencode(base) for base in os.listdir(self.directories.open(where))]

    def parent(self, name: bytes) -> tuple[int, bytes]:
        """The fd of the directory that ``name`` is in, and the rest of it."""
        parent, _, base = name.rpartition(b"/")
        return self.directories.open(parent), base

    def lstat(self, name: bytes) -> os.stat_result | None:
        try:
            fd, base = self.parent(name)
            return os.lstat(base, dir_fd=fd)
        except _GONE:
            return None

    def is_directory(self, name: bytes) -> bool:
        found = self.lstat(name)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def origin(self, name: bytes) -> bytes:
        """The name that the file was copied up from, root-relative; b"" where it is no copy."""
        fd, base = self.parent(name)
        return (_xattr(b"/proc/self/fd/%d/%s" % (fd, base), _ORIGIN) or b"").rstrip(b"\0").removeprefix(b"./")

    def opaque(self, name: bytes) -> bool:
        """Whether the directory ``name`` hides what lower layers have in it."""
        fd = self.directories.open(name)
        if any(_xattr(fd, key) == b"y" for key in self._marks):
            return True
        return self._upper and _exists(fd, _OPAQUE_FILE)

    def look(self, name: bytes) -> str:
        """What this tree says of ``name`` to the trees below it."""
        hidden = False
        for path in _steps(name):
            try:
                fd, base = self.parent(path)
            except _GONE:
                return HIDDEN if hidden else ABSENT
            if _exists(fd, b".wh." + base):
                return HIDDEN
            try:
                found = os.lstat(base, dir_fd=fd)
            except FileNotFoundError:
                return HIDDEN if hidden else ABSENT
            if path == name:
                return HIDDEN if is_whiteout(found) else PRESENT
            if not stat.S_ISDIR(found.st_mode):
                return HIDDEN
            hidden = hidden or self.opaque(path)
        return ABSENT


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
