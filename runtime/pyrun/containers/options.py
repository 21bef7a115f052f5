"""What a caller asks of a new container. On the path of `run`: a plain class, no imports."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class ContainerOptions:
    """The options of ``run``, as the user gave them; None and empty mean "as the image says".

    env         "NAME=value", or "NAME" to take the value from the caller's environment (unset: left out)
    env_files   files of such lines; ``#`` starts a comment line
    user        "name|uid[:group|gid]"
    entrypoint  replaces the image's ENTRYPOINT and drops its CMD; an empty string clears it
    volumes     "HOST:CONTAINER[:ro|rw]" bind mounts; a bare "/CONTAINER" is an anonymous volume
    tmpfs       "CONTAINER[:option,...]"
    network     "none" or "host"; None is "none" for now
    userns      None: the configured default (a user namespace of the container's own), or "host"
    """

    __slots__ = (
        "entrypoint",
        "env",
        "env_files",
        "hostname",
        "interactive",
        "name",
        "network",
        "read_only",
        "rm",
        "tmpfs",
        "tty",
        "user",
        "userns",
        "volumes",
        "workdir",
    )

    def __init__(
        self,
        *,
        name: str | None = None,
        env: Sequence[str] = (),
        env_files: Sequence[str] = (),
        workdir: str | None = None,
        user: str | None = None,
        entrypoint: str | None = None,
        volumes: Sequence[str] = (),
        tmpfs: Sequence[str] = (),
        read_only: bool = False,
        hostname: str | None = None,
        network: str | None = None,
        userns: str | None = None,
        tty: bool = False,
        interactive: bool = False,
        rm: bool = False,
    ) -> None:
        self.name = name
        self.env = list(env)
        self.env_files = list(env_files)
        self.workdir = workdir
        self.user = user
        self.entrypoint = entrypoint
        self.volumes = list(volumes)
        self.tmpfs = list(tmpfs)
        self.read_only = read_only
        self.hostname = hostname
        self.network = network
        self.userns = userns
        self.tty = tty
        self.interactive = interactive
        self.rm = rm
