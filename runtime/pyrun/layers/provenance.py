"""Where a name of a stack of layers comes from: which layer's version shows, and which are hidden below by what.

The stack is what union file systems make of it (OCI image spec, layer.md; kernel overlayfs.rst): a whiteout hides
a name and all below it in the lower layers, an opaque directory what they have in it, and whatever is no directory
hides everything of its name; directories merge. Layers are independent of each other: a parent that only a lower
layer has as a symbolic link is a directory of its own here, as in drivers that unpack layers side by side.

Names are root-relative bytes (`pyrun.layers.names`); layers count from 0 at the bottom.
"""

from __future__ import annotations

from .table import DIR, FRESH, IMPLIED, LINK, OPAQUE, WHITEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .table import Table

LINKS = 40  # as the kernel's MAXSYMLINKS

# What a `Found` is.
ENTRY, DELETION, OPACITY, COVER = "entry", "whiteout", "opaque", "covered"
# What became of an entry.
VISIBLE, MERGED, REPLACED, DELETED = "visible", "merged", "replaced", "deleted"


class Found:
    """What one layer says of a name.

    what    ENTRY: a version of it; DELETION: a whiteout of ``name``, which is the name asked for or a directory
            above; OPACITY: ``name``, a directory above, is opaque; COVER: ``name``, a directory above, is something
            else in this layer
    layer   the layer's number;  row  of its table
    state   of an entry: VISIBLE; MERGED: a directory whose content shows beside that of a higher one; REPLACED: layer
            ``by`` has something else of that name; DELETED: after layer ``by`` there was nothing.
            Of the others: "" where they hide a version below, else "idle"
    """

    __slots__ = ("by", "layer", "name", "row", "state", "what")

    def __init__(self, what: str, layer: int, row: int, name: bytes) -> None:
        self.what = what
        self.layer = layer
        self.row = row
        self.name = name
        self.state = ""
        self.by = -1

    def __repr__(self) -> str:
        return f"Found({self.what}, layer {self.layer}, {self.name!r}, {self.state})"


class Step:
    """A symbolic link on the way: ``name`` of layer ``layer`` leads to ``target`` (verbatim)."""

    __slots__ = ("layer", "name", "target")

    def __init__(self, name: bytes, target: bytes, layer: int) -> None:
        self.name = name
        self.target = target
        self.layer = layer


class Place:
    """Where a path leads: ``name``, by ``steps``. ``problem`` is "" or "missing", "not a directory" (a component
    before the last, or the last of a path with a trailing slash, is something else) or "loop"; ``at`` is the
    component that has it, and ``name`` then goes on by the letter."""

    __slots__ = ("at", "name", "problem", "steps")

    def __init__(self, name: bytes, steps: list[Step], problem: str = "", at: bytes = b"") -> None:
        self.name = name
        self.steps = steps
        self.problem = problem
        self.at = at


class Stack:
    """The tables of a stack of layers, bottom to top."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables

    def trace(self, name: bytes) -> list[Found]:
        """All that the layers say of ``name``, topmost first."""
        above = [b""] if name else []
        at = name.find(b"/")
        while at >= 0:
            above.append(name[:at])
            at = name.find(b"/", at + 1)
        found: list[Found] = []
        directories: list[Found] = []  # of one merged directory, topmost first
        hider: tuple[int, str] | None = None
        pending: list[Found] = []  # marks that have hidden nothing yet
        for layer in range(len(self.tables) - 1, -1, -1):
            table = self.tables[layer]
            row = table.row(name)
            mark: Found | None = None
            if row >= 0:
                kind = table.kinds[row]
                if kind == WHITEOUT:
                    mark = Found(DELETION, layer, row, name)
                else:
                    here = Found(ENTRY, layer, row, name)
                    found.append(here)
                    if kind != DIR and directories:
                        hider, directories = (directories[-1].layer, REPLACED), []
                    if hider is not None:
                        here.by, here.state = hider
                        for one in pending:
                            one.state = ""
                        pending = []
                    elif kind == DIR:
                        here.state = MERGED
                    else:
                        here.state = VISIBLE
                    if kind == DIR:
                        directories.append(here)
                        if table.flags[row] & FRESH:
                            mark = Found(DELETION, layer, row, name)
                    else:
                        hider = (layer, REPLACED)
                        directories = []
            if mark is None:
                mark = self._mark(layer, above)
            if mark is not None:
                mark.state = "idle"
                found.append(mark)
                pending.append(mark)
                stands = row >= 0 and table.kinds[row] != WHITEOUT
                hider, directories = (layer, REPLACED if stands else DELETED), []
        self._supplier(found)
        return found

    def _mark(self, layer: int, above: list[bytes]) -> Found | None:
        """What in this layer hides the lower layers' part of everything below some directory in ``above``."""
        table = self.tables[layer]
        for name in reversed(above):
            row = table.row(name)
            if row < 0:
                continue
            kind, flags = table.kinds[row], table.flags[row]
            if kind == WHITEOUT or flags & FRESH:
                return Found(DELETION, layer, row, name)
            if kind != DIR:
                return Found(COVER, layer, row, name)
            if flags & OPAQUE:
                return Found(OPACITY, layer, row, name)
        return None

    def _supplier(self, found: list[Found]) -> None:
        """Of a directory that merges, the topmost layer that lists it gives it its attributes; one that none lists
        is the lowest's, which made it."""
        merged = [one for one in found if one.what == ENTRY and one.state == MERGED]
        for one in merged:
            if not self.tables[one.layer].flags[one.row] & IMPLIED:
                one.state = VISIBLE
                return
        if merged:
            merged[-1].state = VISIBLE

    def lookup(self, name: bytes) -> Found | None:
        """The version of ``name`` that shows; None where none does."""
        for found in self.trace(name):
            if found.state == VISIBLE:
                return found
        return None

    def children(self, name: bytes) -> dict[bytes, str]:
        """What is in the directory ``name``: base name -> kind."""
        found = {}
        for one in {table.names[row] for table in self.tables for row in table.below(name)}:
            shown = self.lookup(one)
            if shown is not None:
                found[one.rpartition(b"/")[2]] = self.tables[shown.layer].kind(shown.row)
        return found

    def source(self, found: Found) -> Found | None:
        """The version whose content an entry has: itself, or for a hard link to a lower layer's file that file."""
        for _ in range(len(self.tables)):
            if self.tables[found.layer].kinds[found.row] != LINK:
                return found
            target = self.tables[found.layer].target(found.row)
            below = Stack(self.tables[: found.layer]).lookup(target)
            if below is None:
                return None
            found = below
        return None

    def find(self, path: bytes, *, follow: bool = True) -> Place:
        """Where ``path`` leads from the root, as a process in a container would be led: ".." goes to the parent of
        the directory reached and never above the root, symbolic links are followed, the last one only with
        ``follow`` or before a slash."""
        must_be_directory = path.endswith((b"/", b"/.")) or path == b"."
        parts = path.split(b"/")
        parts.reverse()
        while parts and parts[0] in (b"", b"."):
            del parts[0]
        at = b""
        steps: list[Step] = []
        while parts:
            part = parts.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                at = at.rpartition(b"/")[0]
                continue
            name = at + b"/" + part if at else part
            found = self.lookup(name)
            last = not any(rest not in (b"", b".") for rest in parts)
            if found is None:
                return Place(_on(name, parts), steps, "missing", name)
            table = self.tables[found.layer]
            kind = table.kind(found.row)
            if kind == "symlink" and (follow or not last or must_be_directory):
                target = table.target(found.row)
                if len(steps) >= LINKS:
                    return Place(_on(name, parts), steps, "loop", name)
                steps.append(Step(name, target, found.layer))
                parts.extend(reversed(target.split(b"/")))
                if target.startswith(b"/"):
                    at = b""
                continue
            if kind != "dir" and (not last or must_be_directory):
                return Place(_on(name, parts), steps, "not a directory", name)
            at = name
        return Place(at, steps)


def _on(name: bytes, parts: list[bytes]) -> bytes:
    """``name`` and the reversed rest of a path, by the letter."""
    for part in reversed(parts):
        if part == b"..":
            name = name.rpartition(b"/")[0]
        elif part not in (b"", b"."):
            name = name + b"/" + part if name else part
    return name
