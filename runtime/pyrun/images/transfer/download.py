"""A layer's blob on its way from a registry into the content store."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

from ...errors import DigestMismatch, ImageError, RegistryError
from ..blob import CHUNK, Report, StoredBlob, silent
from ..codec import Buffer
from ..content import ContentStore
from ..digest import short
from .sources import Broken, Source, Sources

if TYPE_CHECKING:
    from ..parts import Writer
    from ..record import ImageLayer

PROGRESS = 1 << 20  # bytes that make a broken connection worth another at once, without counting as a try
SLOW_PROGRESS = 60.0  # seconds after which any bytes do


class RegistryBlob(StoredBlob):
    """A blob that registries serve; from the content store where another process stored it meanwhile.

    One pass goes on over breaks: what a broken connection, an earlier pull or a killed process left is hashed and
    used, and the next connection, of the same source or another, asks for the rest.

    mixed    the bytes of this pass came from several places, or from the disk: whose are wrong can't be told
    source   where the last bytes came from
    """

    def __init__(
        self,
        sources: Sources,
        content: ContentStore,
        layer: ImageLayer,
        annotations: Mapping[str, str] | None = None,
        report: Report = silent,
    ) -> None:
        super().__init__(content, layer, annotations, report)
        self._sources = sources
        self.mixed = False
        self.source: Source | None = None

    def range(self, offset: int, count: int) -> bytes:
        if self._content.has(self.digest):
            return super().range(offset, count)
        while True:
            source = self._sources.next(self._sleep)
            try:
                return source.client.blob_range(self.digest, offset, count)
            except RegistryError as error:
                self._sources.broke(source, error, progress=False)

    def elsewhere(self, have: int) -> None:
        """Tell of the bytes that another process has of it, which this one waits for."""
        self._report("Downloading", have, self.size)

    def _compressed(self) -> Generator[Buffer, None, None]:
        writer = self._content.writer(self.digest, self.size, resumable=True, waiting=self.elsewhere)
        if writer is None:
            yield from super()._compressed()
            return
        with writer:
            self.mixed = writer.held > 0
            self._report("Downloading", 0, self.size)
            for chunk in writer.replay():
                self._report("Downloading", writer.written, self.size)
                yield chunk
            while writer.written < self.size or (not self.size and self.source is None):
                yield from self._received(writer)
            self._report("Verifying Checksum", self.size, self.size)
            writer.commit()
            self.intact = True
            self._report("Download complete", self.size, self.size)
            self._report("Extracting", self.size, self.size)

    def _received(self, writer: Writer) -> Generator[Buffer, None, None]:
        """What the next source brings, until it ends or breaks."""
        source = self._sources.next(self._sleep)
        began, before = time.monotonic(), writer.written
        try:
            response, at = source.open(self.digest, writer.written, self.size)
        except (RegistryError, DigestMismatch) as error:
            self._failed(source, error, progress=False)
            return
        if self.source not in (None, source):
            self.mixed = True
        self.source = source
        buffer = memoryview(bytearray(CHUNK))
        try:
            # What is there already, where the source sends the whole: the end's digest covers it.
            while at < writer.written:
                count = response.readinto(buffer[: min(CHUNK, writer.written - at)])
                if not count:
                    break
                at += count
            # One byte more than there should be is read, and no further: a body may have no end.
            while at == writer.written:
                count = response.readinto(buffer[: min(CHUNK, self.size + 1 - at)])
                if not count:
                    break
                writer.write(buffer[:count])
                at += count
                self._report("Downloading", writer.written, self.size)
                yield buffer[:count]
            if writer.written < self.size:
                raise Broken(
                    f"{source.host} broke off after {max(at, writer.written)} of {self.size} bytes"
                    f" of layer {short(self.digest)}",
                    hint="Pull again: what is there is kept, and the rest fetched.",
                )
        except RegistryError as error:
            brought = writer.written - before
            slowly = brought > 0 and time.monotonic() - began >= SLOW_PROGRESS
            self._failed(source, error, progress=brought >= PROGRESS or slowly)
        finally:
            response.close()

    def _failed(self, source: Source, error: ImageError, *, progress: bool) -> None:
        if isinstance(error, RegistryError):
            self._sources.broke(source, error, progress=progress)
        else:
            self._sources.drop(source, error)

    def _sleep(self, seconds: float) -> None:
        """Wait before the next try, and say so, as docker does."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            whole = math.ceil(left)
            self._report(f"Retrying in {whole} second{'s' if whole != 1 else ''}", 0, 0)
            time.sleep(min(left, left - (whole - 1) or 1.0))
