"""An EROFS index over a layer's tar: the layer as a file system, without extracting it.

The tar is kept as it came. Beside it lies the index: directories, attributes and links, and for the content of
files the place where it stands in the tar, which is mounted as the index's second device. Both are written in
one pass over the stream. A layer means here what it means to `pyrun.layers.unpack`, in the form "overlay": the
same entries are refused, and whiteouts are character devices 0/0. The kernel parses what is written here, never
what a registry sent.

The same tar always gives the same index.
"""

from __future__ import annotations

import os
import stat
import struct
from array import array
from errno import EDQUOT, ENOSPC

from ..errors import LayerError
from . import erofs_format as fmt
from . import xattrs
from .erofs_sparse import Plan
from .limits import Limits
from .names import shown
from .tar import TarReader
from .unpack import _LOOK_AGAIN, _NODES, _RESERVE, Unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .entry import Entry
    from .tar import Stream

_LINKS = 40  # as the kernel's MAXSYMLINKS
_PARTS = 4096  # components that one name may expand to
_TARGET = 4095  # bytes of a symbolic link's target, PATH_MAX without its NUL
_CHUNK = 1 << 20
_KIND = {"file": stat.S_IFREG, "symlink": stat.S_IFLNK, **_NODES}
_pack = fmt.INODE.pack

_SPACE = "Free some space, or keep the store elsewhere (--root)."

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


def index(stream: Stream, tar: int, out: int, identity: bytes, limits: Limits | None = None) -> Unpacked:
    """Keep the tar ``stream`` in the file ``tar`` and write the index over it to ``out``; both are fds of empty
    files, open for reading and writing.

    ``identity`` is the digest of the tar (its bytes): the file system's UUID comes from it. The result is that
    of `unpack`; ``dropped`` names the attributes that no Linux file system would take.

    Raises `LayerError`, as `unpack` does, and for a tar beyond what 32-bit block addresses reach; what
    ``stream.read`` raises passes through. Not atomic: after an error the caller throws both files away.
    """
    limits = limits or Limits()
    space = _Space(tar, limits)
    tee = _Tee(stream, tar, space)
    reader = TarReader(tee, limits)
    tree = Tree(limits)
    try:
        for entry in reader:
            tree.entry = entry
            space.entry(entry)
            tree.add(entry)
        tree.entry = None
        _Writer(tree, tar, out, space).write(identity, tee.size)
    except LayerError:
        raise
    except OSError as error:
        if error is tee.failure:
            raise
        where = f"layer entry {shown(tree.entry.name)}" if tree.entry else "layer"
        hint = _SPACE if error.errno in (ENOSPC, EDQUOT) else ""
        raise LayerError(f"{where}: {error.strerror or error}", hint=hint) from error
    implied = sorted(directory.path() for directory in tree.directories() if not directory.listed)
    return Unpacked(reader.entries, reader.offset, implied, tree.opaque_root, sorted(tree.dropped))


class _Space:
    """Looks, every so often, whether the file system of ``fd`` has room left beside its reserve, as `unpack`
    does: several layers come in at the same time."""

    def __init__(self, fd: int, limits: Limits) -> None:
        self._fd = fd
        self._endless = limits.bytes is not None
        self._unseen = 0  # bytes that may be written before looking again

    def left(self) -> int:
        fs = os.fstatvfs(self._fd)
        if self._endless or fs.f_blocks == 0:
            return 1 << 80
        return max(fs.f_bavail * fs.f_frsize - min(_RESERVE, fs.f_blocks * fs.f_frsize // 20), 0)

    def take(self, size: int) -> None:
        """Raises `LayerError` where ``size`` more bytes won't fit."""
        self._unseen -= size
        if self._unseen < 0:
            left = self.left()
            if left < size:
                raise LayerError(
                    f"layer: the store's file system has {left} bytes left (beside a reserve)", hint=_SPACE
                )
            self._unseen = min(_LOOK_AGAIN, left - size)

    def entry(self, entry: Entry) -> None:
        """Refuse ``entry`` at once where its content won't fit."""
        if entry.stored >= _LOOK_AGAIN and entry.stored > (left := self.left()):
            raise LayerError(
                f"layer entry {shown(entry.name)}: {entry.stored} bytes, and the store's file system "
                f"has {left} left (beside a reserve)",
                hint=_SPACE,
            )


class _Tee:
    """Reads through, and keeps what it reads in the file ``fd``. ``failure``: what the stream itself raised."""

    def __init__(self, stream: Stream, fd: int, space: _Space) -> None:
        self.size = 0
        self.failure: BaseException | None = None
        self._stream = stream
        self._fd = fd
        self._space = space

    def read(self, n: int, /) -> bytes | bytearray | memoryview:
        try:
            piece = self._stream.read(n)
        except BaseException as failure:
            self.failure = failure
            raise
        self.size += len(piece)
        self._space.take(len(piece))
        if self.size > fmt.TAR_LIMIT:
            raise LayerError(
                f"layer: a tar of more than {fmt.TAR_LIMIT} bytes, which EROFS can't address",
                hint="Use another storage driver.",
            )
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        return piece


class Tree:
    """The layer's tree in memory: what `unpack` would make on disk, step by step.

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


class _Writer:
    """Writes a tree out: directories and other data first, then the inodes, and the superblock last."""

    def __init__(self, tree: Tree, tar: int, out: int, space: _Space) -> None:
        self.tree = tree
        self.space = space
        self.tar = tar
        self.out = out
        self.pending: list[bytes] = []
        self.size = 0  # bytes pending
        self.at = fmt.FIRST_BLOCK * fmt.BLOCK  # where in the file the pending ones belong
        self.tables: dict[int, dict[int, int]] = {}  # inode → its pieces' block addresses

    def write(self, identity: bytes, tar_size: int) -> None:
        order = self._layout()
        meta = (self.at + self.size) // fmt.BLOCK
        self._inodes(order)
        self._flush()
        end = self.at + -self.at % fmt.BLOCK
        if end > fmt.TAR_AT * fmt.BLOCK:
            raise LayerError(
                "layer: an index larger than EROFS can address", hint="Use another storage driver."
            )
        os.ftruncate(self.out, end)
        numbers = self.numbers
        root = numbers[self.tree.root.inode]
        head = fmt.superblock(identity, root, len(order), meta, end // fmt.BLOCK, tar_size)
        os.pwrite(self.out, head, 0)

    # --- data

    def _layout(self) -> list[int]:
        """Give every inode of the tree its place, directory by directory, and write the directories and all
        that is neither inode nor in the tar. The inodes that are, in the order of their places."""
        tree = self.tree
        inodes, targets, plans = tree.inodes, tree.targets, tree.plans
        count = len(inodes) >> 6
        numbers = self.numbers = array("Q", bytes(8 * count))
        links = self.links = array("I", bytes(4 * count))
        odd = targets.keys() | plans.keys() | tree.records.keys()
        self.bodies: dict[int, tuple[bytes, int]] = {}
        order: list[int] = []
        place = fmt.INODE_SIZE  # of the next inode: 0 is no number for one

        def put(number: int) -> int:
            nonlocal place
            place = self._room(number, place)
            numbers[number] = place // fmt.NID
            order.append(number)
            place += fmt.INODE_SIZE
            if number in self.bodies:
                place += len(self.bodies[number][0])
            if number in odd:
                place += self._behind(number)
            place += -place % fmt.INODE_SIZE
            return numbers[number]

        def put_directory(directory: Directory) -> int:
            records = directory.xattrs
            if directory.depth:
                if directory.opaque:
                    records += _OPAQUE
                if directory.whiteouts:
                    # Overlayfs lists whiteouts of a directory without an origin (see `whiteouts.OverlayForm`).
                    records += _ORIGIN
            if records:
                self.bodies[directory.inode] = fmt.xattr_body(records)
            return put(directory.inode)

        for number, records in tree.records.items():
            self.bodies[number] = fmt.xattr_body(records)
        put_directory(tree.root)
        types = fmt.TYPE_OF
        queue = [tree.root]
        for directory in queue:
            kids = directory.kids
            up, below = directory.parent, 2
            entries = [(b".", numbers[directory.inode], fmt.DIRECTORY)]
            entries.append((b"..", numbers[up.inode], fmt.DIRECTORY))
            for name in sorted(kids):
                kid = kids[name]
                if isinstance(kid, int):
                    links[kid] += 1
                    number = numbers[kid] or put(kid)
                    entries.append((name, number, types[inodes[(kid << 6) + 5] >> 4]))
                else:
                    below += 1
                    entries.append((name, put_directory(kid), fmt.DIRECTORY))
                    queue.append(kid)
            entries.sort()
            where = (self.at + self.size) // fmt.BLOCK
            size = 0
            for block in fmt.directory_blocks(entries):
                size += len(block)
                self._put(block)
            self._put(bytes(-size % fmt.BLOCK))
            seconds, nanoseconds = divmod(directory.mtime_ns, 1_000_000_000)
            mode = directory.mode | stat.S_IFDIR
            fmt.INODE.pack_into(
                inodes,
                directory.inode << 6,
                fmt.PLAIN,
                0,
                mode,
                0,
                size,
                where,
                directory.inode + 1,
                directory.uid,
                directory.gid,
                seconds,
                nanoseconds,
                below,
            )
            links[directory.inode] = below
        return order

    def _room(self, number: int, place: int) -> int:
        """``place``, or the next block where the target of a symbolic link behind the inode would cross one."""
        target = self.tree.targets.get(number)
        if target is not None:
            body = len(self.bodies[number][0]) if number in self.bodies else 0
            need = fmt.INODE_SIZE + body + len(target)
            if need <= fmt.BLOCK and place % fmt.BLOCK + need > fmt.BLOCK:
                place += -place % fmt.BLOCK
        return place

    def _behind(self, number: int) -> int:
        """Bytes behind the inode and its xattrs, of which what lies elsewhere is written now."""
        tree = self.tree
        target = tree.targets.get(number)
        if target is not None:
            body = len(self.bodies[number][0]) if number in self.bodies else 0
            if fmt.INODE_SIZE + body + len(target) <= fmt.BLOCK:
                struct.pack_into("<H", tree.inodes, number << 6, fmt.INLINE)
                return len(target)
            struct.pack_into("<I", tree.inodes, (number << 6) + 16, (self.at + self.size) // fmt.BLOCK)
            self._put(target + bytes(-len(target) % fmt.BLOCK))
            return 0
        plan = tree.plans.get(number)
        if plan is None:
            return 0
        self._pieces(number, plan)
        return plan.table

    def _pieces(self, number: int, plan: Plan) -> None:
        addresses = self.tables[number] = {}
        for chunk, parts in plan.pieces().items():
            self._flush()
            addresses[chunk] = self.at // fmt.BLOCK
            for offset, source, length in parts:
                while length:
                    data = os.pread(self.tar, min(length, _CHUNK), source)
                    if not data:
                        raise LayerError("layer: the tar became shorter while it was read")
                    self.space.take(len(data))
                    os.pwrite(self.out, data, self.at + offset)
                    offset += len(data)
                    source += len(data)
                    length -= len(data)
            self.at += 1 << plan.bits

    # --- inodes

    def _inodes(self, order: list[int]) -> None:
        tree, numbers, links, bodies = self.tree, self.numbers, self.links, self.bodies
        inodes, targets, plans = tree.inodes, tree.targets, tree.plans
        place = 0
        put = self._put
        for number in order:
            wanted = numbers[number] * fmt.NID
            if place != wanted:
                put(bytes(wanted - place))
                place = wanted
            at = number << 6
            if links[number] != 1:
                struct.pack_into("<I", inodes, at + 44, links[number])
            body = bodies.get(number)
            if body is not None:
                struct.pack_into("<H", inodes, at + 2, body[1])
            put(bytes(inodes[at : at + 64]))
            place += fmt.INODE_SIZE
            if body is not None:
                put(body[0])
                place += len(body[0])
            if number in targets and inodes[at] == fmt.INLINE:
                put(targets[number])
                place += len(targets[number])
            elif number in plans:
                for part in plans[number].addresses(self.tables[number]):
                    put(part)
                    place += len(part)

    # --- the file

    def _put(self, data: bytes) -> None:
        self.pending.append(data)
        self.size += len(data)
        if self.size >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        data = memoryview(b"".join(self.pending))
        self.pending.clear()
        self.size = 0
        self.space.take(len(data))
        while data:
            done = os.pwrite(self.out, data, self.at)
            self.at += done
            data = data[done:]


_OPAQUE = fmt.xattr(b"trusted.overlay.opaque", b"y")
_ORIGIN = fmt.xattr(b"trusted.overlay.origin", b"")
