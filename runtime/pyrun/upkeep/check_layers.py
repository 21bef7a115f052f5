"""Layers of every driver: held against the listing that was recorded when they were made, or, deeply, against what
their blobs make now."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import PyrunError
from ..images.blob import StoredBlob
from ..images.layerstore import layer_keys
from ..storage import records
from ..storage.layers import boot_id
from ..storage.listing import listing
from . import repair_layers as repair
from .problems import Problem
from .scene import Origin
from .trees import differences, told

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..containers.record import Container
    from ..images.record import Image
    from ..storage.layers import LayerStore
    from .scene import Scene


class LayerCheck:
    """``known`` tells where layers come from; ``bad_blobs`` are digests that can't be relied on."""

    def __init__(
        self,
        scene: Scene,
        known: dict[str, Origin],
        containers: list[Container],
        bad_blobs: set[str],
        *,
        deep: bool,
        say: Callable[[str], None],
    ) -> None:
        self.scene = scene
        self.known = known
        self.users: dict[tuple[str, str], str] = {}
        for container in containers:
            for key in container.layers:
                self.users.setdefault((container.driver, key), container.name)
        self.bad_blobs = bad_blobs
        self.deep = deep
        self.say = say
        self.notes: list[str] = []
        self.count = 0

    def all(self) -> list[Problem]:
        problems = []
        for name in self.scene.shelves().names():
            layers = self.scene.layers(name)
            keys = sorted(layers.keys())
            if keys:
                self.say(f"Comparing layers of {name}: {len(keys)}")
            store = self.scene.usable(name)
            if self.deep and keys and store is None:
                self.notes.append(f"the content of {name}'s layers was not compared: {self._unusable(name)}")
            problems += self._each(layers, keys)
            problems += self._markers(layers)
        return problems

    def some(self, driver: str, keys: list[str]) -> list[Problem]:
        """What is wrong with these layers of one driver."""
        self.say(f"Comparing layers of {driver}: {len(keys)}")
        if self.deep and self.scene.usable(driver) is None:
            self.notes.append(f"the content of {driver}'s layers was not compared: {self._unusable(driver)}")
        return self._each(self.scene.layers(driver), keys)

    def _each(self, layers: LayerStore, keys: list[str]) -> list[Problem]:
        remake = self.scene.usable(layers.driver.name) is not None
        problems = []
        for key in keys:
            found = self.one(layers, key, remake=remake)
            if found is not None:
                problems.append(found)
            self.count += 1
        return problems

    def one(self, layers: LayerStore, key: str, *, remake: bool) -> Problem | None:
        """What is wrong with a layer; ``remake`` says that its driver works."""
        name = layers.driver.name
        try:
            path = layers.path(key)
        except PyrunError:
            key, path = key.removeprefix("sha256:"), f"{layers.directory}/{key.removeprefix('sha256:')}"
            return self._rubbish("not-a-layer", name, key, path, "nothing of pyrun's has such a name")
        # First of all: of such a layer nothing is believed, and nothing missed.
        if os.path.isdir(path) and self._unsynced(layers, path):
            return self._layer(
                "layer-unsynced", name, key, "the power went before it was on the disk for certain"
            )
        try:
            meta = records.read(f"{path}/meta.json")
            recorded = str(meta["listing"])
            int(meta["unpacked"])
        except FileNotFoundError:
            if not os.path.isdir(path):
                return None  # removed meanwhile
            return self._layer(
                "layer-half-made", name, key, "its record is missing, so it was never finished"
            )
        except (PyrunError, OSError, KeyError, TypeError, ValueError):
            return self._layer("layer-damaged", name, key, "its record meta.json is damaged", harm=True)
        why = self._notes_damaged(path)
        if why:
            return self._layer("layer-damaged", name, key, why, harm=True)
        try:
            # What a chained driver has under other layers is not mounted, and never listed.
            if not recorded and not layers.chained:
                return self._first(layers, key, path, remake=remake)
            if recorded and listing(path) != recorded:
                how = ""
                if remake:
                    with suppress(PyrunError):  # what differs is worth telling, and need not be
                        how = self._compared(layers, key, path, times=True)
                what = "its files are not those it was made with"
                return self._layer("layer-damaged", name, key, f"{what}: {how}" if how else what, harm=True)
            if self.deep and remake:
                try:
                    how = self._compared(layers, key, path, times=False)
                except PyrunError as error:
                    what = f"it could not be made again to compare: {error.message}"
                    return Problem("layer-unchecked", f"{name}/{key}", what)
                if how:
                    return self._layer(
                        "layer-damaged", name, key, f"it differs from its blob: {how}", harm=True
                    )
        except FileNotFoundError:
            if os.path.isdir(path):
                raise
            return None
        except OSError as error:
            return self._layer("layer-damaged", name, key, f"it can't be read: {error.strerror}", harm=True)
        return None

    def _first(self, layers: LayerStore, key: str, path: str, *, remake: bool) -> Problem | None:
        """A layer that was not listed when it was made: held against its blob, and listed where it is as it should
        be. Raises OSError."""
        name = layers.driver.name
        try:
            how = self._compared(layers, key, path, times=False) if remake else ""
        except PyrunError as error:
            what = f"it could not be made again to compare: {error.message}"
            return Problem("layer-unchecked", f"{name}/{key}", what)
        if how:
            what = f"its files are not those it was made with: {how}"
            return self._layer("layer-damaged", name, key, what, harm=True)
        origin = self.known.get(key)
        if remake and origin is not None and origin.layer.digest not in self.bad_blobs:
            layers.complete(key)
        elif not remake:
            self.notes.append(f"the layer {key} of {name} was never compared: {self._unusable(name)}")
        return None

    def missing(self, images: list[Image]) -> list[Problem]:
        """Images without their layers under any driver. What is missing under one is made when it is used."""
        problems = []
        shelves = [self.scene.layers(name) for name in self.scene.shelves().names()]
        for image in images:
            plain = [layer.diff_id for layer in image.layers]
            chained = layer_keys(plain, chained=True)
            lacking: dict[str, list[str]] = {}
            for layers in shelves:
                # Of a driver that can't be asked, what is there tells how it names its layers.
                wanted = chained if layers.chained or _has(layers, chained[1:]) else plain
                lacking[layers.driver.name] = [key for key in wanted if not _present(layers, key)]
            if not image.layers or any(not keys for keys in lacking.values()):
                continue
            name = self.scene.selected
            for key in lacking.get(name) or plain:
                problems.append(
                    Problem(
                        "layer-missing",
                        f"{name}/{key}",
                        f"{image.reference} needs it, and it is missing",
                        fix="make it from its blob",
                        repair=partial(repair.make_layer, self.scene, name, key, self.known),
                    )
                )
        return problems

    # --- parts

    def _layer(self, kind: str, driver: str, key: str, what: str, *, harm: bool = False) -> Problem:
        user = self.users.get((driver, key), "")
        needed = bool(user) or key in self.known
        if user:
            what += f"; container {user} needs it"
        elif needed:
            what += f"; {self.known[key].image.reference} needs it"
        fix = "make it again from its blob" if needed else "remove it; it is made again when needed"
        # What no container needs is made again before anybody mounts it, if `find` sees that it has to be.
        return Problem(
            kind,
            f"{driver}/{key}",
            what,
            harm=harm or bool(user),
            fix=fix,
            repair=partial(repair.remake_layer, self.scene, driver, key, self.known),
        )

    def _rubbish(self, kind: str, driver: str, name: str, path: str, what: str) -> Problem:
        return Problem(
            kind,
            f"{driver}/{name}",
            what,
            harm=False,
            fix="remove it",
            repair=partial(repair.remove_path, self.scene, path, driver),
        )

    def _unsynced(self, layers: LayerStore, path: str) -> bool:
        try:
            with open(f"{layers.directory}/.unsynced/{os.path.basename(path)}") as file:
                return file.read() != boot_id()
        except FileNotFoundError:
            return False

    def _markers(self, layers: LayerStore) -> list[Problem]:
        """Marks of layers that are not there: their maker died, or they were removed."""
        directory = f"{layers.directory}/.unsynced"
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return []
        problems = []
        for name in names:
            # This boot's may belong to a layer that is being put in its place.
            if os.path.exists(f"{layers.directory}/{name}") or not _of_another_boot(f"{directory}/{name}"):
                continue
            path = f"layers/{layers.driver.name}/.unsynced/{name}"
            problems.append(
                Problem(
                    "stale-mark",
                    path,
                    "it marks a layer that is not there",
                    harm=False,
                    fix="remove it",
                    repair=partial(repair.remove_file, f"{self.scene.root}/{path}"),
                )
            )
        return problems

    def _notes_damaged(self, path: str) -> str:
        try:
            notes: Any = records.read(f"{path}/notes.json")
            if isinstance(notes["implied"], list) and isinstance(notes["opaque_root"], bool):
                return ""
        except FileNotFoundError:
            return ""
        except (PyrunError, OSError, KeyError, TypeError):
            pass
        return "its record notes.json is damaged"

    def _compared(self, layers: LayerStore, key: str, path: str, *, times: bool) -> str:
        """How the layer differs from what its blob makes now; "" where it does not, or nobody can tell. Raises
        `PyrunError` where it can't be made."""
        origin = self.known.get(key)
        if origin is None or origin.layer.digest in self.bad_blobs:
            return ""
        if not self.scene.images.content.has(origin.layer.digest):
            return ""  # a lazy driver's, or a problem of its own
        parent = None
        if layers.chained and origin.parent:
            parent = layers.find(origin.parent)
            if parent is None:
                return ""
        elif not layers.chained and key != origin.layer.diff_id:
            return ""
        blob = StoredBlob(self.scene.images.content, origin.layer)
        stage = layers.staging.new(layers.driver.name)
        try:
            layers.driver.ingest(blob, stage.path, parent)
            found = told(differences(path, stage.path, content=True, times=False))
            if not found and times:
                # Times of the driver's own files differ; where nothing else does, these must be it.
                found = told(differences(path, stage.path, content=False, times=True))
            elif found and not times and not self._shows_another_tree(layers, path, stage.path):
                return ""
            return found
        finally:
            layers.driver.remove(stage.path)
            stage.close()

    def _shows_another_tree(self, layers: LayerStore, one: str, two: str) -> bool:
        """Whether two native forms of a layer, not the same byte by byte, show different trees: a driver may
        write times or random ids into its own files."""
        from ..storage.contract import Layer

        views = []
        try:
            for path in (one, two):
                views.append(layers.driver.mount([Layer("", path)], None))
            mine, theirs = (f"/proc/self/fd/{fd}/." for fd in views)
            return any(True for _ in differences(mine, theirs, content=True, times=False))
        except PyrunError:
            return True
        finally:
            for fd in views:
                os.close(fd)

    def _unusable(self, driver: str) -> str:
        try:
            self.scene.store(driver)
            return ""
        except PyrunError as error:
            return error.message


def _of_another_boot(path: str) -> bool:
    try:
        with open(path) as file:
            return file.read() != boot_id()
    except FileNotFoundError:
        return False


def _present(layers: LayerStore, key: str) -> bool:
    return os.path.exists(f"{layers.path(key)}/meta.json")


def _has(layers: LayerStore, keys: list[str]) -> bool:
    return any(_present(layers, key) for key in keys)
