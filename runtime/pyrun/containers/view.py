"""The root file system of a container, held still for reading: what diff, export and commit look at.

A stopped container's writable layer is mounted, by its driver and unshifted: its files have the container's own ids.
Of a running one the mount that it has is cloned, for a writable layer has one live mount (see
`pyrun.storage.contract.Driver.mount`); that one shows ids as the host has them, and `View.owner` tells whose they are
inside. Neither shows what is mounted in the container: volumes, /proc, /etc/hosts. Nothing is found by a path that the
container could have made: the process is known by pid, start time and boot, its root by the numbers of the mount that
the engine made.

Whoever reads holds ``locks/reading-<id>``, so readers come one after the other, and a stopped container's own lock
besides: it can't be removed, moved or read by another meanwhile. A running container may end, and one of ``--rm`` go;
`View.check` tells after reading whether what was read was whole.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from ..errors import Conflict, ContainerError, NotFound, StorageError
from ..kernel import mount as m
from ..kernel.apart import root_mount_of
from ..kernel.userns import IdMap, hold
from ..storage.contract import Layer
from ..storage.locks import lock_directory
from . import mountpoints

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

    from ..storage.contract import Change
    from ..storage.store import Store
    from .record import Container
    from .store import Containers

PATIENCE = 5.0  # seconds to wait for a container that is being started or is about to end


class View:
    """A container's root file system while it is held.

    container      its record
    root           a directory fd of it, read-only, without what is mounted in it
    pidfd          of its first process, or -1 where it does not run
    idmap          what its mount is shifted by, for `Driver.mount`: the fd of a user namespace; None: not shifted
    layers, rw     what its driver mounts it from
    """

    def __init__(
        self,
        store: Store,
        containers: Containers,
        container: Container,
        layers: Sequence[Layer],
        maps: Sequence[tuple[Sequence[IdMap], Sequence[IdMap]]],
    ) -> None:
        self.store = store
        self.container = container
        self.layers = layers
        self.rw = containers.writable(container.id)
        self.root = self.pidfd = -1
        self.idmap: int | None = None
        self._containers = containers
        self._maps = maps
        self._inode = os.stat(self.rw).st_ino

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """The container's own ids for those that the view shows.

        Raises `ContainerError` for one that is not in its user namespace: who owns that file is told only where
        the container doesn't run.
        """
        if not self._maps:
            return uid, gid
        uids, gids = self._maps[0]
        inside = _inside(uids, uid), _inside(gids, gid)
        if inside[0] is None or inside[1] is None:
            raise ContainerError(
                f"the container {self.container.name} has files of ids that its user namespace lacks, and who owns"
                " them can't be told while it runs",
                hint="Stop it first.",
            )
        return inside[0], inside[1]

    @contextmanager
    def below(self) -> Iterator[int]:
        """A directory fd of its layers alone, shifted as the view is."""
        with mounted(self.store, self.layers, self.idmap) as root:
            yield root

    def changes(self) -> Iterator[Change]:
        """How it differs from its layers, as `Driver.changes` tells it, without what was made to mount things on."""
        return self.own(self.store.driver.changes(self.layers, self.rw, self.root, self.idmap))

    def own(self, changes: Iterable[Change]) -> Iterator[Change]:
        """``changes``, from whatever to this view, without what the engine made to mount things on, as long as that
        is as it was made."""
        return mountpoints.left_out(changes, self._mountpoints(), self.root, self.owner)

    def _mountpoints(self) -> dict[bytes, bool]:
        try:
            spec = self._containers.spec(self.container.id)
        except NotFound:
            return {}  # nothing was ever mounted
        with self.below() as below:
            return mountpoints.made(below, [os.fsencode(entry["destination"]) for entry in spec["mounts"]])

    def check(self) -> None:
        """Call when all was read, before anything is made of it. Raises `Conflict` where the container was removed
        meanwhile: then files may have been missing."""
        try:
            whole = os.stat(self.rw).st_ino == self._inode
        except OSError:
            whole = False
        if not whole:
            raise Conflict(
                f"the container {self.container.name} was removed while its files were read",
                hint="Nothing was made of it. A container of --rm goes when it ends.",
            )


@contextmanager
def opened(store: Store, containers: Containers, id: str) -> Iterator[View]:
    """Hold the container ``id`` for reading; ``store`` is open with its driver. Waits for who reads it already.

    Raises `NotFound`; `Conflict` where it is being made, ended or removed, for longer than `PATIENCE`; `StorageError`
    where a layer is missing, and what the driver raises.
    """
    with ExitStack() as stack:
        stack.enter_context(containers.reading(id))
        pidfd, mount = _held(stack, containers, id)
        container = containers.load(id)
        layers = [Layer(key, store.layers.path(key)) for key in container.layers]
        missing = next((layer.id for layer in layers if not os.path.isdir(layer.path)), None)
        if missing:
            raise StorageError(
                f"the layer {missing} of the container {container.name} is missing",
                hint="pyrun system check --repair makes it again.",
            )
        maps = []
        if pidfd >= 0 and not store.env.userns:
            linux = containers.spec(id)["linux"]
            if linux.get("uidMappings"):
                maps = [(_extents(linux["uidMappings"]), _extents(linux["gidMappings"]))]
        try:
            view = View(store, containers, container, layers, maps)
        except FileNotFoundError:
            raise NotFound(f"no such container: {container.name}") from None
        if maps:
            view.idmap = hold(*maps[0])
            stack.callback(os.close, view.idmap)
        if pidfd < 0:
            mount = store.driver.mount(layers, view.rw)
            stack.callback(os.close, mount)
            m.mount_setattr(mount, set=m.MOUNT_ATTR_RDONLY)
        view.pidfd = pidfd
        view.root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        stack.callback(os.close, view.root)
        with _read(container):
            yield view


@contextmanager
def _read(container: Container) -> Iterator[None]:
    """What reading the container's files raises becomes a `StorageError`, but for BrokenPipeError, which is about
    where they are written to."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""
        raise StorageError(
            f"the files of the container {container.name} can't be read: {error.strerror or error}{where}",
            hint="dmesg tells of errors of the disk; pyrun system check of damage to the store.",
        ) from error


@contextmanager
def mounted(store: Store, layers: Sequence[Layer], idmap: int | None = None) -> Iterator[int]:
    """A directory fd of ``layers`` alone, read-only."""
    mount = store.driver.mount(layers, None, idmap)
    try:
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
        try:
            yield root
        finally:
            os.close(root)
    finally:
        os.close(mount)


def _held(stack: ExitStack, containers: Containers, id: str) -> tuple[int, int]:
    """The pidfd of a container that runs and a clone of its root's mount; or -1 twice, and the container is locked.
    All of that goes with ``stack``."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            lock = lock_directory(f"{containers.directory}/{id}")
        except FileNotFoundError:
            raise NotFound(f"no such container: {id[:12]}") from None
        container = containers.load(id)
        if lock is not None:
            if container.status != "running":
                stack.callback(os.close, lock)
                return -1, -1
            os.close(lock)  # it lost its supervisor; what is left of it is cleared up by the next command
        elif container.status == "running" and (pidfd := containers.process(id)) is not None:
            try:
                mount = _live(containers, container, pidfd)
            except Conflict:
                os.close(pidfd)  # it has not entered its root yet, or has just ended
                if time.monotonic() > give_up:
                    raise
            else:
                stack.callback(os.close, pidfd)
                stack.callback(os.close, mount)
                return pidfd, mount
        if time.monotonic() > give_up:
            raise Conflict(
                f"the container {container.name} is in use: it is being started, ended, moved or removed",
                hint="Try again in a moment; pyrun ps -a shows what there is.",
            )
        time.sleep(0.01)


def _live(containers: Containers, container: Container, pidfd: int) -> int:
    """A read-only clone of the mount that is the running container's root."""
    hint = "Stop it first: then its files are read without it."
    try:
        mount = root_mount_of(pidfd)
    except OSError as error:
        raise Conflict(
            f"the files of the running container {container.name} can't be reached: {error.strerror}",
            hint=hint,
        ) from error
    found = os.stat(mount)
    if (found.st_dev, found.st_ino) != containers.rootfs(container.id):
        os.close(mount)
        raise Conflict(
            f"the first process of the container {container.name} is in another root than it was given",
            hint=hint,
        )
    return mount


def _extents(entries: Sequence[dict[str, Any]]) -> list[IdMap]:
    return [IdMap(entry["containerID"], entry["hostID"], entry["size"]) for entry in entries]


def _inside(maps: Sequence[IdMap], outside: int) -> int | None:
    for extent in maps:
        if extent.outside <= outside < extent.outside + extent.count:
            return extent.inside + outside - extent.outside
    return None
