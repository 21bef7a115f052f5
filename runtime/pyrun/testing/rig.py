"""One driver on one directory, handled by the engine's own layer store: what cases and benchmarks stand on.

with Rig(MyDriver, "/somewhere/empty") as rig:
    base = rig.ingest(tar_bytes)
    with rig.rootfs([base]) as root:
        open(f"{root.path}/new", "w").close()
        layer_tar = root.commit()
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import PyrunError, StorageError
from ..layers.pack import pack
from ..storage import failpoints
from ..storage.contract import Env, typed_options
from ..storage.layers import LayerStore
from ..storage.locks import Staging
from ..storage.store import make_directories
from ..storage.tarblob import TarBlob

if TYPE_CHECKING:
    from ..storage.contract import Blob, Change, Driver, Layer, Usage, Verdict


class Unusable(StorageError):
    """The driver's own probe says that it can't work here."""


def environment(root: str) -> Env:
    """Where and as whom this process works, told from its user namespace as the engine tells it."""
    with open("/proc/self/uid_map") as file:
        extents = [line.split() for line in file]
    return Env(
        root,
        userns=extents != [["0", "0", "4294967295"]],
        single_uid=len(extents) == 1 and extents[0][2] == "1",
    )


class Rig:
    """``root`` is made if missing; it becomes a store's directory. Raises `Unusable` where the probe refuses.

    ``verdict`` is that of an earlier probe on the same file system by the same user: the engine keeps it, too.
    """

    def __init__(
        self,
        driver: type[Driver],
        root: str,
        options: Mapping[str, Any] | None = None,
        *,
        verdict: Verdict | None = None,
    ) -> None:
        self.root = os.path.realpath(root)
        make_directories(self.root)
        self.env = environment(self.root)
        self.options = typed_options(driver, options or {})
        self.verdict = verdict or driver.probe(self.env, self.options)
        if not self.verdict.ok:
            raise Unusable(f"{driver.name}: {self.verdict.why}", hint=self.verdict.fix)
        self.caps = self.verdict.caps
        self.driver = driver(self.env, self.options, self.verdict)
        self.staging = Staging(f"{self.root}/staging")
        self.layers = LayerStore(self.root, self.driver, self.staging)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove every layer, writable directory and staging entry, by the driver."""
        for name in os.listdir(f"{self.root}/containers"):
            self.driver.remove(f"{self.root}/containers/{name}/rw")
            with contextlib.suppress(OSError):
                os.rmdir(f"{self.root}/containers/{name}")
        self.sweep()
        for key in list(self.layers.keys()):
            with contextlib.suppress(PyrunError, OSError):
                self.layers.remove(key)

    def sweep(self) -> list[str]:
        """Clear up after dead processes, as every command does; the paths removed."""

        def remove(path: str, driver: str) -> None:
            from ..layers.remove import remove_tree

            self.driver.remove(f"{path}/rw")
            self.driver.remove(path)
            remove_tree(path)

        return self.staging.sweep(remove)

    # --- layers

    def ingest(self, tar: bytes | str | Blob, parent: Layer | None = None) -> Layer:
        """The layer of ``tar`` (bytes, a file's path, or a blob). ``parent`` counts for chained drivers."""
        blob: Any = TarBlob(tar) if isinstance(tar, bytes | str) else tar
        return self.layers.ingest(blob, parent)

    def stack(self, *tars: bytes | str) -> list[Layer]:
        """The layers of an image, bottom to top, mended as the engine mends them."""
        made: list[Layer] = []
        for tar in tars:
            made.append(self.ingest(tar, made[-1] if made else None))
        return self.layers.mended(made)

    # --- containers

    def prepare(self, layers: Sequence[Layer], size: int | None = None) -> str:
        """A fresh writable directory over ``layers``; its path."""
        stage = self.staging.new(self.driver.name)
        failpoints.reach("prepare.staged")
        try:
            os.mkdir(f"{stage.path}/rw", 0o700)
            self.driver.prepare(layers, f"{stage.path}/rw", size)
            failpoints.reach("prepare.made")
            place = f"{self.root}/containers/{os.urandom(16).hex()}"
            os.rename(stage.path, place)
            failpoints.reach("prepare.placed")
        except BaseException:
            self.driver.remove(f"{stage.path}/rw")
            self.driver.remove(stage.path)
            raise
        finally:
            stage.close()
        return f"{place}/rw"

    def discard(self, rw: str) -> None:
        """Remove a writable directory, by way of the staging directory as the engine does."""
        failpoints.reach("remove.begin")
        try:
            stage = self.staging.receive(os.path.dirname(rw), self.driver.name)
        except FileNotFoundError:
            return
        failpoints.reach("remove.moved")
        try:
            self.driver.remove(f"{stage.path}/rw")
            self.driver.remove(stage.path)
        finally:
            stage.close()
        failpoints.reach("remove.removed")

    @contextlib.contextmanager
    def rootfs(
        self,
        layers: Sequence[Layer],
        rw: str | None = None,
        *,
        idmap: int | None = None,
        size: int | None = None,
    ) -> Iterator[Rootfs]:
        """A mounted writable rootfs; removed afterwards unless ``rw``, from `prepare`, was given."""
        mine = rw is None
        place = rw if rw is not None else self.prepare(layers, size)
        try:
            with self._mounted(layers, place, idmap) as root:
                yield root
        finally:
            if mine:
                self.discard(place)

    @contextlib.contextmanager
    def view(self, layers: Sequence[Layer], *, idmap: int | None = None) -> Iterator[Rootfs]:
        """A read-only mount of ``layers``."""
        with self._mounted(layers, None, idmap) as root:
            yield root

    @contextlib.contextmanager
    def _mounted(self, layers: Sequence[Layer], rw: str | None, idmap: int | None) -> Iterator[Rootfs]:
        failpoints.reach("mount.begin")
        fd = self.driver.mount(layers, rw, idmap)
        failpoints.reach("mount.made")
        try:
            yield Rootfs(self, list(layers), rw, idmap, fd)
        finally:
            os.close(fd)


class Rootfs:
    """A live mount.

    fd    its detached mount
    path  a path of its root that this process can use: files are ``f"{path}/name"``
    """

    def __init__(self, rig: Rig, layers: list[Layer], rw: str | None, idmap: int | None, fd: int) -> None:
        self.rig = rig
        self.layers = layers
        self.rw = rw
        self.idmap = idmap
        self.fd = fd
        self.path = f"/proc/self/fd/{fd}"

    def changes(self) -> list[Change]:
        assert self.rw is not None
        return list(self.rig.driver.changes(self.layers, self.rw, self.fd, self.idmap))

    def usage(self) -> Usage:
        assert self.rw is not None
        return self.rig.driver.usage(self.rw)

    def commit(self, owner: Any = None) -> bytes:
        """The tar of what was changed; ``owner`` as for `pyrun.layers.pack.pack`."""
        out = io.BytesIO()
        failpoints.reach("commit.begin")
        more = {"owner": owner} if owner else {}
        pack(self.changes(), self.fd, out, each=lambda: failpoints.reach("commit.entry"), **more)
        failpoints.reach("commit.end")
        return out.getvalue()
