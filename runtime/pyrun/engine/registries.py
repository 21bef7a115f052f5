"""Registries, by the Python API. On the path of `run`."""

from __future__ import annotations

from .containers import ContainerMethods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..images.record import Progress
    from ..images.reference import Reference
    from ..images.registry.access import Access
    from ..images.registry.login import Login, Logout
    from ..images.registry.registries import Registries
    from ..images.registry.search import Found
    from ..images.transfer.push import PushResult


class RegistryMethods(ContainerMethods):
    """What `Engine` does with registries, pulling apart: credentials, pushing, searching."""

    def login(
        self,
        server: str = "docker.io",
        username: str = "",
        password: str = "",
        *,
        access: Access | None = None,
        compat_file: str | None = None,
    ) -> Login:
        """Try ``username`` and ``password`` at a registry, and keep them for `pull`, `push` and others, podman and
        docker included; without a ``username`` try those that are kept already.

        server       "host[:port]", or "host/namespace" for some of its repositories
        access       certificates, and ``authfile``: the file to write. None: the helper that is configured for this
                     registry, else the file that podman writes (``$REGISTRY_AUTH_FILE``,
                     ``$XDG_RUNTIME_DIR/containers/auth.json``, ``/run/containers/UID/auth.json``)
        compat_file  the file to write in docker's form, such as ``~/.docker/config.json``

        The file gets mode 0600, is replaced whole or not at all, and keeps whatever else it holds. Nothing is kept
        of what the registry refuses. Raises `Unauthorized`, `NotFound` (nothing is kept), `RegistryError`,
        `InvalidReference`, `ConfigError` (a file or helper), `UsageError`.
        """
        from ..images.registry.access import Access
        from ..images.registry.login import Server, login
        from ..images.registry.registries import Registries

        return login(
            Server.parse(server),
            username,
            password,
            registries=Registries.load(),
            access=access or Access(),
            compat_file=compat_file,
        )

    def logout(
        self, server: str = "docker.io", *, authfile: str | None = None, compat_file: str | None = None
    ) -> Logout:
        """Forget a registry's credentials where `login` would keep them. What other programs keep elsewhere stays, and
        the result tells of it. Raises `InvalidReference`, `ConfigError`, `UsageError`."""
        from ..images.registry.login import Server, logout

        return logout(Server.parse(server), authfile=authfile, compat_file=compat_file)

    def logout_all(self, *, authfile: str | None = None, compat_file: str | None = None) -> list[str]:
        """Forget all that is in the file where `login` keeps credentials, and in the helpers that it names; the
        registries' names. Raises `ConfigError`."""
        from ..images.registry.login import logout_all

        return logout_all(authfile=authfile, compat_file=compat_file)

    def logged_in(self, server: str = "docker.io", *, authfile: str | None = None) -> str:
        """The user name with which a registry is asked. Raises `NotFound`, `InvalidReference`, `ConfigError`."""
        from ..images.registry.login import Server, logged_in

        return logged_in(Server.parse(server), authfile)

    def push(
        self,
        image: str,
        destination: str | None = None,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
        access: Access | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> PushResult:
        """Push the local image ``image`` to its own name, or to ``destination``.

        Manifests are pushed byte for byte as they are stored, so the digest stays. Of an image that was pulled from
        an index the whole index is pushed if all that it lists is in the store, else the manifest of the image's
        platform; ``platform`` ("os/arch[/variant]") pushes the manifest of that platform, ``all_platforms`` nothing
        but the whole index. Blobs that the registry has are not sent; those that another of its repositories should
        have are mounted from there. Needs no storage driver. If the name is one of this store's, it has its
        repository digest afterwards.

        image     a name, or with a ``destination`` an ID, too
        access    whose credentials, which certificates; None: those stored
        progress  called in this thread, in docker's words

        Raises `NotFound`, `InvalidReference`, `PlatformUnavailable`, `Unauthorized`, `RegistryError`,
        `DigestMismatch` (damaged in the store, or changed by the registry), `StorageError` (a blob is missing).
        """
        from ..images.registry.registries import Registries
        from ..images.transfer.push import push

        registries = Registries.load()
        if destination is None:
            reference = self._named(image, registries)
            source = reference.canonical
        else:
            reference = _destination(destination)
            source = self._local(image).reference
        results = push(
            [(source, reference)],
            platform=platform,
            all_platforms=all_platforms,
            images=self._images(),
            registries=registries,
            access=access,
            progress=progress,
        )
        return results[0]

    def push_all(
        self,
        repository: str,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
        access: Access | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> list[PushResult]:
        """Push every local tag of ``repository``, a name without a tag, in the order of their names; the rest as
        for `push`. Raises `NotFound` where there is none."""
        from ..errors import NotFound
        from ..images.reference import Reference
        from ..images.registry.registries import Registries
        from ..images.transfer.push import push

        registries = Registries.load()
        for wanted in (_tagless(repository, Reference.parse(repository)), registries.reference(repository)):
            found = [Reference.parse(i.reference) for i in self._images().records() if not i.unnamed]
            tags = [r for r in found if r.repository == wanted.repository and r.digest is None]
            if tags:
                break
        else:
            raise NotFound(f"no local image has a tag of {wanted.familiar_repository}")
        return push(
            [(tag.canonical, tag) for tag in sorted(tags, key=lambda tag: tag.canonical)],
            platform=platform,
            all_platforms=all_platforms,
            images=self._images(),
            registries=registries,
            access=access,
            progress=progress,
        )

    def search(
        self,
        term: str,
        *,
        limit: int = 25,
        filters: Sequence[str] = (),
        access: Access | None = None,
    ) -> list[Found]:
        """The repositories that ``term`` finds: see `pyrun.images.registry.search.search`."""
        from ..images.registry.registries import Registries
        from ..images.registry.search import search

        return search(term, limit=limit, filters=filters, registries=Registries.load(), access=access)

    def tags(self, name: str, *, access: Access | None = None) -> tuple[str, list[str]]:
        """(the repository as docker prints it, its tags, sorted). A tag or digest in ``name`` means
        nothing here. Raises `ManifestUnknown`, `Unauthorized`, `RegistryError`."""
        from ..images.registry.registries import Registries
        from ..images.registry.search import list_tags

        registries = Registries.load()
        reference = registries.reference(name)
        return reference.familiar_repository, list_tags(reference, registries=registries, access=access)

    def _named(self, text: str, registries: Registries) -> Reference:
        """The local name that ``text`` is, or is an alias of. Raises `NotFound`."""
        from ..errors import NotFound
        from ..images.digest import is_hex
        from ..images.reference import Reference

        plain = Reference.parse(text)
        _check_tag(text, plain)
        for reference in (plain, registries.reference(text)):
            try:
                self._images().get(reference.canonical)
                return reference
            except NotFound:
                continue
        name = plain.familiar
        try:
            given = self._local(text)
        except NotFound:
            given = None
        if given is not None and plain.implicit and is_hex(text):
            raise NotFound(
                f"{text} is the ID of an image, which does not tell where to push it",
                hint=f"Say where: pyrun push {text} NAME[:TAG].",
            )
        raise NotFound(
            f"no local image has the name {name}",
            hint=f"Name one: pyrun tag IMAGE {name}, or push it by another name: pyrun push IMAGE {name}",
        )


def _destination(text: str) -> Reference:
    """Where to push to, which podman writes with docker:// in front, too."""
    from ..errors import UsageError
    from ..images.reference import Reference

    kind, colon, _ = text.partition(":")
    if colon and kind in (
        "dir",
        "oci",
        "oci-archive",
        "docker-archive",
        "docker-daemon",
        "containers-storage",
    ):
        raise UsageError(
            f"{text!r} is not in a registry, where images are pushed to",
            hint="pyrun save writes an image to a file." if kind.endswith("archive") else "",
        )
    reference = Reference.parse(text.removeprefix("docker://"))
    _check_tag(text, reference)
    return reference


def _check_tag(text: str, reference: Reference) -> None:
    if reference.digest is not None:
        from ..errors import InvalidReference

        raise InvalidReference(
            f"{text!r} can't be pushed to: it has a digest",
            hint="Leave out @ and what follows: what is pushed keeps its digest.",
        )


def _tagless(text: str, reference: Reference) -> Reference:
    if not reference.implicit:
        from ..errors import UsageError

        raise UsageError(f"tag can't be used with --all-tags/-a: {text!r} has one, or a digest")
    return reference
