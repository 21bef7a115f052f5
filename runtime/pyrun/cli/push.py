"""``pyrun push``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..errors import PyrunError, UsageError
from ..images.reference import Reference
from . import options as shared
from .output import flush, write
from .session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..images.push import PushResult
    from ..images.record import Progress


def push(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="NAME[:TAG]", autocompletion=shared.complete_image)],
    destination: Annotated[
        str | None, typer.Argument(metavar="DESTINATION", autocompletion=shared.complete_image)
    ] = None,
    all_tags: Annotated[
        bool, typer.Option("-a", "--all-tags", help="Push all local tags of the repository")
    ] = False,
    all_platforms: Annotated[
        bool,
        typer.Option(
            "--all-platforms",
            help="Push the whole index that the image was pulled from, or fail where a part of it is not here",
        ),
    ] = False,
    platform: Annotated[
        str | None,
        typer.Option(
            "--platform", metavar="OS/ARCH[/VARIANT]", help="Of an index, push the manifest of this platform"
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only show the image's full name")] = False,
    digestfile: Annotated[
        str | None,
        typer.Option(
            "--digestfile",
            metavar="FILE",
            help="Write the digest of what was pushed to FILE",
            click_type=shared.complete_file,
        ),
    ] = None,
    disable_content_trust: Annotated[
        bool,
        typer.Option(
            "--disable-content-trust", help="For docker's scripts: there is no signing to be turned off"
        ),
    ] = True,
    creds: shared.Creds = None,
    authfile: shared.AuthFile = None,
    cert_dir: shared.CertDir = None,
    tls_verify: shared.TlsVerify = None,
) -> None:
    """Upload an image to a registry"""
    if all_platforms and platform is not None:
        raise UsageError("--all-platforms and --platform exclude each other")
    if all_tags and (destination is not None or digestfile is not None):
        other = "--digestfile" if destination is None else "a destination"
        raise UsageError(f"--all-tags and {other} exclude each other")
    if not disable_content_trust:
        raise UsageError(
            "--disable-content-trust=false: images can't be signed here",
            hint="Sign what was pushed, by its digest, with a tool for it.",
        )
    engine = session(context).engine()
    access = shared.access(creds, authfile, cert_dir, tls_verify)
    progress: Callable[[Progress], None] | None = None
    if not quiet and sys.stdout is not None:
        from .progress import PullDisplay

        progress = PullDisplay(sys.stdout)
        if destination is None and not all_tags and (reference := Reference.parse(image)).implicit:
            write(f"Using default tag: {reference.tag}\n")
            flush()
    done: list[PushResult]
    if all_tags:
        done = engine.push_all(
            image, platform=platform, all_platforms=all_platforms, access=access, progress=progress
        )
    else:
        done = [
            engine.push(
                image,
                destination,
                platform=platform,
                all_platforms=all_platforms,
                access=access,
                progress=progress,
            )
        ]
    if digestfile is not None:
        _write_digest(digestfile, done[0].digest)
    if quiet:
        for pushed in done:
            write(f"{pushed.reference}\n")


def _write_digest(path: str, digest: str) -> None:
    """The digest alone, without a line's end, as podman writes it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        with open(fd, "w") as file:
            file.write(digest)
    except OSError as error:
        raise PyrunError(
            f"the image was pushed as {digest}, and {path} can't be written: {error.strerror}"
        ) from error
