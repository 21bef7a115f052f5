"""Pulling images, by the Python API. On the path of `run`."""

from __future__ import annotations

import os

from ..errors import NotFound, UsageError
from .catalogue import CatalogueMethods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ..images.record import Image, Progress, PullResult
    from ..images.registry.access import Access


class ImageMethods(CatalogueMethods):
    """What `Engine` does with images."""

    def pull(
        self,
        reference: str,
        *,
        platform: str | None = None,
        access: Access | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> PullResult:
        """Pull an image by name: nothing is fetched that is here already, nothing unverified is kept.

        reference  "name[:tag][@digest]"; an alias of registries.conf, too
        platform   "os/arch[/variant]" to choose where the name stands for several; None: DOCKER_DEFAULT_PLATFORM,
                   else the host's
        access     credentials and certificates (`pyrun.images.registry.access.Access`); None: those configured
        progress   called in this process with each step

        What is here of a layer whose download broke off, in this process or an earlier one, is gone on with. The
        process must have one thread. Raises `InvalidReference`, `RegistryError`, `Unauthorized`, `ManifestUnknown`,
        `PlatformUnavailable`, `DigestMismatch`, `LayerError`, `StorageError`; no name stands for a half-made image.
        """
        if self._size is not None:
            raise UsageError("--storage-opt size= limits a container; an image has the size it has")
        return self._pull(reference, platform, progress, access)

    def pull_all(
        self,
        repository: str,
        *,
        platform: str | None = None,
        access: Access | None = None,
        progress: Callable[[Progress], None] | None = None,
        pulled: Callable[[PullResult], None] | None = None,
    ) -> list[PullResult]:
        """Pull every tag of ``repository``, in the registry's order; arguments as for `pull`. ``pulled`` is called
        after each.

        A tag that stands for no image, or for none of the platform, is an error; those before it stay pulled.
        Raises as `pull` does, and `UsageError` where the name has a tag or digest.
        """
        from ..images.reference import Reference
        from ..images.registry.registries import Registries
        from ..images.transfer.pull import all_tags

        if self._size is not None:
            raise UsageError("--storage-opt size= limits a container; an image has the size it has")
        parsed = Reference.parse(repository)
        if parsed.digest or not parsed.implicit:
            raise UsageError(
                f"tag can't be used with --all-tags/-a: {repository!r} has one, or a digest",
                hint=f"Write the name alone: {parsed.familiar_repository}",
            )
        registries = Registries.load()
        results = []
        for tag in all_tags(registries.reference(repository), registries, access):
            result = self._pull(f"{repository}:{tag}", platform, progress, access)
            results.append(result)
            if pulled is not None:
                pulled(result)
        return results

    def _pull(
        self,
        reference: str,
        platform: str | None,
        progress: Callable[[Progress], None] | None,
        access: Access | None = None,
    ) -> PullResult:
        from ..images.record import Progress
        from ..images.registry.access import Access
        from ..images.registry.registries import Registries
        from ..images.transfer.pull import pull

        registries = Registries.load()
        parsed = registries.reference(reference)
        if access is None:
            access = Access(notice=lambda text: progress(Progress("", text)) if progress else None)
        if os.geteuid():
            access = access.ahead(registries.endpoints(parsed))  # `_open` enters a user namespace
        store = self._open()
        images = self._images()
        return pull(
            parsed,
            platform=platform,
            content=images.content,
            images=images,
            layers=store.layers,
            registries=registries,
            access=access,
            progress=progress,
        )

    def _local_or_pulled(
        self, name: str, policy: str, platform: str | None, progress: Callable[[Progress], None] | None
    ) -> Image:
        if policy != "always":
            try:
                found = self._local(name)
            except NotFound:
                if policy == "never":
                    raise
            else:
                from ..images.local import satisfies

                if platform is None and not os.environ.get("DOCKER_DEFAULT_PLATFORM"):
                    return found
                if satisfies(found, platform):
                    return found
                if policy == "never":
                    raise NotFound(f"the local image {name} is for {found.platform}, not {platform}")
        if not progress:
            return self._pull(name, platform, None).image
        from ..images.record import Progress
        from ..images.reference import Reference

        familiar = Reference.parse(name).familiar
        if policy != "always":
            progress(Progress("", f"Unable to find image '{familiar}' locally"))
        result = self._pull(name, platform, progress)
        progress(Progress("", f"Digest: {result.image.digest}"))
        outcome = "Downloaded newer image for" if result.newer else "Image is up to date for"
        progress(Progress("", f"Status: {outcome} {familiar}"))
        return result.image
