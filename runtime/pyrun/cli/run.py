"""``pyrun run``."""

from __future__ import annotations

from typing import Annotated

import click
import typer

from . import options as shared
from .session import session

# Everything after IMAGE is the container's; -h is --hostname.
SETTINGS = {"allow_interspersed_args": False, "help_option_names": ["--help"]}

PULL_POLICIES = ("always", "missing", "never")


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
            help="'auto' (a namespace of its own) or 'host' (the caller's)",
            autocompletion=shared.one_of("host"),
        ),
    ] = None,
) -> int:
    """Create a container from an image and run it"""
    from .body import run as body

    return body.run(
        session(context),
        image=image,
        command=command,
        interactive=interactive,
        tty=tty,
        rm=rm,
        name=name,
        env=env,
        env_file=env_file,
        workdir=workdir,
        user=user,
        entrypoint=entrypoint,
        volume=volume,
        network=network,
        hostname=hostname,
        read_only=read_only,
        tmpfs=tmpfs,
        pull=pull,
        platform=platform,
        storage=storage,
        storage_opt=storage_opt,
        userns=userns,
    )
