"""`pyrun search` and `pyrun tags`: a real registry's catalog, and a server that speaks the older search API."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from support.pyrun import Pyrun
from support.registry import Registry, registry, tar

__all__ = ["registry"]

RESULTS: list[Any] = [
    {"name": "redis", "description": "A store\nof keys", "star_count": 100, "is_official": True},
    {"name": "bitnami/redis", "description": "x" * 60, "star_count": 7, "is_automated": True},
    {"name": "evil\x1b[2J/redis", "description": "no name", "star_count": 1},
    {
        "name": "someone/redis",
        "description": "\x1b]0;owned\x07\u202e",
        "star_count": "many",
        "is_official": "yes",
    },
    {"name": "other.example/redis", "description": "another registry's name", "star_count": 1},
    {"description": "nameless"},
    "not an object",
    None,
]


class SearchServer:
    """Answers /v1/search with ``answer`` (bytes, or what JSON says), and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Any = {"results": RESULTS}
        self.status = 200
        self.asked: list[dict[str, list[str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                body, status = b"{}", 200
                if parts.path == "/v1/search":
                    outer.asked.append(parse_qs(parts.query))
                    body = (
                        outer.answer if isinstance(outer.answer, bytes) else json.dumps(outer.answer).encode()
                    )
                    status = outer.status
                elif parts.path != "/v2/":
                    status = 404
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Pyrun, SearchServer]]:
    """The command for which docker.io is a server with the search API."""
    server = SearchServer()
    conf = tmp_path / "registries.conf"
    conf.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "{server.host}"\n')
    try:
        yield Pyrun(tmp_path / "r", tmp_path / "s", env={"CONTAINERS_REGISTRIES_CONF": str(conf)}), server
    finally:
        server.close()


@pytest.fixture(scope="module")
def listed(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Pyrun:
    """The command for which docker.io is the tests' registry, with a few small images in it."""
    for name, tag in (
        ("searched/alpha", "1"),
        ("searched/alpha", "2"),
        ("searched/beta", "x"),
        ("library/searchme", "1"),
    ):
        registry.push_image(name, tag, [tar({"a": b"a"})], other_platform=False)
    directory = tmp_path_factory.mktemp("search")
    conf = registry.registries_conf(directory / "registries.conf")
    return Pyrun(directory / "r", directory / "s", env={"CONTAINERS_REGISTRIES_CONF": str(conf)})


def test_the_table_is_dockers(hub: tuple[Pyrun, SearchServer]) -> None:
    pyrun, server = hub
    assert pyrun.ok("search", "redis").splitlines() == [
        "NAME            DESCRIPTION                                     STARS     OFFICIAL",
        "redis           A store of keys                                 100       [OK]",
        f"bitnami/redis   {'x' * 44}…   7         ",
        "someone/redis   \\x1b]0;owned\\x07\\u202e                          0         ",
    ]
    assert server.asked == [{"q": ["redis"], "n": ["100"]}]


def test_json_has_dockers_fields(hub: tuple[Pyrun, SearchServer]) -> None:
    pyrun, _ = hub
    first, second, *_ = map(json.loads, pyrun.ok("image", "search", "--format", "json", "redis").splitlines())
    assert first == {
        "Name": "redis",
        "Description": "A store of keys",
        "StarCount": "100",
        "IsOfficial": "true",
        "IsAutomated": "false",
    }
    assert second["IsAutomated"] == "true"
    assert pyrun.ok("search", "--format", "{{.Name}}", "--no-trunc", "redis").split()[0] == "redis"
    assert "x" * 60 in pyrun.ok("search", "--no-trunc", "redis")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--limit", "1"], ["redis"]),
        (["--filter", "stars=7"], ["redis", "bitnami/redis"]),
        (["-f", "is-official=true"], ["redis"]),
        (["-f", "is-official=false", "-f", "stars=1"], ["bitnami/redis"]),
        (["-f", "is-automated=true"], ["bitnami/redis"]),
    ],
)
def test_results_are_limited_and_filtered(
    hub: tuple[Pyrun, SearchServer], options: list[str], names: list[str]
) -> None:
    pyrun, _ = hub
    assert pyrun.ok("search", "--format", "{{.Name}}", *options, "redis").split() == names


@pytest.mark.parametrize(
    "options",
    [
        ["--limit", "0", "redis"],
        ["--limit", "101", "redis"],
        ["--filter", "stars=many", "redis"],
        ["--filter", "colour=red", "redis"],
        ["--filter", "is-official=perhaps", "redis"],
        ["--list-tags", "--filter", "stars=1", "redis"],
        ["--list-tags", "--limit", "0", "redis"],
    ],
)
def test_what_can_not_be_asked_is_refused_before_asking(
    hub: tuple[Pyrun, SearchServer], options: list[str]
) -> None:
    pyrun, server = hub
    done = pyrun("search", *options)
    assert done.returncode == 125, done.stderr
    assert server.asked == []


@pytest.mark.parametrize(
    "term", ["", " ", "a b", "x" * 300, "https://host.example/redis", "docker.io/", "\x1b[2J"]
)
def test_what_is_no_term_is_refused(hub: tuple[Pyrun, SearchServer], term: str) -> None:
    pyrun, server = hub
    done = pyrun("search", term)
    assert done.returncode == 1
    assert "\x1b" not in done.stderr
    assert server.asked == []


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>not found</html>",
        b"[]",
        b'{"results": 1}',
        b'{"results": ' + b"[" * 100_000,
        b'{"results": [' + b" " * (5 << 20) + b"]}",
    ],
    ids=["a page", "an array", "a number", "deep", "long"],
)
def test_a_malformed_answer_is_an_error_in_words(hub: tuple[Pyrun, SearchServer], answer: bytes) -> None:
    pyrun, server = hub
    server.answer = answer
    done = pyrun("search", "redis")
    assert (done.returncode, done.stdout) == (1, "")
    assert server.host in done.stderr or "larger" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_more_than_can_be_shown_is_kept(hub: tuple[Pyrun, SearchServer]) -> None:
    pyrun, server = hub
    server.answer = {"results": [{"name": f"a/b{n}", "description": "d" * 20_000} for n in range(150)]}
    lines = pyrun.ok("search", "--limit", "100", "--no-trunc", "b").splitlines()
    assert len(lines) == 101
    assert max(map(len, lines)) < 1100


def test_a_registry_without_a_search_is_searched_by_its_catalog(listed: Pyrun, registry: Registry) -> None:
    assert listed.ok("search", "--format", "{{.Name}}", "searched").split() == [
        "searched/alpha",
        "searched/beta",
    ]
    assert listed.ok("search", "--format", "{{.Name}}", "searchme").split() == ["searchme"]
    there = listed.ok("search", "--format", "{{.Name}}", f"{registry.host}/searched/b").split()
    assert there == [f"{registry.host}/searched/beta"]
    every = listed.ok("search", "--limit", "100", "--format", "{{.Name}}", f"{registry.host}/").split()
    assert {f"{registry.host}/searched/alpha", f"{registry.host}/library/searchme"} <= set(every)


def test_a_registry_that_is_a_part_of_another_is_searched_in_that_part(
    registry: Registry, listed: Pyrun, tmp_path: Path
) -> None:
    conf = tmp_path / "registries.conf"
    conf.write_text(f'[[registry]]\nprefix = "quay.example"\nlocation = "{registry.host}/searched"\n')
    pyrun = Pyrun(tmp_path / "r", tmp_path / "s", env={"CONTAINERS_REGISTRIES_CONF": str(conf)})
    assert pyrun.ok("search", "--format", "{{.Name}}", "quay.example/").split() == [
        "quay.example/alpha",
        "quay.example/beta",
    ]


def test_tags_are_listed(listed: Pyrun) -> None:
    assert listed.ok("tags", "searched/alpha") == (
        "NAME             TAG\nsearched/alpha   1\nsearched/alpha   2\n"
    )
    assert listed.ok("image", "tags", "-q", "docker.io/searched/alpha:whatever") == "1\n2\n"
    assert listed.ok("search", "--list-tags", "searched/alpha") == listed.ok("tags", "searched/alpha")
    assert listed.ok("tags", "--limit", "1", "-q", "searched/alpha") == "1\n"
    lines = listed.ok("tags", "--format", "json", "searched/beta").splitlines()
    assert [json.loads(line) for line in lines] == [{"Name": "searched/beta", "Tag": "x"}]


def test_tags_of_what_is_not_there_are_an_error(listed: Pyrun, registry: Registry) -> None:
    done = listed("tags", "searched/gamma")
    assert done.returncode == 1
    assert done.stderr.startswith("pyrun: ")
    assert "not found" in done.stderr


def test_a_registry_that_does_not_answer_is_named(tmp_path: Path) -> None:
    pyrun = Pyrun(tmp_path / "r", tmp_path / "s")
    for command in (["search", "127.0.0.1:1/redis"], ["tags", "127.0.0.1:1/redis"]):
        done = pyrun(*command)
        assert done.returncode == 1
        assert "127.0.0.1:1" in done.stderr


def test_docker_hub_is_searched_at_its_index(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(30)
        asked: list[bytes] = []

        def serve() -> None:
            connection, _ = proxy.accept()
            with connection:
                asked.append(connection.recv(4096).split(b"\r\n")[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        empty = tmp_path / "registries.conf"
        empty.touch()
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        env = {
            "CONTAINERS_REGISTRIES_CONF": str(empty),
            "HTTPS_PROXY": address,
            "NO_PROXY": "",
            "no_proxy": "",
        }
        done = Pyrun(tmp_path / "r", tmp_path / "s", env={**env, "https_proxy": address})("search", "redis")
        thread.join(30)
    assert done.returncode == 1
    assert asked == [b"CONNECT index.docker.io:443 HTTP/1.1"] or asked == [
        b"CONNECT index.docker.io:443 HTTP/1.0"
    ]
