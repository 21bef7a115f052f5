"""The layer store: unpacked layers in a driver's native form, made once, shared by all images.

``layers/<driver>/<hex>/`` holds what the driver made, plus the engine's ``meta.json`` and, where the layer
needs mending in a stack, ``notes.json`` (see `pyrun.storage.mend`). It appears by one rename. Until its file
system was synced, a marker in ``layers/<driver>/.unsynced/`` names the boot it was made in: after a power cut
such a layer is thrown away and made again from its blob. A pull does not wait for the disk: a later pull syncs, or a
container that runs long enough, once the kernel has written all of it anyway (`SETTLED`).
"""

from __future__ import annotations

import os
import time

from ..errors import Conflict, LayerError, PyrunError, StorageError, TooManyLayers
from ..kernel.files import sync_directory
from ..kernel.mount import syncfs
from . import failpoints, records
from .contract import Layer
from .events import StorageEvent
from .locks import Lock, Staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..layers.unpack import Unpacked
    from .contract import Blob, Driver
    from .guard import Guarded


# Seconds after which the kernel has written what was new (Documentation/admin-guide/sysctl/vm.rst: what is older than
# dirty_expire_centisecs, 30 s, goes out every dirty_writeback_centisecs, 5 s).
SETTLED = 45.0


def boot_id() -> str:
    """This boot's random id (man proc, /proc/sys/kernel/random/boot_id)."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def chain_id(parent: str | None, diff_id: str) -> str:
    """The id of a stack of layers (OCI image spec, "Layer ChainID")."""
    if parent is None:
        return diff_id
    import hashlib

    return "sha256:" + hashlib.sha256(f"{parent} {diff_id}".encode()).hexdigest()


def check_depth(driver: Driver | Guarded, count: int, *, mended: bool = False) -> None:
    """Raises `TooManyLayers` where ``driver`` says that it can't mount ``count`` layers, of which with ``mended``
    one was made here (`LayerStore.mended`)."""
    limit = driver.verdict.caps.max_layers
    if limit is not None and count > limit:
        has = f"{count - 1} layers, and needs one more that mends them" if mended else f"{count} layers"
        raise TooManyLayers(
            f"the image has {has}; the storage driver {driver.name} mounts at most {limit}",
            hint="Use an image with fewer layers, or a driver without that limit (pyrun storage doctor).",
        )


class LayerStore:
    """The layers of one driver below ``root``."""

    def __init__(
        self,
        root: str,
        driver: Driver | Guarded,
        staging: Staging,
        emit: Callable[[StorageEvent], None] | None = None,
    ) -> None:
        self.root = root
        self.driver = driver
        self.staging = staging
        self.emit = emit
        self.directory = f"{root}/layers/{driver.name}"
        self.chained = driver.verdict.caps.chained
        self._unsynced = f"{self.directory}/.unsynced"

    def mended(self, layers: list[Layer]) -> list[Layer]:
        """The stack that shows what an image of ``layers`` (bottom to top) means: see `pyrun.storage.mend`.

        What was found is on record, so it is as good as free the second time, and where no layer but the lowest
        has notes.
        """
        if self.chained or not any(os.path.exists(f"{layer.path}/notes.json") for layer in layers[1:]):
            return layers
        key = ",".join(os.path.basename(layer.path) for layer in layers)
        record = f"{self.directory}/.mended/{os.path.basename(layers[-1].path)}.json"
        try:
            bottom, id = records.read(record)[key]
            patch = [self.find(id)] if id else []
            if None not in patch:
                return [*layers[bottom:], *(layer for layer in patch if layer)]
        except (OSError, PyrunError, KeyError, TypeError, ValueError):
            pass  # not known yet, or not any more
        from .mend import mended

        return mended(self, layers, record, key)

    def path(self, id: str) -> str:
        algorithm, _, hexadecimal = id.partition(":")
        if algorithm not in ("sha256", "sha512") or not hexadecimal.isalnum():
            raise LayerError(f"{id!r} is not a layer id")
        return f"{self.directory}/{hexadecimal if algorithm == 'sha256' else f'{algorithm}-{hexadecimal}'}"

    def keys(self) -> Iterator[str]:
        """The ids of all layers present."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return
        for name in names:
            if not name.startswith("."):
                yield name.replace("-", ":") if "-" in name else f"sha256:{name}"

    def find(self, id: str) -> Layer | None:
        """The committed layer, or None; one that a power cut may have damaged counts as absent."""
        path = self.path(id)
        if not os.path.exists(f"{path}/meta.json"):
            return None
        try:
            with open(f"{self._unsynced}/{os.path.basename(path)}") as file:
                if file.read() != boot_id():
                    return None
        except FileNotFoundError:
            pass
        return Layer(id, path)

    def unpacked(self, id: str) -> int:
        """Bytes of the layer's tar stream, as counted when it was ingested."""
        return int(records.read(f"{self.path(id)}/meta.json")["unpacked"])

    def ingest(
        self,
        blob: Blob,
        parent: Layer | None = None,
        *,
        listed: bool = True,
        waiting: Callable[[], None] | None = None,
    ) -> Layer:
        """The layer of ``blob``, made if absent. A second caller waits for the first and shares its result;
        ``waiting`` is called now and then meanwhile.

        ``listed`` False leaves the listing to `complete`, which takes a while. A pull leaves it to the first
        ``system check``, which has the blob to compare with; of a chained driver's layers, each of which holds all
        those below, only the topmost is ever mounted, and needs one.

        Raises what the blob or the driver raises, `LayerError` where the driver did not read the blob to its
        verified end, or `StorageError` where it can't be put on record; nothing is kept then.
        """
        id = chain_id(parent.id, blob.diff_id) if parent and self.chained else blob.diff_id
        path = self.path(id)
        name = os.path.basename(path)
        os.makedirs(self._unsynced, mode=0o700, exist_ok=True)
        with Lock(f"{self.root}/locks/layer-{self.driver.name}-{name}", waiting):
            present = self.find(id)
            if present:
                return present
            self._discard(path)
            began = time.monotonic()
            stage = self.staging.new(self.driver.name)
            failpoints.reach("ingest.staged")
            try:
                made = self.driver.ingest(blob, stage.path, parent if self.chained else None)
                failpoints.reach("ingest.made")
                if not blob.verified and not self.driver.verdict.caps.lazy:
                    raise LayerError(
                        f"driver {self.driver.name} did not read layer {id} to its end; not kept"
                    )
                self._record(stage.path, blob, made, listed=listed or not blob.verified)
                failpoints.reach("ingest.recorded")
                with open(f"{self._unsynced}/{name}", "w") as marker:
                    marker.write(boot_id())
                failpoints.reach("ingest.marked")
                os.rename(stage.path, path)
                failpoints.reach("ingest.placed")
            except BaseException as error:
                try:
                    self.driver.remove(stage.path)
                except (OSError, PyrunError):
                    pass  # the next command sweeps it; what failed first is what the user must read
                if isinstance(error, OSError):
                    raise StorageError(
                        f"can't keep layer {id[:19]} in {self.directory}: {error.strerror}",
                        hint="Free some space, or check the store's directory.",
                    ) from error
                raise
            finally:
                stage.close()
        self._tell("ingested", id, began)
        return Layer(id, path)

    def complete(self, id: str) -> None:
        """List the layer if that was left out when it was made."""
        path = self.path(id)
        with Lock(f"{self.root}/locks/layer-{self.driver.name}-{os.path.basename(path)}"):
            meta = records.read(f"{path}/meta.json")
            if not meta["listing"]:
                from .listing import listing

                meta["listing"] = listing(path)
                records.write(f"{path}/meta.json", meta, durable=False)

    def _record(self, path: str, blob: Blob, made: Unpacked | None, *, listed: bool) -> None:
        """Write what the engine knows of the layer beside it."""
        from .listing import listing

        meta = {
            "diff_id": blob.diff_id,
            "unpacked": getattr(blob, "unpacked", 0),
            "listing": listing(path) if listed else "",
            "verified": blob.verified,
        }
        if made is not None and not self.chained and (made.implied or made.opaque_root):
            notes = {
                "implied": [os.fsdecode(name) for name in made.implied],
                "opaque_root": made.opaque_root,
            }
            records.write(f"{path}/notes.json", notes, durable=False)
        records.write(f"{path}/meta.json", meta, durable=False)

    def mark(self) -> None:
        """Let a power cut be noticed: the markers of layers that are not on disk for certain are, themselves.

        Call before a record that names such layers is written. They are made again from their blobs where the
        power went before `sync`.
        """
        if os.path.exists(self._unsynced):
            sync_directory(self._unsynced)

    def unsynced(self) -> bool:
        """Whether a layer waits for `sync`."""
        try:
            return bool(os.listdir(self._unsynced))
        except FileNotFoundError:
            return False

    def sync(self, *, older: float = 0.0) -> None:
        """Make every layer of this boot durable that was made ``older`` seconds ago or before. Waits for the disk:
        hardly, for what is older than `SETTLED`, which the kernel wrote by itself."""
        boot = boot_id()
        try:
            names = os.listdir(self._unsynced)
        except FileNotFoundError:
            return
        made = []
        latest = time.time() - older
        for name in names:
            try:
                with open(f"{self._unsynced}/{name}") as file:
                    if (
                        os.fstat(file.fileno()).st_mtime <= latest
                        and file.read() == boot
                        and os.path.exists(f"{self.directory}/{name}/meta.json")
                    ):
                        made.append(name)
            except FileNotFoundError:
                continue
        if not made:
            return
        fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
        for name in made:
            try:
                os.unlink(f"{self._unsynced}/{name}")
            except FileNotFoundError:
                continue
        # Else a power cut brings the markers back, and what is whole is made again.
        sync_directory(self._unsynced)

    def remove(self, id: str) -> None:
        """Remove a layer; a missing one is success. The caller knows that no image and no container uses it.

        Raises `Conflict` where a living lease holds it.
        """
        path = self.path(id)
        began = time.monotonic()
        failpoints.reach("remove.begin")
        with Lock(f"{self.root}/locks/layer-{self.driver.name}-{os.path.basename(path)}"):
            self._check_unleased(id)
            self._discard(path)
        failpoints.reach("remove.removed")
        self._tell("removed", id, began)

    def _check_unleased(self, id: str) -> None:
        try:
            if not os.listdir(f"{self.root}/leases"):
                return
        except FileNotFoundError:
            return
        from .leases import holder

        by = holder(self.root, self.driver.name, id)
        if by:
            raise Conflict(f"the layer {id} is in use by {by}", hint="Wait until that is done, or end it.")

    def _discard(self, path: str) -> None:
        try:
            stage = self.staging.receive(path, self.driver.name)
        except FileNotFoundError:
            pass
        else:
            failpoints.reach("remove.moved")
            try:
                self.driver.remove(stage.path)
            finally:
                stage.close()  # what could not be removed is rubbish for the next command
        try:
            os.unlink(f"{self._unsynced}/{os.path.basename(path)}")
        except FileNotFoundError:
            pass

    def _tell(self, kind: str, id: str, began: float) -> None:
        if self.emit:
            self.emit(StorageEvent(kind, self.driver.name, id, time.monotonic() - began))
