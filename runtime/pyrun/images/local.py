"""The local images: one record a name, ``<root>/images/<quoted reference>.json``.

A name by digest is that of the platform's manifest: an index's digest stands for as many images as it lists.

On the path of `run`: `ImageStore.get` by reference is one read of one file, and imports os and json.
Reads take no lock. Writers hold ``locks/images`` and replace whole files.
"""

from __future__ import annotations

import json
import os

from ..errors import ConfigError, Conflict, InvalidReference, NotFound, StorageError
from .digest import is_hex, short
from .record import Image
from .reference import Reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

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
        if reference is not None:
            image = self._read(file_name(reference.canonical), reference.canonical)
            if image is not None:
                return image
            if reference.digest is not None:
                named = [
                    image
                    for image in self.records()
                    if reference.digest in (image.digest, image.manifest)
                    and _repository(image.reference) == reference.repository
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
            return self._read(file_name(reference.canonical), reference.canonical)
        except ConfigError:
            return None

    def records(self) -> Images:
        """Every record, in no order; one that can't be read is left out and named in ``warnings``."""
        self.warnings = []
        found = []
        for name in self._names():
            try:
                image = self._read(name, None)
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
        for name in self._names():
            try:
                self._read(name, None)
            except (ConfigError, StorageError) as error:
                reference = unquote(name.removesuffix(_SUFFIX))
                if file_name(reference) != name or _reference(reference) is None:
                    reference = ""
                found.append((os.path.join(self.path, name), reference, error.message))
        return found

    def list(self) -> Images:
        """The images to show, newest first. Sets ``warnings`` as `records` does.

        A record by digest is left out where a tag of its repository names the same image.
        """
        found = self.records()
        tagged = {(image.id, _repository(image.reference)) for image in found if "@" not in image.reference}
        found = [i for i in found if "@" not in i.reference or (i.id, _repository(i.reference)) not in tagged]
        found.sort(key=lambda image: image.reference)
        found.sort(key=lambda image: image.created, reverse=True)
        return found

    def references(self, image: Image) -> tuple[Names, Names]:
        """(canonical tags, canonical repository digests) of the image with this ID, sorted."""
        same = [other for other in self.list() if other.id == image.id]
        tags = sorted(other.reference for other in same if "@" not in other.reference)
        digests = {f"{_repository(other.reference)}@{other.digest}" for other in same if other.digest}
        return tags, sorted(digests)

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
        """Write the record of ``image.reference``; an image that so loses its last name keeps one by digest.

        A reference by digest becomes that of the image's manifest. Atomic and durable; the content it names
        must be in the stores already.
        """
        with self._changing():
            self._put(image)

    def _put(self, image: Image) -> None:
        by_digest = "@" in image.reference
        if by_digest:
            image = _by_manifest(image)
        try:
            before = self._read(file_name(image.reference), image.reference)
        except ConfigError:
            before = None
        if before is not None and before.id != image.id:
            self._keep_by_digest(before)
        elif before is not None and by_digest and image.digest == image.manifest:
            image.digest = before.digest  # the index's, by which it is known too
        self._write(image)
        self._publish()

    def tag(self, source: str, target: str) -> Image:
        """Give the image ``source`` the name ``target`` too; the new record.

        In another repository it has no repository digest until it is pushed there.
        """
        reference = Reference.parse(target)
        if reference.digest:
            raise InvalidReference(
                f"{target!r} can't be the name of a tag: it has a digest", hint='For example "app:1.0".'
            )
        with self._changing():
            image = self.get(source)  # under the lock: `remove` may be taking it
            record = image.to_json()
            record["reference"] = reference.canonical
            if _repository(image.reference) != reference.repository:
                record["digest"] = ""
            copy = Image.from_json(record)
            self._put(copy)
        return copy

    def remove(self, name: str, *, force: bool = False, in_use: InUse = lambda _: ()) -> Lines:
        """Untag, and forget the image with its last name: ("Untagged" | "Deleted", what), in docker's order.

        Layers and blobs stay until `pyrun.images.gc.collect`. Raises `NotFound`; `Conflict` where an ID has
        names in several repositories or a container was made from the image; ``force`` overrides both.
        """
        with self._changing():
            reference = _reference(name)
            own = file_name(reference.canonical) if reference is not None else ""
            try:
                image = self.get(name)
            except ConfigError:
                if not own or not os.path.exists(os.path.join(self.path, own)):
                    raise
                os.unlink(os.path.join(self.path, own))
                assert reference is not None
                return [("Untagged", reference.familiar)]
            every = [i for i in self.records() if i.id == image.id]
            if reference is not None and (
                image.reference == reference.canonical or (reference.digest and "@" in image.reference)
            ):
                going = [i for i in every if i.reference == image.reference]
                repository = _repository(image.reference)
                left = [i for i in every if i not in going and _repository(i.reference) == repository]
                if all("@" in i.reference for i in left):
                    going += left  # names by digest go with the last tag of their repository
            else:
                going = every
                if len({_repository(i.reference) for i in every}) > 1 and not force:
                    raise Conflict(
                        f"image {short(image.id)} has names in several repositories",
                        hint="Remove it by name, or all of its names with -f.",
                    )
            last = len(going) == len(every)
            if last:
                _check_unused(image, in_use(image.id), force)
            done = self._untag(going, every)
            if last:
                done.append(("Deleted", image.id))
            self._publish()
            return done

    def republish(self) -> None:
        """Write the OCI layout's index.json anew."""
        with self._changing():
            self._publish()

    # --- records

    def _names(self) -> Names:
        try:
            return [n for n in os.listdir(self.path) if n.endswith(_SUFFIX) and not n.startswith(".tmp-")]
        except FileNotFoundError:
            return []

    def _read(self, name: str, reference: str | None) -> Image | None:
        """One record; None if there is none. ``reference`` None: the one that the file's name stands for."""
        path = os.path.join(self.path, name)
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path} can't be read: {error.strerror}") from error
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
                f"the image record {path} is damaged",
                hint="Pull or tag the image again, or `pyrun rmi` its name.",
            )
        return image

    def _by_id(self, name: str) -> Images:
        """The records of the one image whose ID starts with ``name``; tags first."""
        prefix = name.removeprefix("sha256:")
        if not is_hex(prefix):
            return []
        found = [i for i in self.list() if i.id.startswith("sha256:" + prefix)]
        if len({i.id for i in found}) > 1:
            raise Conflict(f"more than one image ID starts with {prefix}", hint="Give more digits.")
        return sorted(found, key=lambda i: "@" in i.reference)

    def _write(self, image: Image) -> None:
        from .content import write_file

        data = json.dumps(image.to_json(), separators=(",", ":")).encode()
        write_file(os.path.join(self.path, file_name(image.reference)), data, 0o600)

    def _keep_by_digest(self, image: Image) -> None:
        others = [i for i in self.records() if i.id == image.id and i.reference != image.reference]
        if others:
            return
        self._write(_by_manifest(image))

    def _untag(self, going: Images, every: Images) -> Lines:
        done: list[tuple[str, str]] = []
        for image in sorted(going, key=lambda i: ("@" in i.reference, i.reference)):
            try:
                os.unlink(os.path.join(self.path, file_name(image.reference)))
            except FileNotFoundError:
                pass
            name = image.reference
            if "@" in name and image.digest:
                name = f"{_repository(name)}@{image.digest}"  # what it was pulled by
            done.append(("Untagged", Reference.parse(name).familiar))
        left = {_repository(i.reference) for i in every if i not in going}
        for repository in dict.fromkeys(_repository(i.reference) for i in going):
            digests = [i.digest for i in going if i.digest and _repository(i.reference) == repository]
            if repository not in left and digests:
                by_digest = Reference.parse(f"{repository}@{digests[0]}").familiar
                if ("Untagged", by_digest) not in done:
                    done.append(("Untagged", by_digest))
        return done

    def _publish(self) -> None:
        """Bring the OCI layout's index.json up to date with the records."""
        self.content.publish({image.reference: image.manifest for image in self.records()})

    def _changing(self) -> _Changing:
        return _Changing(self)


class _Changing:
    """Holds ``locks/images``; on entry, removes what a writer that died in between left."""

    def __init__(self, store: ImageStore) -> None:
        from ..storage.locks import Lock

        self._path = store.path
        self._locks = os.path.join(store.root, "locks")
        self._lock = Lock(os.path.join(self._locks, "images"))

    def __enter__(self) -> None:
        from .content import out_of_space

        try:
            os.makedirs(self._locks, mode=0o700, exist_ok=True)
            self._lock.acquire()
        except OSError as error:
            raise out_of_space(error, error.filename or self._path) from error
        try:
            os.makedirs(self._path, mode=0o700, exist_ok=True)
            for name in os.listdir(self._path):
                if name.startswith(".tmp-"):
                    os.unlink(os.path.join(self._path, name))
        except OSError as error:
            self._lock.release()
            raise out_of_space(error, error.filename or self._path) from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()


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


def _by_manifest(image: Image) -> Image:
    """A copy, named by the digest of its manifest."""
    record = image.to_json()
    record["reference"] = f"{_repository(image.reference)}@{image.manifest}"
    return Image.from_json(record)


def _reference(name: str) -> Reference | None:
    try:
        return Reference.parse(name)
    except InvalidReference:
        return None


def _repository(reference: str) -> str:
    """The repository of a canonical reference."""
    name, at, _ = reference.partition("@")
    return name if at else name.rpartition(":")[0]


def _check_unused(image: Image, containers: Sequence[str], force: bool) -> None:
    if containers and not force:
        raise Conflict(
            f"image {short(image.id)} is used by container {containers[0]}",
            hint=f"`pyrun rm {containers[0]}` removes the container; -f untags the image all the same.",
        )
