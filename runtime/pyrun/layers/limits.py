"""How much a layer may ask for before it is refused."""

from __future__ import annotations


class Limits:
    """Caps on one layer's tar stream. Past any of them a `LayerError` names the cap.

    bytes      file content in all, in bytes; None: what the file system has free, less a reserve, looked at
               again while unpacking (several layers unpack at the same time). Without a file system (reading
               a tar only) None is no cap
    entries    members, extended headers not counted
    header     bytes of one extended header (pax records, GNU long name, sparse map)
    depth      directories in a name, and below the root after symbolic links are followed
    component  bytes between two slashes
    sparse     size of one sparse file, holes included, in bytes
    memory     bytes of names and attributes kept until the end of the stream, roughly

    The ratio of compressed to plain size is the business of whoever decompresses.
    """

    __slots__ = ("bytes", "component", "depth", "entries", "header", "memory", "sparse")

    def __init__(
        self,
        *,
        bytes: int | None = None,
        entries: int = 4_000_000,
        header: int = 1 << 20,
        depth: int = 256,
        component: int = 255,
        sparse: int = 1 << 40,
        memory: int = 512 << 20,
    ) -> None:
        self.bytes = bytes
        self.entries = entries
        self.header = header
        self.depth = depth
        self.component = component
        self.sparse = sparse
        self.memory = memory
