"""`run` in the foreground: from a container on disk to an exit code. On the path of `run`.

At every instruction a SIGKILL may strike. The record tells whoever comes next what must be ended or removed.
"""

from __future__ import annotations

import errno
import os
import select
import sys
import time

from ..errors import ContainerError, PyrunError
from ..kernel.mount import MOUNT_ATTR_NODEV, mount_setattr
from ..kernel.process import start_time
from ..kernel.userns import read_map
from ..sandbox import console, idrange
from ..sandbox.box import Box
from ..storage import failpoints, records
from ..storage.contract import Layer
from ..storage.events import StorageEvent
from ..storage.layers import SETTLED
from . import spec as specs
from . import users
from .store import KILLED, Containers, new_state
from .streams import Pipes
from .supervise import Errand, ServerDied, Signals, supervise

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .create import Made
    from .options import ContainerOptions


def start(made: Made, containers: Containers, options: ContainerOptions, state_directory: str) -> int:
    """Run the container to its end on fds 0, 1 and 2; its exit code.

    Raises `ContainerError` and its kind where it can't be started; with ``--rm`` it is gone either way.
    """
    with Signals() as signals:
        return _start(made, containers, options, state_directory, signals)


def _start(
    made: Made, containers: Containers, options: ContainerOptions, state_directory: str, signals: Signals
) -> int:
    state = new_state("created")
    state.update(supervisor=os.getpid(), supervisor_start=start_time(os.getpid()))
    claim = None
    try:
        linux = made.spec["linux"]
        if made.userns and made.store.env.userns:
            linux["uidMappings"], linux["gidMappings"] = _identity_maps()
        elif made.userns:
            claim = idrange.claim(state_directory, int(made.id[:8], 16))
            extent = [{"containerID": 0, "hostID": claim.base, "size": idrange.SIZE}]
            linux["uidMappings"] = linux["gidMappings"] = extent
        containers.mark_running(made.id)
        code, unwritten = _run(made, containers, options, state, signals)
        state.update(status="exited", exit_code=code)
    except _Unserved as error:
        state.update(status="exited", exit_code=error.exit_code, error=error.message)
        raise
    except PyrunError as error:
        # As docker has it: what never ran is still only created, with the exit code that `run` reported.
        code = error.exit_code if error.exit_code > 1 else 125
        state.update(status="created", exit_code=code, error=error.message, started=0.0)
        raise
    except BaseException as error:
        state.update(status="exited", exit_code=KILLED, error=f"pyrun ended: {type(error).__name__}")
        raise
    finally:
        if claim:
            claim.close()
        _finish(made, containers, state)
    if unwritten and not code:
        raise ContainerError(unwritten)
    return code


def _run(
    made: Made, containers: Containers, options: ContainerOptions, state: dict[str, Any], signals: Signals
) -> tuple[int, str]:
    driver = made.store.driver
    pipes = None
    master = rootfs = server = -1
    with Box(made.spec, nodes=not made.store.env.userns) as box:
        try:
            # On record before the process does anything: from here on the next command can end it.
            state.update(status="running", pid=box.pid, pid_start=start_time(box.pid), started=time.time())
            containers.set_state(made.id, state, durable=False)
            idmap = box.userns if made.userns and not made.store.env.userns else None
            began = time.monotonic()
            layers = [Layer(id, made.store.layers.path(id)) for id in made.config["layers"]]
            failpoints.reach("mount.begin")
            rootfs = driver.mount(layers, f"{made.directory}/rw", idmap)
            failpoints.reach("mount.made")
            served = driver.server(rootfs)
            server = -1 if served is None else served
            # Device nodes come from the engine's /dev alone, never from an image.
            mount_setattr(rootfs, set=MOUNT_ATTR_NODEV)
            made.store.emit(StorageEvent("mounted", driver.name, made.id, time.monotonic() - began))
            view = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=rootfs)
            try:
                specs.set_user(made.spec, users.resolve(view, made.config["options"]["user"]))
                found = os.stat(view)
            finally:
                os.close(view)
            # By which whoever reads a running container's files knows that it was led to them.
            state["rootfs"] = [found.st_dev, found.st_ino]
            containers.set_state(made.id, state, durable=False)
            records.write(f"{made.directory}/spec.json", made.spec, durable=False)
            size = None
            user = made.spec["process"]["user"]
            owner = box.host_ids(user["uid"], user["gid"])
            if options.tty:
                size = console.get_size(0) or console.get_size(1)
            else:
                pipes = Pipes(owner, interactive=options.interactive)
            master = box.start(rootfs, pipes.theirs if pipes else (), size)
            if server < 0:
                os.close(rootfs)
                rootfs = -1
            # Else it is held to the end: a server that ends now was not told to by the end of its mount.
            if pipes:
                pipes.close_theirs()
            ended = supervise(
                box,
                pipes,
                master,
                signals,
                interactive=options.interactive,
                server=server,
                errand=_sync_later(made),
            )
            if server >= 0:
                # A container that ended because its server had died may be noticed first.
                os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=rootfs))
            return ended
        except (OSError, ContainerError, ServerDied) as error:
            if isinstance(error, ServerDied) or (server >= 0 and _gone(error, server)):
                raise _unserved(driver.name) from error
            if isinstance(error, ContainerError):
                raise
            raise ContainerError(f"can't run the container: {error}") from error
        finally:
            if pipes:
                pipes.close()
            for fd in (rootfs, master, server):
                if fd >= 0:
                    os.close(fd)


def _sync_later(made: Made) -> Errand | None:
    """Have layers put on disk that were pulled just now; None where there are none."""
    layers = made.store.layers
    if not layers.unsynced():
        return None

    def sync() -> None:
        try:
            layers.sync(older=SETTLED)
        except OSError:
            pass  # the markers stay, which is all that is lost

    return Errand(SETTLED + 1, sync)


class _Unserved(ContainerError):
    """The container ran, until the server of its root file system died."""


def _unserved(driver: str) -> _Unserved:
    return _Unserved(
        f"the container was ended: the {driver} process that served its root file system died",
        hint="It was killed (the kernel's log tells where memory ran out) or crashed. Start the container anew, or "
        "take a storage driver without servers (pyrun storage doctor).",
    )


def _gone(error: OSError | ContainerError | ServerDied, server: int) -> bool:
    """Whether the end of the process behind the pidfd ``server`` explains ``error``: the mount says so, or it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        return True
    return bool(select.select([server], [], [], 0)[0])


def _finish(made: Made, containers: Containers, state: dict[str, Any]) -> None:
    """Put the end on record, or remove the container of --rm; then let go of it."""
    options = made.config["options"]
    try:
        if options["rm"]:
            began = time.monotonic()
            containers.discard(made.id, made.config["name"], made.config["driver"], made.store.remove)
            made.store.emit(
                StorageEvent("discarded", made.config["driver"], made.id, time.monotonic() - began)
            )
        else:
            state.update(pid=0, finished=time.time())
            containers.set_state(made.id, state, durable=True)
            containers.unmark(made.id)
    except (OSError, PyrunError) as error:
        # The program's own outcome must reach the caller all the same. The marker stays: the next command
        # that can write puts the record right.
        print(
            f"pyrun: warning: can't put the end of {made.config['name']} on record: {error}", file=sys.stderr
        )
    finally:
        made.stage.close()


def _identity_maps() -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Maps for a namespace below the engine's own in which every id keeps its number.

    Extent by extent: the kernel refuses one that spans two of the parent's (map_id_range_down).
    """

    def identity(path: str) -> list[dict[str, int]]:
        return [{"containerID": m.inside, "hostID": m.inside, "size": m.count} for m in read_map(path)]

    return identity("/proc/self/uid_map"), identity("/proc/self/gid_map")
