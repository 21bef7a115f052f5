"""``pyrun pull``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..images.reference import Reference
from . import options as shared
from .output import flush, warn, write
from .session import session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..images.record import PullResult
    from .progress import Display


def pull(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="NAME[:TAG|@DIGEST]", autocompletion=shared.complete_image)],
    all_tags: Annotated[
        bool, typer.Option("-a", "--all-tags", help="Download all tagged images in the repository")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only show the image's full name")] = False,
    platform: shared.PlatformName = None,
    progress: Annotated[
        str,
        typer.Option(
            "--progress",
            metavar="KIND",
            help="'tty' (a bar a layer), 'plain' (a line a change), 'json' (an object a line), 'none', or 'auto':"
            " tty on a terminal, else plain",
            autocompletion=shared.one_of("auto", "json", "none", "plain", "tty"),
        ),
    ] = "auto",
    creds: shared.Creds = None,
    authfile: shared.AuthFile = None,
    cert_dir: shared.CertDir = None,
    tls_verify: shared.TlsVerify = None,
    disable_content_trust: Annotated[
        bool | None,
        typer.Option(
            "--disable-content-trust",
            help="Accepted as docker does: digests are always verified, signatures of Docker Content Trust never",
        ),
    ] = None,
    storage: shared.Storage = None,
    storage_opt: shared.StorageOpt = None,
) -> None:
    """Download an image from a registry

    What is here already is not downloaded again; a download that broke off is gone on with by the next pull, whatever
    ended it, for a week (`pyrun system prune` removes it).

    With --progress=json every line is an object: {"id", "status"} of a layer or tag, with "current" and "total" bytes
    while they count, and last {"status", "reference", "digest", "image", "newer"} of each image.
    """
    reference = Reference.parse(image)
    from .progress import display_of

    display = display_of("none" if quiet else progress, sys.stdout)
    if disable_content_trust is False:
        warn(
            "pyrun: note: Docker Content Trust is not in use any more: digests are verified, signatures are not"
        )
    access = shared.access(creds, authfile, cert_dir, tls_verify)
    engine = session(context).engine(storage, storage_opt or ())
    if all_tags:
        name = reference.familiar_repository

        def pulled(result: PullResult) -> None:
            if display is not None:
                _outcome(result, display, "")

        results = engine.pull_all(image, platform=platform, access=access, progress=display, pulled=pulled)
        if display is not None and display.words:
            newer = any(result.newer for result in results)
            write(f"Status: {_status(newer)} for {name}\n")
        if display is None or display.words:
            write(f"{reference.repository}\n")
        return
    if reference.implicit and display is not None and display.words:
        write(f"Using default tag: {reference.tag}\n")
        flush()
    result = engine.pull(image, platform=platform, access=access, progress=display)
    if display is not None:
        _outcome(result, display, reference.familiar)
    if display is None or display.words:
        write(f"{result.image.reference}\n")


def _status(newer: bool) -> str:
    return "Downloaded newer image" if newer else "Image is up to date"


def _outcome(result: PullResult, display: Display, name: str) -> None:
    """What came of one image: docker's last lines, or the last event. ``name`` "": the status is told for all."""
    if not display.words:
        display.finish(result, _status(result.newer))
        return
    display.restart()
    write(f"Digest: {result.image.digest}\n")
    if name:
        write(f"Status: {_status(result.newer)} for {name}\n")
    flush()
