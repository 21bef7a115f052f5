"""Load: every image of an archive into the stores, or none.

Layers come in side by side, a worker each: hashed, checked and unpacked in one pass where the archive tells their
digests; hashed and compressed first where it does not. Records are written last (`pyrun.images.making.assemble`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..blob import StoredBlob
from ..codec import Buffer
from ..digest import sha256, short
from ..making.assemble import add_layer, make_image, name_image, work_on
from ..record import ImageLayer, Progress
from ..workers import Report
from .contents import Found, Piece, images_in

if TYPE_CHECKING:
    from ..content import ContentStore
    from ..layerstore import LayerStore
    from ..local import ImageStore
    from ..record import Image
    from ..reference import Reference
    from .archive import Archive

_RESULT = "{"  # a worker's report that starts so is its layer


class Loaded:
    """An image that was loaded. ``names`` are its tags, of which ``replaced`` named others before: name -> ID."""

    def __init__(self, image: Image, names: Sequence[Reference], replaced: dict[str, str]) -> None:
        self.image = image
        self.names = list(names)
        self.replaced = replaced

    def __repr__(self) -> str:
        names = [reference.familiar for reference in self.names]
        return f"Loaded({self.image!r}, names={names!r}, replaced={self.replaced!r})"


def load(
    archive: Archive,
    *,
    platform: str | None,
    content: ContentStore,
    images: ImageStore,
    layers: LayerStore,
    progress: Callable[[Progress], None] | None = None,
) -> list[Loaded]:
    """Load all images of ``archive``, which all have to suit ``platform`` where that is given: `images_in`.

    ``progress`` is called in this process. The process must have one thread. Raises `ImageError` and its kinds for
    what is no sound archive, `LayerError`, `StorageError`; no image is named then. The caller is
    `pyrun.images.making.assemble.assembling`.
    """
    found = images_in(archive, platform)
    there = {id(image): _nameless(image, images) for image in found}
    fresh = [image for image in found if there[id(image)] is None]
    stacks = _Loading(content, images, layers, progress).bring([image.pieces for image in fresh])
    made = {
        id(image): make_image(
            image.config,
            stack,
            content=content,
            layers=layers,
            manifest=image.manifest,
            digest=sha256(image.manifest) if image.manifest else "",
        )
        for image, stack in zip(fresh, stacks, strict=True)
    }
    layers.sync()
    done = []
    for image in found:
        record = there[id(image)]
        replaced = {}
        if record is None:
            for name in image.names:
                before = images.record(name)
                if before is not None and before.id != image.id:
                    replaced[name.familiar] = before.id
            record = name_image(images, made[id(image)], image.names)
        done.append(Loaded(record, image.names, replaced))
    return done


def _nameless(image: Found, images: ImageStore) -> Image | None:
    """The record of an image that comes without a name and is here already, so that nothing is to be done."""
    if image.names:
        return None
    return next((record for record in images.naming(image.id) if record.id == image.id), None)


class _Loading:
    def __init__(
        self,
        content: ContentStore,
        images: ImageStore,
        layers: LayerStore,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.content = content
        self.layers = layers
        self.progress = progress or (lambda step: None)
        # What earlier pulls and loads proved to belong together; everything else is unpacked to find out.
        every = [layer for image in images.records() for layer in image.layers]
        self.proven = {(layer.digest, layer.diff_id): layer for layer in every if self._stored(layer)}
        self.by_diff_id = {diff_id: layer for (_, diff_id), layer in self.proven.items()}

    def bring(self, stacks: Sequence[Sequence[Piece]]) -> list[list[ImageLayer]]:
        """Every layer of ``stacks``, stored (and where layers don't need those below them, unpacked)."""
        known: dict[tuple[str, str], ImageLayer] = {}
        todo: dict[tuple[str, str], Piece] = {}
        for piece in (piece for stack in stacks for piece in stack):
            key = (piece.digest, piece.diff_id)
            there = self.proven.get(key) if piece.digest else self.by_diff_id.get(piece.diff_id)
            if key in known or key in todo:
                continue
            if there is not None and (self.layers.chained or self.layers.find(piece.diff_id) is not None):
                known[key] = there
            else:
                todo[key] = piece
        order = list(todo.values())

        # What a layer is called: by its diff_id where its digest is not known yet.
        names = [
            ImageLayer(piece.digest or piece.diff_id, piece.diff_id, piece.size, 0, piece.media_type)
            for piece in order
        ]
        keys = {id(name): key for name, key in zip(names, todo, strict=True)}

        def reported(layer: ImageLayer, status: str, current: int, total: int) -> None:
            if status.startswith(_RESULT):
                known[keys[id(layer)]] = ImageLayer(**json.loads(status))
            else:
                self.progress(Progress(short(layer.digest), status, current, total))

        work_on(
            [(name, partial(self._bring, piece)) for name, piece in zip(names, order, strict=True)],
            self.content,
            self.layers,
            reported,
        )
        return [[known[piece.digest, piece.diff_id] for piece in stack] for stack in stacks]

    def _bring(self, piece: Piece, report: Report) -> None:
        """In a worker: store the layer, unpack it if that can be done here, and report it."""
        layer, in_one = self._described(piece, report)
        find = self.layers.find
        if in_one:
            blob = _ArchivedBlob(self.content, layer, piece, report)
            if self.layers.chained or self.layers.driver.verdict.caps.lazy or find(layer.diff_id) is not None:
                blob.verify()
            else:
                self.layers.ingest(blob, listed=False)
                if not blob.verified:  # another process made the layer, perhaps from another blob
                    blob = _ArchivedBlob(self.content, layer, piece, report)
                    blob.verify()
            layer.unpacked = blob.unpacked
        if not self.layers.chained and find(layer.diff_id) is None:
            self.layers.ingest(StoredBlob(self.content, layer, report=report), listed=False)
        report(json.dumps({name: getattr(layer, name) for name in ImageLayer.__slots__}), 0, 0)

    def _described(self, piece: Piece, report: Report) -> tuple[ImageLayer, bool]:
        """The layer's blob, and whether it is still to be stored, from the archive as it is."""
        if piece.digest:
            return ImageLayer(piece.digest, piece.diff_id, piece.size, 0, piece.media_type), True
        there = self.by_diff_id.get(piece.diff_id)
        if there is not None:
            return there, False
        total = piece.member.size
        return (
            add_layer(
                self.content,
                piece.member.chunks(),
                diff_id=piece.diff_id,
                report=lambda taken: report("Loading layer", taken, total),
            ),
            False,
        )

    def _stored(self, layer: ImageLayer) -> bool:
        return self.content.has(layer.digest) and self.content.size(layer.digest) == layer.size


class _ArchivedBlob(StoredBlob):
    """A blob that an archive holds, stored on its way through."""

    def __init__(self, content: ContentStore, layer: ImageLayer, piece: Piece, report: Report) -> None:
        super().__init__(content, layer, None, report)
        self._piece = piece

    def _compressed(self) -> Generator[Buffer, None, None]:
        if self._content.has(self.digest) and not self._content.intact(self.digest):
            self._content.remove(self.digest)  # damaged on disk, and whole in the archive
        writer = self._content.writer(self.digest, self.size)
        if writer is None:
            yield from super()._compressed()
            return
        with writer:
            for chunk in self._piece.member.chunks():
                writer.write(chunk)
                self._report("Loading layer", writer.written, self.size)
                yield chunk
            writer.commit()
            self.intact = True
