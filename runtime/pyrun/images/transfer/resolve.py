"""From a reference to what it stands for, by the first endpoint that has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import ImageError
from ..registry.failures import failed

if TYPE_CHECKING:
    from ..content import ContentStore
    from ..platform import Platform
    from ..reference import Reference
    from ..registry.client import RegistryClient
    from .documents import Resolved


def resolve(
    reference: Reference,
    platform: Platform,
    content: ContentStore,
    clients: Sequence[RegistryClient],
    known: str | None = None,
) -> Resolved | None:
    """Ask each client in turn; store what is fetched. One that can't be reached, or lacks the image, or
    serves damaged content or what is no image gives way to the next. None where the digest is ``known``: one
    HEAD request has told that there is nothing new, and nothing else was asked for.

    Raises `ImageError` or one of its kinds; where all failed, the message has every endpoint's reason.
    """
    failures: list[tuple[object, ImageError]] = []
    for at, client in enumerate(clients):
        try:
            digest, fetched = _digest(reference, client)
            if digest == known:
                return None
            from .documents import read

            order = [*clients[at:], *clients[:at]]
            return read(reference.familiar, digest, fetched, platform, content, client, order)
        except ImageError as error:
            failures.append((client.endpoint, error))
    raise failed(reference.familiar, failures)


def _digest(reference: Reference, client: RegistryClient) -> tuple[str, tuple[bytes, str] | None]:
    """What the name stands for; and the bytes and media type, where the registry does not tell it to a HEAD."""
    if reference.digest:
        return reference.digest, None
    tag = client.endpoint.tag or str(reference.tag)
    digest = client.head_manifest(tag)
    if digest is not None:
        return digest, None
    data, media_type, digest = client.get_manifest(tag)
    return digest, (data, media_type)
