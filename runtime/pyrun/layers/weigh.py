"""What each layer of a stack does to the layers below it, and what of it is seen in the end: an account in names
and bytes.

Bytes are those of file content as the layer's tar stores it (holes don't count), and a file with several names in
one layer counts once: it is wasted only when none of its names shows any more.
"""

from __future__ import annotations

from array import array

from .table import DIR, FRESH, IMPLIED, OPAQUE, WHITEOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .table import Table

_FILE = ord("f")
_ROW = (1 << 32) - 1

# What a row of a layer does: nothing (a directory that is listed again as it was), add, replace, delete.
NOTHING, ADDS, REPLACES, DELETES = b" ACD"


class Tally:
    """``names`` and ``bytes``."""

    __slots__ = ("bytes", "names")

    def __init__(self) -> None:
        self.names = 0
        self.bytes = 0


class Account:
    """One layer's.

    names       the names it has, implied directories left out;  bytes  of the files in its tar
    added       what it has and the layers below do not show;  replaced  what stands in place of something they show
    deleted     what they showed and is gone, everything in a deleted directory included
    wasted      its content that doesn't show in the end: hidden by higher layers, or replaced in its own tar
    hides       content of lower layers that this layer hides
    does        per row of its table one of NOTHING, ADDS, REPLACES, DELETES
    fate        per row the number (from 1) of the layer that hides it, 0 while it shows
    """

    __slots__ = ("added", "bytes", "deleted", "does", "fate", "hides", "names", "replaced", "wasted")

    def __init__(self, rows: int) -> None:
        self.names = 0
        self.bytes = 0
        self.added = Tally()
        self.replaced = Tally()
        self.deleted = Tally()
        self.wasted = Tally()
        self.hides = Tally()
        self.does = bytearray(b" ") * rows
        self.fate = array("I", bytes(4 * rows))


class Waste:
    """What layer ``by`` hides by one name: ``how`` is "replaced" (by a file or link), "deleted", or "repeated"
    (within a layer's own tar); ``names`` and ``bytes`` count what is hidden, ``layers`` who has it (from 0)."""

    __slots__ = ("by", "bytes", "how", "layers", "name", "names")

    def __init__(self, name: bytes, by: int, how: str) -> None:
        self.name = name
        self.by = by
        self.how = how
        self.names = 0
        self.bytes = 0
        self.layers: set[int] = set()


class Weight:
    """``layers`` bottom to top; ``waste`` the most bytes first; ``visible`` name -> layer (from 0) and row."""

    def __init__(
        self, layers: list[Account], waste: list[Waste], visible: dict[bytes, tuple[int, int]]
    ) -> None:
        self.layers = layers
        self.waste = waste
        self.visible = visible


def weigh(tables: Sequence[Table]) -> Weight:
    """The account of a whole stack, bottom to top."""
    scale = _Scale(tables)
    for number, table in enumerate(tables):
        scale.put(number, table)
    waste = sorted((one for one in scale.waste.values() if one.bytes), key=lambda one: (-one.bytes, one.name))
    visible = {name: (code >> 32, code & _ROW) for name, code in scale.visible.items()}
    return Weight(scale.accounts, waste, visible)


def suppliers(tables: Sequence[Table], name: bytes, start: int = 0) -> dict[int, int]:
    """How many of the names below the directory ``name`` each layer supplies: layer (from 0) -> names, of layers
    that supply some. ``start`` is the lowest layer whose part of the directory shows."""
    scale = _Scale(tables)
    prefix = name + b"/" if name else b""
    for number in range(start, len(tables)):
        table = tables[number]
        if name:
            from bisect import bisect_left

            first = bisect_left(table.names, prefix)
            rows = range(first, bisect_left(table.names, name + b"0", first))
        else:
            rows = range(1, len(table.names))
        own = table.row(name)
        if number > start and own >= 0 and table.flags[own] & (FRESH | OPAQUE):
            scale.visible.clear()
            scale.kids.clear()
        scale.apply(number, table, rows)
    found: dict[int, int] = {}
    for code in scale.visible.values():
        found[code >> 32] = found.get(code >> 32, 0) + 1
    return found


class _Scale:
    """``visible``: name -> layer << 32 | row; ``kids``: directory -> the full names in it."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self.accounts = [Account(len(table.names)) for table in tables]
        self.visible: dict[bytes, int] = {}
        self.kids: dict[bytes, set[bytes]] = {}
        self.waste: dict[tuple[bytes, int, str], Waste] = {}
        # Content that has several names in its layer: (layer, offset) -> names that still show.
        self.shared: dict[tuple[int, int], int] = {}
        self.shares: list[set[int]] = []
        self.gone: dict[bytes, int] = {}  # what the layer at hand has taken away so far, and the bytes it had
        for number, table in enumerate(tables):
            several = {table.offsets[row] for row in table.linked if table.kinds[row] == _FILE}
            self.shares.append(several)
            if several:
                for row, offset in enumerate(table.offsets):
                    if offset in several and table.kinds[row] == _FILE:
                        key = (number, offset)
                        self.shared[key] = self.shared.get(key, 0) + 1

    def put(self, number: int, table: Table) -> None:
        account = self.accounts[number]
        if table.lost:
            account.wasted.bytes += table.lost
            one = self.waste[b"", number, "repeated"] = Waste(b"", number, "repeated")
            one.bytes = table.lost
            one.names = sum(table.copies.values()) - len(table.copies)
            one.layers.add(number)
        account.bytes = table.lost
        self.apply(number, table, range(len(table.names)))

    def apply(self, number: int, table: Table, rows: range) -> None:
        account = self.accounts[number]
        visible, kids, gone = self.visible, self.kids, self.gone
        gone.clear()
        names, kinds, flags, stored, offsets = (
            table.names,
            table.kinds,
            table.flags,
            table.stored,
            table.offsets,
        )
        does = account.does
        shares = self.shares[number]
        counted: set[int] = set()
        base = number << 32
        count_names = count_bytes = added = added_bytes = 0
        for row in rows:
            name, kind = names[row], kinds[row]
            old = visible.get(name)
            if kind == WHITEOUT:
                does[row] = DELETES
                if old is not None:
                    self.remove(name, name, number, "deleted")
                continue
            if kind == DIR:
                flag = flags[row]
                implied = flag & IMPLIED
                if not implied:
                    count_names += 1
                if old is not None:
                    if self.is_directory(old) and not flag & FRESH:
                        if flag & OPAQUE:
                            for kid in sorted(kids.get(name, ())):
                                self.remove(kid, name, number, "deleted")
                        if implied:
                            continue
                        if self.differs(old, number, row):
                            does[row] = REPLACES
                            account.replaced.names += 1
                        visible[name] = base | row
                        continue
                    self.remove(name, name, number, "deleted" if flag & FRESH else "replaced")
                    does[row] = REPLACES
                elif name in gone:
                    does[row] = REPLACES
                else:
                    does[row] = ADDS
                    if not implied:
                        added += 1
                if name in gone:
                    self.stays(name, account)
                if does[row] == REPLACES and not implied:
                    account.replaced.names += 1
                visible[name] = base | row
                if name:
                    kids.setdefault(name.rpartition(b"/")[0], set()).add(name)
                continue
            count_names += 1
            size = stored[row] if kind == _FILE else 0
            if size and shares:
                offset = offsets[row]
                if offset in shares:
                    if offset in counted:
                        size = 0
                    counted.add(offset)
            count_bytes += size
            if old is not None or name in gone:
                if old is not None:
                    self.remove(name, name, number, "replaced")
                else:
                    self.stays(name, account)
                does[row] = REPLACES
                account.replaced.names += 1
                account.replaced.bytes += size
            else:
                does[row] = ADDS
                added += 1
                added_bytes += size
            visible[name] = base | row
            parent = name.rpartition(b"/")[0]
            try:
                kids[parent].add(name)
            except KeyError:
                kids[parent] = {name}
        account.names += count_names
        account.bytes += count_bytes
        account.added.names += added
        account.added.bytes += added_bytes

    def is_directory(self, code: int) -> bool:
        return self.tables[code >> 32].kinds[code & _ROW] == DIR

    def differs(self, old: int, number: int, row: int) -> bool:
        """Whether a directory that is listed again gets other attributes; its time changes with what is in it."""
        table, before, at = self.tables[number], self.tables[old >> 32], old & _ROW
        return (table.modes[row], table.uids[row], table.gids[row]) != (
            before.modes[at],
            before.uids[at],
            before.gids[at],
        )

    def stays(self, name: bytes, account: Account) -> None:
        """A name that went with a directory, and that the layer has again: it is replaced, not deleted."""
        account.deleted.names -= 1
        account.deleted.bytes -= self.gone.pop(name)

    def remove(self, name: bytes, cause: bytes, by: int, how: str) -> None:
        """Take ``name`` and what is below it out of the view, on account of layer ``by`` and its name ``cause``."""
        account = self.accounts[by]
        top = name
        parent = self.kids.get(name.rpartition(b"/")[0])
        if parent is not None:
            parent.discard(name)
        todo = [name]
        while todo:
            name = todo.pop()
            code = self.visible.pop(name, None)
            if code is None:
                continue
            todo.extend(self.kids.pop(name, ()))
            number, row = code >> 32, code & _ROW
            table, theirs = self.tables[number], self.accounts[number]
            theirs.fate[row] = by + 1
            deleted = how == "deleted" or name != top
            if deleted:
                account.deleted.names += 1
                self.gone[name] = 0
            if table.kinds[row] == DIR:
                continue
            size = table.stored[row] if table.kinds[row] == _FILE else 0
            if size and table.offsets[row] in self.shares[number]:
                key = (number, table.offsets[row])
                self.shared[key] -= 1
                if self.shared[key]:
                    size = 0
            if deleted:
                account.deleted.bytes += size
                self.gone[name] = size
            account.hides.names += 1
            account.hides.bytes += size
            theirs.wasted.names += 1
            theirs.wasted.bytes += size
            key2 = (cause, by, how)
            one = self.waste.get(key2)
            if one is None:
                one = self.waste[key2] = Waste(cause, by, how)
            one.names += 1
            one.bytes += size
            one.layers.add(number)
