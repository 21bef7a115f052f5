"""A layer's tree in memory: what `pyrun.layers.unpack` would make on disk, step by step."""

from __future__ import annotations

import stat

from ..errors import LayerError
from . import erofs_format as fmt
from . import xattrs
from .erofs_sparse import Plan
from .names import shown
from .unpack import NODES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .entry import Entry
    from .limits import Limits

_LINKS = 40  # as the kernel's MAXSYMLINKS
_PARTS = 4096  # components that one name may expand to
_TARGET = 4095  # bytes of a symbolic link's target, PATH_MAX without its NUL
_KIND = {"file": stat.S_IFREG, "symlink": stat.S_IFLNK, **NODES}
_pack = fmt.INODE.pack

# Bytes that an entry takes here until the end, beside its name: measured, with the tables that hold it.
_NODE = 200
_DIRECTORY = 600


class Directory:
    """A directory of the tree in the making.

    kids    name → a Directory, or the number of another inode
    inode   its own number; ``mode`` ... ``xattrs`` (records, see `erofs_format.xattr`) are its attributes
    listed  the layer has an entry for it
    opaque, whiteouts  it hides the lower one; it has or had a whiteout
    """

    __slots__ = (
        "depth",
        "gid",
        "inode",
        "kids",
        "listed",
        "mode",
        "mtime_ns",
        "name",
        "opaque",
        "parent",
        "uid",
        "whiteouts",
        "xattrs",
    )

    def __init__(self, name: bytes, parent: Directory | None, inode: int) -> None:
        self.name = name
        self.parent = parent or self
        self.depth: int = parent.depth + 1 if parent else 0
        self.inode = inode
        self.kids: dict[bytes, Directory | int] = {}
        self.mode = 0o755
        self.uid = self.gid = self.mtime_ns = 0
        self.xattrs = b""
        self.listed = self.opaque = self.whiteouts = False

    def path(self) -> bytes:
        """The root-relative name."""
        parts = []
        at = self
        while at.depth:
            parts.append(at.name)
            at = at.parent
        return b"/".join(reversed(parts))

    def within(self, other: Directory) -> bool:
        """Whether this is ``other`` or lies below it."""
        at = self
        while at.depth > other.depth:
            at = at.parent
        return at is other


class Tree:
    """The tree; ``entry`` is the one that is being added, for messages.

    inodes   all inodes made, 64 bytes each by number; those that no directory has any more, too
    targets, plans, records  of symbolic links, of sparse files, and xattrs of what is no directory, by number
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inodes = bytearray()
        self.targets: dict[int, bytes] = {}
        self.plans: dict[int, Plan] = {}
        self.records: dict[int, bytes] = {}
        self.opaque_root = False
        self.dropped: set[bytes] = set()
        self.entry: Entry | None = None
        self._memory = limits.memory
        self._known: dict[bytes, Directory] = {}  # by name as entries give it, where no link leads to it
        self.root = Directory(b"", None, self._inode(b""))

    def directories(self) -> list[Directory]:
        """All that are still in the tree, parents first."""
        found = [self.root]
        for directory in found:
            found += [kid for kid in directory.kids.values() if isinstance(kid, Directory)]
        return found

    def add(self, entry: Entry) -> None:
        parent = self._known.get(entry.dir) or self._find(entry.dir)
        kind = entry.type
        if kind == "dir":
            self._directory(entry, parent)
        elif kind == "link":
            self._link(entry, parent)
        elif kind == "whiteout":
            self._whiteout(entry, parent)
        elif kind == "opaque":
            directory = self._find(entry.name)
            if directory is self.root:
                self.opaque_root = True
            else:
                directory.opaque = True
        else:
            self._other(entry, parent, kind)

    # --- one entry

    def _other(self, entry: Entry, parent: Directory, kind: str) -> None:
        """A file, a symbolic link or a node."""
        number = len(self.inodes) >> 6
        self._remember(len(entry.base) + _NODE)
        mode, size, where, layout = entry.mode, entry.size, 0, fmt.PLAIN
        if kind == "symlink":
            mode, size = 0o777, len(entry.linkname)
            if not 0 < size <= _TARGET:
                raise LayerError(
                    f"layer entry {shown(entry.name)}: a symbolic link to a name of {size} bytes, "
                    f"not 1 to {_TARGET}"
                )
            self._remember(size)
            self.targets[number] = entry.linkname
        elif kind == "file":
            if entry.sparse is None:
                where = fmt.TAR_AT + (entry.offset >> fmt.BLOCK_BITS) if size else 0
            elif size:
                self._remember(160 * len(entry.sparse))
                plan = self.plans[number] = Plan(entry.sparse, size, entry.offset)
                where, layout = plan.format, fmt.CHUNKS
        elif kind != "fifo":
            minor = entry.devminor
            where = minor & 0xFF | entry.devmajor << 8 | (minor & ~0xFF) << 12
        if entry.xattrs:
            records, mode = self._xattrs(entry, mode)
            if records:
                self.records[number] = records
        seconds, nanoseconds = divmod(entry.mtime_ns, 1_000_000_000)
        mode |= _KIND[kind]
        self.inodes += _pack(
            layout, 0, mode, 0, size, where, number + 1, entry.uid, entry.gid, seconds, nanoseconds, 1
        )
        self._place(parent, entry.base, number)

    def _directory(self, entry: Entry, parent: Directory) -> None:
        base = entry.base
        directory = parent.kids.get(base) if base else self.root
        if not isinstance(directory, Directory):
            # Where the layer had something else, a whiteout or a file, the directory hides the lower one.
            replaced = directory is not None
            directory = self._make(parent, base)
            directory.opaque = replaced
        directory.listed = True
        directory.mode, directory.uid, directory.gid = entry.mode, entry.uid, entry.gid
        directory.mtime_ns = entry.mtime_ns
        directory.xattrs = b""
        if entry.xattrs:
            directory.xattrs, directory.mode = self._xattrs(entry, entry.mode)

    def _link(self, entry: Entry, parent: Directory) -> None:
        where, _, source = entry.linkname.rpartition(b"/")
        directory = self._find(where)
        found = directory.kids.get(source)
        if found is None or (isinstance(found, int) and self._is_whiteout(found)):
            raise LayerError(
                f"layer entry {shown(entry.name)}: a hard link to {shown(entry.linkname)}, "
                "which the layer lacks"
            )
        if isinstance(found, Directory):
            raise LayerError(
                f"layer entry {shown(entry.name)}: a hard link to the directory {shown(entry.linkname)}"
            )
        there = parent.kids.get(entry.base)
        if (directory is parent and source == entry.base) or (
            isinstance(there, Directory) and directory.within(there)
        ):
            raise LayerError(
                f"layer entry {shown(entry.name)}: a hard link that takes the place of its target"
            )
        self._remember(len(entry.base) + _NODE - fmt.INODE_SIZE)
        self._place(parent, entry.base, found)

    def _whiteout(self, entry: Entry, parent: Directory) -> None:
        there = parent.kids.get(entry.base)
        if isinstance(there, Directory):
            there.opaque = True
        elif there is None:
            self._remember(len(entry.base) + _NODE)
            packed = _pack(fmt.PLAIN, 0, stat.S_IFCHR, 0, 0, 0, 0, 0, 0, 0, 0, 1)
            parent.kids[entry.base] = self._inode(packed)
            parent.whiteouts = True

    # --- parts

    def _place(self, parent: Directory, base: bytes, number: int) -> None:
        if isinstance(parent.kids.get(base), Directory):
            self._known.clear()
        parent.kids[base] = number

    def _make(self, parent: Directory, base: bytes) -> Directory:
        self._remember(len(base) + _DIRECTORY)
        made = Directory(base, parent, self._inode(b""))
        parent.kids[base] = made
        return made

    def _inode(self, packed: bytes) -> int:
        """A further inode; a directory's is filled in at the end."""
        number = len(self.inodes) >> 6
        self.inodes += packed or bytes(fmt.INODE_SIZE)
        return number

    def _type(self, number: int) -> int:
        return self.inodes[(number << 6) + 5] >> 4 << 12

    def _is_whiteout(self, number: int) -> bool:
        at = number << 6
        return self._type(number) == stat.S_IFCHR and not any(self.inodes[at + 16 : at + 20])

    def _xattrs(self, entry: Entry, mode: int) -> tuple[bytes, int]:
        try:
            kept, mode = xattrs.settle(entry.xattrs, entry.type, mode, self.dropped)
            records = b"".join([fmt.xattr(name, value) for name, value in kept.items()])
            fmt.xattr_body(records)
        except LayerError as error:
            text = str(error).removeprefix("layer: ")
            raise LayerError(f"layer entry {shown(entry.name)}: {text}") from error
        self._remember(len(records) + 150)
        return records, mode

    def _remember(self, size: int) -> None:
        self._memory -= size
        if self._memory < 0:
            raise LayerError(
                f"layer: names and attributes take more than {self.limits.memory} bytes of memory"
            )

    def _find(self, name: bytes) -> Directory:
        """The directory ``name``, its links followed within the tree as `pyrun.layers.dirs` does; what is
        missing is made."""
        at, links, followed = self.root, 0, False
        parts = name.split(b"/")
        parts.reverse()
        while parts:
            part = parts.pop()
            if not part or part == b".":
                continue
            if part == b"..":
                at = at.parent
                continue
            there = at.kids.get(part)
            if isinstance(there, Directory):
                at = there
                continue
            if at.depth >= self.limits.depth:
                raise LayerError(f"layer: {shown(name)} leads deeper than {self.limits.depth} directories")
            if there is None:
                at = self._make(at, part)
                continue
            target = self.targets.get(there)
            if target is None:
                if not self._is_whiteout(there):
                    path = at.path() + b"/" + part if at.depth else part
                    raise LayerError(f"layer: {shown(path)} is used as a directory and is none")
                at = self._make(at, part)
                at.opaque = True
                continue
            links, followed = links + 1, True
            if links > _LINKS or len(parts) + target.count(b"/") > _PARTS:
                raise LayerError(f"layer: {shown(name)} goes through too many symbolic links")
            parts.extend(reversed(target.split(b"/")))
            if target[:1] == b"/":
                at = self.root
        if not followed:
            if len(self._known) >= 4096:
                self._known.clear()
            self._known[name] = at
        return at
