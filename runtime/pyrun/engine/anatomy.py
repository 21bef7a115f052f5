"""What an image is made of, layer by layer: the records of ``pyrun layers``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..layers.table import IMPLIED
from .stack import LayerInfo, opened

if TYPE_CHECKING:
    from ..layers.table import Table
    from ..layers.weigh import Account, Waste, Weight
    from .containers import ContainerMethods


@dataclass(frozen=True, slots=True)
class Count:
    """``names``, and the ``bytes`` of content of the files among them."""

    names: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer and what it does to those below. Bytes are of file content as the tar stores it, a file with several
    names counted once.

    layer      number, digests, sizes, build line
    names      the names it has, directories included that it lists, deletions not;  bytes  of the files in its tar
    added      what no lower layer showed;  replaced  what stands in place of something (the new content's bytes)
    deleted    what lower layers showed and this one takes away, whole directories with all in them
    wasted     what of this layer does not show in the end
    hides      what of lower layers this one keeps from being seen, by replacing or deleting
    """

    layer: LayerInfo
    names: int
    bytes: int
    added: Count
    replaced: Count
    deleted: Count
    wasted: Count
    hides: Count


@dataclass(frozen=True, slots=True)
class WasteReport:
    """Content that is in a layer and never seen: ``how`` is "replaced", "deleted" or "repeated" (within one layer's
    tar), by layer number ``by`` and its name ``path``; ``layers`` are the numbers of those that hold it."""

    path: str
    how: str
    by: int
    names: int
    bytes: int
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FileReport:
    """A name of one layer.

    does    "A" adds, "C" replaces, "D" deletes, "" lists a directory again as it was
    hidden  the number of the layer that replaces or deletes it, 0 while it shows
    Others as in `pyrun.engine.which.Version`.
    """

    path: str
    kind: str
    does: str
    hidden: int
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    target: str


class LayersReport:
    """An image's layers: ``reports`` bottom to top, ``waste`` with the most bytes first.

    name, id, platform  of the image;  notes  what else there is to know, a line each
    size      bytes of all blobs;  unpacked  of all tars
    content   bytes of files in all layers;  wasted  of them never seen
    names     how many names show in the end
    """

    def __init__(
        self,
        name: str,
        id: str,
        platform: str,
        layers: list[LayerInfo],
        tables: list[Table],
        weight: Weight,
        notes: list[str],
    ) -> None:
        self.name = name
        self.id = id
        self.platform = platform
        self.notes = notes
        self.reports = [_report(info, account) for info, account in zip(layers, weight.layers, strict=True)]
        self.waste = [_waste(one) for one in weight.waste]
        self.names = len(weight.visible)
        self._tables = tables
        self._weight = weight

    @property
    def size(self) -> int:
        return sum(report.layer.size for report in self.reports)

    @property
    def unpacked(self) -> int:
        return sum(report.layer.unpacked for report in self.reports)

    @property
    def content(self) -> int:
        return sum(report.bytes for report in self.reports)

    @property
    def wasted(self) -> int:
        return sum(report.wasted.bytes for report in self.reports)

    def files(self, number: int) -> Iterator[FileReport]:
        """The names of layer ``number`` (from 1), sorted; directories that it only goes through are left out."""
        table, account = self._tables[number - 1], self._weight.layers[number - 1]
        for row, name in enumerate(table.names):
            kind = table.kind(row)
            if kind == "dir" and table.flags[row] & IMPLIED:
                continue
            target = table.target(row)
            yield FileReport(
                "/" + os.fsdecode(name),
                kind,
                chr(account.does[row]).strip(),
                account.fate[row],
                table.sizes[row],
                table.modes[row],
                table.uids[row],
                table.gids[row],
                table.mtimes[row],
                os.fsdecode(target if kind == "symlink" or not target else b"/" + target),
            )


def layers(engine: ContainerMethods, name: str) -> LayersReport:
    """See `pyrun.engine.provenance.ProvenanceMethods.layers`."""
    from ..layers.weigh import weigh

    with opened(engine, name, images_only=True) as stack:
        assert stack.image is not None
        return LayersReport(
            stack.image.familiar,
            stack.image.id,
            stack.image.platform,
            stack.layers,
            stack.tables,
            weigh(stack.tables),
            stack.notes,
        )


def _report(info: LayerInfo, account: Account) -> LayerReport:
    tallies = (account.added, account.replaced, account.deleted, account.wasted, account.hides)
    return LayerReport(
        info, account.names, account.bytes, *(Count(tally.names, tally.bytes) for tally in tallies)
    )


def _waste(one: Waste) -> WasteReport:
    return WasteReport(
        "/" + os.fsdecode(one.name),
        one.how,
        one.by + 1,
        one.names,
        one.bytes,
        tuple(sorted(number + 1 for number in one.layers)),
    )
