"""Where containers are kept, and how the truth about one is found after a crash. On the path of `run`.

    <root>/containers/<id>/config.json    what the container is; never changes
                          /state.json     created, running or exited; replaced whole
                          /spec.json      the OCI runtime spec it was started with
                          /rw/            the driver's writable layer;  /volumes/<n>/  anonymous volumes
                          /rw-<driver>/   the same, of a container that was moved to that driver
    <root>/names/<name>                   the id; made exclusively, so that a name has one owner
    <state>/running/<id>                  a container that a supervisor has in hand

Whoever supervises a container holds the lock of its directory. So a container is running exactly when its
state says so *and* the directory is locked; one that says so without a lock lost its supervisor, and
`Containers.recover` ends it.
"""

from __future__ import annotations

import os
import signal
import time

from ..errors import Conflict, ContainerError, NotFound, PyrunError, StorageError
from ..kernel.files import sync_directory
from ..storage import failpoints, records
from ..storage.layers import boot_id
from ..storage.locks import Lock, Staging, lock_directory
from . import claims
from .record import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from ..storage.locks import Stage

_CONFIG = ("command", "created", "driver", "id", "image", "image_id", "layers", "name", "options")
_HEXADECIMAL = frozenset("0123456789abcdef")

KILLED = 137  # what a shell would say of a process that SIGKILL ended


def new_id() -> str:
    """64 random hex digits."""
    return os.urandom(32).hex()


class Containers:
    """The container records of one store. Reading takes no lock and works without a driver."""

    def __init__(self, root: str, state: str) -> None:
        self.root = root
        self.directory = f"{root}/containers"
        self.running = f"{state}/running"
        self.staging = Staging(f"{root}/staging")

    # --- names and lookups

    def ids(self) -> list[str]:
        """All of them, in no order. Raises `StorageError` where the store can't be read."""
        try:
            return os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            from ..storage.store import cannot_use

            raise cannot_use(self.root, error) from error

    def find(self, name: str) -> str:
        """The id of a container by id, name or unique id prefix, in that order. Raises `NotFound`."""
        if set(name) <= _HEXADECIMAL and len(name) == 64 and os.path.isdir(f"{self.directory}/{name}"):
            return name
        if "/" not in name and name not in ("", ".", ".."):
            try:
                with open(f"{self.root}/names/{name}") as file:
                    id = file.read()
                if id and os.path.isdir(f"{self.directory}/{id}"):
                    return id
            except PermissionError as error:
                from ..storage.store import cannot_use

                raise cannot_use(self.root, error) from error
            except OSError:
                pass
        if name and set(name) <= _HEXADECIMAL:
            matches = [id for id in self.ids() if id.startswith(name)]
            if len(matches) == 1:
                return matches[0]
            if matches:
                raise Conflict(
                    f"the prefix {name!r} fits {len(matches)} containers",
                    hint="Give more digits: pyrun ps -a.",
                )
        raise NotFound(f"no such container: {name}", hint="`pyrun ps -a` lists them.")

    def load(self, id: str) -> Container:
        """The record of one container, as its files and its lock tell. Raises `NotFound`."""
        directory = f"{self.directory}/{id}"
        try:
            config = records.read(f"{directory}/config.json")
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no such container: {id[:12]}") from None
        state = self._state(id)
        fields = {key: config[key] for key in _CONFIG}
        for key in ("error", "exit_code", "finished", "pid", "started", "status"):
            fields[key] = state[key]
        if state["status"] == "running" and not self.supervised(id):
            # Not recovered yet (that needs write access): what will be written then is true already.
            fields.update(status="exited", exit_code=KILLED, error=_LOST, pid=0)
        return Container(**fields)

    def all(self) -> Iterator[Container]:
        """Every container, newest first, but for those that vanish meanwhile or whose record is damaged."""
        found = []
        for id in self.ids():
            try:
                found.append(self.load(id))
            except (PyrunError, KeyError, TypeError):
                continue
        found.sort(key=lambda container: -container.created)
        return iter(found)

    def spec(self, id: str) -> dict[str, Any]:
        try:
            spec: dict[str, Any] = records.read(f"{self.directory}/{id}/spec.json")
        except FileNotFoundError:
            raise NotFound(f"container {id[:12]} was never started, so it has no runtime spec yet") from None
        return spec

    def writable(self, id: str) -> str:
        """The path of the container's writable layer. Raises `NotFound`."""
        try:
            config = records.read(f"{self.directory}/{id}/config.json")
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"no such container: {id[:12]}") from None
        return f"{self.directory}/{id}/{config.get('rw', 'rw')}"

    def leftover_writables(self, id: str) -> list[tuple[str, str]]:
        """(path, driver) of writable layers that the container had before it was moved to another driver, or
        that a migration did not get to use."""
        directory = f"{self.directory}/{id}"
        try:
            own = os.path.basename(self.writable(id))
        except (PyrunError, OSError, AttributeError):
            return []
        return [(f"{directory}/{n}", d) for n, d in _writables(directory, "") if n != own]

    def remove_leftovers(self, id: str, remove: Callable[[str, str], None]) -> None:
        """Remove the `leftover_writables`."""
        for path, driver in self.leftover_writables(id):
            remove(path, driver)

    def _state(self, id: str) -> dict[str, Any]:
        """The state record; what a power cut made of it counts as ended."""
        try:
            state = records.read(f"{self.directory}/{id}/state.json")
            if isinstance(state, dict) and state.keys() >= new_state("").keys():
                return state
        except (OSError, PyrunError):
            pass
        return {**new_state("exited"), "exit_code": KILLED, "error": "its state record was lost"}

    def process(self, id: str) -> int | None:
        """The pidfd of the first process of ``id``, the caller's to close; None where it is no more. The pid counts
        only with its start time and this boot, or a stranger's process could be meant."""
        state = self._state(id)
        return self._process(state, state["pid"], state["pid_start"])

    def supervisor(self, id: str) -> int | None:
        """As `process`, of the pyrun that runs ``id``."""
        state = self._state(id)
        if state["status"] != "running":
            return None
        return self._process(state, state["supervisor"], state["supervisor_start"])

    def rootfs(self, id: str) -> tuple[int, int] | None:
        """Device and inode of the root directory that ``id`` was last started with; None before its first start."""
        found = self._state(id).get("rootfs")
        return (found[0], found[1]) if found else None

    def reading(self, id: str) -> Lock:
        """The lock of whoever reads the container's files (see `pyrun.containers.view`)."""
        return Lock(f"{self.root}/locks/reading-{id}")

    def is_read(self, id: str) -> bool:
        """Whether somebody reads the container's files now."""
        lock = self.reading(id)
        if not lock.acquire(wait=False):
            return True
        lock.release()
        return False

    # --- making and changing

    def commit(self, stage: Stage, config: dict[str, Any], *, durable: bool) -> str:
        """Turn a staged directory into a container by one rename; returns its directory. The stage's lock
        goes along: the caller now supervises the container."""
        records.write(f"{stage.path}/config.json", config, durable=durable)
        records.write(f"{stage.path}/state.json", new_state("created"), durable=durable)
        directory = f"{self.directory}/{config['id']}"
        os.rename(stage.path, directory)
        if durable:
            sync_directory(self.directory)
        return directory

    def mark_running(self, id: str) -> None:
        """Leave word that ``id`` is in a supervisor's hands; called before its first process exists.

        The word is this store's root: several stores may share one state directory.
        """
        try:
            os.makedirs(self.running, mode=0o700, exist_ok=True)
            fd = os.open(f"{self.running}/{id}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, os.fsencode(self.root))
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageError(
                f"can't write below {self.running}: {error.strerror}",
                hint="Free some space, or choose another --state.",
            ) from error

    def set_state(self, id: str, state: dict[str, Any], *, durable: bool) -> None:
        records.write(f"{self.directory}/{id}/state.json", state, durable=durable)

    def unmark(self, id: str) -> None:
        try:
            os.unlink(f"{self.running}/{id}")
        except FileNotFoundError:
            pass

    def clear_staged(self, path: str, driver: str, remove: Callable[[str, str], None]) -> None:
        """Remove a staging entry of a dead process; one that was to be a container gives its name back."""
        try:
            claim = records.read(f"{path}/claim.json")
            claims.release(self.root, claim["name"], claim["id"])
        except (OSError, PyrunError, KeyError, TypeError):
            pass
        if any(os.path.isdir(f"{path}/{name}") for name, _ in _writables(path, driver)):
            remove_container_tree(path, driver, remove)
        else:
            remove(path, driver)

    def discard(self, id: str, name: str, driver: str, remove: Callable[[str, str], None]) -> None:
        """Remove a container that the caller has locked: record, name, writable layer, anonymous volumes."""
        failpoints.reach("remove.begin")
        try:
            stage = self.staging.receive(f"{self.directory}/{id}", driver)
        except FileNotFoundError:
            claims.release(self.root, name, id)
        else:
            failpoints.reach("remove.moved")
            try:
                # After the rename: whoever clears up after this process finds the name in claim.json.
                claims.release(self.root, name, id)
                remove_container_tree(stage.path, driver, remove)
            finally:
                stage.close()
        failpoints.reach("remove.removed")
        self.unmark(id)

    def remove(self, id: str, *, force: bool, remove: Callable[[str, str], None]) -> None:
        """Remove a container; a running one only by ``force``, which kills it.

        Raises `Conflict` for a running container without ``force``, and for one whose files are being read: with
        ``force`` it waits a while for their reader.
        """
        deadline = time.monotonic() + 10
        while True:
            container = self.load(id)
            try:
                lock = lock_directory(f"{self.directory}/{id}")
            except FileNotFoundError:
                return
            read = self.is_read(id)
            if lock is not None:
                if force or not read:
                    break
                os.close(lock)
            if not force:
                if container.status == "running":
                    raise Conflict(
                        f"the container {container.name} is running",
                        hint=f"Stop it first, or remove it by force: pyrun rm -f {container.name}",
                    )
                raise Conflict(
                    f"the container {container.name} is in use",
                    hint="Wait until its files were read (diff, export, commit), or what moves or removes it is done.",
                )
            left = deadline - time.monotonic()
            if container.status != "running":
                if left < 0:
                    raise Conflict(
                        f"the container {container.name} is in use, and that does not end",
                        hint="End the pyrun that reads its files (diff, export, commit) or moves it.",
                    )
                time.sleep(0.01)
                continue
            self._kill(id)
            if left < 8:
                # The container is dead, its pyrun is not done: stopped, or it can't write the last output.
                self._kill_supervisor(id)
            if left < 0:
                raise ContainerError(
                    f"the pyrun of the container {container.name} does not end, even by SIGKILL"
                )
            time.sleep(0.01)
        try:
            self._kill(id)
            self.discard(id, container.name, container.driver, remove)
        finally:
            os.close(lock)

    def remove_damaged(self, id: str, driver: str, remove: Callable[[str, str], None]) -> None:
        """Remove a container whose record can't be read, and kill what it runs. ``driver`` is taken for the one
        that made it. Raises `Conflict` where somebody has it in hand."""
        lock = lock_directory(f"{self.directory}/{id}")
        if lock is None:
            raise Conflict(f"the container {id[:12]} is in use", hint="End the pyrun that runs it first.")
        try:
            self._kill(id)
            names = [name for name in os.listdir(f"{self.root}/names") if self._owns(id, name)]
            self.discard(id, names[0] if names else id, driver, remove)
        finally:
            os.close(lock)

    def _owns(self, id: str, name: str) -> bool:
        try:
            with open(f"{self.root}/names/{name}") as file:
                return file.read() == id
        except OSError:
            return False

    # --- after a crash

    def lost(self) -> list[str]:
        """Ids of containers whose supervisor died while it had them in hand."""
        try:
            marked = os.listdir(self.running)
        except FileNotFoundError:
            return []
        return [id for id in marked if not self.supervised(id) and self._is_mine(id)]

    def _is_mine(self, id: str) -> bool:
        """Whether the marker of ``id`` is about a container of this store."""
        if os.path.isdir(f"{self.directory}/{id}"):
            return True
        try:
            with open(f"{self.running}/{id}", "rb") as file:
                return os.fsdecode(file.read()) == self.root
        except OSError:
            return False

    def abandoned(self) -> list[str]:
        """Ids of --rm containers that nobody has in hand: their maker died before it could mark them."""
        found = []
        for id in self.ids():
            try:
                rm = records.read(f"{self.directory}/{id}/config.json")["options"]["rm"]
            except (OSError, PyrunError, KeyError, TypeError):
                continue
            if rm and not self.supervised(id):
                found.append(id)
        return found

    def recover(self, ids: list[str], remove: Callable[[str, str], None]) -> None:
        """End what the containers ``ids`` left running, set their records right, remove those of ``--rm``."""
        for id in ids:
            try:
                lock = lock_directory(f"{self.directory}/{id}")
            except (FileNotFoundError, NotADirectoryError):
                self.unmark(id)
                continue
            if lock is None:
                continue
            try:
                self._kill(id)
                config = records.read(f"{self.directory}/{id}/config.json")
                state = self._state(id)
                if config["options"]["rm"]:
                    self.discard(id, config["name"], config["driver"], remove)
                    continue
                if state["status"] == "running":
                    state.update(status="exited", exit_code=KILLED, error=_LOST, pid=0, finished=time.time())
                    self.set_state(id, state, durable=True)
                self.unmark(id)
            except (OSError, PyrunError, KeyError, TypeError):
                # A full disk, or a damaged record, must not stop every command, the one that frees space
                # included. `load` tells the truth meanwhile, and the next command tries again.
                continue
            finally:
                os.close(lock)

    def supervised(self, id: str) -> bool:
        """Whether some process has the container in hand: runs it, makes it, or removes it."""
        try:
            lock = lock_directory(f"{self.directory}/{id}")
        except (FileNotFoundError, NotADirectoryError):
            return False
        if lock is None:
            return True
        os.close(lock)
        return False

    def _kill(self, id: str) -> None:
        """SIGKILL the first process of ``id`` if it lives, and wait for its end."""
        state = self._state(id)
        self._end_process(state, state["pid"], state["pid_start"])

    def _kill_supervisor(self, id: str) -> None:
        state = self._state(id)
        self._end_process(state, state["supervisor"], state["supervisor_start"])

    def _process(self, state: dict[str, Any], pid: int, started: str) -> int | None:
        if not pid or state["boot"] != boot_id():
            return None
        from ..kernel.process import pidfd_of

        return pidfd_of(pid, started)

    def _end_process(self, state: dict[str, Any], pid: int, started: str) -> None:
        pidfd = self._process(state, pid, started)
        if pidfd is None:
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            import select

            select.select([pidfd], [], [], 10)
        except ProcessLookupError:
            pass
        finally:
            os.close(pidfd)


_LOST = "its supervisor was killed"


def new_state(status: str) -> dict[str, Any]:
    return {
        "status": status,
        "pid": 0,
        "pid_start": "",
        "supervisor": 0,
        "supervisor_start": "",
        "boot": boot_id(),
        "exit_code": 0,
        "error": "",
        "started": 0.0,
        "finished": 0.0,
    }


def remove_container_tree(path: str, driver: str, remove: Callable[[str, str], None]) -> None:
    """Remove a container's directory: writable layers by their drivers, the rest as plain files."""
    from ..layers.remove import remove_tree

    for name, owner in _writables(path, driver):
        remove(f"{path}/{name}", owner)
    remove_tree(path)


def _writables(directory: str, driver: str) -> list[tuple[str, str]]:
    """(name, driver) of every writable layer in a container's directory. ``rw`` is of the driver that the
    container was made with: after a migration ``config.json`` knows it as "made_by"; else it is ``driver``."""
    found = []
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        if name == "rw":
            try:
                config = records.read(f"{directory}/config.json")
                found.append((name, config.get("made_by") or config["driver"]))
            except (OSError, PyrunError, KeyError, AttributeError):
                found.append((name, driver))
        elif name.startswith("rw-"):
            found.append((name, name.removeprefix("rw-")))
    return found
