"""Blobs and image records: every blob is hashed again, every record held against its manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import PyrunError
from ..images import index
from ..images.changing import MARK
from ..images.layerstore import layer_keys
from ..images.record import Image
from ..storage.locks import Lock
from . import repair_content as repair
from .problems import Problem
from .scene import Scene, needs_no_blob

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..images.content import ContentStore


def check_blobs(
    scene: Scene, images: list[Image], say: Callable[[str], None], *, only: bool = False
) -> tuple[int, list[Problem]]:
    """(how many blobs were hashed, what is wrong with those and with the ones that images name). ``only`` the blobs
    of ``images`` are hashed, else all."""
    content = scene.images.content
    wanted: dict[str, list[Image]] = {}
    for image in images:
        for digest in named(image):
            wanted.setdefault(digest, []).append(image)
    present = (
        sorted(digest for digest in wanted if content.has(digest)) if only else sorted(content.digests())
    )
    total = sum(_size(content.blob_path(digest)) for digest in present)
    say(f"Hashing blobs: {len(present)}, {total / 1e6:.1f} MB")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # hashlib and read(2) let go of the interpreter
        verdicts = list(pool.map(partial(_damage, scene), present))
    problems = []
    for digest, why in zip(present, verdicts, strict=True):
        if why and digest in wanted:
            problems.append(_blob("blob-damaged", scene, digest, wanted[digest], why))
        elif why:
            problems.append(
                Problem(
                    "blob-damaged",
                    digest,
                    f"{why}; no image needs it",
                    harm=False,
                    fix="remove it",
                    repair=partial(repair.remove_blob, scene, digest),
                )
            )
    for digest in sorted(wanted.keys() - set(present)):
        # It may have come meanwhile.
        if not content.has(digest) and not needs_no_blob(scene, _keys(wanted[digest], digest)):
            problems.append(_blob("blob-missing", scene, digest, wanted[digest], "it is missing"))
    return len(present), problems


def _blob(kind: str, scene: Scene, digest: str, images: list[Image], why: str) -> Problem:
    names = sorted({image.reference for image in images})
    return Problem(
        kind,
        digest,
        f"{why}; {_and_more(names)} needs it",
        fix="fetch it from the image's registry",
        repair=partial(repair.fetch_blob, scene, digest, images),
    )


def _keys(images: list[Image], digest: str) -> list[str]:
    """By which keys drivers may have the layer that the blob ``digest`` is."""
    keys = []
    for image in images:
        diff_ids = [layer.diff_id for layer in image.layers]
        for layer, chain in zip(image.layers, layer_keys(diff_ids, chained=True), strict=True):
            if layer.digest == digest:
                keys += [layer.diff_id, chain]
    return keys


def named(image: Image) -> set[str]:
    """The digests of the blobs that an image's record names."""
    found = {image.manifest, image.id, *(layer.digest for layer in image.layers)}
    if image.digest:
        found.add(image.digest)
    return found


def _damage(scene: Scene, digest: str) -> str:
    try:
        return "" if scene.images.content.intact(digest) else "its content is not what its name says"
    except PyrunError:
        return ""  # removed just now
    except OSError as error:
        return f"it can't be read: {error.strerror}"


def check_images(scene: Scene, images: list[Image], *, only: set[str] | None = None) -> list[Problem]:
    """What is wrong with the records: those of ``images`` that differ from their documents, and the damaged ones, of
    which ``only`` names those to look at (None: all)."""
    problems = []
    manifests = repair.index_names(scene.images.content)
    for path, reference, why in scene.images.damaged():
        if only is not None and reference not in only:
            continue
        manifest = manifests.get(reference) or reference.partition("@")[2]
        shared = len({_repository(name) for name, digest in manifests.items() if digest == manifest}) > 1
        problems.append(
            Problem(
                "image-damaged",
                reference or os.path.basename(path),
                why,
                fix="make it again from the blobs, else from its registry" if reference else "",
                repair=partial(repair.remake_record, scene, reference, manifest, shared=shared)
                if reference
                else None,
            )
        )
    for image in images:
        why = _disagrees(scene, image)
        if why:
            problems.append(
                Problem(
                    "image-damaged",
                    image.reference,
                    why,
                    fix="make it again from the blobs",
                    repair=partial(
                        repair.remake_record, scene, image.reference, image.manifest, shared=not image.digest
                    ),
                )
            )
    return problems


def _disagrees(scene: Scene, image: Image) -> str:
    """How the record differs from the documents it stands for; "" where it doesn't, or they are damaged, which
    is a problem of theirs."""
    content = scene.images.content
    try:
        manifest = json.loads(content.read(image.manifest))
        config = json.loads(content.read(image.id))
    except (PyrunError, ValueError):
        return ""
    try:
        if manifest["config"]["digest"] != image.id:
            return "its record names another config than its manifest"
        if [layer["digest"] for layer in manifest["layers"]] != [layer.digest for layer in image.layers]:
            return "its record names other layers than its manifest"
        if config["rootfs"]["diff_ids"] != [layer.diff_id for layer in image.layers]:
            return "its record names other layers than its config"
        if (config.get("config") or {}) != image.config:
            return "its record has other settings than its config"
    except (KeyError, TypeError, AttributeError):
        return ""
    return ""


def check_index(scene: Scene) -> list[Problem]:
    """The OCI layout's own files, by which other tools find the images."""
    content = scene.images.content
    with Lock(f"{scene.root}/locks/images"):  # else a change of records and index could be seen half done
        images = scene.images.records()
        if scene.images.warnings or (not images and not os.path.exists(content.path + "/index.json")):
            return []
        wanted = {(image.reference, image.manifest) for image in images if content.has(image.manifest)}
        why = ""
        try:
            with open(index.path(content), "rb") as file:
                entries = json.load(file)["manifests"]
            if {(index.key_of(entry), entry["digest"]) for entry in entries} != wanted or len(entries) != len(
                wanted
            ):
                why = "it does not list the images that there are"
            elif not all(_true(content, entry) for entry in entries):
                why = "it tells wrong sizes or types of manifests"
            elif not os.path.exists(f"{content.path}/oci-layout"):
                why = "oci-layout beside it is missing"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"it can't be read: {error}"
    if not why:
        return []
    behind = os.path.exists(f"{scene.images.path}/{MARK}")
    if behind:
        why += ", for a writer was killed; the next one writes it again"
    return [
        Problem(
            "index-damaged",
            "content/index.json",
            why,
            harm=not behind,
            fix="write it again from the image records",
            repair=partial(repair.republish, scene),
        )
    ]


def _true(content: ContentStore, entry: dict[str, Any]) -> bool:
    """Whether the entry tells of its manifest what is so; one that is damaged is a problem of its own."""
    found = index.describe(content, entry["digest"])
    return found is None or all(entry[name] == value for name, value in found.items())


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _repository(reference: str) -> str:
    name, at, _ = reference.partition("@")
    return name if at else name.rpartition(":")[0]


def _and_more(names: Iterable[str]) -> str:
    first, *others = names
    return f"{first} (and {len(others)} more)" if others else first
