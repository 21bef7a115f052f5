"""``content/index.json``: the OCI layout's list of images, a view of the records for other tools (image-layout.md).

An entry names an image's manifest, also where the image was pulled from an index: of an index, the manifests of other
platforms are not here, and a reader that follows it would find nothing. Its annotations are

    io.containerd.image.name           the whole name, which ``ctr image import`` takes
    org.opencontainers.image.ref.name  the same, by which ``skopeo copy oci:DIR:NAME`` and umoci find it. A few names
                                       are none in the grammar of annotations.md (``a__b``, ``[::1]:5000/a``); they
                                       go without, and other tools find them by digest

An image without a name has neither.

Nothing in pyrun reads it to decide anything but repair: where a record is damaged, it tells which image it was.
"""

from __future__ import annotations

import json
import os

from ..errors import DigestMismatch, StorageError
from .content import REF_NAME, write_file
from .local import file_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from .content import ContentStore
    from .local import ImageStore
    from .record import Image

    # A record's reference -> descriptor.
    Entries = dict[str, dict[str, Any]]

CONTAINERD_NAME = "io.containerd.image.name"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_ALPHANUMERIC = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_TO_SPACE = {ord(c): " " for c in _ALPHANUMERIC}
_SEPARATORS = frozenset(("-", ".", "_", ":", "@", "+", "--"))


def is_ref_name(text: str) -> bool:
    """Whether ``text`` is in the grammar of org.opencontainers.image.ref.name (OCI image spec, annotations.md)."""
    return all(
        part
        and part[0] in _ALPHANUMERIC
        and part[-1] in _ALPHANUMERIC
        and _SEPARATORS.issuperset(part.translate(_TO_SPACE).split())
        for part in text.split("/")
    )


def path(content: ContentStore) -> str:
    return os.path.join(content.path, "index.json")


def key_of(entry: Mapping[str, Any]) -> str:
    """The reference of the record that an entry of the file stands for."""
    annotations = entry.get("annotations") or {}
    return str(annotations.get(CONTAINERD_NAME) or annotations.get(REF_NAME) or f"@{entry['digest']}")


def read(content: ContentStore) -> Entries | None:
    """The entries as they stand; None where the file is missing or is not one of `write`."""
    try:
        with open(path(content), "rb") as file:
            entries = json.load(file)["manifests"]
        found: Entries = {}
        for entry in entries:
            found[key_of(entry)] = {
                "mediaType": entry["mediaType"],
                "digest": entry["digest"],
                "size": entry["size"],
            }
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def describe(content: ContentStore, digest: str) -> dict[str, Any] | None:
    """The descriptor of a stored manifest; None where it is missing or damaged."""
    try:
        data = content.read(digest)
        document = json.loads(data)
        # OCI lets a manifest leave its own type out; Docker's always carries it.
        media_type = document.get("mediaType") or _MANIFEST
    except (StorageError, DigestMismatch, ValueError, AttributeError, RecursionError):
        return None
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def write(content: ContentStore, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the file, atomically and durably. The caller serialises calls."""
    manifests = []
    for key, entry in sorted(entries.items()):
        descriptor = {name: entry[name] for name in ("mediaType", "digest", "size")}
        if key[:1] != "@":
            names = {CONTAINERD_NAME: key}
            if is_ref_name(key):
                names[REF_NAME] = key
            descriptor["annotations"] = names
        manifests.append(descriptor)
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    }
    content.make_layout()
    write_file(path(content), json.dumps(document, separators=(",", ":")).encode())


def publish(images: ImageStore, *, add: Sequence[Image] = (), drop: Sequence[Image] = ()) -> None:
    """Bring the file up to date, under `ImageStore.changing`: by what changed, where the rest of it agrees with the
    names that there are; else, and where nothing is given, from all records.

    ``add`` have records already, ``drop`` have theirs still.
    """
    content = images.content
    entries = read(content)
    if (add or drop) and entries is not None:
        for image in drop:
            entries.pop(image.reference, None)
        for image in add:
            found = describe(content, image.manifest)
            if found is not None:
                entries[image.reference] = found
        # A record may have come or gone without the index, where its writer was killed.
        leaving = {file_name(image.reference) for image in drop} - {file_name(i.reference) for i in add}
        if {file_name(key) for key in entries} == set(images.names()) - leaving:
            write(content, entries)
            return
    write(content, _anew(images, entries or {}, {i.reference for i in drop} - {i.reference for i in add}))


def agrees(images: ImageStore) -> bool:
    """Whether the file lists what the records name, and no more. No file and no record agree."""
    wanted = {image.reference: image.manifest for image in images.records()}
    known = read(images.content)
    if known is None:
        return not wanted and not os.path.exists(path(images.content))
    return {key: entry["digest"] for key, entry in known.items()} == wanted


def _anew(images: ImageStore, entries: Entries, dropped: set[str]) -> Entries:
    content = images.content
    known = {entry["digest"]: entry for entry in entries.values()}
    found: Entries = {}
    for image in images.records():
        if image.reference in dropped:
            continue
        entry = known.get(image.manifest) if content.has(image.manifest) else None
        entry = entry or describe(content, image.manifest)
        if entry is not None:
            found[image.reference] = entry
    if images.warnings:
        # Those of damaged records stay: they tell the repair which images they were.
        for _, reference, _ in images.damaged():
            entry = entries.get(reference)
            if entry is not None and content.has(entry["digest"]):
                found.setdefault(reference, entry)
    return found
