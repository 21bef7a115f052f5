"""Writing a tree out as an EROFS file system: directories and other data first, then the inodes, and the superblock
last, so that what was cut short is no file system."""

from __future__ import annotations

import os
import stat
import struct
from array import array

from ..errors import LayerError
from . import erofs_format as fmt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .erofs_sparse import Plan
    from .erofs_tree import Directory, Tree

_CHUNK = 1 << 20
_PAGE = 4096  # what erofs-utils reads at once
_OPAQUE = fmt.xattr(b"trusted.overlay.opaque", b"y")
_ORIGIN = fmt.xattr(b"trusted.overlay.origin", b"")


class Writer:
    """Writes ``tree`` to the file ``out``, with what stands in the file ``tar``. ``take`` is told of every so many
    bytes before they are written, and may raise."""

    def __init__(self, tree: Tree, tar: int, out: int, take: Callable[[int], None]) -> None:
        self.tree = tree
        self.take = take
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
        end = self.at + -self.at % _PAGE
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
                    self.take(len(data))
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
        self.take(len(data))
        while data:
            done = os.pwrite(self.out, data, self.at)
            self.at += done
            data = data[done:]
