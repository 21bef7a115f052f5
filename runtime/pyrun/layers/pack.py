"""Write a layer: the tar stream of what a container changed, in one form only.

The same changes of the same tree always give the same bytes: entries in the order of the changes, pax headers
with sorted keys, no user names, no access times. Parents of what changed are always listed, with their own
attributes, so that the layer means the same wherever it is unpacked (OCI image spec, layer.md, "Change Types").
"""

from __future__ import annotations

import os
import stat
from errno import ENODATA, ENOTSUP

from ..errors import LayerError
from ..kernel.mount import fstatfs_type
from .dirs import Directories
from .holes import data_runs, written_runs
from .names import PRIVATE_XATTRS, WHITEOUT, shown
from .owners import translated
from .ustar import BLOCK, header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Protocol

    class Sink(Protocol):
        def write(self, data: bytes, /) -> object: ...

    class Changed(Protocol):
        @property
        def path(self) -> bytes: ...
        @property
        def kind(self) -> str: ...


_FUSE_SUPER_MAGIC = 0x65735546  # man statfs
_CHUNK = 1 << 20
_TYPES = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_O_HANDLE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_O_FILE = os.O_RDONLY | os.O_CLOEXEC


def pack(
    changes: Iterable[Changed],
    view: int,
    out: Sink,
    *,
    owner: Callable[[int, int], tuple[int, int]] = lambda uid, gid: (uid, gid),
    each: Callable[[], None] = lambda: None,
    seen: Callable[[bytes, int], None] = lambda name, mtime_ns: None,
    plain: bool = False,
) -> int:
    """Write ``changes`` of the mounted tree ``view`` (a directory fd) to ``out`` as a tar stream; its length.

    ``changes`` have a path and a kind ("add", "modify", "delete"), a directory before what is in it (see
    `pyrun.storage.contract.Change`). ``owner`` translates the owner that the view shows into the layer's
    (of a container in a user namespace, through its map). ``each`` is called before each change, ``seen`` with the
    name and the time (ns since the epoch; 0 for a deletion) of each entry that is written. With ``plain`` it is no
    layer but a tar of files, in which any name means itself; nothing may have been deleted then.

    What was told as added and is gone is left out; so are sockets, which no tar has. Where such a thing was
    told as modified, the layer deletes the name, for the file of the layers below is not there any more.
    Sparse files are stored without their holes (GNU.sparse, pax format 1.0). Hard links among what is packed
    stay links. Where ``owner`` translates, it does so in ACLs and file capabilities, too.

    Raises `LayerError` for a name that a tar can't hold as what it is: one that starts with ``.wh.``.
    """
    packer = _Packer(view, out, owner, seen, plain)
    try:
        for change in changes:
            each()
            packer.change(change.path, change.kind)
        packer.end()
    finally:
        packer.dirs.close()
        os.close(packer.root)
    return packer.written


class _Packer:
    def __init__(
        self,
        view: int,
        out: Sink,
        owner: Callable[[int, int], tuple[int, int]],
        seen: Callable[[bytes, int], None],
        plain: bool,
    ) -> None:
        self.root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=view)
        self.dirs = Directories(self.root)
        self.out = out
        self.owner = owner
        self.seen = seen
        self.plain = plain
        self.written = 0
        self.listed: set[bytes] = set()  # directories that have an entry
        self.links: dict[tuple[int, int], bytes] = {}
        # fuse-overlayfs says 1 of a file of several names until it has been looked at twice.
        self.is_fuse = fstatfs_type(self.root) == _FUSE_SUPER_MAGIC

    def change(self, path: bytes, kind: str) -> None:
        directory, _, base = path.rpartition(b"/")
        if not self.plain and any(part.startswith(WHITEOUT) for part in path.split(b"/")):
            raise LayerError(
                f"{shown(path)} can't be in a layer: names that start with '.wh.' mean deletions there",
                hint="Rename the file.",
            )
        if path and not self.parents(directory):
            return  # gone with the directory, whose own change says so
        stored = False
        if kind != "delete":
            try:
                stored = self.entry(directory, base, path)
            except (FileNotFoundError, NotADirectoryError):
                pass  # the container has removed it since
        if not self.plain and (kind == "delete" or (kind == "modify" and not stored)):
            self.header((directory + b"/" if directory else b"") + WHITEOUT + base, b"0", 0, 0, 0, 0, 0, {})

    def parents(self, directory: bytes) -> bool:
        """List ``directory`` and those above it that have no entry yet; False where it is there no more."""
        missing = []
        while directory not in self.listed:
            missing.append(directory)
            if not directory:
                break
            directory = directory.rpartition(b"/")[0]
        for name in reversed(missing):
            try:
                fd = self.dirs.open(name)
            except (FileNotFoundError, NotADirectoryError):
                return False
            self.directory(name, fd)
        return True

    def entry(self, directory: bytes, base: bytes, path: bytes) -> bool:
        """Store ``path`` as it is now; False for what no tar has."""
        if not path:
            if path not in self.listed:
                self.directory(path, self.root)
            return True
        # An fd of what is there, whatever it is, and without its doing: by now the name may be a device's.
        handle = os.open(base, _O_HANDLE, dir_fd=self.dirs.open(directory))
        try:
            found = os.fstat(handle)
            kind = stat.S_IFMT(found.st_mode)
            if kind == stat.S_IFDIR:
                if path not in self.listed:
                    self.directory(path, self.dirs.open(path))
            elif kind not in _TYPES:
                return False
            elif not self.linked(path, directory, base, found):
                if kind == stat.S_IFREG:
                    fd = os.open(b"/proc/self/fd/%d" % handle, _O_FILE)
                    try:
                        self.file(path, fd, found)
                    finally:
                        os.close(fd)
                else:
                    self.node(directory, base, path, handle, found)
                if found.st_nlink > 1 or self.is_fuse:
                    self.links[found.st_dev, found.st_ino] = path
        finally:
            os.close(handle)
        return True

    def linked(self, path: bytes, directory: bytes, base: bytes, found: os.stat_result) -> bool:
        """Store ``path`` as a hard link, where another name of its inode is in the layer already.

        With all the file's attributes: tarfile and docker set a link's mode and owner, and so those of the file.
        """
        first = self.links.get((found.st_dev, found.st_ino)) if self.links else None
        if first is None:
            return False
        above, _, name = first.rpartition(b"/")
        try:
            there = os.lstat(name, dir_fd=self.dirs.open(above))
        except (FileNotFoundError, NotADirectoryError):
            return False
        # A running container may have given that name, or the inode's number, to another file since.
        if (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino):
            return False
        xattrs = self.xattrs(b"/proc/self/fd/%d/%s" % (self.dirs.open(directory), base))
        mode = stat.S_IMODE(found.st_mode)
        self.header(path, b"1", mode, *self.ids(found), 0, found.st_mtime_ns, xattrs, link=first)
        return True

    def node(self, directory: bytes, base: bytes, path: bytes, handle: int, found: os.stat_result) -> None:
        kind = stat.S_IFMT(found.st_mode)
        # By name: an O_PATH fd has no flistxattr, and /proc/self/fd/N of a symbolic link is followed.
        xattrs = self.xattrs(b"/proc/self/fd/%d/%s" % (self.dirs.open(directory), base))
        self.header(
            path,
            _TYPES[kind],
            stat.S_IMODE(found.st_mode),
            *self.ids(found),
            0,
            found.st_mtime_ns,
            xattrs,
            link=os.readlink(b"", dir_fd=handle) if kind == stat.S_IFLNK else b"",
            device=found.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        )

    def directory(self, name: bytes, fd: int) -> None:
        self.listed.add(name)
        found = os.fstat(fd)
        mode = stat.S_IMODE(found.st_mode)
        path = name + b"/" if name else b"./"
        self.header(
            path,
            b"5",
            mode,
            *self.ids(found),
            0,
            found.st_mtime_ns,
            self.xattrs(b"/proc/self/fd/%d" % fd, follow=True),
        )

    def file(self, path: bytes, fd: int, found: os.stat_result) -> None:
        mode, size = stat.S_IMODE(found.st_mode), found.st_size
        xattrs = self.xattrs(b"/proc/self/fd/%d" % fd, follow=True)
        runs = [(0, size)]
        if size and found.st_blocks * 512 < size:
            runs = data_runs(fd, size)
            if self.is_fuse and runs == [(0, size)]:
                # A FUSE server knows that there are holes, and need not know where.
                runs = written_runs(fd, size)
        if len(runs) == 1 and runs[0] == (0, size):
            self.header(path, b"0", mode, *self.ids(found), size, found.st_mtime_ns, xattrs)
            self.content(path, fd, 0, size)
            self.pad(size)
            return
        # pax format 1.0: the map stands before the data, in decimal lines, padded to a block.
        runs.append((size, 0))
        numbers = [len(runs), *(number for run in runs for number in run)]
        table = b"".join(b"%d\n" % number for number in numbers)
        table += bytes(-len(table) % BLOCK)
        stored = len(table) + sum(length for _, length in runs)
        sparse = {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": path,
            b"GNU.sparse.realsize": b"%d" % size,
        }
        self.header(path, b"0", mode, *self.ids(found), stored, found.st_mtime_ns, xattrs, more=sparse)
        self.write(table)
        for offset, length in runs:
            self.content(path, fd, offset, length)
        self.pad(stored)

    def content(self, path: bytes, fd: int, offset: int, size: int) -> None:
        while size:
            data = os.pread(fd, min(size, _CHUNK), offset)
            if not data:
                # It was cut short by a running container. The header has promised this much.
                data = bytes(min(size, _CHUNK))
            self.write(data)
            offset += len(data)
            size -= len(data)

    def ids(self, found: os.stat_result) -> tuple[int, int]:
        return self.owner(found.st_uid, found.st_gid)

    def xattrs(self, path: bytes, *, follow: bool = False) -> dict[bytes, bytes]:
        return {
            key: translated(key, value, self.owner) for key, value in _xattrs(path, follow=follow).items()
        }

    def header(
        self,
        name: bytes,
        kind: bytes,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        mtime_ns: int,
        xattrs: dict[bytes, bytes],
        *,
        link: bytes = b"",
        device: int = 0,
        more: dict[bytes, bytes] | None = None,
    ) -> None:
        self.seen(name, mtime_ns)
        records = {b"SCHILY.xattr." + key: value for key, value in xattrs.items()}
        records.update(more or {})
        self.write(header(name, kind, mode, uid, gid, size, mtime_ns, records, link=link, device=device))

    def pad(self, size: int) -> None:
        if size % BLOCK:
            self.write(bytes(-size % BLOCK))

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self.out.write(data)

    def end(self) -> None:
        self.write(bytes(2 * BLOCK))


def _xattrs(path: bytes, *, follow: bool = False) -> dict[bytes, bytes]:
    """Extended attributes of ``path`` below /proc/self/fd; ``follow`` where that is the fd itself."""
    found = {}
    try:
        for key in os.listxattr(path, follow_symlinks=follow):
            if not key.startswith(PRIVATE_XATTRS):
                try:
                    value = os.getxattr(path, key, follow_symlinks=follow)
                except OSError as error:
                    if error.errno != ENODATA:
                        raise
                    continue
                found[os.fsencode(key)] = value
    except OSError as error:
        if error.errno != ENOTSUP:
            raise
    return found
