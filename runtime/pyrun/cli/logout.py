"""``pyrun logout``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import Conflict, UsageError
from . import options as shared
from .login import CompatFile
from .output import warn, write
from .session import session


def logout(
    context: typer.Context,
    server: Annotated[
        str | None, typer.Argument(metavar="[SERVER]", autocompletion=shared.complete_registry)
    ] = None,
    all: Annotated[bool, typer.Option("-a", "--all", help="Log out from every registry")] = False,
    authfile: Annotated[
        str | None,
        typer.Option(
            "--authfile",
            metavar="FILE",
            help="Take the credentials out of this file (REGISTRY_AUTH_FILE)",
            click_type=shared.complete_file,
        ),
    ] = None,
    compat_auth_file: CompatFile = None,
) -> None:
    """Log out from a registry

    Credentials are taken out of where `pyrun login` keeps them. What docker keeps in ~/.docker/config.json stays,
    unless --compat-auth-file names that file.
    """
    engine = session(context).engine()
    if all:
        if server is not None:
            raise UsageError("--all takes no SERVER")
        engine.logout_all(authfile=authfile, compat_file=compat_auth_file)
        write("Removed login credentials for all registries\n")
        return
    done = engine.logout(
        "docker.io" if server is None else server, authfile=authfile, compat_file=compat_auth_file
    )
    if done.removed:
        write(f"Removing login credentials for {done.server}\n")
        if done.left:
            warn(f"pyrun: {done.server} is still asked with the {done.left}")
    elif done.left:
        raise Conflict(
            f"{done.server} is asked with the {done.left}, which pyrun login did not put there",
            hint="Log out with the program that did, or name the file: --authfile or --compat-auth-file.",
        )
    else:
        write(f"Not logged in to {done.server}\n")
