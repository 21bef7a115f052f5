"""``pyrun save`` and ``pyrun image save``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..errors import UsageError
from . import options as shared
from .session import session


def save(
    context: typer.Context,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", autocompletion=shared.complete_image)],
    output: Annotated[
        str,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write to this file, or directory, instead of standard output",
            click_type=shared.complete_file,
        ),
    ] = "",
    format: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="docker-archive (which is an OCI archive, too), oci-archive, oci-dir or docker-dir",
            autocompletion=shared.one_of("docker-archive", "oci-archive", "oci-dir", "docker-dir"),
        ),
    ] = "docker-archive",
    multi: Annotated[
        bool,
        typer.Option(
            "-m",
            "--multi-image-archive",
            help="Save each IMAGE as one of its own (always so; podman needs to be told)",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing (always so)")] = False,
    platform: shared.PlatformName = None,
) -> None:
    """Write images to an archive"""
    if multi and format == "docker-dir":
        raise UsageError("--multi-image-archive: docker-dir holds one image", hint="Use docker-archive.")
    if not output and os.isatty(1):
        raise UsageError(
            "an archive is not written to a terminal", hint="Name a file with -o, or redirect the output."
        )
    session(context).engine().save(images, output or 1, format=format, platform=platform)
