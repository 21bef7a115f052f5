"""``pyrun pull``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as shared
from .session import session


def pull(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="NAME[:TAG|@DIGEST]", autocompletion=shared.complete_image)],
    all_tags: Annotated[
        bool, typer.Option("-a", "--all-tags", help="Download all tagged images in the repository")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only show the image's full name")] = False,
    platform: shared.PlatformName = None,
    progress: shared.ProgressKind = "auto",
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
) -> int:
    """Download an image from a registry

    What is here already is not downloaded again; a download that broke off is gone on with by the next pull, whatever
    ended it, for a week (`pyrun system prune` removes it).

    With --progress=json every line is an object: {"id", "status"} of a layer or tag, with "current" and "total" bytes
    while they count, and last {"status", "reference", "digest", "image", "newer"} of each image.
    """
    from .body import pull as body

    return body.pull(
        session(context),
        image=image,
        all_tags=all_tags,
        quiet=quiet,
        platform=platform,
        progress=progress,
        creds=creds,
        authfile=authfile,
        cert_dir=cert_dir,
        tls_verify=tls_verify,
        disable_content_trust=disable_content_trust,
        storage=storage,
        storage_opt=storage_opt,
    )
