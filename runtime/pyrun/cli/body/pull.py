"""Pulls an image. On the path of `pull`, most of which find the image here already."""

from __future__ import annotations

import sys

from ...images.reference import Reference
from ..access import access
from ..output import flush, warn, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...images.record import PullResult
    from ..progress import Display
    from ..session import Session


def pull(
    session: Session,
    *,
    image: str,
    all_tags: bool,
    quiet: bool,
    platform: str | None,
    progress: str,
    creds: str | None,
    authfile: str | None,
    cert_dir: str | None,
    tls_verify: bool | None,
    disable_content_trust: bool | None,
    storage: str | None,
    storage_opt: Sequence[str] | None,
) -> int:
    """``pyrun pull``."""
    reference = Reference.parse(image)
    from ..progress import display_of

    display = display_of("none" if quiet else progress, sys.stdout)
    if disable_content_trust is False:
        warn(
            "pyrun: note: Docker Content Trust is not in use any more: digests are verified, signatures are not"
        )
    allowed = access(creds, authfile, cert_dir, tls_verify)
    engine = session.engine(storage, storage_opt or ())
    if all_tags:
        name = reference.familiar_repository

        def pulled(result: PullResult) -> None:
            if display is not None:
                _outcome(result, display, "")

        results = engine.pull_all(image, platform=platform, access=allowed, progress=display, pulled=pulled)
        if display is not None and display.words:
            newer = any(result.newer for result in results)
            write(f"Status: {_status(newer)} for {name}\n")
        if display is None or display.words:
            write(f"{reference.repository}\n")
        return 0
    if reference.implicit and display is not None and display.words:
        write(f"Using default tag: {reference.tag}\n")
        flush()
    result = engine.pull(image, platform=platform, access=allowed, progress=display)
    if display is not None:
        _outcome(result, display, reference.familiar)
    if display is None or display.words:
        write(f"{result.image.reference}\n")
    return 0


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
