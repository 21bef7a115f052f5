"""Pull: what is here already is found out first, and costs one request by tag, and none by digest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ...errors import DigestMismatch, ImageError, LayerError, RegistryError
from ...storage.locks import SharedLock
from ..content import ContentStore, out_of_space
from ..local import ImageStore
from ..platform import wanted
from ..record import Progress, PullResult
from ..reference import Reference
from .present import present

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..layerstore import LayerStore
    from ..registry.access import Access
    from ..registry.registries import Registries


def pull(
    reference: Reference,
    *,
    platform: str | None = None,
    content: ContentStore,
    images: ImageStore,
    layers: LayerStore,
    registries: Registries,
    access: Access | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> PullResult:
    """Bring the image of ``reference`` for ``platform`` (None: DOCKER_DEFAULT_PLATFORM, else the host's) into
    the stores, and name it.

    One HEAD request is all that goes over the network where the local image is up to date, and none where
    ``reference`` has a digest. ``progress`` is called in this process, in docker's words. The process must
    have one thread (layers are fetched in forked workers).

    Raises `ImageError` and its kinds (`RegistryError`, `ManifestUnknown`, `Unauthorized`,
    `PlatformUnavailable`, `DigestMismatch`), `LayerError`, `StorageError`.
    """
    try:
        locks = os.path.join(content.root, "locks")
        os.makedirs(locks, mode=0o700, exist_ok=True)
        with SharedLock(os.path.join(locks, "store")):
            asked = wanted(platform)
            endpoints = registries.endpoints(reference)  # a name that is blocked is refused here
            known = present(reference, asked, content, images, layers)
            if known is not None and reference.digest:
                if progress is not None:
                    progress(Progress(reference.digest, f"Pulling from {reference.path}"))
                return PullResult(known, False)
            from .pulling import Pulling

            pulling = Pulling(reference, asked, content, images, layers, endpoints, access, progress)
            return pulling.run(known)
    except ImageError as error:
        error.hint = error.hint or _hint(error)
        raise
    except LayerError as error:
        error.hint = error.hint or f"{reference.familiar} is broken or hostile; that layer was not unpacked."
        raise
    except OSError as error:
        raise out_of_space(error, str(error.filename or content.root)) from error


def _hint(error: ImageError) -> str:
    """What to do about an error that does not say so itself."""
    if isinstance(error, DigestMismatch):
        return "Nothing of it was kept. If it happens again, the registry or mirror serves bad content."
    if isinstance(error, RegistryError):
        return "The registry, or something on the way to it, misbehaves. Nothing of it was kept; try again later."
    return "Nothing of it was kept. The image has to be built or pushed again, if it is one."


def all_tags(reference: Reference, registries: Registries, access: Access | None = None) -> list[str]:
    """Every tag of ``reference``'s repository, as the first of its endpoints that can tells them.

    Raises `ImageError` or one of its kinds: `ManifestUnknown` where there is no such repository.
    """
    from ..registry.client import RegistryClient
    from ..registry.failures import failed

    failures: list[tuple[object, ImageError]] = []
    for endpoint in registries.endpoints(reference):
        client = RegistryClient(endpoint, reference.familiar_repository, access=access)
        try:
            return list(dict.fromkeys(client.tags()))
        except ImageError as error:
            failures.append((endpoint, error))
        finally:
            client.close()
    raise failed(f"the tags of {reference.familiar_repository}", failures)
