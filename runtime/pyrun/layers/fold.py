"""A layer's tar folded into its `Table`: what is left of the members once all of them were applied.

The rules are those of `pyrun.layers.unpack`: members count in the order they come, of a name given twice the last;
a parent that the layer itself has as a symbolic link is followed, within the layer; a whiteout never hides what
the layer adds, and a directory that stands where it deletes, or where an earlier member had a file, starts empty.
"""

from __future__ import annotations

from ..errors import LayerError
from .entry import Entry
from .limits import Limits
from .names import shown
from .table import FRESH, IMPLIED, LETTERS, OPAQUE, Table
from .tar import TarReader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .tar import Stream

_LINKS = 40  # as the kernel's MAXSYMLINKS
_PARTS = 4096  # components that one name may expand to
_INT64 = (1 << 63) - 1


class _Node:
    __slots__ = ("below", "copies", "entry", "flags", "link")

    def __init__(self, entry: Entry | None, below: dict[bytes, _Node] | None) -> None:
        self.entry = entry  # None: a directory that no member lists, or a whiteout
        self.below = below  # of directories
        self.flags = 0
        self.copies = 1
        self.link = b""  # a hard link's target


def table_of(stream: Stream, limits: Limits | None = None) -> Table:
    """Read the tar ``stream`` to its end. Raises `LayerError` where `pyrun.layers.unpack` would for what the tar
    says (a file used as a directory, links that lead round); what ``stream.read`` raises passes through."""
    limits = limits or Limits()
    reader = TarReader(stream, limits)
    fold = _Fold(limits)
    for entry in reader:
        fold.add(entry)
    return fold.table(reader)


class _Fold:
    def __init__(self, limits: Limits) -> None:
        self.root = _Node(None, {})
        self.root.flags = IMPLIED
        self.places: dict[bytes, _Node] = {b"": self.root}  # directories by the name a member gave
        self.total = 0  # bytes of file content that the tar stores
        self.limits = limits

    def add(self, entry: Entry) -> None:
        kind = entry.type
        if kind == "file":
            self.total += entry.stored
        if kind == "opaque":
            self.place(entry.name).flags |= OPAQUE
            return
        place = self.places.get(entry.dir)
        if place is None:
            place = self.place(entry.dir)
        base = entry.base
        if not base:
            self.root.entry, self.root.flags = entry, self.root.flags & ~IMPLIED
            return
        assert place.below is not None
        old = place.below.get(base)
        if kind == "whiteout":
            if old is None:
                node = place.below[base] = _Node(None, None)
                node.flags = FRESH
            elif old.below is not None:
                old.flags |= FRESH
            return
        if kind == "dir":
            if old is None or old.below is None:
                node = place.below[base] = _Node(entry, {})
                # In place of a whiteout, or of what an earlier member had there.
                node.flags = 0 if old is None else FRESH
                self.succeed(old, node)
            else:
                if old.entry is not None:
                    old.copies += 1
                old.entry = entry
                old.flags &= ~IMPLIED
            return
        node = _Node(entry, None)
        if kind == "link":
            self.link(entry, node)
        self.succeed(old, node)
        place.below[base] = node

    def succeed(self, old: _Node | None, new: _Node) -> None:
        """``new`` takes the place of ``old``."""
        if old is None:
            return
        if old.entry is not None:
            new.copies = old.copies + 1
        if old.below is not None or (old.entry is not None and old.entry.type == "symlink"):
            self.places = {
                b"": self.root
            }  # some of them may lie in what goes now, or were found by way of it

    def link(self, entry: Entry, node: _Node) -> None:
        where, _, base = entry.linkname.rpartition(b"/")
        below = self.place(where).below
        assert below is not None
        found = below.get(base)
        node.link = entry.linkname
        if found is None or found.entry is None:
            return  # below, perhaps
        if found.below is not None:
            raise LayerError(
                f"layer entry {shown(entry.name)}: a hard link to the directory {shown(entry.linkname)}"
            )
        node.entry = found.entry
        node.link = found.link or entry.linkname

    def place(self, name: bytes) -> _Node:
        """The directory ``name``, by way of the layer's own symbolic links; what is missing is made."""
        found = self.places.get(name)
        if found is not None:
            return found
        parts = name.split(b"/")
        parts.reverse()
        trail = [self.root]
        links = 0
        while parts:
            part = parts.pop()
            if not part or part == b".":
                continue
            if part == b"..":
                if len(trail) > 1:
                    trail.pop()
                continue
            below = trail[-1].below
            assert below is not None
            node = below.get(part)
            if node is None or (node.entry is None and node.below is None):
                if len(trail) > self.limits.depth:
                    raise LayerError(
                        f"layer: {shown(name)} leads deeper than {self.limits.depth} directories"
                    )
                made = _Node(None, {})
                made.flags = IMPLIED if node is None else IMPLIED | FRESH
                node = below[part] = made
            if node.below is not None:
                trail.append(node)
                continue
            if node.entry is None or node.entry.type != "symlink":
                raise LayerError(f"layer: {shown(name)} goes through {shown(part)}, which is no directory")
            target = node.entry.linkname
            links += 1
            if links > _LINKS or len(parts) + target.count(b"/") > _PARTS:
                raise LayerError(f"layer: {shown(name)} goes through too many symbolic links")
            parts.extend(reversed(target.split(b"/")))
            if target[:1] == b"/":
                trail = [self.root]
        if len(self.places) >= 4096:
            self.places = {b"": self.root}
        self.places[name] = trail[-1]
        return trail[-1]

    def table(self, reader: TarReader) -> Table:
        found: list[tuple[bytes, _Node]] = []
        stack = [(b"", self.root)]
        while stack:
            name, node = stack.pop()
            found.append((name, node))
            if node.below:
                prefix = name + b"/" if name else b""
                stack.extend((prefix + base, below) for base, below in node.below.items())
        found.sort(key=lambda item: item[0])
        made = Table()
        made.entries, made.bytes = reader.entries, reader.offset
        made.names = [name for name, _ in found]
        letters = []
        kept: dict[int, int] = {}
        for row, (_, node) in enumerate(found):
            letters.append(self.letter(node))
            self.fill(made, row, node)
            if letters[-1] == "f":
                kept[made.offsets[row]] = made.stored[row]
            if node.copies > 1:
                made.copies[row] = node.copies
        made.kinds = "".join(letters).encode()
        made.lost = self.total - sum(kept.values())
        return made

    @staticmethod
    def letter(node: _Node) -> str:
        if node.below is not None:
            return "d"
        return "w" if node.entry is None else LETTERS[node.entry.type]

    @staticmethod
    def fill(made: Table, row: int, node: _Node) -> None:
        entry = node.entry
        made.flags.append(node.flags & 0xFF)
        if entry is None:
            entry = Entry(b"", b"", "dir", 0o755 if node.below is not None else 0, 0, 0, 0)
        made.modes.append(entry.mode)
        made.uids.append(entry.uid)
        made.gids.append(entry.gid)
        made.mtimes.append(max(-_INT64, min(_INT64, entry.mtime_ns)))
        made.sizes.append(entry.size)
        made.stored.append(entry.stored)
        made.offsets.append(entry.offset)
        target = entry.linkname if entry.type == "symlink" else node.link
        if target:
            made.linked.append(row)
            made.targets.append(target)
        if entry.type in ("char", "block"):
            made.devices[row] = (entry.devmajor, entry.devminor)
        if entry.sparse is not None:
            made.sparse[row] = entry.sparse
