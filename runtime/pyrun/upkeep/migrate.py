"""Moving a store to another driver: ``pyrun storage migrate``.

What the old driver has stays until everything is there under the new one; then one record is replaced, which is the
move; then the old layers go. Each step is whole or did not happen, and what is done is not done again: a migration
that was killed goes on where it was, and until the move the store works as before.

Image layers are made again from their blobs. Of a container, what it changed is packed as a layer would be, unpacked
into a fresh writable layer of the new driver, and the two mounted trees are compared.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ..errors import Conflict, DigestMismatch, PyrunError, StorageError
from ..images import gc
from ..images.digest import short
from ..images.layerstore import layer_keys, sweep_staging
from ..images.workers import Job, Report, run
from ..kernel.files import sync_directory
from ..kernel.mount import syncfs
from ..layers.pack import pack
from ..layers.unpack import unpack
from ..storage import failpoints, records
from ..storage.changes import added, compare
from ..storage.contract import Change, Layer
from ..storage.layers import check_depth
from ..storage.leases import Lease
from ..storage.locks import Lock, lock_directory
from ..storage.tarblob import TarBlob
from .repair_content import fetch_blob
from .scene import in_words, make, origins
from .users import users

if TYPE_CHECKING:
    from ..containers.record import Container
    from ..images.record import Image
    from ..storage.store import Store
    from .scene import Scene

PATIENCE = 60.0  # seconds to wait for pulls and starting containers at the move
_ROUNDS = 10  # images and containers may come while others are moved


@dataclass(slots=True)
class Migrated:
    """``before``: the driver that the store had. ``layers``: how many were made. ``containers``: names of those
    moved; ``left``: of those that stay with their driver. ``notes``: what the user has to know."""

    before: str
    layers: int = 0
    containers: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def migrate(
    scene: Scene,
    to: str,
    *,
    containers: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Migrated:
    """Move the store to the driver ``to``. Without ``containers`` those of other drivers stay as they are, with
    the layers they need.

    Raises `StorageError` where ``to`` can't be used, or a driver whose containers are to be moved;
    `Conflict` where one of these runs, or another migration goes on; whatever goes wrong, the store is as it
    was or moved.
    """
    lock = Lock(f"{scene.root}/locks/upkeep")
    if not lock.acquire(wait=False):
        raise Conflict("another repair or migration of this store is going on", hint="Wait until it is done.")
    try:
        with in_words(scene.root):
            return _Migration(scene, to, containers, say).run()
    finally:
        lock.release()


class _Migration:
    def __init__(self, scene: Scene, to: str, containers: bool, say: Callable[[str], None]) -> None:
        self.scene = scene
        self.name = to
        self.with_containers = containers
        self.say = say
        self.done = Migrated(scene.recorded)
        self.store: Store = scene.store(to)

    def run(self) -> Migrated:
        for container in self._to_move():  # before anything is written
            self._check_movable(container)
        for image in self._images():
            check_depth(self.store.driver, len(image.layers))
        failpoints.reach("migrate.begin")
        for _ in range(_ROUNDS):
            images = self._images()
            with self._lease(images):
                self._make_layers(images)
                for container in self._to_move():
                    self._check_movable(container)
                    self._move(container, images)
                if self._switch():
                    break
        else:
            raise StorageError(
                "images or containers came all the time while the others were moved",
                hint="Migrate when nobody works with the store: what was moved is not moved again.",
            )
        self._clean()
        return self.done

    # --- what there is

    def _images(self) -> list[Image]:
        images = self.scene.images.records()
        if self.scene.images.warnings:
            raise StorageError(
                f"what layers there are to move is unknown: {self.scene.images.warnings[0]}",
                hint="pyrun system check --repair sets it right.",
            )
        return images

    def _others(self) -> list[Container]:
        users(self.scene.containers)  # raises where a record is damaged
        return [c for c in self.scene.containers.all() if c.driver != self.name]

    def _to_move(self) -> list[Container]:
        return self._others() if self.with_containers else []

    def _keys(self, image: Image) -> list[str]:
        diff_ids = [layer.diff_id for layer in image.layers]
        return layer_keys(diff_ids, chained=self.store.layers.chained)

    def _lease(self, images: list[Image]) -> Lease:
        keys = [key for image in images for key in self._keys(image)]
        blobs = [layer.digest for image in images for layer in image.layers]
        return Lease(self.scene.root, self.name, keys, blobs=blobs, work="pyrun storage migrate")

    def _check_movable(self, container: Container) -> None:
        if self.scene.containers.supervised(container.id):
            raise Conflict(
                f"the container {container.name} is running on {container.driver}",
                hint="Stop it first, or leave containers where they are: --without-containers.",
            )
        try:
            self.scene.store(container.driver)
        except PyrunError as error:
            names = ", ".join(c.name for c in self._others() if c.driver == container.driver)
            raise StorageError(
                f"what these containers wrote can't be read, for {error.message}: {names}",
                hint="Remove them (pyrun rm), or leave them as they are until that driver works again:"
                " --without-containers.",
            ) from error
        size = container.options.get("size")
        if size is not None and not self.store.driver.verdict.caps.quota:
            raise StorageError(
                f"the container {container.name} may write {size} bytes at most, which {self.name} can't see to",
                hint="Remove it, or leave containers where they are: --without-containers.",
            )

    # --- layers of images

    def _make_layers(self, images: list[Image]) -> None:
        layers = self.store.layers
        known = origins(images)
        wanted: dict[str, str] = {}  # key → the name of the job
        if layers.chained:
            # Each layer stands on the one below: a job an image.
            for image in images:
                keys = self._keys(image)
                if any(layers.find(key) is None for key in keys):
                    wanted[keys[-1]] = image.reference
        else:
            for image in images:
                for key, layer in zip(self._keys(image), image.layers, strict=True):
                    if layers.find(key) is None:
                        wanted.setdefault(key, f"layer {short(layer.diff_id)}")
        if not wanted:
            return
        missing = {key for image in images for key in self._keys(image) if layers.find(key) is None}
        what = "images" if layers.chained else "layers"
        self.say(f"Making {what} for {self.name}: {len(wanted)}")

        for key in sorted(missing):
            origin = known[key]
            if not self.scene.images.content.has(origin.layer.digest):
                # A lazy driver kept none.
                self.say(f"Fetching layer {short(origin.layer.digest)}")
                why = fetch_blob(self.scene, origin.layer.digest, [origin.image])
                if why:
                    raise StorageError(
                        f"the blob {origin.layer.digest} of {origin.image.reference} is not in the store: {why}",
                        hint="Remove the image, or migrate when its registry answers.",
                    )

        def ingest(key: str, report: Report) -> None:
            try:
                make(self.scene, self.name, key, known)
            except DigestMismatch as error:
                raise StorageError(error.message, hint=_REPAIR) from error
            except StorageError as error:
                raise StorageError(error.message, hint=f"{error.hint}\n{_REPAIR}".strip()) from error

        def finished(number: int) -> None:
            self.say(f"{jobs[number].name}: done")
            failpoints.reach("migrate.layer")

        jobs = [Job(name, partial(ingest, key)) for key, name in wanted.items()]
        try:
            run(
                jobs,
                at_once=os.cpu_count() or 1,
                reported=lambda number, status, current, total: None,
                finished=finished,
            )
        except BaseException:
            sweep_staging(layers)  # what the ended workers were making
            raise
        layers.sync()
        self.done.layers += len(missing)
        failpoints.reach("migrate.layers")

    # --- containers

    def _move(self, container: Container, images: list[Image]) -> None:
        self.say(f"Moving container {container.name}")
        directory = f"{self.scene.containers.directory}/{container.id}"
        try:
            lock = lock_directory(directory)
        except FileNotFoundError:
            return  # removed just now
        if lock is None:
            raise Conflict(f"the container {container.name} was started meanwhile", hint="Stop it first.")
        if self.scene.containers.is_read(container.id):
            os.close(lock)  # it was running when that began, and its writable layer is mounted still
            raise Conflict(
                f"the files of the container {container.name} are being read (diff, export, commit)",
                hint="Wait until that is done.",
            )
        try:
            self._move_locked(container, directory, images)
        except PyrunError as error:
            raise type(error)(
                f"the container {container.name} can't be moved: {error.message}",
                hint=error.hint or "Remove it, or leave containers where they are: --without-containers.",
            ) from error
        except OSError as error:
            raise StorageError(
                f"the container {container.name} can't be moved: {os.strerror(error.errno or 0)}"
            ) from error
        finally:
            os.close(lock)

    def _move_locked(self, container: Container, directory: str, images: list[Image]) -> None:
        store, old = self.store, self.scene.store(container.driver)
        below = [Layer(id, old.layers.path(id)) for id in container.layers]
        missing = next((layer.id for layer in below if not os.path.isdir(layer.path)), None)
        if missing:
            raise StorageError(f"its layer {missing} is missing", hint=_REPAIR)
        stage = store.staging.new(self.name)
        with ExitStack() as stack:
            stack.callback(stage.close)
            stack.callback(store.driver.remove, stage.path)
            stack.callback(_unlink, f"{stage.path}/changes.tar")
            layers = self._stack(container, old, below, images, stage.path, stack)
            was = self._mounted(stack, old, below, self.scene.containers.writable(container.id))
            with open(f"{stage.path}/changes.tar", "wb") as out:
                changes = old.driver.changes(below, self.scene.containers.writable(container.id), was)
                pack(changes, was, out)
            failpoints.reach("migrate.packed")
            os.mkdir(f"{stage.path}/rw", 0o700)
            stack.callback(store.driver.remove, f"{stage.path}/rw")
            store.driver.prepare(layers, f"{stage.path}/rw", container.options.get("size"))
            with ExitStack() as inner:
                new = self._mounted(inner, store, layers, f"{stage.path}/rw")
                with open(f"{stage.path}/changes.tar", "rb") as tar:
                    unpack(
                        tar,
                        new,
                        "apply",
                        devices=not store.env.userns,
                        single_uid=store.env.single_uid,
                    )
                failpoints.reach("migrate.unpacked")
                _check_same(was, new)
            self._place(container, directory, f"{stage.path}/rw", layers)

    def _stack(
        self,
        container: Container,
        old: Store,
        below: Sequence[Layer],
        images: list[Image],
        place: str,
        stack: ExitStack,
    ) -> list[Layer]:
        """What the container stands on, under the new driver: its image's layers; or, where the image is gone,
        one layer with all that the old ones show."""
        layers = self.store.layers
        image = next((image for image in images if image.id == container.image_id), None)
        if image is not None:
            found = [layers.find(key) for key in self._keys(image)]
            return layers.mended([layer for layer in found if layer is not None])
        if not below:
            return []
        with ExitStack() as inner:
            view = self._mounted(inner, old, below, None)
            with open(f"{place}/changes.tar", "wb") as out:
                pack([Change(b"", "modify"), *added(view, b"")], view, out)
        blob = TarBlob(f"{place}/changes.tar")
        stack.enter_context(Lease(self.scene.root, self.name, [blob.diff_id], work="pyrun storage migrate"))
        return [layers.ingest(blob)]

    def _mounted(self, stack: ExitStack, store: Store, layers: Sequence[Layer], rw: str | None) -> int:
        """The root directory of a mount that goes with ``stack``."""
        mount = store.driver.mount(layers, rw)
        stack.callback(os.close, mount)
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        stack.callback(os.close, root)
        return root

    def _place(self, container: Container, directory: str, rw: str, layers: list[Layer]) -> None:
        """Put the new writable layer beside the old one, and let the record name it."""
        name = f"rw-{self.name}"
        # Left by a migration that was killed before the record named it.
        self.store.driver.remove(f"{directory}/{name}")
        self.store.layers.sync()
        fd = os.open(rw, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syncfs(fd)
        finally:
            os.close(fd)
        os.rename(rw, f"{directory}/{name}")
        sync_directory(directory)
        failpoints.reach("migrate.placed")
        config = records.read(f"{directory}/config.json")
        if config.get("rw", "rw") == "rw":
            config["made_by"] = container.driver
        config.update(driver=self.name, layers=[layer.id for layer in layers], rw=name)
        records.write(f"{directory}/config.json", config)
        self.done.containers.append(container.name)
        if (
            container.options.get("userns") == "auto"
            and not self.store.env.userns
            and not self.store.driver.verdict.caps.idmap
        ):
            self.done.notes.append(
                f"the container {container.name} has a user namespace of its own, and {self.name} can't show its"
                " layers through one: it can't be started there"
            )
        failpoints.reach("migrate.moved")

    # --- the move

    def _switch(self) -> bool:
        """Make the new driver the store's, if nothing came meanwhile that has to be moved first."""
        with gc.exclusively(self.scene.root, PATIENCE) as alone:
            if not alone:
                raise Conflict(
                    "the store is in use, by a pull perhaps",
                    hint="Migrate again when that is done: what was moved is not moved again.",
                )
            find = self.store.layers.find
            if self._to_move() or any(
                find(key) is None for image in self._images() for key in self._keys(image)
            ):
                return False
            failpoints.reach("migrate.switching")
            with Lock(f"{self.scene.root}/locks/storage"):
                record = records.read(f"{self.scene.root}/storage.json")
                if record["driver"] != self.name:
                    record["driver"] = self.name
                    records.write(f"{self.scene.root}/storage.json", record)
        failpoints.reach("migrate.switched")
        return True

    def _clean(self) -> None:
        """Remove what the old driver has, but for what containers that stay with it need."""
        self.say("Removing what the old driver has")
        for id in self.scene.containers.ids():
            if not self.scene.containers.supervised(id):
                self.scene.containers.remove_leftovers(id, self.scene.remove)
        self.done.left = [container.name for container in self._others()]
        with gc.exclusively(self.scene.root, PATIENCE) as alone:
            if alone:
                now = users(self.scene.containers)
                swept = gc.sweep(self.scene.images, self.scene.shelves(), now, only=[self.name])
            if not alone or swept.deferred:
                why = swept.deferred if alone else "the store is in use"
                self.done.notes.append(
                    f"the old layers are still there, for {why}: pyrun system prune removes them"
                )
        failpoints.reach("migrate.cleaned")


_REPAIR = "pyrun system check --repair makes it whole; then migrate again."


def _check_same(was: int, new: int) -> None:
    """Raises `StorageError` where two mounted trees are not the same; no layer has sockets, so these may lack."""
    for change in compare(was, new):
        if change.kind == "delete" and _is_socket(was, change.path):
            continue
        raise StorageError(
            f"{os.fsdecode(change.path) or '/'} did not arrive as it was",
            hint="Nothing was changed. That is a defect of pyrun or of one of the two drivers.",
        )


def _is_socket(root: int, path: bytes) -> bool:
    directory, _, base = path.rpartition(b"/")
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    try:
        for part in filter(None, directory.split(b"/")):
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            os.close(fd)
            fd = inner
        return stat.S_ISSOCK(os.lstat(base, dir_fd=fd).st_mode)
    except OSError:
        return False
    finally:
        os.close(fd)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
