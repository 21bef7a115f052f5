"""Tags, repositories and referrers: pages of a real registry, and of servers that go astray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyrun.errors import ImageError, ManifestUnknown, RegistryError
from pyrun.images.registry import listing
from pyrun.images.registry.access import Access
from pyrun.images.registry.client import RegistryClient
from pyrun.images.registry.listing import following, referrers_tag
from pyrun.images.registry.registries import Endpoint
from support.registry import OCI_INDEX, OCI_MANIFEST, Registry, sha256, tar

from .faults import FaultServer, Request

DIGEST = "sha256:" + "a" * 64


def client(host: str, path: str = "team/app") -> RegistryClient:
    return RegistryClient(Endpoint(host, path, "1", False, False), path, access=Access(authfile="/dev/null"))


def test_tags_of_a_repository_are_listed(registry: Registry) -> None:
    for tag in ("2", "1", "latest"):
        registry.push_image("listed/app", tag, [tar({"tag": tag.encode()})], other_platform=False)
    assert sorted(client(registry.host, "listed/app").tags()) == ["1", "2", "latest"]


def test_tags_of_no_repository_are_an_error(registry: Registry) -> None:
    with pytest.raises(ManifestUnknown, match="list of tags of listed/none not found"):
        client(registry.host, "listed/none").tags()


def test_a_registrys_repositories_are_listed_over_all_pages(registry: Registry) -> None:
    # docker-registry gives 100 a page.
    names = [f"pages/r{number:03}" for number in range(130)]
    for name in names:
        registry.push_blob(name, b"x")
        (registry.root / f"docker/registry/v2/repositories/{name}/_manifests").mkdir(exist_ok=True)
    found = client(registry.host, "").catalog()
    assert [name for name in found if name.startswith("pages/")] == names


def paged(pages: list[dict[str, Any]], links: list[str]) -> Callable[[Request], None]:
    """A server of ``pages``; ``links`` is each one's Link header, with {host} in it."""

    def answer(request: Request) -> None:
        number = int(request.path.partition("page=")[2] or 0)
        link = links[number].format(host=request.headers["Host"])
        request.reply(200, json.dumps(pages[number]).encode(), **({"link": link} if link else {}))

    return answer


@pytest.mark.parametrize(
    "link",
    [
        '</v2/team/app/tags/list?page=1>; rel="next"',
        '<list?page=1>; rel="next"',
        "<http://{host}/v2/team/app/tags/list?page=1>; rel=next",
        '</other>; rel="prev", </v2/team/app/tags/list?page=1>; title="x"; rel="last next"',
    ],
)
def test_the_next_page_is_followed(tmp_path: Path, link: str) -> None:
    answer = paged([{"tags": ["a"]}, {"tags": ["b"]}], [link, ""])
    with FaultServer(answer, str(tmp_path / "log")) as server:
        assert client(server.host).tags() == ["a", "b"]


@pytest.mark.parametrize(
    "link", ["<http://127.0.0.1:1/x>; rel=next", "<https://{host}/x>; rel=next", "<http://[::1/>; rel=next"]
)
def test_the_next_page_elsewhere_is_refused(tmp_path: Path, link: str) -> None:
    with (
        FaultServer(paged([{"tags": ["a"]}], [link]), str(tmp_path / "log")) as server,
        pytest.raises(RegistryError, match=r"continues the list|not an address"),
    ):
        client(server.host).tags()


def test_pages_in_a_circle_end(tmp_path: Path) -> None:
    links = ["<list?page=1>; rel=next", "<list?page=1>; rel=next"]
    with (
        FaultServer(paged([{"tags": ["a"]}, {"tags": ["b"]}], links), str(tmp_path / "log")) as server,
        pytest.raises(RegistryError, match="in a circle"),
    ):
        client(server.host).tags()


def endless(request: Request) -> None:
    number = int(request.path.partition("page=")[2] or 0)
    body = json.dumps({"tags": [f"{number}-{n}" for n in range(50)]}).encode()
    request.reply(200, body, link=f"<list?page={number + 1}>; rel=next")


def test_pages_and_entries_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_PAGES", 10)
    with FaultServer(endless, str(tmp_path / "log")) as server:
        with pytest.raises(RegistryError, match="more than 10 pages"):
            client(server.host).tags()
        monkeypatch.setattr(listing, "MAX_ENTRIES", 120)
        with pytest.raises(RegistryError, match="more than 120 entries"):
            client(server.host).tags()


@pytest.mark.parametrize("body", [b"", b"[]", b'{"tags": 5}', b'{"tags": [5]}', b"{}", b"[" * 100_000])
def test_a_malformed_list_is_an_error(tmp_path: Path, body: bytes) -> None:
    with (
        FaultServer(lambda request: request.reply(200, body), str(tmp_path / "log")) as server,
        pytest.raises(RegistryError, match="malformed list of tags"),
    ):
        client(server.host).tags()


def test_what_is_no_tag_is_left_out(tmp_path: Path) -> None:
    names = ["ok", "../../x", "-x", "\x1b[2J", "x" * 129, "", "é", "a:b"]
    body = json.dumps({"tags": names}).encode()
    with FaultServer(lambda request: request.reply(200, body), str(tmp_path / "log")) as server:
        assert client(server.host).tags() == ["ok"]


def test_no_tags_may_be_null(tmp_path: Path) -> None:
    with FaultServer(lambda r: r.reply(200, b'{"tags": null}'), str(tmp_path / "log")) as server:
        assert client(server.host).tags() == []


@pytest.mark.parametrize(
    ("header", "target"),
    [
        ("", ""),
        ('<a>; rel="next"', "a"),
        ("<a>; rel=prev", ""),
        ("<a>; rel=nextish", ""),
        ("<a>; rel=next; title=x, <b>; rel=last", "a"),
        ('<a>; title="rel=next"', ""),
        ("<a", ""),
    ],
)
def test_a_link_header_names_the_next_page(header: str, target: str) -> None:
    assert following(header) == target


# --- referrers


def entry(artifact_type: str, data: bytes = b"{}") -> dict[str, Any]:
    return {
        "mediaType": OCI_MANIFEST,
        "digest": sha256(data),
        "size": len(data),
        "artifactType": artifact_type,
    }


def index(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries)}).encode()


def test_referrers_are_listed_by_type(tmp_path: Path) -> None:
    body = index(entry("text/sbom"), entry("text/signature"))

    def answer(request: Request) -> None:
        assert request.path.startswith(f"/v2/team/app/referrers/{DIGEST}")
        request.reply(200, body, content_type=OCI_INDEX)

    with FaultServer(answer, str(tmp_path / "log")) as server:
        connected = client(server.host)
        assert [found.artifact_type for found in connected.referrers(DIGEST)] == [
            "text/sbom",
            "text/signature",
        ]
        assert len(connected.referrers(DIGEST, "text/sbom")) == 1
        assert server.requests()[-1][1].endswith("?artifactType=text%2Fsbom")


def test_without_the_api_the_index_under_a_tag_counts(registry: Registry) -> None:
    # docker-registry 2.8 has no referrers API.
    pushed = registry.push_image("listed/signed", "1", [tar({"x": b""})], other_platform=False)
    connected = client(registry.host, "listed/signed")
    assert connected.referrers(pushed.digest) == []
    size = len(json.dumps(pushed.manifest).encode())
    listed = {**entry("text/sbom"), "digest": pushed.manifest_digest, "size": size}
    tag = referrers_tag(pushed.digest)
    assert tag == pushed.digest.replace(":", "-")
    registry.push_manifest("listed/signed", tag, index(listed), OCI_INDEX)
    (found,) = connected.referrers(pushed.digest)
    assert (found.digest, found.artifact_type) == (pushed.manifest_digest, "text/sbom")


def test_a_long_digest_fits_a_tag() -> None:
    assert referrers_tag("sha512:" + "b" * 128) == "sha512-" + "b" * 64


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"schemaVersion":2,"manifests":[{"digest":"x"}]}'])
def test_malformed_referrers_are_an_error(tmp_path: Path, body: bytes) -> None:
    with (
        FaultServer(lambda r: r.reply(200, body, content_type=OCI_INDEX), str(tmp_path / "log")) as server,
        pytest.raises(ImageError),
    ):
        client(server.host).referrers(DIGEST)
