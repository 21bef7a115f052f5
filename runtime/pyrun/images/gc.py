"""Garbage collection: what no image record, no container and no lease names goes (mark and sweep).

Layers lie in the store by driver. An image needs its layers under whichever driver has them; a container needs
those of its own driver, and a lease what it says.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import Conflict, LayerError, NotFound, PyrunError, StorageError
from ..storage import failpoints, leases, mend
from ..storage.layers import LayerStore
from ..storage.shelves import Shelves
from . import tables
from .layerstore import layer_keys
from .local import ImageStore
from .record import Image

PATIENCE = 2.0  # seconds to wait for pulls and starting containers before leaving the work to the next call


@dataclass(frozen=True, slots=True)
class User:
    """A container: its image's ID, its driver and that driver's keys of its layers, its name, whether it runs."""

    image_id: str
    driver: str
    layers: tuple[str, ...]
    name: str
    running: bool = False


@dataclass(slots=True)
class Collected:
    """What was deleted: ``layers`` of the store's driver and ``others`` as (driver, key), ``blobs``.

    bytes     of the blobs
    freed     what the layers took on disk, where that was asked for
    deferred  why nothing was looked at, "" if all was
    """

    layers: list[str] = field(default_factory=list)
    others: list[tuple[str, str]] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)
    bytes: int = 0
    freed: int = 0
    deferred: str = ""


@dataclass(slots=True)
class Needs:
    """What must stay: keys by driver, digests of blobs, and by diff_id the tables of layers. ``unknown`` says why
    nothing may go: something that names layers can't be read."""

    layers: dict[str, set[str]]
    blobs: set[str]
    unknown: str = ""
    diff_ids: set[str] = field(default_factory=set)


@contextmanager
def exclusively(root: str, patience: float = PATIENCE) -> Iterator[bool]:
    """Hold ``locks/store`` exclusively; False where somebody had it for all of ``patience`` seconds."""
    give_up = time.monotonic() + patience
    fd = os.open(os.path.join(root, "locks", "store"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    yield False
                    return
                time.sleep(0.02)
            else:
                yield True
                return
    finally:
        os.close(fd)


def collect(
    images: ImageStore,
    shelves: Shelves,
    users: Callable[[], Iterable[User]],
    *,
    patience: float = PATIENCE,
) -> Collected:
    """Delete the layers, of all drivers, and the blobs that nothing names. ``users`` is asked under the lock: a
    container that began just now counts. It raises `StorageError` where it can't tell.

    Holds ``locks/store`` exclusively. While a pull has it, and while a record can't be read (what it names
    is unknown), nothing is deleted: a later call finds the same garbage.
    """
    with exclusively(images.root, patience) as alone:
        if not alone:
            return Collected(deferred="the store is in use, by a pull perhaps")
        try:
            now = list(users())
        except StorageError as error:
            return Collected(deferred=error.message)
        return sweep(images, shelves, now)


def needs(
    images: ImageStore, shelves: Shelves, users: Iterable[User], *, only: Sequence[str] | None = None
) -> Needs:
    """What must stay. ``only`` names the drivers under which images count; None: every driver."""
    names = shelves.names()
    found = Needs({name: set() for name in names}, set())
    records = images.records()
    if images.warnings:
        found.unknown = images.warnings[0]
    for image in records:
        found.diff_ids.update(layer.diff_id for layer in image.layers)
        found.blobs.update((image.digest, image.manifest, image.id), (layer.digest for layer in image.layers))
        # Whether a driver's layers are chained is known only to the driver: both kinds of key are kept.
        keys = {*_keys(image, chained=False), *_keys(image, chained=True)}
        for name in names if only is None else [name for name in names if name in only]:
            found.layers[name] |= keys
    for user in users:
        found.layers.setdefault(user.driver, set()).update(user.layers)
    try:
        for lease in leases.held(images.root):
            found.layers.setdefault(lease.driver, set()).update(lease.keys)
            found.blobs |= lease.blobs
    except StorageError as error:  # one that can't be read
        found.unknown = error.message
    for name in names:
        found.layers[name] |= mend.patches(shelves.layers(name), found.layers[name])
    return found


def leased(root: str) -> dict[str, set[str]]:
    """Keys by driver that living leases hold. Raises `StorageError` where one can't be read."""
    found: dict[str, set[str]] = {}
    for lease in leases.held(root):
        found.setdefault(lease.driver, set()).update(lease.keys)
    return found


def sweep(
    images: ImageStore,
    shelves: Shelves,
    users: Iterable[User],
    *,
    only: Sequence[str] | None = None,
    measure: Callable[[LayerStore, str], int] = lambda layers, key: 0,
) -> Collected:
    """`collect` for a caller that holds the store exclusively. ``only`` as for `needs`; ``measure`` tells what
    a layer takes on disk before it goes."""
    failpoints.reach("gc.begin")
    done = Collected()
    content = images.content
    live = needs(images, shelves, users, only=only)
    if live.unknown:
        done.deferred = live.unknown
        return done
    for layers in shelves.all():
        name = layers.driver.name
        for key in list(layers.keys()):
            if key not in live.layers[name] and _is_key(layers, key):
                failpoints.reach("gc.layer")
                done.freed += measure(layers, key)
                layers.remove(key)
                mend.forget(layers, key)
                if layers is shelves.current:
                    done.layers.append(key)
                else:
                    done.others.append((name, key))
    images.agree()  # a writer that was killed may have left the layout's index naming what goes now
    for digest in list(content.digests()):
        if digest not in live.blobs:
            failpoints.reach("gc.blob")
            done.bytes += content.remove(digest)
            done.blobs.append(digest)
    content.sweep()
    done.bytes += tables.sweep(images.root, live.diff_ids)
    failpoints.reach("gc.end")
    return done


def _is_key(layers: LayerStore, key: str) -> bool:
    """Whether it is a layer's; anything may have been put there by hand, and is left to `pyrun system check`."""
    try:
        layers.path(key)
    except LayerError:
        return False
    return True


def remove_layer(
    images: ImageStore, shelves: Shelves, driver: str, key: str, users: Callable[[], Iterable[User]]
) -> None:
    """Remove one layer of one driver, to be made again from its blob when it is needed.

    Raises `Conflict` where a container was made from it, or a lease or a pull holds it; `NotFound`.
    """
    with exclusively(images.root) as alone:
        if not alone:
            raise Conflict(f"the layer {key} can't be removed now: the store is in use, by a pull perhaps")
        if driver not in shelves.names() or not os.path.lexists(shelves.layers(driver).path(key)):
            raise NotFound(f"there is no layer {key} of the storage driver {driver}")
        for user in users():
            layers = shelves.layers(driver)
            if user.driver == driver and key in {*user.layers, *mend.patches(layers, user.layers)}:
                raise Conflict(
                    f"the layer {key} is used by container {user.name}",
                    hint=f"Remove the container first: pyrun rm {user.name}",
                )
        layers = shelves.layers(driver)
        layers.remove(key)
        mend.forget(layers, key)


def remove_image(
    images: ImageStore,
    shelves: Shelves,
    name: str,
    *,
    force: bool = False,
    users: Callable[[], Iterable[User]] = tuple,
    keep: bool = False,
) -> list[tuple[str, str]]:
    """`ImageStore.remove`, then `collect`: ("Untagged" | "Deleted", what) as ``docker rmi`` prints them, a
    "Deleted" for the image ID and for each layer that went, topmost first.

    ``users`` tells the containers of the moment. ``force`` removes an image that one was made from; its layers
    stay until the container goes. ``keep`` leaves all layers and blobs to the next collection. Raises as
    `ImageStore.remove` does.
    """
    chained = shelves.current is not None and shelves.current.chained
    try:
        order = {key: at for at, key in enumerate(_keys(images.get(name), chained=chained))}
    except PyrunError:
        order = {}  # `remove` knows what is wrong, or what to do about it

    def of(id: str, *, running: bool) -> list[str]:
        try:
            return [user.name for user in users() if user.image_id == id and (user.running or not running)]
        except StorageError:
            if force:
                return []
            raise

    done = images.remove(
        name,
        force=force,
        in_use=lambda id: of(id, running=False),
        running=lambda id: of(id, running=True),
    )
    if done and done[-1][0] == "Deleted" and not keep:
        gone = collect(images, shelves, users).layers
        done += [("Deleted", key) for key in sorted(gone, key=lambda key: -order.get(key, 0))]
    return done


def _keys(image: Image, *, chained: bool) -> list[str]:
    return layer_keys([layer.diff_id for layer in image.layers], chained=chained)
