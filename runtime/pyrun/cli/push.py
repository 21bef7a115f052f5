"""``pyrun push``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..errors import PyrunError, UsageError
from ..images.reference import Reference
from . import options as shared
from .output import flush, json_text, warn, write
from .session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..images.transfer.push import PushResult


def push(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="NAME[:TAG]", autocompletion=shared.complete_image)],
    destination: Annotated[
        str | None, typer.Argument(metavar="[DESTINATION]", autocompletion=shared.complete_image)
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
    progress: shared.ProgressKind = "auto",
    disable_content_trust: Annotated[
        bool | None,
        typer.Option(
            "--disable-content-trust",
            help="Accepted as docker does: nothing is ever signed with Docker Content Trust",
        ),
    ] = None,
    creds: shared.Creds = None,
    authfile: shared.AuthFile = None,
    cert_dir: shared.CertDir = None,
    tls_verify: shared.TlsVerify = None,
) -> None:
    """Upload an image to a registry

    The image goes to the registry that its name tells of, or to DESTINATION; then NAME may be an ID, too. What the
    registry has already is not sent. Manifests are sent byte for byte as they are stored, so digests stay: of an image
    that came from an index, the whole index if all that it lists is in the store, else the manifest of its platform.

    With --progress=json every line is an object: {"id", "status"} of a layer, with "current" and "total" bytes while
    they count, and last {"status": "Pushed", "reference", "digest", "size"} of each name.
    """
    if all_platforms and platform is not None:
        raise UsageError("--all-platforms and --platform exclude each other")
    if all_tags and (destination is not None or digestfile is not None):
        other = "--digestfile" if destination is None else "a destination"
        raise UsageError(f"--all-tags and {other} exclude each other")
    from .progress import display_of

    display = display_of("none" if quiet else progress, sys.stdout)
    if disable_content_trust is False:
        warn("pyrun: note: Docker Content Trust is not in use any more: images are pushed unsigned")
    engine = session(context).engine()
    access = shared.access(creds, authfile, cert_dir, tls_verify)
    reference = None if destination is not None or all_tags else Reference.parse(image)
    if reference is not None and reference.implicit and display is not None and display.words:
        write(f"Using default tag: {reference.tag}\n")
        flush()
    done: list[PushResult]
    if all_tags:
        done = engine.push_all(
            image, platform=platform, all_platforms=all_platforms, access=access, progress=display
        )
    else:
        done = [
            engine.push(
                image,
                destination,
                platform=platform,
                all_platforms=all_platforms,
                access=access,
                progress=display,
            )
        ]
    if digestfile is not None:
        _write_digest(digestfile, done[0].digest)
    for pushed in done:
        if quiet:
            write(f"{pushed.reference}\n")
        elif progress == "json":
            event = {
                "status": "Pushed",
                "reference": pushed.reference,
                "digest": pushed.digest,
                "size": pushed.size,
            }
            write(json_text(event) + "\n")


def _write_digest(path: str, digest: str) -> None:
    """The digest alone, without a line's end, as podman writes it."""
    from ..images.archives.outlet import file_at, words

    try:
        with file_at(path) as fd, words(path):
            os.write(fd, digest.encode())
    except PyrunError as error:
        raise PyrunError(f"the image was pushed as {digest}, and {error.message}", hint=error.hint) from error
