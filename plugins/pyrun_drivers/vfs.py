"""vfs: every layer and every container is a full copy. For file systems on which nothing better works.

A layer's ``fs`` is the tree of its parent, copied, with the layer applied to it. Where the file system can,
the copies share their blocks (FICLONE: xfs, btrfs), and only names and attributes are really copied.
"""

from __future__ import annotations

import fcntl
import json
import os
from errno import EINVAL, ENOSYS, ENOTTY, EOPNOTSUPP, EXDEV

from pyrun.errors import PyrunError
from pyrun.kernel import mount as m
from pyrun.layers.copy import copy_tree
from pyrun.layers.dirs import Directories
from pyrun.layers.remove import remove_tree
from pyrun.storage import tree
from pyrun.storage.contract import Caps, Driver, Verdict
from pyrun.storage.locks import Staging

from . import trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from pyrun.storage.contract import Blob, Change, Env, Layer, Usage

_FICLONE = 0x40049409  # linux/fs.h
_BTRFS_SUPER_MAGIC = 0x9123683E

_COPIES = (
    "every layer and every container is a full copy of all files, so an image of N layers takes up "
    "to N times its space, each container once more, and as much time to write it"
)
_REFLINKS = (
    "every layer and every container has all files of its own; their blocks are shared here "
    "(reflinks), so the cost is time and metadata for each file, not space for its content"
)


class VfsDriver(Driver):
    """Copies. `Verdict.found`: ``reflink``, whether copies share blocks; ``warning``, what it costs, in words
    for the user."""

    name = "vfs"

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        try:
            reflink, unmapped = _trial(env)
        except (OSError, PyrunError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            return Verdict(
                False, f"a trial copy below {env.root} failed: {why}", "Choose another store with --root."
            )
        why = "full copies" + (", blocks shared by reflinks" if reflink else "")
        if unmapped:
            why += f"; {unmapped}"
        return Verdict(
            True,
            why,
            "",
            Caps(chained=True, idmap=not unmapped),
            {"reflink": reflink, "warning": _REFLINKS if reflink else _COPIES},
        )

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> None:
        self._copy(parent, dest)
        tree.unpack(blob, f"{dest}/fs")

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        self._copy(layers[-1] if layers else None, dest)
        with open(f"{dest}/places", "w") as file:
            json.dump({os.fsdecode(name): inode for name, inode in _places(f"{dest}/fs")}, file)

    def _copy(self, layer: Layer | None, dest: str) -> None:
        """``dest``/fs, a copy of the layer's tree, and the time at which it was one."""
        tree.copy(f"{layer.path}/fs" if layer else None, f"{dest}/fs")
        trees.mark(dest)

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if rw is not None:
            return trees.detached(f"{rw}/fs", readonly=False, idmap=idmap)
        below = f"{layers[-1].path}/fs" if layers else trees.empty(self.env, self.name)
        return trees.detached(below, readonly=True, idmap=idmap)

    def changes(
        self, layers: Sequence[Layer], rw: str, view: int, idmap: int | None = None
    ) -> Iterator[Change]:
        """As the default, but files that nobody touched or moved since they were copied are not read."""
        from pyrun.storage.changes import compare

        with open(f"{rw}/places") as file:
            places = {os.fsencode(name): inode for name, inode in json.load(file).items()}
        below = self.mount(layers, None, idmap)
        try:
            yield from compare(below, view, unchanged_since=trees.marked(rw), places=places)
        finally:
            os.close(below)

    def usage(self, path: str) -> Usage:
        """Where copies share blocks, what ``path`` shares with nobody. Elsewhere all of it: a copy of the
        parents is really there on disk, once for each layer and each container."""
        if self.verdict.found.get("reflink"):
            return trees.exclusive(path)
        return super().usage(path)

    def remove(self, path: str) -> None:
        if _is_btrfs(self.env.root):
            # The container sees the file system itself, and may have made subvolumes.
            from .btrfs import remove

            remove(path)
        else:
            super().remove(path)


def _places(path: str) -> Iterator[tuple[bytes, int]]:
    """Root-relative name and inode number of every directory in the tree ``path``."""
    top = os.open(path, trees.O_DIRECTORY)
    tree = Directories(top)
    todo = [b""]
    try:
        while todo:
            where = todo.pop()
            with os.scandir(tree.open(where)) as found:
                for entry in found:
                    if entry.is_dir(follow_symlinks=False):
                        base = os.fsencode(entry.name)
                        todo.append(where + b"/" + base if where else base)
                        yield todo[-1], entry.inode()
    finally:
        tree.close()
        os.close(top)


def _is_btrfs(path: str) -> bool:
    fd = os.open(path, trees.O_DIRECTORY)
    try:
        return m.fstatfs_type(fd) == _BTRFS_SUPER_MAGIC
    finally:
        os.close(fd)


def _trial(env: Env) -> tuple[bool, str]:
    """Copy one file and mount the copy: whether blocks are shared, and why no idmapped mount works ("")."""
    stage = Staging(f"{env.root}/staging").new("vfs")
    try:
        place = stage.path
        os.mkdir(f"{place}/one")
        with open(f"{place}/one/file", "w+b") as source, open(f"{place}/clone", "wb") as target:
            source.write(b"x" * 65536)
            source.flush()
            try:
                fcntl.ioctl(target, _FICLONE, source.fileno())
                reflink = True
            except OSError as error:
                if error.errno not in (EOPNOTSUPP, ENOTTY, EINVAL, EXDEV, ENOSYS):
                    raise
                reflink = False
        fds = []
        try:
            for name in ("one", "two"):
                os.makedirs(f"{place}/{name}", exist_ok=True)
                fds.append(os.open(f"{place}/{name}", trees.O_DIRECTORY))
            copy_tree(*fds)
            fds.append(trees.detached(f"{place}/two", readonly=True, idmap=None))
            os.stat("file", dir_fd=fds[-1])
        finally:
            for fd in fds:
                os.close(fd)
        return reflink, "" if env.userns else trees.idmap_trial(f"{place}/two")
    finally:
        remove_tree(stage.path)
        stage.close()
