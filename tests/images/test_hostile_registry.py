"""A registry that means harm, or is broken: what a whole pull answers. Each case is a real registry behind a proxy that
does one thing to its answers; each answer says what is wrong and leaves nothing that is not whole and verified."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from pyrun.errors import (
    DigestMismatch,
    ImageError,
    LayerError,
    ManifestUnknown,
    PlatformUnavailable,
    PyrunError,
    RegistryError,
    Unauthorized,
)
from pyrun.images.registry.registries import Registries
from pyrun.images.registry.response import Deadline
from pyrun.images.transfer.pull import all_tags
from support.faultproxy import (
    Act,
    Fault,
    FaultProxy,
    both,
    close_after,
    document,
    endless,
    extra,
    flip,
    header,
    raw,
    redirect,
    reset_after,
    stall_after,
    status,
    truncate,
)
from support.registry import (
    HOST_ARCHITECTURE,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Pushed,
    Registry,
    sha256,
    tar,
)

from .conftest import Engine, Serve, through
from .test_client import certificate

__all__ = ["certificate"]

Edit = Callable[[Pushed], bytes | dict[str, Any]]
ZERO = "sha256:" + "0" * 64
NOTHING = b"{}"


@pytest.fixture
def pushed(registry: Registry, repository: str) -> Pushed:
    layers = [tar({"a": os.urandom(200_000)}), tar({"b": b"two"})]
    return registry.push_image(
        repository, "1", layers, {"Cmd": ["x"]}, other_platform=False, compression=("gzip",)
    )


def refused(engine: Engine, name: str, kind: type[PyrunError], says: str, within: float = 20) -> PyrunError:
    """The pull's error, which is in words that a terminal can show; and nothing is left of what was refused."""
    began = time.monotonic()
    with pytest.raises(kind) as caught:
        engine.pull(name)
    error = caught.value
    assert re.search(says, error.message), error.message
    assert error.message.isprintable()
    assert len(error.message) < 2000
    assert error.hint
    assert error.hint.isprintable()
    assert time.monotonic() - began < within
    assert engine.images.list() == []
    assert engine.partial() == []
    assert list(engine.layers.keys()) == [] or kind is not LayerError
    for digest in engine.content.digests():
        assert sha256(engine.content.read(digest)) == digest
    return error


# --- documents: served with a true digest, so that only their content can be refused


def edited(**changes: Any) -> Edit:
    return lambda pushed: {**pushed.manifest, **changes}


def layer(**changes: Any) -> Edit:
    return lambda pushed: {
        **pushed.manifest,
        "layers": [{**pushed.manifest["layers"][0], **changes}, *pushed.manifest["layers"][1:]],
    }


def config(**changes: Any) -> Edit:
    return lambda pushed: {**pushed.manifest, "config": {**pushed.manifest["config"], **changes}}


def entry(**changes: Any) -> dict[str, Any]:
    where = {"os": "linux", "architecture": HOST_ARCHITECTURE}
    return {"mediaType": OCI_MANIFEST, "digest": ZERO, "size": 2, "platform": where, **changes}


def index(*entries: dict[str, Any]) -> Edit:
    return lambda pushed: {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}


def fixed(data: bytes) -> Edit:
    return lambda pushed: data


ATTESTATION = entry(platform={"os": "unknown", "architecture": "unknown"})

DOCUMENTS: dict[str, tuple[Edit, str, type[PyrunError], str]] = {
    "is larger than may be": (fixed(b" " * (4 << 20) + b"{}"), OCI_MANIFEST, ImageError, "larger than 4 MiB"),
    "nests deeply": (fixed(b'{"a":' * 90 + b"1" + b"}" * 90), OCI_MANIFEST, ImageError, "nested deeper"),
    "nests very deeply": (fixed(b"[" * 200_000), OCI_MANIFEST, ImageError, "not acceptable JSON"),
    "has a key twice": (
        lambda p: json.dumps(p.manifest).encode()[:-1] + b', "layers": []}', OCI_MANIFEST, ImageError, "stands twice",
    ),
    "has a key in another case": (edited(Layers=[]), OCI_MANIFEST, ImageError, "other programs read"),
    "holds NaN": (fixed(b'{"schemaVersion": NaN}'), OCI_MANIFEST, ImageError, "not a JSON number"),
    "is not UTF-8": (fixed(b"\xff\xfe{}"), OCI_MANIFEST, ImageError, "not acceptable JSON"),
    "is a web page": (fixed(b"<html>"), "text/html", ImageError, "not acceptable JSON"),
    "is a list": (fixed(b"[]"), OCI_MANIFEST, ImageError, "not a JSON object"),
    "is empty": (fixed(b""), OCI_MANIFEST, ImageError, "not acceptable JSON"),
    "is called a web page": (edited(), "text/html", ImageError, "calls itself"),
    "is called an index": (edited(), OCI_INDEX, ImageError, "calls itself"),
    "calls itself an index": (edited(mediaType=OCI_INDEX), OCI_MANIFEST, ImageError, "calls itself"),
    "is index and manifest (CVE-2021-41190)": (edited(manifests=[]), OCI_MANIFEST, ImageError, "both an index and"),
    "is index with layers (CVE-2021-41190)": (
        lambda p: {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "layers": []},
        OCI_INDEX, ImageError, "both an index and",
    ),
    "is schema 1": (
        fixed(b'{"schemaVersion": 1, "fsLayers": []}'),
        "application/vnd.docker.distribution.manifest.v1+prettyjws", ImageError, "schema 1",
    ),
    "is of another version": (edited(schemaVersion=3), OCI_MANIFEST, ImageError, "schemaVersion 3"),
    "is a chart": (
        config(mediaType="application/vnd.cncf.helm.config.v1+json"), OCI_MANIFEST, ImageError, "artifact of type",
    ),
    "is an SBOM": (edited(artifactType="application/spdx+json"), OCI_MANIFEST, ImageError, "artifact of type"),
    "has an encrypted layer": (
        layer(mediaType=f"{OCI_LAYER}+gzip+encrypted"), OCI_MANIFEST, ImageError, "layer of type",
    ),
    "has a digest that is a path": (
        layer(digest="sha256:../../../etc/passwd"), OCI_MANIFEST, ImageError, "malformed digest",
    ),
    "has a digest of another length": (layer(digest="sha256:abcd"), OCI_MANIFEST, ImageError, "malformed digest"),
    "has a digest in capitals": (layer(digest="sha256:" + "A" * 64), OCI_MANIFEST, ImageError, "malformed digest"),
    "has an unknown digest": (layer(digest="md5:" + "a" * 32), OCI_MANIFEST, ImageError, "malformed digest"),
    "has a negative size": (layer(size=-1), OCI_MANIFEST, ImageError, "malformed"),
    "has a size beyond all disks": (layer(size=1 << 60), OCI_MANIFEST, ImageError, "malformed"),
    "has a size that is a fraction": (layer(size=1.5), OCI_MANIFEST, ImageError, "malformed"),
    "has a smaller size of a layer": (
        layer(size=1000), OCI_MANIFEST, DigestMismatch, "has .* bytes of it instead of 1000",
    ),
    "has a larger size of a layer": (layer(size=1 << 40), OCI_MANIFEST, DigestMismatch, "bytes of it instead of"),
    "has too many layers": (
        lambda p: {**p.manifest, "layers": p.manifest["layers"] * 501}, OCI_MANIFEST, ImageError, "malformed",
    ),
    "has fewer layers than the config": (
        lambda p: {**p.manifest, "layers": p.manifest["layers"][:1]}, OCI_MANIFEST, ImageError, "names 2 layers",
    ),
    "has the layers in another order": (
        lambda p: {**p.manifest, "layers": p.manifest["layers"][::-1]}, OCI_MANIFEST, DigestMismatch, "unpacks to",
    ),
    "has a config that is huge": (config(size=5 << 20), OCI_MANIFEST, ImageError, "larger than 4 MiB"),
    "has another size of the config": (config(size=3), OCI_MANIFEST, ImageError, "larger than its manifest says"),
    "has a layer as config": (
        lambda p: {**p.manifest, "config": {**p.manifest["layers"][1], "mediaType": OCI_CONFIG}},
        OCI_MANIFEST, ImageError, "not acceptable JSON",
    ),
    "is an index of nothing": (index(), OCI_INDEX, PlatformUnavailable, "has no image for"),
    "is an index of attestations": (
        index(ATTESTATION, ATTESTATION), OCI_INDEX, PlatformUnavailable, "has no image for",
    ),
    "is an index with too many entries": (index(*[entry()] * 1001), OCI_INDEX, ImageError, "malformed"),
    "is an index with an artifact for the host": (
        index(entry(mediaType="application/vnd.wasm.config.v0+json")), OCI_INDEX, ImageError, "not an image",
    ),
    "is an index with hostile words": (
        index(entry(platform={"os": "linux", "architecture": "\x1b[2J\x07evil"})),
        OCI_INDEX, PlatformUnavailable, "has no image for",
    ),
    "is an index of itself in other words": (
        # Served for every digest, so that the second level is not what the first one said.
        index(entry(mediaType=OCI_INDEX)), OCI_INDEX, DigestMismatch, "damaged or tampered with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DOCUMENTS)
def test_a_manifest_is_refused_that(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, what: str
) -> None:
    edit, media_type, kind, says = DOCUMENTS[what]
    body = edit(pushed)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    through(engine, serve(Fault(document(data, media_type), "/manifests/")).host)
    refused(engine, f"{repository}:1", kind, says)


# --- answers: the content is good, and how it comes is not

MANIFEST, CONFIG, LAYERS = "/manifests/", "blobs/{config}", "GET .*/blobs/{layer}"

ANSWERS: dict[str, tuple[str, Act, type[PyrunError], str]] = {
    # manifests
    "a manifest with a flipped bit": (f"GET .*{MANIFEST}", flip(20), DigestMismatch, "damaged or tampered with"),
    "a manifest that goes on": (f"GET .*{MANIFEST}", extra(b" "), DigestMismatch, "damaged or tampered with"),
    "a manifest without an end": (f"GET .*{MANIFEST}", endless(), ImageError, "larger than 4 MiB"),
    "a manifest that breaks off": (f"GET .*{MANIFEST}", close_after(30), RegistryError, "in the middle of an answer"),
    "a manifest that stalls": (f"GET .*{MANIFEST}", stall_after(30, 20), RegistryError, "does not answer in time"),
    "another digest in HEAD than GET has": (f"HEAD .*{MANIFEST}", header("Docker-Content-Digest", ZERO),
                                            ManifestUnknown, "not found"),
    "a manifest that is part of one": (f"GET .*{MANIFEST}", status(206, NOTHING), RegistryError, "status 206"),
    "a manifest in an encoding": (f"GET .*{MANIFEST}", both(header("Content-Encoding", "gzip"), flip(3)),
                                  DigestMismatch, "damaged or tampered with"),
    "redirects in a circle": (MANIFEST, redirect("{path}"), RegistryError, "redirects more than 10 times"),
    "a redirect to a file": (MANIFEST, redirect("file:///etc/passwd"), RegistryError, "not an address"),
    "a redirect with a password": (MANIFEST, redirect("http://u:p@127.0.0.1/"), RegistryError, "not an address"),
    "a redirect to nowhere": (MANIFEST, redirect("http://[::1"), RegistryError, "not an address"),
    "an answer that is not HTTP": (MANIFEST, raw(b"SSH-2.0-x\r\n"), RegistryError, "not HTTP"),
    "a thousand headers": (
        MANIFEST, raw(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000 + b"\r\n"), RegistryError, "not HTTP",
    ),
    "a header without an end": (MANIFEST, raw(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 200_000), RegistryError, "not HTTP"),
    "an error in control characters": (
        MANIFEST, status(403, b'{"errors":[{"code":"DENIED","message":"\\u001b[2J\\u202e\\u0007"}]}'),
        Unauthorized, r"denies access .*\\x1b\[2J\\u202e",
    ),
    "an error without an end": (f"GET .*{MANIFEST}", both(status(404), endless()), ManifestUnknown, "not found"),
    "an error that nests deeply": (MANIFEST, status(404, b"[" * 200_000), ManifestUnknown, "not found"),
    "a challenge that can't be met": (
        MANIFEST, status(401, www_authenticate='Basic realm="x"'), Unauthorized, "credentials",
    ),
    "a challenge in nonsense": (MANIFEST, status(401, www_authenticate='"=,,Bearer'), Unauthorized, "credentials"),
    "no patience": (MANIFEST, status(429, retry_after="7200"), RegistryError, "limits how often"),
    "failure and failure": (MANIFEST, status(503), RegistryError, "status 503"),
    # the config
    "a config with a flipped bit": (CONFIG, flip(10), DigestMismatch, "config .* damaged or tampered with"),
    "a config without an end": (CONFIG, endless(b" "), ImageError, "larger than its manifest says"),
    "a config that is another": (CONFIG, document(b"{}"), DigestMismatch, "config .* damaged or tampered with"),
    "no config": (CONFIG, status(404), ManifestUnknown, "config of .* not found"),
    # layers
    "a layer with a flipped bit": (LAYERS, flip(1000), DigestMismatch, "damaged or tampered with"),
    "a layer whose first byte is flipped": (LAYERS, flip(0), DigestMismatch, "damaged or tampered with"),
    "a layer whose last byte is flipped": (LAYERS, flip(-1), DigestMismatch, "damaged or tampered with"),
    "a layer that is shorter": (LAYERS, truncate(5000), DigestMismatch, "5000 bytes of it instead of"),
    "a layer that is shorter, without a length": (
        LAYERS, truncate(5000, length=False), RegistryError, "broke off after",
    ),
    "a layer that is longer": (LAYERS, extra(b"x" * 9), DigestMismatch, "bytes of it instead of"),
    "a layer that is longer, without a length": (LAYERS, extra(b"x", length=False), DigestMismatch, "longer than"),
    "a layer without an end": (LAYERS, endless(), DigestMismatch, "longer than"),
    "a layer that is reset": (LAYERS, reset_after(0), RegistryError, "can't be reached|broke off"),
    "a layer that stalls": (LAYERS, stall_after(1000, 20), RegistryError, "does not answer in time"),
    "a layer in an encoding": (LAYERS, header("Content-Encoding", "gzip"), RegistryError, "in the encoding 'gzip'"),
    "a layer of a negative length": (LAYERS, header("Content-Length", "-5"), DigestMismatch, "-5 bytes of it"),
    "a layer of two lengths": (LAYERS, header("Content-Length", "5", "6"), DigestMismatch, "5, 6 bytes of it"),
    "a layer of a length in words": (
        LAYERS, header("Content-Length", "\x1b[2Jmany"), DigestMismatch, r"\\x1b\[2Jmany bytes",
    ),
    "a layer that is a web page": (
        LAYERS, status(200, b"<html>" * 100), DigestMismatch, "600 bytes of it instead of",
    ),
    "no layer": (LAYERS, status(404), ManifestUnknown, "layer .* not found"),
    "a layer that is forbidden": (LAYERS, status(403), Unauthorized, "denies access"),
    "a layer behind a circle": (LAYERS, redirect("{path}"), RegistryError, "redirects more than 10 times"),
    "a layer behind a file": (LAYERS, redirect("file:///dev/zero"), RegistryError, "not an address"),
    "a layer that is no content": (LAYERS, status(204), RegistryError, "status 204"),
    "a layer that was not modified": (LAYERS, status(304), RegistryError, "status 304"),
    "broken chunks": (
        LAYERS, raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx"),
        RegistryError, "not HTTP|broke off",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ANSWERS)
def test_a_pull_is_refused_for(
    engine: Engine,
    serve: Serve,
    pushed: Pushed,
    repository: str,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "stalls" in what:
        monkeypatch.setattr(Deadline.__init__, "__defaults__", (0.4,))  # seconds without a byte
    match, act, kind, says = ANSWERS[what]
    names = {"config": pushed.config_digest, "layer": pushed.layer_digests[0]}
    proxy = serve(Fault(act, match.replace("{config}", names["config"]).replace("{layer}", names["layer"])))
    through(engine, proxy.host)
    refused(engine, f"{repository}:1", kind, says)
    assert len(proxy.requests()) <= 25
    assert sum(seen.sent for seen in proxy.requests()) < 20 << 20, "what has no end is not read on"
    through(engine, serve().host)  # nothing of it stands in the way of the good one
    assert engine.pull(f"{repository}:1").image.id == pushed.config_digest


# --- what is odd and no harm

ODD: dict[str, Fault] = {
    "does not answer HEAD": Fault(status(405), "HEAD "),
    "tells no digest": Fault(header("Docker-Content-Digest"), MANIFEST),
    "tells a digest that is none": Fault(header("Docker-Content-Digest", "sha256:../../x"), MANIFEST),
    "tells another digest with the manifest": Fault(
        header("Docker-Content-Digest", ZERO), f"GET .*{MANIFEST}"
    ),
    "has parameters in the type": Fault(header("Content-Type", f"{OCI_MANIFEST}; charset=utf-8"), MANIFEST),
    "writes the type in capitals": Fault(header("Content-Type", OCI_MANIFEST.upper()), MANIFEST),
    "tells no length": Fault(header("Content-Length"), "GET .*/(manifests|blobs)/"),
    "was busy": Fault(status(503), MANIFEST, times=2),
    "limits, and then not": Fault(status(429, retry_after="1"), MANIFEST, times=1),
    "lost a connection": Fault(reset_after(0), MANIFEST, times=1),
    "says identity": Fault(header("Content-Encoding", "identity"), "GET .*/blobs/"),
}


@pytest.mark.parametrize("what", ODD)
def test_an_image_is_pulled_from_a_registry_that(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, what: str
) -> None:
    def hang_up(exchange: Any) -> None:
        exchange.handler.close_connection = True  # without a length, that is how a body ends

    through(engine, serve(ODD[what], *([Fault(hang_up)] if "length" in what else [])).host)
    image = engine.pull(f"{repository}:1").image
    assert (image.id, image.digest) == (pushed.config_digest, pushed.digest)
    assert engine.partial() == []


def test_a_redirect_to_another_origin_gets_no_credentials(
    engine: Engine, serve: Serve, registry: Registry, pushed: Pushed, repository: str
) -> None:
    from pyrun.images.registry.access import Access
    from pyrun.images.registry.credentials import Credentials
    from pyrun.images.transfer.pull import pull

    elsewhere = serve()

    def guarded(exchange: Any) -> None:
        if "authorization" not in {name.lower() for name in exchange.handler.headers}:
            status(401, www_authenticate='Basic realm="r"')(exchange)
        elif "/blobs/" in exchange.path:
            redirect(f"http://{elsewhere.host}{{path}}")(exchange)

    proxy = serve(Fault(guarded))
    through(engine, proxy.host)
    registries = Registries.from_file(str(engine.conf))
    pull(
        registries.reference(f"{repository}:1"),
        content=engine.content,
        images=engine.images,
        layers=engine.layers,
        registries=registries,
        access=Access(Credentials("user", "secret", source="test")),
    )
    assert all("authorization" in seen.headers for seen in proxy.requests("/blobs/"))
    assert len(elsewhere.requests("/blobs/")) == 3
    assert not any("authorization" in seen.headers for seen in elsewhere.requests())


def test_a_mirror_never_gets_the_secret_of_what_it_stands_for(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str
) -> None:
    from pyrun.images.registry.access import Access
    from pyrun.images.registry.credentials import Credentials
    from pyrun.images.transfer.pull import pull

    def asks(exchange: Any) -> None:
        if "authorization" not in {name.lower() for name in exchange.handler.headers}:
            status(401, www_authenticate='Basic realm="r"')(exchange)

    mirror, home = serve(Fault(asks)), serve(Fault(asks))
    through(engine, mirror.host, home.host)
    registries = Registries.from_file(str(engine.conf))
    pull(
        registries.reference(f"{repository}:1"),
        content=engine.content,
        images=engine.images,
        layers=engine.layers,
        registries=registries,
        access=Access(Credentials("user", "secret", source="test")),
    )
    assert mirror.requests()
    assert not any("authorization" in seen.headers for seen in mirror.requests())
    assert any("authorization" in seen.headers for seen in home.requests())


def test_https_never_leads_to_http(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, certificate: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    plain = serve()
    for match, what in ((MANIFEST, "manifest"), ("/blobs/", "blob")):
        secure = serve(Fault(redirect(f"http://{plain.host}{{path}}"), match), tls=certificate)
        through(engine, secure.host)
        refused(engine, f"{repository}:1", RegistryError, "from https to http")
        assert plain.requests() == [], what


def test_an_untrusted_registry_is_refused_and_not_asked_in_plain_text(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, certificate: tuple[str, str]
) -> None:
    secure = serve(tls=certificate)
    through(engine, secure.host)
    refused(engine, f"{repository}:1", RegistryError, "certificate can't be verified")
    assert secure.requests() == []


# --- tags


def listed(engine: Engine, proxy: FaultProxy, repository: str) -> list[str]:
    through(engine, proxy.host)
    registries = Registries.from_file(str(engine.conf))
    return all_tags(registries.reference(repository), registries)


def tag_list(*tags: object, link: str = "") -> Act:
    body = json.dumps({"name": "x", "tags": list(tags)}).encode()
    return status(200, body, **({"link": link} if link else {}))


def test_every_page_of_tags_is_read(
    engine: Engine, serve: Serve, registry: Registry, repository: str
) -> None:
    for number in range(5):
        registry.push_image(repository, f"t{number}", [])

    def two(exchange: Any) -> None:
        number = int(re.findall(r"page=(\d)", exchange.path)[0]) if "page=" in exchange.path else 0
        following = f'</v2/{repository}/tags/list?page={number + 1}>; rel="next"' if number < 2 else ""
        tag_list(*[f"t{n}" for n in range(2 * number, 2 * number + 2)], link=following)(exchange)

    assert sorted(listed(engine, serve(), repository)) == [f"t{n}" for n in range(5)]
    assert listed(engine, serve(Fault(two, "tags/list")), repository) == [f"t{n}" for n in range(6)]


TAG_LISTS: dict[str, tuple[Act, str]] = {
    "that go on elsewhere": (
        tag_list("a", link='<http://127.0.0.1:1/v2/>; rel="next"'), "elsewhere|own pages|at http",
    ),
    "that go on in a circle": (lambda e: tag_list("a", link=f'<{e.path}>; rel="next"')(e), "circle"),
    "on pages without an end": (
        lambda e: tag_list("a", link=f'</v2/x/tags/list?n={time.monotonic_ns()}>; rel="next"')(e), "20 pages",
    ),
    "that are no list": (status(200, b'{"tags": "a"}'), "malformed"),
    "that are numbers": (tag_list(1, 2), "malformed"),
    "that are not JSON": (status(200, b"<html>"), "malformed"),
    "that nest": (status(200, b"[" * 100_000), "malformed"),
    "larger than may be": (status(200, b" " * (4 << 20) + b"{}"), "larger than 4 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("what", TAG_LISTS)
def test_tags_are_refused(
    engine: Engine, serve: Serve, repository: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrun.images.registry.listing.MAX_PAGES", 20)
    act, says = TAG_LISTS[what]
    with pytest.raises(ImageError, match=says) as caught:
        listed(engine, serve(Fault(act, "tags/list")), repository)
    assert caught.value.message.isprintable()


def test_a_tag_that_a_terminal_would_act_on_is_left_out(
    engine: Engine, serve: Serve, repository: str
) -> None:
    proxy = serve(Fault(tag_list("good", "\x1b[2J", "../x", "a b", ""), "tags/list"))
    assert listed(engine, proxy, repository) == ["good"]


# --- foreign layers

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


@pytest.fixture
def foreign(
    engine: Engine, serve: Serve, registry: Registry, repository: str, certificate: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[Pushed, bytes, FaultProxy]]:  # fmt: skip
    """Pushes an image whose one layer the registry has not got; its bytes, and a server that has them."""
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])

    def push(*faults: Fault, media_type: str = FOREIGN, url: str = "", keep: bool = False) -> Any:
        pushed = registry.push_image(
            repository, "0", [tar({"f": os.urandom(300_000)})], other_platform=False, compression=("gzip",)
        )
        data = registry.blob_path(pushed.layer_digests[0]).read_bytes()

        def answer(exchange: Any) -> None:
            document(data)(exchange)
            asked = re.fullmatch(r"bytes=(\d+)-", exchange.handler.headers.get("Range", ""))
            if asked:
                at = int(asked[1])
                exchange.answer.status, exchange.answer.body = 206, data[at:]
                exchange.answer.set("Content-Length", str(len(data) - at))
                exchange.answer.set("Content-Range", f"bytes {at}-{len(data) - 1}/{len(data)}")

        server = serve(Fault(answer), *faults, tls=certificate)
        entry = {
            **pushed.manifest["layers"][0],
            "mediaType": media_type,
            "urls": [url or f"https://{server.host}/layer.tar.gz"],
        }
        manifest = {**pushed.manifest, "layers": [entry]}
        if media_type == FOREIGN:
            manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
            manifest["config"] = {
                **manifest["config"], "mediaType": "application/vnd.docker.container.image.v1+json"
            }  # fmt: skip
        listing = Fault(document(json.dumps(manifest).encode(), manifest["mediaType"]), MANIFEST)
        through(engine, serve(listing).host)  # the registry itself refuses to store such a manifest
        if not keep:
            registry.delete(pushed.layer_digests[0])
        return pushed, data, server

    return push


@pytest.mark.parametrize(
    "media_type", [FOREIGN, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"]
)
def test_a_foreign_layer_is_fetched_from_its_url_without_credentials(
    engine: Engine, repository: str, foreign: Callable[..., Any], media_type: str
) -> None:
    pushed, data, server = foreign(media_type=media_type)
    engine.pull(f"{repository}:1")
    assert engine.content.read(pushed.layer_digests[0]) == data
    (seen,) = server.requests()
    assert (seen.path, seen.sent) == ("/layer.tar.gz", len(data))
    assert "authorization" not in seen.headers


def test_a_foreign_layer_that_the_registry_has_is_fetched_there(
    engine: Engine, repository: str, foreign: Callable[..., Any]
) -> None:
    pushed, _, server = foreign(keep=True)
    engine.pull(f"{repository}:1")
    assert engine.content.has(pushed.layer_digests[0])
    assert server.requests() == []


def test_a_foreign_layer_that_breaks_off_is_gone_on_with(
    engine: Engine, repository: str, foreign: Callable[..., Any]
) -> None:
    pushed, data, server = foreign(Fault(close_after(250_000), times=1))
    engine.pull(f"{repository}:1")
    assert engine.content.read(pushed.layer_digests[0]) == data
    assert [seen.headers.get("range") for seen in server.requests()] == [None, "bytes=250000-"]


FOREIGNERS: dict[str, tuple[dict[str, Any], type[PyrunError], str]] = {
    "over plain http": ({"url": "http://127.0.0.1:1/x"}, RegistryError, "is not https"),
    "from a file": ({"url": "file:///etc/passwd"}, RegistryError, "is not https"),
    "from what is no address": ({"url": "https:///x"}, RegistryError, "not an address"),
    "with a password": ({"url": "https://u:p@127.0.0.1/x"}, RegistryError, "not an address"),
    "in a kind of layer that is not foreign": (
        {"media_type": f"{OCI_LAYER}+gzip"},
        ManifestUnknown,
        "not found",
    ),
}


@pytest.mark.parametrize("what", FOREIGNERS)
def test_a_foreign_layer_is_refused(
    engine: Engine, repository: str, foreign: Callable[..., Any], what: str
) -> None:
    options, kind, says = FOREIGNERS[what]
    _, _, server = foreign(**options)
    refused(engine, f"{repository}:1", kind, says)
    assert server.requests() == []


@pytest.mark.parametrize(
    ("act", "kind", "says"),
    [
        (flip(5), DigestMismatch, "damaged or tampered with"),
        (extra(b"x"), DigestMismatch, "bytes of it instead of"),
        (status(404), RegistryError, "status 404"),
        (redirect("http://127.0.0.1:1/"), RegistryError, "from https to http"),
    ],
)
def test_a_foreign_layers_server_is_not_trusted_either(
    engine: Engine, repository: str, foreign: Callable[..., Any], act: Act, kind: type[PyrunError], says: str
) -> None:
    foreign(Fault(act))
    refused(engine, f"{repository}:1", kind, says)
