"""Makes a container of an image and runs it in the foreground. On the path of `run`."""

from __future__ import annotations

import os
import sys

from ...errors import PyrunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ...images.record import Progress
    from ..session import Session


class _Progress:
    """A `PullDisplay` on standard error, imported with the first step: a local image needs none."""

    def __init__(self) -> None:
        self.display: Callable[[Progress], None] | None = None

    def __call__(self, step: Progress) -> None:
        if sys.stderr is None:
            return  # the caller closed it
        if self.display is None:
            from ..progress import PullDisplay

            self.display = PullDisplay(sys.stderr)
        self.display(step)


def run(
    session: Session,
    *,
    image: str,
    command: Sequence[str] | None,
    interactive: bool,
    tty: bool,
    rm: bool,
    name: str | None,
    env: Sequence[str] | None,
    env_file: Sequence[str] | None,
    workdir: str | None,
    user: str | None,
    entrypoint: str | None,
    volume: Sequence[str] | None,
    network: str | None,
    hostname: str | None,
    read_only: bool,
    tmpfs: Sequence[str] | None,
    pull: str,
    platform: str | None,
    storage: str | None,
    storage_opt: Sequence[str] | None,
    userns: str | None,
) -> int:
    if interactive and tty and not os.isatty(0):
        raise PyrunError("the input device is not a TTY", hint="Leave out -t, or run this in a terminal.")
    session.failure, session.shows_usage = 125, True

    from ...containers.options import ContainerOptions

    container = ContainerOptions(
        name=name,
        env=env or (),
        env_files=env_file or (),
        workdir=workdir,
        user=user,
        entrypoint=entrypoint,
        volumes=volume or (),
        tmpfs=tmpfs or (),
        read_only=read_only,
        hostname=hostname,
        network=network,
        userns=userns,
        tty=tty,
        interactive=interactive,
        rm=rm,
    )
    return session.engine(storage, storage_opt or ()).run(
        image, command or (), container, pull=pull, platform=platform, progress=_Progress()
    )
