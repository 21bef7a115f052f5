"""What one layer holds, as a table: a row a name, sorted, with what its tar says of it.

Made once from the layer's tar (`pyrun.layers.fold`) and kept as a file, so that questions about an image needn't
inflate it again. Columns, not objects: a table of 35,000 names is read in a few milliseconds.
"""

from __future__ import annotations

import json
import sys
import zlib
from array import array
from bisect import bisect_left

from ..errors import LayerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

# A row's kind, by its letter in the column. A "link" is a hard link to a file that the layer itself lacks; one to a
# file of the layer has that file's kind. A "whiteout" deletes the name in the layers below.
KINDS = {
    "f": "file",
    "d": "dir",
    "s": "symlink",
    "h": "link",
    "c": "char",
    "b": "block",
    "p": "fifo",
    "w": "whiteout",
}
LETTERS = {kind: letter for letter, kind in KINDS.items()}
DIR, LINK, WHITEOUT = ord("d"), ord("h"), ord("w")

# Flags of a row.
IMPLIED = 1  # a directory that the layer goes through and does not list: its attributes are invented
FRESH = 2  # a directory that hides whatever was at its name below
OPAQUE = 4  # a directory that hides what was in it below

_MAGIC = b"pyrun layer table 1\n"
_MOST = 1 << 31  # bytes that a table may inflate to: ten million names have fewer
_COLUMNS = (
    ("flags", "B"),
    ("modes", "H"),
    ("uids", "I"),
    ("gids", "I"),
    ("sizes", "Q"),
    ("stored", "Q"),
    ("offsets", "Q"),
    ("mtimes", "q"),
    ("linked", "I"),
)


class Table:
    """Columns of equal length; row 0 is the root, whose name is empty.

    names     root-relative (see `pyrun.layers.names`), sorted: a directory stands before what is in it
    kinds     a letter of `KINDS` each;  flags  of IMPLIED, FRESH, OPAQUE
    modes     permission bits;  uids, gids;  mtimes  in ns since the epoch, as far as 64 bits go
    sizes     of files in bytes, holes included; stored  without holes, as the tar has them
    offsets   of the content in the tar; names of one file (hard links) have the same
    linked    rows of symbolic and hard links, ascending;  targets  theirs: a symbolic link's verbatim, a hard link's
              root-relative
    devices   row -> (major, minor);  sparse  row -> [(offset, length)] of the stored runs
    copies    row -> how often the tar has the name, where that is more than once: the last counts
    entries   members of the tar;  bytes  its length;  lost  bytes of its files that later members replaced
    """

    __slots__ = (
        "bytes",
        "copies",
        "devices",
        "entries",
        "flags",
        "gids",
        "kinds",
        "linked",
        "lost",
        "modes",
        "mtimes",
        "names",
        "offsets",
        "sizes",
        "sparse",
        "stored",
        "targets",
        "uids",
    )

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.kinds = b""
        self.flags = array("B")
        self.modes = array("H")
        self.uids = array("I")
        self.gids = array("I")
        self.sizes = array("Q")
        self.stored = array("Q")
        self.offsets = array("Q")
        self.mtimes = array("q")
        self.linked = array("I")
        self.targets: list[bytes] = []
        self.devices: dict[int, tuple[int, int]] = {}
        self.sparse: dict[int, list[tuple[int, int]]] = {}
        self.copies: dict[int, int] = {}
        self.entries = 0
        self.bytes = 0
        self.lost = 0

    def row(self, name: bytes) -> int:
        """The row of ``name``, or -1."""
        at = bisect_left(self.names, name)
        return at if at < len(self.names) and self.names[at] == name else -1

    def below(self, name: bytes) -> Iterator[int]:
        """The rows of what is directly in the directory ``name``."""
        names = self.names
        prefix = name + b"/" if name else b""
        at = bisect_left(names, prefix) if prefix else 1
        while at < len(names) and names[at].startswith(prefix):
            found = names[at]
            slash = found.find(b"/", len(prefix))
            if slash < 0:
                yield at
                at += 1
            else:  # past everything below it: "0" follows "/"
                at = bisect_left(names, found[:slash] + b"0", at)

    def kind(self, row: int) -> str:
        return KINDS[chr(self.kinds[row])]

    def target(self, row: int) -> bytes:
        """A link's target; empty for what is none."""
        at = bisect_left(self.linked, row)
        return self.targets[at] if at < len(self.linked) and self.linked[at] == row else b""

    # --- as a file

    def encoded(self) -> bytes:
        columns = [b"\0".join(self.names), self.kinds, b"\0".join(self.targets)]
        for name, _ in _COLUMNS:
            column: array[int] = getattr(self, name)
            columns.append(_little(column).tobytes())
        head = {
            "lengths": [len(column) for column in columns],
            "devices": list(self.devices.items()),
            "sparse": list(self.sparse.items()),
            "copies": list(self.copies.items()),
            "entries": self.entries,
            "bytes": self.bytes,
            "lost": self.lost,
        }
        return _MAGIC + zlib.compress(
            b"".join((json.dumps(head, separators=(",", ":")).encode(), b"\n", *columns)), 3
        )

    @classmethod
    def decoded(cls, data: bytes) -> Table:
        """Raises `LayerError` for what is not the whole of a table of this version."""
        try:
            return cls._decoded(data)
        except (zlib.error, ArithmeticError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise LayerError(f"not a table of a layer: {error}") from None

    @classmethod
    def _decoded(cls, data: bytes) -> Table:
        if not data.startswith(_MAGIC):
            raise ValueError("it begins with something else")
        inflater = zlib.decompressobj()
        plain = inflater.decompress(memoryview(data)[len(_MAGIC) :], _MOST)
        if not inflater.eof or inflater.unused_data:
            raise ValueError("it is cut off, or something follows it")
        end = plain.index(b"\n")
        head: dict[str, Any] = json.loads(plain[:end])
        at = end + 1
        parts = []
        for length in head["lengths"]:
            parts.append(plain[at : at + length])
            at += length
        if at != len(plain) or len(parts) != 3 + len(_COLUMNS):
            raise ValueError("it is cut off")
        self = cls()
        self.names = parts[0].split(b"\0")
        self.kinds = parts[1]
        for (name, code), part in zip(_COLUMNS, parts[3:], strict=True):
            column = array(code)
            column.frombytes(part)
            setattr(self, name, _little(column))
        self.targets = parts[2].split(b"\0") if len(self.linked) else []
        columns = {len(getattr(self, name)) for name, _ in _COLUMNS if name != "linked"}
        if columns != {len(self.names)} or len(self.kinds) != len(self.names) or self.names[0]:
            raise ValueError("its columns differ in length")
        if len(self.targets) != len(self.linked) or not set(self.kinds) <= set(b"fdshcbpw"):
            raise ValueError("its links or kinds are damaged")
        self.devices = {int(row): (int(a), int(b)) for row, (a, b) in head["devices"]}
        self.sparse = {int(row): [(int(a), int(b)) for a, b in runs] for row, runs in head["sparse"]}
        self.copies = {int(row): int(count) for row, count in head["copies"]}
        rows = [*self.linked, *self.devices, *self.sparse, *self.copies]
        if rows and not 0 <= min(rows) <= max(rows) < len(self.names):
            raise ValueError("it tells of rows that it has not")
        if (
            self.kinds[0] != DIR
            or sorted(set(self.names)) != self.names
            or sorted(self.linked) != list(self.linked)
        ):
            raise ValueError("it is not in order")
        self.entries, self.bytes, self.lost = int(head["entries"]), int(head["bytes"]), int(head["lost"])
        return self


def _little(column: array[int]) -> array[int]:
    """The column in the byte order of the file, or back: a store may move to another machine."""
    if sys.byteorder == "little":
        return column
    turned = array(column.typecode, column)
    turned.byteswap()
    return turned
