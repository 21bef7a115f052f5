"""Push: to a real registry, and through a proxy that gets in the way. What arrives is compared byte for byte."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrun.errors import (
    DigestMismatch,
    ImageError,
    NotFound,
    PlatformUnavailable,
    RegistryError,
    StorageError,
    Unauthorized,
)
from pyrun.images.record import Image, Progress
from pyrun.images.reference import Reference
from pyrun.images.registry.access import Access
from pyrun.images.registry.registries import Registries
from pyrun.images.transfer import upload
from pyrun.images.transfer.push import PushResult, push
from pyrun.storage.leases import held
from support.certificates import Authority
from support.registry import (
    HOST_ARCHITECTURE,
    OCI_INDEX,
    OCI_MANIFEST,
    OTHER_ARCHITECTURE,
    Pushed,
    Registry,
    sha256,
    tar,
)
from support.uploadproxy import (
    Exchange,
    Rule,
    Tokens,
    UploadProxy,
    answer,
    cut,
    edit,
    least,
    lose,
    no_mounts,
    slow,
    too_large,
)

from .conftest import Engine
from .faults import closed_port

LARGE = os.urandom(6 << 20)
LAYERS = [tar({"large": LARGE}), tar({"b": b"two"}), tar({".wh.b": b"", "c": b"three"})]


class Pusher:
    """A pulled image of three layers (gzip, zstd, plain), and the push of it."""

    def __init__(self, engine: Engine, registry: Registry, repository: str, log: Path) -> None:
        self.engine = engine
        self.registry = registry
        self.repository = repository
        self.source = f"docker.io/{repository}:1"
        self.log = log
        self.steps: list[Progress] = []
        self.pushed: Pushed = registry.push_image(repository, "1", LAYERS, {"Cmd": ["sh"]})
        engine.pull(f"{repository}:1")

    def proxy(self, *rules: Rule) -> UploadProxy:
        return UploadProxy(self.registry.host, self.log, *rules)

    def __call__(self, host: str, name: str = "copy:1", source: str = "", **options: Any) -> PushResult:
        results = push(
            [(source or self.source, Reference.parse(f"{host}/{self.repository}/{name}"))],
            images=self.engine.images,
            registries=Registries.from_file(str(self.engine.conf)),
            progress=self.steps.append,
            **options,
        )
        return results[0]

    def states(self, digest: str) -> list[str]:
        id = digest.partition(":")[2][:12]
        return list(dict.fromkeys(step.status for step in self.steps if step.id == id))

    def arrived(self, name: str = "copy:1") -> None:
        """All of the image is in the registry, byte for byte, and no unfinished upload is."""
        path, _, tag = name.partition(":")
        repository = f"{self.repository}/{path}"
        status, headers, body = self.registry.request(
            "GET", f"/v2/{repository}/manifests/{tag}", Accept=f"{OCI_MANIFEST}, {OCI_INDEX}"
        )
        assert status == 200, body
        assert body == self.stored(self.pushed.manifest_digest)
        assert headers["content-type"] == OCI_MANIFEST
        for digest in [*self.pushed.layer_digests, self.pushed.config_digest]:
            status, _, body = self.registry.request("GET", f"/v2/{repository}/blobs/{digest}")
            assert status == 200
            assert body == self.stored(digest)
        assert self.unfinished() == []
        assert held(str(self.engine.root)) == []

    def stored(self, digest: str) -> bytes:
        return Path(self.engine.content.blob_path(digest)).read_bytes()

    def unfinished(self) -> list[str]:
        """Uploads that the registry still waits for."""
        root = self.registry.root / "docker/registry/v2/repositories" / self.repository
        return [str(path.parent) for path in root.glob("**/_uploads/*/startedat")]


@pytest.fixture
def pusher(engine: Engine, registry: Registry, repository: str, tmp_path: Path) -> Iterator[Pusher]:
    found = Pusher(engine, registry, repository, tmp_path / "log")
    yield found
    assert found.unfinished() == []
    assert held(str(engine.root)) == []
    assert engine.partial() == []
    assert threading.active_count() == 1


def test_an_image_arrives_byte_for_byte(pusher: Pusher) -> None:
    result = pusher(pusher.registry.host)
    pusher.arrived()
    assert result.reference == f"{pusher.registry.host}/{pusher.repository}/copy:1"
    assert result.digest == pusher.pushed.manifest_digest
    assert result.size == len(pusher.stored(result.digest))


def test_the_manifest_comes_when_all_that_it_names_is_there(pusher: Pusher) -> None:
    with pusher.proxy() as proxy:
        pusher(proxy.host)
        ends = [seen.path for seen in proxy.requests("^PUT")]
    kinds = [
        "manifest"
        if "/manifests/" in path
        else "config"
        if pusher.pushed.config_digest.partition(":")[2] in path
        else "layer"
        for path in ends
    ]
    assert sorted(kinds[:-1]) == ["config"] + ["layer"] * 3
    assert kinds[-1] == "manifest"
    pusher.arrived()


def test_what_the_registry_has_is_not_sent_again(pusher: Pusher) -> None:
    with pusher.proxy() as proxy:
        pusher(proxy.host)
        before = len(proxy.requests("POST|PATCH|PUT"))
        pusher.steps.clear()
        pusher(proxy.host, "copy:2")
        assert len(proxy.requests("POST|PATCH|PUT")) == before + 1  # the manifest
    assert [pusher.states(d)[-1] for d in pusher.pushed.layer_digests] == ["Layer already exists"] * 3
    pusher.arrived("copy:2")


def test_every_layer_goes_through_dockers_states(pusher: Pusher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyrun.images.transfer.push.AT_ONCE", 2)
    with pusher.proxy() as proxy:
        pusher(proxy.host)
    for digest in pusher.pushed.layer_digests[:2]:
        assert pusher.states(digest) == ["Preparing", "Pushing", "Pushed"]
    assert pusher.states(pusher.pushed.layer_digests[2]) == ["Preparing", "Waiting", "Pushing", "Pushed"]
    messages = [step.status for step in pusher.steps if not step.id]
    digest = pusher.pushed.manifest_digest
    assert messages == [
        f"The push refers to repository [{proxy.host}/{pusher.repository}/copy]",
        f"1: digest: {digest} size: {len(pusher.stored(digest))}",
    ]
    counted = [step for step in pusher.steps if step.status == "Pushing"]
    assert counted[-1].current == counted[-1].total > 0


# --- mounts


def tagged(pusher: Pusher, host: str, name: str) -> str:
    """Another local name of the image."""
    reference = f"{host}/{pusher.repository}/{name}"
    pusher.engine.images.tag(pusher.source, reference)
    return reference


def test_blobs_are_mounted_from_another_repository_of_the_registry(pusher: Pusher) -> None:
    with pusher.proxy() as proxy:
        pusher(proxy.host, "first:1", source=tagged(pusher, proxy.host, "first:1"))
        sent = len(proxy.requests("PATCH|PUT.*uploads"))
        pusher.steps.clear()
        pusher(proxy.host)
        mounts = proxy.requests("POST.*mount=")
        assert len(mounts) == 3
        assert all(f"from={pusher.repository.replace('/', '%2F')}%2Ffirst" in seen.path for seen in mounts)
        assert len(proxy.requests("PATCH|PUT.*uploads")) == sent + 1  # the config
    for digest in pusher.pushed.layer_digests:
        assert pusher.states(digest) == ["Preparing", f"Mounted from {pusher.repository}/first"]
    pusher.arrived()


def test_a_local_name_that_was_never_pushed_is_no_source(pusher: Pusher) -> None:
    with pusher.proxy() as proxy:
        tagged(pusher, proxy.host, "never:1")
        pusher(proxy.host)
        assert proxy.requests("mount=") == []
    pusher.arrived()


@pytest.mark.parametrize(
    "act", [no_mounts, answer(405), answer(400), answer(404)], ids=["202", "405", "400", "404"]
)
def test_a_registry_without_mounts_is_sent_the_blobs(pusher: Pusher, act: Callable[[Exchange], bool]) -> None:
    with pusher.proxy(Rule(act, "POST.*mount=")) as proxy:
        pusher(proxy.host, "first:1", source=tagged(pusher, proxy.host, "first:1"))
        pusher.steps.clear()
        pusher(proxy.host)
        assert len(proxy.requests("POST.*mount=")) == 3
    assert [pusher.states(d)[-1] for d in pusher.pushed.layer_digests] == ["Pushed"] * 3
    pusher.arrived()


def test_a_source_that_lost_the_blob_is_no_obstacle(pusher: Pusher) -> None:
    with pusher.proxy() as proxy:
        pusher(proxy.host, "first:1", source=tagged(pusher, proxy.host, "first:1"))
        for digest in pusher.pushed.layer_digests:
            path = f"/v2/{pusher.repository}/first/blobs/{digest}"
            assert pusher.registry.request("DELETE", path)[0] == 202
        pusher(proxy.host)
    pusher.arrived()


# --- chunks


def chunks(proxy: UploadProxy) -> list[tuple[str, int]]:
    return [(seen.headers["content-range"], seen.taken) for seen in proxy.requests("PATCH")]


def test_a_registry_that_names_a_least_chunk_gets_chunks_of_that_size(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "CHUNK", 1 << 20)
    with pusher.proxy(Rule(least(2 << 20), "POST")) as proxy:
        pusher(proxy.host)
        sent = chunks(proxy)
    size = len(pusher.stored(pusher.pushed.layer_digests[0]))
    edges = [*range(0, size, 2 << 20), size]
    assert sent == [(f"{a}-{b - 1}", b - a) for a, b in itertools.pairwise(edges)]
    pusher.arrived()


@pytest.mark.parametrize("value", ["-1", "many", "99999999999999999999999999", "0"])
def test_a_senseless_least_chunk_is_no_obstacle(pusher: Pusher, value: str) -> None:
    with pusher.proxy(Rule(edit(OCI_Chunk_Min_Length=value), "POST")) as proxy:
        pusher(proxy.host)
    pusher.arrived()


@pytest.mark.parametrize("read", [True, False], ids=["read", "closed"])
def test_one_request_that_is_too_large_becomes_chunks(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch, read: bool
) -> None:
    monkeypatch.setattr(upload, "CHUNK", 2 << 20)
    with pusher.proxy(Rule(too_large(3 << 20, read=read), "PUT|PATCH")) as proxy:
        pusher(proxy.host)
        assert [taken for _, taken in chunks(proxy)][:-1] == [2 << 20] * 3
    pusher.arrived()


def test_chunks_that_are_too_large_become_smaller_ones(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "CHUNK", 5 << 20)
    with pusher.proxy(Rule(too_large(3 << 19, read=True), "PUT|PATCH")) as proxy:
        pusher(proxy.host)
        assert max(seen.taken for seen in proxy.requests("PATCH") if seen.taken <= 3 << 19) == 5 << 18
    pusher.arrived()


def test_a_registry_that_takes_no_size_at_all_is_an_error(pusher: Pusher) -> None:
    with (
        pusher.proxy(Rule(too_large(1000, read=True), "PUT|PATCH")) as proxy,
        pytest.raises(RegistryError, match="413"),
    ):
        pusher(proxy.host)


def test_a_registry_that_says_it_kept_less_than_it_was_sent_is_sent_the_rest(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one kept all, so it gets bytes twice, finds the digest wrong, and is sent everything anew."""
    monkeypatch.setattr(upload, "CHUNK", 3 << 20)
    with pusher.proxy(Rule(least(3 << 20), "POST"), Rule(edit(Range="0-1572863"), "PATCH", times=1)) as proxy:
        pusher(proxy.host)
        assert chunks(proxy)[1][0].startswith("1572864-")
    pusher.arrived()


def test_a_registry_that_says_it_kept_next_to_nothing_is_asked_again(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "CHUNK", 3 << 20)
    with pusher.proxy(Rule(least(3 << 20), "POST"), Rule(edit(Range="0-9"), "PATCH", times=1)) as proxy:
        pusher(proxy.host)
        assert len(proxy.requests("GET.*uploads")) == 1
        assert chunks(proxy)[1][0].startswith("3145728-")
    pusher.arrived()


@pytest.mark.parametrize("said", ["0-99999999999", "5-9", "bytes", "0-x", ""])
def test_a_senseless_range_begins_anew(pusher: Pusher, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(upload, "CHUNK", 1 << 20)
    with pusher.proxy(Rule(least(1 << 20), "POST"), Rule(edit(Range=said), "PATCH", times=1)) as proxy:
        pusher(proxy.host)
    pusher.arrived()


# --- connections that break


def sent_of(proxy: UploadProxy) -> int:
    return sum(seen.taken for seen in proxy.requests("(PUT|PATCH).*uploads"))


@pytest.mark.parametrize("chunked", [False, True], ids=["one request", "chunks"])
def test_an_upload_that_broke_is_taken_up_where_the_registry_stopped(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    rules = [Rule(cut(5 << 20), "(PUT|PATCH)", times=1)]
    if chunked:
        rules.append(Rule(least(5 << 20), "POST"))
        monkeypatch.setattr(upload, "CHUNK", 1 << 20)
        rules[0] = Rule(cut(1 << 19), "PATCH", times=1, after=1)
    for digest in pusher.pushed.layer_digests[1:]:  # so that the large one is the one to break
        pusher.registry.push_blob(f"{pusher.repository}/copy", pusher.stored(digest))
    with pusher.proxy(*rules) as proxy:
        pusher(proxy.host)
        assert len(proxy.requests("GET.*uploads")) == 1
        size = len(pusher.stored(pusher.pushed.layer_digests[0]))
        config = len(pusher.stored(pusher.pushed.config_digest))
        assert sent_of(proxy) <= size + config + (2 << 20)
    pusher.arrived()


def test_connections_that_break_again_and_again_get_through(pusher: Pusher) -> None:
    with pusher.proxy(Rule(cut(3 << 19), "(PUT|PATCH)", times=6)) as proxy:
        pusher(proxy.host)
    pusher.arrived()


def test_a_registry_that_lost_the_upload_is_sent_it_from_the_start(pusher: Pusher) -> None:
    """As distribution's does where a request broke in its middle."""
    with pusher.proxy(Rule(lose(100), "(PUT|PATCH)", times=3)) as proxy:
        pusher(proxy.host)
        assert len(proxy.requests("GET.*uploads")) >= 3
    clear(pusher)
    pusher.arrived()


def test_one_that_never_gets_through_is_an_error_and_nothing_is_left(pusher: Pusher) -> None:
    with (
        pusher.proxy(Rule(cut(100), "(PUT|PATCH)")) as proxy,
        pytest.raises(RegistryError, match="can't be reached"),
    ):
        pusher(proxy.host)
    assert pusher.registry.request("GET", f"/v2/{pusher.repository}/copy/manifests/1")[0] == 404


@pytest.mark.parametrize(
    ("status", "match"),
    [
        *((429, match) for match in ("^HEAD.*blobs", "POST", "PUT.*uploads", "PUT.*manifests")),
        (500, "PUT.*uploads"),
        (502, "POST"),
        (503, "PUT.*uploads"),
        (503, "PUT.*manifests"),
        (504, "PUT.*uploads"),
    ],
)
def test_later_is_heard_and_tried_again(pusher: Pusher, status: int, match: str) -> None:
    with pusher.proxy(Rule(answer(status, retry_after="1"), match, times=2)) as proxy:
        pusher(proxy.host)
    pusher.arrived()


def test_a_registry_that_wants_to_be_left_alone_for_long_is(pusher: Pusher) -> None:
    with (
        pusher.proxy(Rule(answer(429, retry_after="3600"), "PUT.*uploads")) as proxy,
        pytest.raises(RegistryError, match="limits how often") as caught,
    ):
        pusher(proxy.host)
    assert "60 minutes" in caught.value.hint
    assert len(proxy.requests("PUT.*uploads")) <= 4  # each blob once


def test_nobody_there_is_said_at_once(pusher: Pusher) -> None:
    with pytest.raises(RegistryError, match="can't be reached"):
        pusher(f"127.0.0.1:{closed_port()}")


# --- credentials


def test_a_token_that_expires_between_and_within_uploads_is_replaced(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "CHUNK", 1 << 20)
    monkeypatch.setattr("pyrun.images.transfer.push.AT_ONCE", 1)
    with pusher.proxy(Rule(Tokens(uses=2)), Rule(least(1 << 20), "POST")) as proxy:
        pusher(proxy.host)
        tokens = proxy.requests("GET /token")
        assert len(tokens) >= 3
        scope = f"repository%3A{pusher.repository}/copy%3Apull%2Cpush".replace("/", "%2F")
        assert all(scope in seen.path for seen in tokens)
    pusher.arrived()


def test_the_token_for_a_mount_is_asked_to_read_the_source(pusher: Pusher) -> None:
    with pusher.proxy(Rule(Tokens(uses=1000))) as proxy:
        pusher(proxy.host, "first:1", source=tagged(pusher, proxy.host, "first:1"))
        pusher(proxy.host)
        source = f"repository%3A{pusher.repository}/first%3Apull".replace("/", "%2F")
        assert any(
            seen.path.count("scope=") == 2 and source in seen.path for seen in proxy.requests("/token")
        )
    pusher.arrived()


def test_a_place_on_another_origin_gets_the_bytes_and_no_credentials(pusher: Pusher, tmp_path: Path) -> None:
    with UploadProxy(pusher.registry.host, tmp_path / "other") as other:

        def elsewhere(exchange: Exchange) -> bool:
            exchange.headers.replace_header("Host", other.host)  # the registry's Location leads there
            return False

        with pusher.proxy(Rule(Tokens(uses=1000)), Rule(elsewhere, "POST")) as proxy:
            pusher(proxy.host)
            assert proxy.requests("PUT.*uploads") == []
        there = other.requests("PUT.*uploads")
        assert len(there) == 4
        assert all("authorization" not in seen.headers for seen in there)
    pusher.arrived()


def test_nothing_is_deleted_on_another_origin(pusher: Pusher, tmp_path: Path) -> None:
    """The place of an upload may be any service that the user's machine reaches."""
    with UploadProxy(pusher.registry.host, tmp_path / "other", Rule(answer(403))) as other:
        place = answer(202, Location=f"http://{other.host}/index")
        with pusher.proxy(Rule(place, "POST")) as proxy, pytest.raises(RegistryError):
            pusher(proxy.host)
        assert other.requests("PUT /index")
        assert other.requests("DELETE") == []


def test_a_registry_that_loses_each_upload_after_a_while_is_given_up(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much of it gets through each time."""
    monkeypatch.setattr(upload, "CHUNK", 1 << 20)
    breaks = lose(100)
    count = itertools.count(1)

    def every_third(exchange: Exchange) -> bool:
        return next(count) % 3 == 0 and breaks(exchange)

    with (
        pusher.proxy(Rule(least(1 << 20), "POST"), Rule(every_third, "PATCH")) as proxy,
        pytest.raises(RegistryError, match="can't be reached"),
    ):
        pusher(proxy.host)
    assert len(proxy.requests("PATCH")) < 40
    clear(pusher)


def test_a_registry_that_claims_to_keep_next_to_nothing_is_given_up(
    pusher: Pusher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "CHUNK", 1 << 20)
    with (
        pusher.proxy(Rule(least(1 << 20), "POST"), Rule(edit(Range="0-9"), "(PATCH|GET).*uploads")) as proxy,
        pytest.raises(RegistryError, match="keeps little"),
    ):
        pusher(proxy.host)
    assert len(proxy.requests("PATCH")) < 20


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_push_is_told_so(pusher: Pusher, status: int) -> None:
    with (
        pusher.proxy(Rule(answer(status, b'{"errors":[{"code":"DENIED","message":"no"}]}'), "POST")) as proxy,
        pytest.raises(Unauthorized, match="denied: no") as caught,
    ):
        pusher(proxy.host)
    assert "pyrun login" in caught.value.hint


def test_an_upload_that_is_redirected_goes_there_without_credentials(pusher: Pusher, tmp_path: Path) -> None:
    with UploadProxy(pusher.registry.host, tmp_path / "other") as other:

        def redirect(exchange: Exchange) -> bool:
            exchange.body()
            return exchange.reply(307, Location=f"http://{other.host}{exchange.path}")

        with pusher.proxy(Rule(Tokens(uses=1000)), Rule(redirect, "PUT.*uploads")) as proxy:
            pusher(proxy.host)
        there = other.requests("PUT.*uploads")
        assert len(there) == 4
        assert all("authorization" not in seen.headers for seen in there)
    pusher.arrived()


@pytest.mark.parametrize("told", [True, False])
def test_nothing_goes_from_https_to_http(pusher: Pusher, tmp_path: Path, told: bool) -> None:
    """A registry behind a proxy that ends TLS and does not tell it so gives places without TLS."""
    authority = Authority(tmp_path / "ca")
    certificates = authority.issue("127.0.0.1", "IP:127.0.0.1")
    (tmp_path / "certs").mkdir()
    shutil.copy(authority.certificate, tmp_path / "certs/ca.crt")

    def tell(exchange: Exchange) -> bool:
        if told:
            exchange.headers["X-Forwarded-Proto"] = "https"
        return False

    access = Access(tls_verify=True, cert_dir=str(tmp_path / "certs"))
    with UploadProxy(pusher.registry.host, pusher.log, Rule(tell), tls=certificates) as proxy:
        if told:
            pusher(proxy.host, access=access)
            pusher.arrived()
            return
        with pytest.raises(RegistryError, match=r"wants blob .* sent to 'http://") as caught:
            pusher(proxy.host, access=access)
        assert "TLS" in caught.value.hint
        assert proxy.requests("PUT|PATCH") == []
    clear(pusher)


# --- what a registry says that can't be


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/x", "http://[::1", "http://user:pw@127.0.0.1/x"])
def test_a_place_that_is_none_is_refused(pusher: Pusher, location: str) -> None:
    with pusher.proxy(Rule(edit(Location=location), "POST")) as proxy, pytest.raises(RegistryError):
        pusher(proxy.host)
    clear(pusher)


def clear(pusher: Pusher) -> None:
    """Drop uploads in the registry that the client can't drop: it was not told of them, or distribution's registry
    does not know the place of an upload any more of which it got a part."""
    for path in pusher.unfinished():
        shutil.rmtree(path)


def test_no_place_at_all_is_refused(pusher: Pusher) -> None:
    with (
        pusher.proxy(Rule(edit(Location=None), "POST")) as proxy,
        pytest.raises(RegistryError, match="does not say where"),
    ):
        pusher(proxy.host)
    clear(pusher)


def test_a_relative_place_is_at_the_registry(pusher: Pusher) -> None:
    """As most registries but distribution's have it."""

    def act(exchange: Exchange) -> bool:
        registry = http.client.HTTPConnection(pusher.registry.host)
        registry.request("POST", exchange.path, None, {"Content-Length": "0"})
        found = registry.getresponse()
        found.read()
        location = (found.getheader("Location") or "").partition(pusher.registry.host)[2]
        return exchange.reply(202, Location=location)

    with pusher.proxy(Rule(act, "POST")) as proxy:
        pusher(proxy.host)
    pusher.arrived()


def test_a_blob_that_the_registry_calls_something_else_is_an_error(pusher: Pusher) -> None:
    wrong = "sha256:" + "0" * 64
    with (
        pusher.proxy(Rule(edit(Docker_Content_Digest=wrong), "PUT.*uploads")) as proxy,
        pytest.raises(DigestMismatch, match=wrong),
    ):
        pusher(proxy.host)


def test_a_manifest_that_the_registry_calls_something_else_is_an_error(pusher: Pusher) -> None:
    wrong = "sha256:" + "0" * 64
    with (
        pusher.proxy(Rule(edit(Docker_Content_Digest=wrong), "PUT.*manifests")) as proxy,
        pytest.raises(DigestMismatch, match=wrong),
    ):
        pusher(proxy.host)


@pytest.mark.parametrize("status", [400, 404, 415])
def test_a_registry_that_does_not_take_the_manifest_is_told_of(pusher: Pusher, status: int) -> None:
    body = b'{"errors":[{"code":"MANIFEST_INVALID","message":"unknown type"}]}'
    with (
        pusher.proxy(Rule(answer(status, body), "PUT.*manifests")) as proxy,
        pytest.raises(RegistryError, match="unknown type") as caught,
    ):
        pusher(proxy.host)
    assert status == 404 or OCI_MANIFEST in caught.value.hint


def test_a_registry_that_gives_no_digest_is_asked_for_it(pusher: Pusher) -> None:
    with pusher.proxy(Rule(edit(Docker_Content_Digest=None), "manifests")) as proxy:
        pusher(proxy.host)
        assert proxy.requests("GET.*manifests/1")
    pusher.arrived()


def test_control_bytes_in_what_a_registry_says_do_not_reach_the_user(pusher: Pusher) -> None:
    body = json.dumps({"errors": [{"code": "X", "message": "\x1b[31mred\x07"}]}).encode()
    with pusher.proxy(Rule(answer(400, body), "POST")) as proxy, pytest.raises(RegistryError) as caught:
        pusher(proxy.host)
    assert "\x1b" not in str(caught.value)
    assert "red" in str(caught.value)


# --- damage in the store


def test_a_blob_that_changed_on_disk_is_found_before_the_registry_has_all_of_it(pusher: Pusher) -> None:
    digest = pusher.pushed.layer_digests[0]
    path = Path(pusher.engine.content.blob_path(digest))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pusher.proxy() as proxy, pytest.raises(DigestMismatch, match=digest) as caught:
        pusher(proxy.host)
    assert "Pull the image again" in caught.value.hint
    assert all(seen.taken < len(data) for seen in proxy.requests("PUT.*uploads"))
    assert pusher.registry.request("HEAD", f"/v2/{pusher.repository}/copy/blobs/{digest}")[0] == 404


def test_a_blob_of_another_size_is_found_before_anything_is_sent(pusher: Pusher) -> None:
    path = Path(pusher.engine.content.blob_path(pusher.pushed.layer_digests[2]))
    path.write_bytes(path.read_bytes() + b"x")
    with pusher.proxy() as proxy, pytest.raises(DigestMismatch, match="bytes in the store instead of"):
        pusher(proxy.host)
    assert proxy.requests("POST|PUT|PATCH") == []


def test_a_blob_that_is_missing_is_said_before_anything_is_sent(pusher: Pusher) -> None:
    os.unlink(pusher.engine.content.blob_path(pusher.pushed.layer_digests[1]))
    with pusher.proxy() as proxy, pytest.raises(StorageError, match="neither in the store nor at") as caught:
        pusher(proxy.host)
    assert "keeps blobs" in caught.value.hint
    assert proxy.requests("POST|PUT|PATCH") == []


def test_a_blob_that_is_missing_here_and_there_already_is_no_obstacle(pusher: Pusher) -> None:
    digest = pusher.pushed.layer_digests[1]
    pusher.registry.push_blob(f"{pusher.repository}/copy", pusher.stored(digest))
    kept = pusher.stored(digest)
    os.unlink(pusher.engine.content.blob_path(digest))
    pusher(pusher.registry.host)
    assert "Layer already exists" in pusher.states(digest)
    Path(pusher.engine.content.blob_path(digest)).write_bytes(kept)
    pusher.arrived()


def test_a_blob_that_is_missing_here_is_mounted(pusher: Pusher) -> None:
    with pusher.proxy() as proxy:
        pusher(proxy.host, "first:1", source=tagged(pusher, proxy.host, "first:1"))
        digest = pusher.pushed.layer_digests[1]
        kept = pusher.stored(digest)
        os.unlink(pusher.engine.content.blob_path(digest))
        pusher.steps.clear()
        pusher(proxy.host)
        assert f"Mounted from {pusher.repository}/first" in pusher.states(digest)
    Path(pusher.engine.content.blob_path(digest)).write_bytes(kept)
    pusher.arrived()


# --- which manifest


def test_of_an_index_that_is_here_in_part_the_platforms_manifest_is_pushed(pusher: Pusher) -> None:
    image = pusher.engine.images.get(pusher.source)
    assert image.digest == pusher.pushed.digest != image.manifest
    assert pusher(pusher.registry.host).digest == image.manifest
    with pytest.raises(StorageError, match="not all that the index") as caught:
        pusher(pusher.registry.host, all_platforms=True)
    assert "--platform" in caught.value.hint


def test_an_index_that_is_here_whole_is_pushed_whole_and_byte_for_byte(pusher: Pusher) -> None:
    pusher.engine.pull(f"{pusher.repository}:1", platform=f"linux/{OTHER_ARCHITECTURE}")
    with pusher.proxy() as proxy:
        result = pusher(proxy.host)
        puts = [seen.path.rpartition("/")[2] for seen in proxy.requests("PUT.*manifests")]
    assert result.digest == pusher.pushed.digest
    assert puts[-1] == "1"
    assert pusher.pushed.manifest_digest in puts[:-1]
    assert len(puts) == 3
    path = f"/v2/{pusher.repository}/copy/manifests/1"
    status, headers, body = pusher.registry.request("GET", path, Accept=OCI_INDEX)
    assert (status, headers["content-type"]) == (200, OCI_INDEX)
    assert body == pusher.stored(result.digest)
    assert pusher(pusher.registry.host, "all:1", all_platforms=True).digest == pusher.pushed.digest


def test_one_platform_of_an_index_is_pushed_by_request(pusher: Pusher) -> None:
    other = f"linux/{OTHER_ARCHITECTURE}"
    with pytest.raises(PlatformUnavailable, match="is not here") as caught:
        pusher(pusher.registry.host, platform=other)
    assert f"pyrun pull --platform {other}" in caught.value.hint
    pusher.engine.pull(f"{pusher.repository}:1", platform=other)
    foreign = pusher.engine.images.get(pusher.source).manifest
    assert pusher(pusher.registry.host, platform=other).digest == foreign != pusher.pushed.manifest_digest
    result = pusher(pusher.registry.host, "mine:1", platform=f"linux/{HOST_ARCHITECTURE}")
    assert result.digest == pusher.pushed.manifest_digest
    with pytest.raises(PlatformUnavailable, match="windows"):
        pusher(pusher.registry.host, platform="windows/amd64")


def test_an_image_of_one_platform_is_pushed_for_no_other(pusher: Pusher) -> None:
    pusher(pusher.registry.host)
    source = f"{pusher.registry.host}/{pusher.repository}/copy:1"
    pusher.engine.pull(source)
    result = pusher(pusher.registry.host, "more:1", source=source, platform=f"linux/{HOST_ARCHITECTURE}")
    assert result.digest == pusher.pushed.manifest_digest
    with pytest.raises(PlatformUnavailable, match=f"linux/{HOST_ARCHITECTURE}"):
        pusher(pusher.registry.host, "more:1", source=source, platform=f"linux/{OTHER_ARCHITECTURE}")


def stored_by_hand(pusher: Pusher, top: dict[str, Any], manifest: str, *blobs: bytes) -> str:
    """Put ``blobs`` and the document ``top`` into the store; the name of an image that stands for them."""
    content = pusher.engine.content
    data = json.dumps(top).encode()
    for document in (*blobs, data):
        content.add_bytes(document, sha256(document))
    record = pusher.engine.images.get(pusher.source).to_json()
    record.update(reference=f"docker.io/{pusher.repository}:hand", digest=sha256(data), manifest=manifest)
    pusher.engine.images.put(Image.from_json(record))
    return str(record["reference"])


def described(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


@pytest.mark.parametrize("nested", [False, True])
def test_attestations_and_indexes_within_an_index_go_along(pusher: Pusher, nested: bool) -> None:
    statement = b'{"_type": "https://in-toto.io/Statement/v0.1"}'
    config = b'{"architecture":"unknown","os":"unknown","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
    attestation = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": described(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [described(statement, "application/vnd.in-toto+json")],
        }
    ).encode()
    manifest = pusher.pushed.manifest_digest
    own = described(pusher.stored(manifest), OCI_MANIFEST, platform=_platform(HOST_ARCHITECTURE))
    blobs = [statement, config, attestation]
    entries = [
        own,
        described(attestation, OCI_MANIFEST, platform={"os": "unknown", "architecture": "unknown"}),
    ]
    if nested:
        inner = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
        blobs.append(inner)
        entries = [described(inner, OCI_INDEX, platform=_platform(HOST_ARCHITECTURE))]
    top = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    name = stored_by_hand(pusher, top, manifest, *blobs)
    with pusher.proxy() as proxy:
        result = pusher(proxy.host, source=name)
        puts = [seen.path.rpartition("/")[2] for seen in proxy.requests("PUT.*manifests")]
    assert result.digest == sha256(json.dumps(top).encode())
    assert puts == [manifest, sha256(attestation), *([sha256(blobs[3])] if nested else []), "1"]
    path = f"/v2/{pusher.repository}/copy/blobs/{sha256(statement)}"
    assert pusher.registry.request("GET", path)[2] == statement
    mine = pusher(pusher.registry.host, "mine:1", source=name, platform=f"linux/{HOST_ARCHITECTURE}")
    assert mine.digest == manifest


def _platform(architecture: str) -> dict[str, str]:
    return {"os": "linux", "architecture": architecture}


def test_foreign_layers_stay_where_they_are(pusher: Pusher, tmp_path: Path) -> None:
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    foreign = described(b"elsewhere", kind, urls=["https://example.org/layer"])
    manifest = {**pusher.pushed.manifest, "layers": [foreign, *pusher.pushed.manifest["layers"]]}
    digest = sha256(json.dumps(manifest).encode())
    name = stored_by_hand(pusher, manifest, digest)
    allowed = {"validation": {"manifests": {"urls": {"allow": ["^https://example.org/"]}}}}
    with Registry(tmp_path / "allowing", settings=allowed) as registry:
        result = pusher(registry.host, source=name)
        path = f"/v2/{pusher.repository}/copy"
        status, _, body = registry.request("GET", f"{path}/manifests/1", Accept=OCI_MANIFEST)
        assert (status, sha256(body)) == (200, digest)
        assert registry.request("HEAD", f"{path}/blobs/{foreign['digest']}")[0] == 404
    assert result.digest == digest
    assert pusher.states(foreign["digest"]) == ["Skipped foreign layer"]


def test_several_tags_of_one_repository_send_their_blobs_once(pusher: Pusher) -> None:
    with pusher.proxy() as proxy:
        goods = [
            (pusher.source, Reference.parse(f"{proxy.host}/{pusher.repository}/copy:{tag}")) for tag in "123"
        ]
        results = push(
            goods, images=pusher.engine.images, registries=Registries.from_file(str(pusher.engine.conf))
        )
        assert len(proxy.requests("PUT.*uploads")) == 4
    assert [result.digest for result in results] == [pusher.pushed.manifest_digest] * 3
    for tag in "123":
        pusher.arrived(f"copy:{tag}")


def test_a_tag_that_the_configuration_leads_elsewhere_goes_there(pusher: Pusher, tmp_path: Path) -> None:
    host = pusher.registry.host
    conf = tmp_path / "tags.conf"
    conf.write_text(
        f'[[registry]]\nprefix = "example.org/app"\nlocation = "{host}/{pusher.repository}/copy"\n'
        f'[[registry]]\nprefix = "example.org/app:2"\nlocation = "{host}/{pusher.repository}/moved:two"\n'
    )
    goods = [(pusher.source, Reference.parse(f"example.org/app:{tag}")) for tag in "123"]
    results = push(goods, images=pusher.engine.images, registries=Registries.from_file(str(conf)))
    assert [result.reference for result in results] == [f"example.org/app:{tag}" for tag in "123"]
    for name in ("copy:1", "moved:two", "copy:3"):
        pusher.arrived(name)
    path = f"/v2/{pusher.repository}/copy/manifests/2"
    assert pusher.registry.request("GET", path, Accept=OCI_MANIFEST)[0] == 404


def test_an_image_that_is_not_here_is_not_pushed(pusher: Pusher) -> None:
    with pytest.raises(NotFound):
        pusher(pusher.registry.host, source="docker.io/library/nothing:1")


# --- the record


def test_the_pushed_name_has_its_repository_digest(pusher: Pusher) -> None:
    host = pusher.registry.host
    name = tagged(pusher, host, "copy:1")
    assert pusher.engine.images.get(name).digest == ""
    pusher(host, source=name)
    image = pusher.engine.images.get(name)
    assert image.digest == pusher.pushed.manifest_digest
    _, digests = pusher.engine.images.references(image)
    assert f"{host}/{pusher.repository}/copy@{image.digest}" in digests
    assert f"docker.io/{pusher.repository}@{pusher.pushed.digest}" in digests


def test_a_name_that_stands_for_another_image_keeps_its_record(pusher: Pusher) -> None:
    host = pusher.registry.host
    pusher.registry.push_image(f"{pusher.repository}/copy", "1", LAYERS[1:2])
    other = pusher.engine.pull(f"{host}/{pusher.repository}/copy:1").image
    pusher(host)
    assert pusher.engine.images.get(other.reference).to_json() == other.to_json()


# --- what refers to an image


def test_a_manifest_with_a_subject_is_listed_where_the_registry_lists_nothing_itself(pusher: Pusher) -> None:
    """Debian's registry knows no referrers API: it answers without OCI-Subject."""
    registry, engine = pusher.registry, pusher.engine
    subject = {"mediaType": OCI_MANIFEST, "digest": pusher.pushed.manifest_digest, "size": 2}
    manifest = {**pusher.pushed.manifest, "subject": subject, "annotations": {"made": "by a test"}}
    again = {**manifest, "annotations": {"made": "again"}}
    for tag, document in (("s1", manifest), ("s2", again)):
        registry.push_manifest(pusher.repository, tag, document)
        engine.pull(f"{pusher.repository}:{tag}")
        pusher(registry.host, f"copy:{tag}", source=f"docker.io/{pusher.repository}:{tag}")
        pusher(registry.host, f"copy:{tag}", source=f"docker.io/{pusher.repository}:{tag}")
    tag = pusher.pushed.manifest_digest.replace(":", "-")
    status, headers, body = registry.request(
        "GET", f"/v2/{pusher.repository}/copy/manifests/{tag}", Accept=OCI_INDEX
    )
    assert (status, headers["content-type"]) == (200, OCI_INDEX)
    listed = json.loads(body)["manifests"]
    assert [(entry["digest"], entry["size"], entry["annotations"]["made"]) for entry in listed] == [
        (sha256(json.dumps(document).encode()), len(json.dumps(document)), document["annotations"]["made"])
        for document in (manifest, again)
    ]
    assert all(entry["artifactType"] == manifest["config"]["mediaType"] for entry in listed)


def test_a_registry_that_lists_referrers_is_left_to_it(pusher: Pusher) -> None:
    subject = {"mediaType": OCI_MANIFEST, "digest": pusher.pushed.manifest_digest, "size": 2}
    pusher.registry.push_manifest(pusher.repository, "s1", {**pusher.pushed.manifest, "subject": subject})
    pusher.engine.pull(f"{pusher.repository}:s1")
    with pusher.proxy(Rule(edit(OCI_Subject=subject["digest"]), "PUT.*manifests")) as proxy:
        pusher(proxy.host, source=f"docker.io/{pusher.repository}:s1")
        assert proxy.requests("manifests/sha256-") == []


def test_something_else_under_the_tag_of_referrers_is_left_alone(pusher: Pusher) -> None:
    subject = {"mediaType": OCI_MANIFEST, "digest": pusher.pushed.manifest_digest, "size": 2}
    pusher.registry.push_manifest(pusher.repository, "s1", {**pusher.pushed.manifest, "subject": subject})
    pusher.engine.pull(f"{pusher.repository}:s1")
    pusher(pusher.registry.host, pusher.pushed.manifest_digest.replace("sha256:", "copy:sha256-"))
    with pytest.raises(ImageError):
        pusher(pusher.registry.host, "copy:s1", source=f"docker.io/{pusher.repository}:s1")


# --- giving up


def test_ctrl_c_leaves_nothing_behind(pusher: Pusher) -> None:
    def interrupt(step: Progress) -> None:
        if step.status == "Pushing":
            os.kill(os.getpid(), signal.SIGINT)

    with pusher.proxy(Rule(slow(2), "PUT.*uploads")) as proxy:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            push(
                [(pusher.source, Reference.parse(f"{proxy.host}/{pusher.repository}/copy:1"))],
                images=pusher.engine.images,
                registries=Registries.from_file(str(pusher.engine.conf)),
                progress=interrupt,
            )
        assert time.monotonic() - began < 6
        begun = len(proxy.requests("POST"))
        assert len(proxy.requests("DELETE.*uploads")) == begun > 0
    assert pusher.unfinished() == []
    assert pusher.registry.request("GET", f"/v2/{pusher.repository}/copy/manifests/1")[0] == 404


def test_garbage_collection_goes_on_beside_a_push_and_takes_nothing_of_it(pusher: Pusher) -> None:
    from pyrun.images.gc import exclusively

    seen: list[Any] = []

    def look(step: Progress) -> None:
        if step.status == "Preparing" and not seen:
            with exclusively(str(pusher.engine.root)) as alone:
                seen.append((alone, [lease.blobs for lease in held(str(pusher.engine.root))]))

    push(
        [(pusher.source, Reference.parse(f"{pusher.registry.host}/{pusher.repository}/copy:1"))],
        images=pusher.engine.images,
        registries=Registries.from_file(str(pusher.engine.conf)),
        progress=look,
    )
    ((alone, (blobs,)),) = seen
    assert alone
    assert blobs == {
        *pusher.pushed.layer_digests,
        pusher.pushed.config_digest,
        pusher.pushed.manifest_digest,
    }
