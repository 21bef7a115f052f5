"""A store as upkeep sees it: opened as far as its drivers allow, and looked at where they don't."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..containers.store import Containers
from ..errors import PyrunError, StorageError
from ..images.local import ImageStore
from ..storage import records
from ..storage.layers import LayerStore, chain_id
from ..storage.shelves import Shelves, remover
from ..storage.store import check_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..images.record import Image, ImageLayer
    from ..storage.contract import Env
    from ..storage.store import Store


class Scene:
    """env       where and as whom
    selected  the driver that commands use: the configuration's, else the one the store recorded; "" if none
    opener    opens the store with a driver by name; raises `PyrunError` where that can't be used
    """

    def __init__(self, env: Env, state: str, selected: str, opener: Callable[[str], Store]) -> None:
        self.env = env
        self.root = env.root
        self.state = state
        self.damaged = damage_of_record(env.root)
        if not self.damaged:
            check_record(env)
        self.configured = selected
        self.recorded = recorded_driver(env.root)
        self.selected = selected or self.recorded
        self.images = ImageStore(env.root)
        self.containers = Containers(env.root, state)
        self.remove = remover(env)
        self._opener = opener
        self._stores: dict[str, Store | PyrunError] = {}

    def store(self, driver: str) -> Store:
        """The store, opened with ``driver``. Raises `StorageError` and its kin where that can't be used."""
        found = self._stores.get(driver)
        if found is None:
            try:
                if self.damaged:
                    # Opening would write a record that says the store was made with this driver.
                    raise StorageError(
                        f"the record {self.root}/storage.json can't be used: {self.damaged}",
                        hint="pyrun system check --repair sets it right.",
                    )
                found = self._opener(driver)
            except PyrunError as error:
                found = error
            self._stores[driver] = found
        if isinstance(found, PyrunError):
            raise found
        return found

    def look_again(self) -> None:
        """The store's record was changed."""
        self.damaged = damage_of_record(self.root)
        self.recorded = recorded_driver(self.root)
        self.selected = self.configured or self.recorded
        self._stores.clear()

    def usable(self, driver: str) -> Store | None:
        try:
            return self.store(driver)
        except PyrunError:
            return None

    def shelves(self) -> Shelves:
        """Every driver's layers; those of the selected driver by the driver itself, if it works."""
        store = self.usable(self.selected) if self.selected else None
        if store is not None:
            return Shelves.of(store)
        return Shelves(self.root, self.env, self.remove)

    def layers(self, driver: str) -> LayerStore:
        """The layers of ``driver``, by the driver itself where it works."""
        store = self.usable(driver)
        return store.layers if store is not None else self.shelves().layers(driver)


@contextmanager
def in_words(root: str) -> Iterator[None]:
    """What the disk refuses while upkeep looks or works at ``root`` is told as a `StorageError`."""
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else root
        hint = (
            "Free some space."
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else "See dmesg for errors of the disk."
        )
        raise StorageError(f"{where}: {os.strerror(error.errno or 0)}", hint=hint) from error


def recorded_driver(root: str) -> str:
    """The driver that the store was made with; "" for a new one, or where the record is damaged."""
    try:
        return str(records.read(f"{root}/storage.json")["driver"])
    except (OSError, PyrunError, KeyError, TypeError):
        return ""


def damage_of_record(root: str) -> str:
    """What is wrong with the store's own record; "" where nothing is. One that is missing from a store with
    layers or containers is, for the next command would choose a driver anew."""
    try:
        record = records.read(f"{root}/storage.json")
        if isinstance(record["driver"], str) and isinstance(record["userns"], bool) and "version" in record:
            return ""
        return "it is damaged"
    except FileNotFoundError:
        kept = drivers_with_layers(root) or os.listdir(f"{root}/containers")
        return "it is missing" if kept else ""
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    except (PyrunError, KeyError, TypeError):
        return "it is damaged"


def drivers_with_layers(root: str) -> dict[str, int]:
    """How many layers each driver has that has any."""
    found = {}
    for name in os.listdir(f"{root}/layers"):
        try:
            keys = os.listdir(f"{root}/layers/{name}")
        except NotADirectoryError:
            continue
        count = sum(os.path.exists(f"{root}/layers/{name}/{key}/meta.json") for key in keys)
        if count:
            found[name] = count
    return found


class Origin:
    """Where a layer comes from: ``layer`` of ``image``, over the layer with the key ``parent`` ("" for none)."""

    __slots__ = ("image", "layer", "parent")

    def __init__(self, image: Image, layer: ImageLayer, parent: str) -> None:
        self.image = image
        self.layer = layer
        self.parent = parent


def origins(images: list[Image]) -> dict[str, Origin]:
    """By key, diff_ids and chain_ids alike, the layers that the images have."""
    found: dict[str, Origin] = {}
    for image in images:
        chain: str | None = None
        for layer in image.layers:
            parent = chain or ""
            chain = chain_id(chain, layer.diff_id)
            found.setdefault(layer.diff_id, Origin(image, layer, ""))
            if chain != layer.diff_id:
                found.setdefault(chain, Origin(image, layer, parent))
    return found


def needs_no_blob(scene: Scene, keys: list[str]) -> bool:
    """Whether a lazy driver has the layer, by one of its keys: it fetches what is read, and no blob is kept."""
    for layers in scene.shelves().all():
        for key in keys:
            try:
                if records.read(f"{layers.path(key)}/meta.json")["verified"] is False:
                    return True
            except (OSError, PyrunError, KeyError, TypeError):
                continue
    return False


def make(scene: Scene, driver: str, key: str, known: dict[str, Origin]) -> None:
    """Make the layer ``key`` of ``driver`` from its blob, and what it stands on; nothing where it is there.

    Raises `StorageError` where no image has it, and what the blob and the driver raise.
    """
    from ..images.blob import StoredBlob

    layers = scene.store(driver).layers
    todo = [key]
    while layers.find(todo[-1]) is None:
        origin = known.get(todo[-1])
        if origin is None:
            raise StorageError(
                f"no local image has the layer {todo[-1]} any more",
                hint="Pull the image that it came from.",
            )
        if not origin.parent or not layers.chained or layers.find(origin.parent) is not None:
            break
        todo.append(origin.parent)
    for wanted in reversed(todo):
        origin = known.get(wanted)
        if origin is not None and layers.find(wanted) is None:
            parent = layers.find(origin.parent) if origin.parent and layers.chained else None
            layers.ingest(StoredBlob(scene.images.content, origin.layer), parent, listed=wanted == key)
