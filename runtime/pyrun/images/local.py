"""The local images: one record a name, ``<root>/images/<quoted reference>.json``.

A name by digest is that of the platform's manifest: an index's digest stands for as many images as it lists.
An image without a name (of a container or an archive) has a record by digest without a repository, which goes when
the image gets a name.

On the path of `run`: `ImageStore.get` by reference is one read of one file, and imports os and json.
Reads take no lock. Writers hold ``locks/images`` and replace whole files.
"""

from __future__ import annotations

import json
import os

from ..errors import ConfigError, Conflict, InvalidReference, NotFound, StorageError
from .digest import is_digest, is_hex
from .record import Image, moment
from .reference import Reference, repository_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .changing import Changing
    from .content import ContentStore
    from .record import HistoryEntry

    # Image ID -> the names of the containers made from it.
    InUse = Callable[[str], Sequence[str]]
    # The class below has a method of the name list.
    Images = list[Image]
    Entries = list[HistoryEntry]
    Lines = list[tuple[str, str]]
    Names = list[str]
    Triples = list[tuple[str, str, str]]

_SUFFIX = ".json"
_MAX_FILE_NAME = 255
_USUAL = 64 << 10  # bytes of a record; few have more
_QUOTED = {ord(c): f"%{ord(c):02X}" for c in "%/:"}


def file_name(reference: str) -> str:
    """The record's file name: ``% / :`` as in a URL, everything else (also its case) as it is.

    Where that is longer than a file name may be, its end is replaced by a hash; the record holds the name.
    """
    quoted = reference.translate(_QUOTED)
    if len(quoted) + len(_SUFFIX) > _MAX_FILE_NAME:
        from .digest import sha256

        quoted = f"{quoted[:180]}%-{sha256(reference.encode())[7:]}"
    return quoted + _SUFFIX


class ImageStore:
    """Image records below ``root``, the engine's store."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.path = os.path.join(root, "images")
        self.warnings: list[str] = []  # of the last `records`: a line a damaged one

    # --- reading

    def get(self, name: str) -> Image:
        """The image of a reference, an ID or a unique prefix of one ("sha256:" optional), in that order.

        Of several images behind an index's digest, one for DOCKER_DEFAULT_PLATFORM, else for the host.
        Raises `NotFound`, `InvalidReference`, `Conflict` (an ambiguous prefix) or `ConfigError` (the
        record is damaged).
        """
        reference = _reference(name)
        if _is_nameless(name):  # as such a record calls itself
            image = self.read(file_name(name), name)
            if image is not None:
                return image
        if reference is not None:
            image = self.read(file_name(reference.canonical), reference.canonical)
            if image is not None:
                return image
            if reference.digest is not None:
                named = [
                    image
                    for image in self.naming(reference.digest)
                    if reference.digest in (image.digest, image.manifest)
                    and repository_of(image.reference) == reference.repository
                ]
                if named:
                    return _preferred(named)
        found = self._by_id(name)
        if found:
            return found[0]
        if reference is None and not is_hex(name.removeprefix("sha256:")):
            Reference.parse(name)  # raises, and says what is wrong with it
        raise NotFound(
            f"no such image: {name}", hint=f"`pyrun pull {name}` fetches it; `pyrun images` lists them."
        )

    @property
    def content(self) -> ContentStore:
        """The blobs that the records name."""
        from .content import ContentStore

        return ContentStore(self.root)

    def record(self, reference: Reference) -> Image | None:
        """The record of exactly this name; None where there is none, or a damaged one."""
        try:
            return self.read(file_name(reference.canonical), reference.canonical)
        except ConfigError:
            return None

    def records(self) -> Images:
        """Every record, in no order; one that can't be read is left out and named in ``warnings``."""
        self.warnings = []
        found = []
        for name in self.names():
            try:
                image = self.read(name, None)
            except (ConfigError, StorageError) as error:
                self.warnings.append(error.message)
                continue
            if image is not None:
                found.append(image)
        return found

    def damaged(self) -> Triples:
        """(path, canonical reference, what is wrong) of every record that can't be read; the reference is "" where
        the file's name does not tell it."""
        from urllib.parse import unquote

        found = []
        for name in self.names():
            try:
                self.read(name, None)
            except (ConfigError, StorageError) as error:
                reference = unquote(name.removesuffix(_SUFFIX))
                if file_name(reference) != name or not (_reference(reference) or _is_nameless(reference)):
                    reference = ""
                found.append((os.path.join(self.path, name), reference, error.message))
        return found

    def naming(self, *texts: str) -> Images:
        """The records that hold one of ``texts``, digests say, in no order; damaged ones are left out.

        Reads every record and parses few of them. `records` is for those who look at all.
        """
        needles = [text.encode() for text in texts]
        found = []
        for name in self.names():
            try:
                data = self._data(name)
                if data is not None and any(needle in data for needle in needles):
                    found.append(self._parsed(name, None, data))
            except (ConfigError, StorageError):
                continue
        return found

    def list(self, *, all: bool = False) -> Images:
        """The images to show, newest first. Sets ``warnings`` as `records` does.

        A record by digest is left out where a tag of its repository names the same image, and one without a name
        where anything else does, unless ``all`` are to be shown.
        """
        found = self.records()
        if not all:
            found = self.shown(found)
        found.sort(key=lambda image: image.reference)
        found.sort(key=lambda image: moment(image.created), reverse=True)
        return found

    @staticmethod
    def shown(images: Images) -> Images:
        """``images`` without those that a name makes superfluous, in their order: a tag the names by digest in its
        repository, any name the record without one."""
        tagged = {(i.id, repository_of(i.reference)) for i in images if "@" not in i.reference}
        tagged |= {(i.id, "") for i in images if not i.unnamed}
        return [
            i for i in images if "@" not in i.reference or (i.id, repository_of(i.reference)) not in tagged
        ]

    def references(self, image: Image) -> tuple[Names, Names]:
        """(canonical tags, canonical repository digests) of the image with this ID, sorted."""
        same = self.shown([other for other in self.naming(image.id) if other.id == image.id])
        tags = sorted(other.reference for other in same if "@" not in other.reference)
        digests = {
            f"{repository_of(other.reference)}@{other.digest}"
            for other in same
            if other.digest and not other.unnamed
        }
        return tags, sorted(digests)

    def tagged(self, image: Image) -> float:
        """When the image got the latest of its names, in seconds since the epoch: their records tell by their
        times. 0.0 where it has none any more."""
        latest = 0.0
        for other in self.naming(image.id):
            if other.id == image.id:
                try:
                    latest = max(latest, os.stat(self.path_of(other)).st_mtime)
                except FileNotFoundError:
                    continue
        return latest

    def path_of(self, image: Image) -> str:
        """Where the record is."""
        return os.path.join(self.path, file_name(image.reference))

    def inspect(self, image: Image) -> dict[str, Any]:
        """`pyrun.images.describe.inspect` of this store's image."""
        from .describe import inspect

        return inspect(self, self.content, image)

    def history(self, image: Image) -> Entries:
        """`pyrun.images.describe.history` of this store's image."""
        from .describe import history

        return history(self.content, image)

    # --- writing

    def put(self, image: Image) -> None:
        """`pyrun.images.naming.put`, in this store."""
        from .naming import put

        put(self, image)

    def tag(self, source: str, target: str) -> Image:
        """`pyrun.images.naming.tag`, in this store."""
        from .naming import tag

        return tag(self, source, target)

    def remove(
        self,
        name: str,
        *,
        force: bool = False,
        in_use: InUse = lambda _: (),
        running: InUse = lambda _: (),
    ) -> Lines:
        """`pyrun.images.removal.remove`, in this store."""
        from .removal import remove

        return remove(self, name, force=force, in_use=in_use, running=running)

    def untag(self, name: str, names: Sequence[str] = ()) -> Lines:
        """`pyrun.images.removal.untag`, in this store."""
        from .removal import untag

        return untag(self, name, names)

    def republish(self) -> None:
        """Write the OCI layout's index.json anew, from the records."""
        from .index import publish

        with self.changing():
            publish(self)

    def agree(self) -> None:
        """Have index.json list what the records name and no more: before blobs go."""
        from .index import agrees, publish

        with self.changing():
            if not agrees(self):
                publish(self)

    # --- records

    def names(self) -> Names:
        """The file names of the records. Raises `StorageError`."""
        try:
            return [n for n in os.listdir(self.path) if n.endswith(_SUFFIX) and not n.startswith(".tmp-")]
        except FileNotFoundError:
            return []
        except OSError as error:
            from ..storage.store import cannot_use

            raise cannot_use(self.root, error) from error

    def read(self, name: str, reference: str | None) -> Image | None:
        """The record in the file ``name``; None if there is none. ``reference``: what it must be called; None: what the
        file's name stands for. Raises `ConfigError`, `StorageError`."""
        data = self._data(name)
        return None if data is None else self._parsed(name, reference, data)

    def _data(self, name: str) -> bytes | None:
        path = f"{self.path}/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.read(fd, _USUAL)
                if len(data) == _USUAL:
                    while more := os.read(fd, 1 << 20):
                        data += more
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if not os.access(self.path, os.X_OK):
                from ..storage.store import cannot_use

                raise cannot_use(self.root, error) from error
            raise StorageError(f"{path} can't be read: {error.strerror}") from error
        return data

    def _parsed(self, name: str, reference: str | None, data: bytes) -> Image:
        try:
            image = Image.from_json(json.loads(data))
            sound = (
                isinstance(image.reference, str)
                and (
                    image.reference == reference or (reference is None and file_name(image.reference) == name)
                )
                and isinstance(image.id, str)
                and isinstance(image.digest, str)
                and isinstance(image.manifest, str)
                and isinstance(image.created, str)
                and isinstance(image.config, dict)
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            sound = False
        if not sound:
            raise ConfigError(
                f"the image record {self.path}/{name} is damaged",
                hint="Pull or tag the image again, or `pyrun rmi` its name.",
            )
        return image

    def _by_id(self, name: str) -> Images:
        """The records of the one image whose ID starts with ``name``; tags first."""
        prefix = "sha256:" + name.removeprefix("sha256:")
        if not is_hex(prefix[7:]):
            return []
        found = [i for i in self.naming(prefix) if i.id.startswith(prefix)]
        if len({i.id for i in found}) > 1:
            raise Conflict(f"more than one image ID starts with {prefix[7:]}", hint="Give more digits.")
        return sorted(found, key=lambda i: ("@" in i.reference, i.reference))

    # --- changing records, and with them the OCI layout's index

    def changing(self) -> Changing:
        """Whoever changes records holds this."""
        from .changing import Changing

        return Changing(self)

    def change(self, add: Sequence[Image], drop: Sequence[Image] = ()) -> None:
        """Write the records ``add``, publish, and only then remove those of ``drop``: what the index lists is in the
        stores at every moment, for blobs may go as soon as no record names them. Under `changing`."""
        from ..storage import failpoints
        from .changing import Unpublished
        from .index import publish

        with Unpublished(self.path):
            failpoints.reach("images.marked")
            self._write(add)
            failpoints.reach("images.recorded")
            publish(self, add=add, drop=drop)
            failpoints.reach("images.published")
            for image in drop:
                try:
                    os.unlink(self.path_of(image))
                except FileNotFoundError:
                    pass
            failpoints.reach("images.removed")

    def _write(self, images: Sequence[Image]) -> None:
        from .content import write_file

        for image in images:
            data = json.dumps(image.to_json(), separators=(",", ":")).encode()
            write_file(self.path_of(image), data, 0o600)


def satisfies(image: Image, platform: str | None) -> bool:
    """Whether the image runs on ``platform``; None: DOCKER_DEFAULT_PLATFORM, else the host's.

    Raises `UsageError` where that is not a platform.
    """
    from .platform import suits, wanted

    os, architecture, variant = (*image.platform.split("/"), "", "")[:3]
    return suits(wanted(platform), os, architecture, variant)


def _preferred(images: Images) -> Image:
    """The one that suits the platform `satisfies` takes for None; of such, a name by digest first."""
    if len(images) > 1:
        images.sort(key=lambda image: image.reference)
        images.sort(key=lambda image: (not satisfies(image, None), "@" not in image.reference))
    return images[0]


def _reference(name: str) -> Reference | None:
    try:
        return Reference.parse(name)
    except InvalidReference:
        return None


def _is_nameless(reference: str) -> bool:
    """Whether it is that of a record without a name."""
    return reference[:1] == "@" and is_digest(reference[1:])
