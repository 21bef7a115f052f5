"""``pyrun run``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import click
import typer

from ..errors import PyrunError
from . import options as shared
from .session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..images.record import Progress

# Everything after IMAGE is the container's; -h is --hostname.
SETTINGS = {"allow_interspersed_args": False, "help_option_names": ["--help"]}

PULL_POLICIES = ("always", "missing", "never")


class _Progress:
    """A `PullDisplay` on standard error, imported with the first step: a local image needs none."""

    def __init__(self) -> None:
        self.display: Callable[[Progress], None] | None = None

    def __call__(self, step: Progress) -> None:
        if self.display is None:
            from .progress import PullDisplay

            self.display = PullDisplay(sys.stderr)
        self.display(step)


def run(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=shared.complete_image)],
    command: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND] [ARG...]")] = None,
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Keep standard input open")
    ] = False,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give the container a terminal")] = False,
    rm: Annotated[bool, typer.Option("--rm", help="Remove the container when it exits")] = False,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name the container")] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "-e", "--env", metavar="NAME[=VALUE]", help="Set an environment variable, or pass on the caller's"
        ),
    ] = None,
    env_file: Annotated[
        list[str] | None,
        typer.Option(
            "--env-file",
            metavar="FILE",
            help="Read environment variables from a file",
            click_type=shared.complete_file,
        ),
    ] = None,
    workdir: Annotated[
        str | None, typer.Option("-w", "--workdir", metavar="DIR", help="Working directory in the container")
    ] = None,
    user: Annotated[
        str | None,
        typer.Option("-u", "--user", metavar="NAME|UID[:GROUP|GID]", help="User to run the command as"),
    ] = None,
    entrypoint: Annotated[
        str | None,
        typer.Option("--entrypoint", metavar="COMMAND", help='Replace the image\'s entrypoint ("" for none)'),
    ] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option(
            "-v",
            "--volume",
            metavar="[HOST:]DIR[:ro]",
            help="Bind-mount a host path, or keep DIR apart from the image",
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            "--network", metavar="MODE", help="'none' or 'host'", autocompletion=shared.one_of("none", "host")
        ),
    ] = None,
    hostname: Annotated[
        str | None, typer.Option("-h", "--hostname", metavar="NAME", help="Host name in the container")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Make the container's root file system read-only")
    ] = False,
    tmpfs: Annotated[
        list[str] | None, typer.Option("--tmpfs", metavar="DIR[:OPTIONS]", help="Mount a tmpfs")
    ] = None,
    pull: Annotated[
        str,
        typer.Option(
            "--pull",
            metavar="|".join(PULL_POLICIES),
            help="When to download the image (default: missing)",
            click_type=click.Choice(PULL_POLICIES),
        ),
    ] = "missing",
    platform: shared.PlatformName = None,
    storage: shared.Storage = None,
    storage_opt: shared.StorageOpt = None,
    userns: Annotated[
        str | None,
        typer.Option(
            "--userns",
            metavar="MODE",
            help="'host': run in the caller's user namespace",
            autocompletion=shared.one_of("host"),
        ),
    ] = None,
) -> int:
    """Create a container from an image and run it"""
    if interactive and tty and not os.isatty(0):
        raise PyrunError("the input device is not a TTY", hint="Leave out -t, or run this in a terminal.")
    own = session(context)
    own.failure, own.shows_usage = 125, True

    from ..containers.options import ContainerOptions

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
    return own.engine(storage, storage_opt or ()).run(
        image, command or (), container, pull=pull, platform=platform, progress=_Progress()
    )
