"""Manifests and indexes on their way into a registry, and the list of what refers to what, where the registry keeps
none itself (OCI distribution spec, "Pushing Manifests" and "Unavailable Referrers API")."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ...errors import DigestMismatch, ImageError, ManifestUnknown, RegistryError
from ..digest import is_digest, sha256
from ..model import MAX_DOCUMENT, OCI_INDEX, Index, parse
from ..printable import printable
from ..registry.client import ACCEPT, RegistryClient

TRIES = 3  # at a list that somebody else changes at the same time


@dataclass(frozen=True, slots=True)
class Document:
    """The exact bytes of a manifest or index."""

    digest: str
    media_type: str
    data: bytes


def put(client: RegistryClient, document: Document, version: str) -> None:
    """Push ``document`` under ``version``, a tag or its own digest; what it names must be there.

    Raises `DigestMismatch` where the registry then has something else there, `Unauthorized`, `RegistryError`.
    """
    headers = {"Content-Type": document.media_type, "Content-Length": str(len(document.data))}
    answer = client.request("PUT", f"manifests/{version}", headers, document.data)
    if answer.status not in (200, 201, 202):
        error = client.failure(answer, f"manifest of {client.name}")
        if isinstance(error, ManifestUnknown):
            error = RegistryError(f"{client.endpoint.host} does not take {client.name}: {error.message}")
        if answer.status in (400, 415) and not error.hint:
            error.hint = f"It may not know manifests of the type {document.media_type}, which this image has."
        raise error
    answer.discard()
    found = answer.header("Docker-Content-Digest")
    if found is None:
        found = client.head_manifest(version) or client.get_manifest(version)[2]
    if found != document.digest:
        raise DigestMismatch(
            f"{client.endpoint.host} has {printable(found, 200)} as {client.name}, and was sent {document.digest}",
            hint="The registry changes what it is sent, or somebody else pushed the same tag just now.",
        )
    subject = subject_of(document)
    if subject and answer.header("OCI-Subject") is None:
        refer(client, document, subject)


def subject_of(document: Document) -> str:
    """The digest of the manifest that ``document`` is about; "" for none."""
    try:
        subject = json.loads(document.data).get("subject")
        digest = subject.get("digest") if isinstance(subject, dict) else ""
    except (ValueError, AttributeError, RecursionError):
        return ""
    return digest if isinstance(digest, str) and is_digest(digest) else ""


def refer(client: RegistryClient, document: Document, subject: str) -> None:
    """List ``document`` in the index under the tag made of ``subject`` ("sha256-<hex>").

    Others may do so at the same time: the registry is asked to refuse what was not read last, where it gives
    ETags. Raises `ImageError` where something else has that tag.
    """
    tag = subject.replace(":", "-")
    entry = _entry(document)
    for last in (False,) * (TRIES - 1) + (True,):
        answer = client.request("GET", f"manifests/{tag}", {"Accept": ACCEPT})
        etag = answer.header("ETag")
        listed: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        if answer.status == 200:
            listed = _listed(answer.read(MAX_DOCUMENT), answer.header("Content-Type") or "", tag)
        elif answer.status == 404:
            answer.discard()
        else:
            raise client.failure(answer, f"list of what refers to {subject}")
        if any(known.get("digest") == document.digest for known in listed["manifests"]):
            return
        listed["manifests"].append(entry)
        data = json.dumps(listed, separators=(",", ":")).encode()
        if len(data) > MAX_DOCUMENT:
            raise ImageError(f"the list of what refers to {subject} is full", hint="Remove some of it first.")
        headers = {"Content-Type": OCI_INDEX, "Content-Length": str(len(data))}
        if etag:
            headers["If-Match"] = etag
        answer = client.request("PUT", f"manifests/{tag}", headers, data)
        if answer.status == 412 and not last:
            answer.discard()
            continue
        if answer.status not in (200, 201, 202):
            raise client.failure(answer, f"list of what refers to {subject}")
        answer.discard()
        if answer.header("Docker-Content-Digest") not in (None, sha256(data)):
            raise DigestMismatch(f"{client.endpoint.host} changes the index that it is sent as {tag}")
        return


def _listed(data: bytes | None, media_type: str, tag: str) -> dict[str, Any]:
    what = f"the index {tag}"
    if media_type.partition(";")[0].strip().lower() != OCI_INDEX:
        raise ImageError(
            f"{tag} is not a list of what refers to an image, but {printable(media_type, 200)!r}",
            hint="Something else was pushed under this tag, which the OCI distribution spec keeps for the list.",
        )
    if data is None:
        raise ImageError(f"{what} is larger than {MAX_DOCUMENT >> 20} MiB")
    parse(data, Index, what)
    listed: dict[str, Any] = json.loads(data)
    return listed


def _entry(document: Document) -> dict[str, Any]:
    content = json.loads(document.data)
    entry = {
        "mediaType": document.media_type,
        "digest": document.digest,
        "size": len(document.data),
        "artifactType": content.get("artifactType") or (content.get("config") or {}).get("mediaType"),
        "annotations": content.get("annotations"),
    }
    return {name: value for name, value in entry.items() if value}
