"""A layer's blob on its way from a registry into the content store."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING

from ..errors import RegistryError
from .blob import CHUNK, Report, StoredBlob, silent
from .codec import Buffer
from .content import ContentStore, mismatch
from .digest import short

if TYPE_CHECKING:
    from .client import RegistryClient
    from .record import ImageLayer


class RegistryBlob(StoredBlob):
    """A blob that a registry serves; from the content store where another process stored it meanwhile."""

    def __init__(
        self,
        client: RegistryClient,
        content: ContentStore,
        layer: ImageLayer,
        annotations: Mapping[str, str] | None = None,
        report: Report = silent,
    ) -> None:
        super().__init__(content, layer, annotations, report)
        self._client = client

    def range(self, offset: int, count: int) -> bytes:
        if self._content.has(self.digest):
            return super().range(offset, count)
        return self._client.blob_range(self.digest, offset, count)

    def _compressed(self) -> Generator[Buffer, None, None]:
        writer = self._content.writer(self.digest, self.size)
        if writer is None:
            yield from super()._compressed()
            return
        with writer:
            self._report("Downloading", 0, self.size)
            response = self._client.open_blob(self.digest)
            try:
                length = response.header("Content-Length")
                if length is not None and length != str(self.size):
                    raise mismatch(
                        self.digest, f"the registry has {length[:20]} bytes of it instead of {self.size}"
                    )
                buffer = memoryview(bytearray(CHUNK))
                # One byte more than there should be is read, and no further: a body may have no end.
                while writer.written <= self.size:
                    left = self.size + 1 - writer.written
                    count = response.readinto(buffer[: min(CHUNK, left)])
                    if not count:
                        break
                    writer.write(buffer[:count])
                    self._report("Downloading", writer.written, self.size)
                    yield buffer[:count]
                if length is not None and writer.written < self.size:
                    raise RegistryError(
                        f"{self._client.endpoint.host} broke off after {writer.written} of {self.size} bytes"
                        f" of layer {short(self.digest)}",
                        hint="Pull again.",
                    )
            finally:
                response.close()
            self._report("Verifying Checksum", self.size, self.size)
            writer.commit()
            self.intact = True
            self._report("Download complete", self.size, self.size)
            self._report("Extracting", self.size, self.size)
