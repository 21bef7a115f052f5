"""The container record. On the path of `run`: a plain class, no imports."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Container:
    """One container as its two files tell: ``config.json`` (never changes) and ``state.json``.

    id          64 hex digits
    image       the reference as the user gave it; ``image_id`` the config digest
    layers      diff_ids or chain_ids, bottom to top; ``driver`` who unpacked them
    command     the whole argv
    created, started, finished  seconds since the epoch (float); 0.0: not yet
    status      "created", "running" or "exited"; ``exit_code`` counts once exited
    error       why a start failed, or what ended the container beside itself; "" otherwise
    options     the settings that inspect shows: tty, interactive, rm, network, userns, user, workdir,
                env (list), mounts (list), tmpfs (list), hostname, read_only, exposed_ports (list), entrypoint
                (list: the part of ``command`` that is it; older containers have none on record)
    """

    __slots__ = (
        "command",
        "created",
        "driver",
        "error",
        "exit_code",
        "finished",
        "id",
        "image",
        "image_id",
        "layers",
        "name",
        "options",
        "pid",
        "started",
        "status",
    )

    if TYPE_CHECKING:
        command: list[str]
        created: float
        driver: str
        error: str
        exit_code: int
        finished: float
        id: str
        image: str
        image_id: str
        layers: list[str]
        name: str
        options: dict[str, Any]
        pid: int
        started: float
        status: str

    def __init__(self, **fields: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, fields[name])

    def __repr__(self) -> str:
        return f"Container({self.name!r}, id={self.id!r}, image={self.image!r}, status={self.status!r})"
