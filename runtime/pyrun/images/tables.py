"""Tables of what is in each layer, kept in the store: ``<root>/tables/<algorithm>-<hex of the diff_id>``.

A table is made from the layer's blob when it is first asked for, and only when digest and diff_id held; it is a
copy of what can be made again, so it is written without fsync, and one that can't be read is made anew. Garbage
collection removes those of layers that no image has.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import LayerError
from ..kernel.files import replace
from ..layers.table import Table
from .content import ContentStore
from .digest import is_digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from .record import ImageLayer

DIRECTORY = "tables"
_TEMPORARY = ".tmp-"


class Tables:
    """The tables below ``root``, the engine's store."""

    def __init__(self, root: str) -> None:
        self.path = os.path.join(root, DIRECTORY)
        self._content = ContentStore(root)

    def of(self, layers: Sequence[ImageLayer]) -> list[Table | None]:
        """The table of each layer; None where it has none and the layer's blob is not in the store.

        Raises `DigestMismatch` or `LayerError` for a blob that was tampered with.
        """
        known: dict[str, Table | None] = {}
        for layer in layers:
            if layer.diff_id not in known:
                known[layer.diff_id] = self.kept(layer.diff_id)
                if known[layer.diff_id] is None and self._content.has(layer.digest):
                    known[layer.diff_id] = self.made(layer)
        return [known[layer.diff_id] for layer in layers]

    def kept(self, diff_id: str) -> Table | None:
        """The table on disk; None where there is none, or a damaged one."""
        try:
            with open(self._file(diff_id), "rb") as file:
                return Table.decoded(file.read())
        except (OSError, LayerError):
            return None

    def made(self, layer: ImageLayer) -> Table:
        """The table, made from the layer's blob and kept if the disk lets it."""
        from base64 import b64decode, b64encode

        from ..layers.fold import table_of
        from .blob import StoredBlob

        # What decompresses and parses a stranger's bytes can reach nothing; what it answers is checked as a file is.
        blob = StoredBlob(self._content, layer)
        answer = blob.read_confined(lambda stream: b64encode(table_of(stream).encoded()).decode())
        try:
            data = b64decode(str(answer), validate=True)
        except ValueError:
            raise LayerError(f"the layer {layer.diff_id} made no table") from None
        table = Table.decoded(data)
        try:
            self._keep(layer.diff_id, data)
        except OSError:
            pass  # a full or read-only disk: it answers all the same, only not as fast
        return table

    def _keep(self, diff_id: str, data: bytes) -> None:
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        path = self._file(diff_id)
        temporary = os.path.join(self.path, f"{_TEMPORARY}{os.getpid()}-{os.path.basename(path)}")
        replace(path, temporary, data, 0o600, durable=False)

    def _file(self, diff_id: str) -> str:
        if not is_digest(diff_id):
            raise LayerError(f"{diff_id!r} is not a layer id")
        return os.path.join(self.path, diff_id.replace(":", "-"))


def names(root: str) -> list[str]:
    """The file names of all tables in the store ``root``."""
    try:
        found = os.listdir(os.path.join(root, DIRECTORY))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in found if not name.startswith("."))


def sizes(root: str) -> dict[str, int]:
    """diff_id -> bytes of its table's file."""
    found = {}
    for name in names(root):
        try:
            found[name.replace("-", ":", 1)] = os.stat(os.path.join(root, DIRECTORY, name)).st_size
        except OSError:
            continue
    return found


def unneeded(root: str, diff_ids: Iterable[str]) -> list[str]:
    """Paths of the tables of other layers than ``diff_ids``."""
    needed = {diff_id.replace(":", "-") for diff_id in diff_ids}
    return [os.path.join(root, DIRECTORY, name) for name in names(root) if name not in needed]


def sweep(root: str, diff_ids: Iterable[str]) -> int:
    """Remove the `unneeded`, and what writers that were killed left; the bytes they took. What can't be removed
    stays."""
    freed = 0
    for path in [*unneeded(root, diff_ids), *_unfinished(root)]:
        try:
            size = os.stat(path, follow_symlinks=False).st_size
            os.unlink(path)
            freed += size
        except OSError:
            continue
    return freed


def _unfinished(root: str) -> list[str]:
    """Paths of the temporary files of processes that are gone."""
    directory = os.path.join(root, DIRECTORY)
    try:
        found = [name for name in os.listdir(directory) if name.startswith(_TEMPORARY)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        os.path.join(directory, name)
        for name in found
        if not os.path.exists(f"/proc/{name.removeprefix(_TEMPORARY).partition('-')[0]}")
    ]
