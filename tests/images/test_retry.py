"""Asking again: what is worth a second try, how long it waits, and what is said meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest

from pyrun.errors import RegistryError
from pyrun.images.registry.access import Access
from pyrun.images.registry.client import RegistryClient
from pyrun.images.registry.registries import Endpoint
from pyrun.images.registry.retry import retry_after, warnings

from .faults import FaultServer, Request


class Failing:
    """Answers ``status`` to the first ``times`` requests, and a manifest to the next. Requests are counted in a
    file: the server is another process."""

    def __init__(self, path: Path, times: int, status: int = 503, **headers: str) -> None:
        self.path = path
        self.path.write_bytes(b"")
        self.times = times
        self.status = status
        self.headers = headers

    def __call__(self, request: Request) -> None:
        with open(self.path, "ab") as file:
            file.write(b".")
        if self.count <= self.times:
            if self.status:
                request.reply(self.status, **self.headers)
            else:
                request.close_connection = True
                request.connection.shutdown(2)
        else:
            request.document(b"{}")

    @property
    def count(self) -> int:
        return len(self.path.read_bytes())


def client(host: str, heard: Callable[[str], None], *, mirror: bool = False) -> RegistryClient:
    access = Access(authfile="/dev/null", notice=heard)
    return RegistryClient(Endpoint(host, "a/b", "1", False, mirror), "b:1", access=access)


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_what_means_later_is_asked_again_and_said(tmp_path: Path, status: int) -> None:
    heard: list[str] = []
    answer = Failing(tmp_path / "count", 2, status)
    with FaultServer(answer, str(tmp_path / "log")) as server:
        assert client(server.host, heard.append).get_manifest("1")[0] == b"{}"
    assert answer.count == 3
    assert [f"status {status}" in line for line in heard] == [True, True]
    assert "trying again in 2 s (1 of 4)" in heard[0]
    assert "trying again in 4 s (2 of 4)" in heard[1]


@pytest.mark.parametrize("status", [400, 404, 405, 500, 501])
def test_what_is_final_is_not_asked_again(tmp_path: Path, status: int) -> None:
    answer = Failing(tmp_path / "count", 9, status)
    with FaultServer(answer, str(tmp_path / "log")) as server, pytest.raises(RegistryError):
        client(server.host, print).get_manifest("1")
    assert answer.count == 1


def test_five_tries_are_enough(tmp_path: Path) -> None:
    answer = Failing(tmp_path / "count", 99, 503)
    with (
        FaultServer(answer, str(tmp_path / "log")) as server,
        pytest.raises(RegistryError, match="status 503"),
    ):
        client(server.host, print).get_manifest("1")
    assert answer.count == 5


def test_a_mirror_is_tried_twice(tmp_path: Path) -> None:
    answer = Failing(tmp_path / "count", 99, 503)
    with FaultServer(answer, str(tmp_path / "log")) as server, pytest.raises(RegistryError):
        client(server.host, print, mirror=True).get_manifest("1")
    assert answer.count == 2


def test_a_lost_connection_is_made_again(tmp_path: Path) -> None:
    heard: list[str] = []
    answer = Failing(tmp_path / "count", 2, 0)
    with FaultServer(answer, str(tmp_path / "log")) as server:
        assert client(server.host, heard.append).get_manifest("1")[0] == b"{}"
    assert any("trying again" in line for line in heard)


def test_what_may_have_been_done_is_not_sent_twice(tmp_path: Path) -> None:
    class Uploads(Request):
        def do_POST(self) -> None:  # noqa: N802
            self.do_GET()

    answer = Failing(tmp_path / "count", 9, 502)
    server = FaultServer(answer, str(tmp_path / "log"))
    server._server.RequestHandlerClass = Uploads
    with server:
        response = client(server.host, print).request("POST", "blobs/uploads/", {}, b"")
        assert response.status == 502
    assert answer.count == 1


@pytest.mark.parametrize("later", ["3", "date"])
def test_retry_after_sets_the_wait(tmp_path: Path, later: str) -> None:
    heard: list[str] = []
    if later == "date":
        later = formatdate(time.time() + 4, usegmt=True)
    answer = Failing(tmp_path / "count", 1, 429, retry_after=later)
    with FaultServer(answer, str(tmp_path / "log")) as server:
        client(server.host, heard.append).get_manifest("1")
    (line,) = heard
    assert "(too many requests); trying again in 3 s" in line or "trying again in 4 s" in line


def test_waits_really_take_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYRUN_RETRY_DELAY")
    answer = Failing(tmp_path / "count", 1, 503, retry_after="1")
    with FaultServer(answer, str(tmp_path / "log")) as server:
        began = time.monotonic()
        client(server.host, print).get_manifest("1")
    assert 1 <= time.monotonic() - began < 2


def test_who_wants_to_be_left_alone_for_long_is_and_the_error_says_what_there_is_to_know(
    tmp_path: Path,
) -> None:
    answer = Failing(
        tmp_path / "count",
        9,
        429,
        retry_after="5400",
        ratelimit_limit="100;w=21600",
        ratelimit_remaining="0;w=21600",
        docker_ratelimit_source="192.0.2.1\x1b[2J",
    )
    with FaultServer(answer, str(tmp_path / "log")) as server, pytest.raises(RegistryError) as caught:
        client(server.host, print).get_manifest("1")
    assert answer.count == 1
    assert "ratelimit-limit 100;w=21600, ratelimit-remaining 0;w=21600" in caught.value.message
    assert "\x1b" not in caught.value.message
    assert "Try again in 90 minutes." in caught.value.hint
    assert f"pyrun login {server.host}" in caught.value.hint


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("17", 17),
        ("0", 0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("9" * 400, None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str | None, seconds: float | None) -> None:
    if header and len(header) > 300:
        found = retry_after(header)
        assert found is not None
        assert found > 60
        return
    assert retry_after(header) == seconds


def test_a_moment_in_seconds_since_1970_is_one() -> None:
    found = retry_after(str(int(time.time()) + 100))
    assert found is not None
    assert 95 < found <= 100


def test_a_registrys_warning_is_passed_on_once_and_does_no_harm(tmp_path: Path) -> None:
    def warned(request: Request) -> None:
        request.send_response(200)
        request.send_header("Warning", '299 - "this image \x9b31m is deprecated"')
        request.send_header("Content-Length", "2")
        request.end_headers()
        request.wfile.write(b"{}")

    heard: list[str] = []
    with FaultServer(warned, str(tmp_path / "log")) as server:
        connected = client(server.host, heard.append)
        connected.get_manifest("1")
        connected.get_manifest("1")
    assert len(heard) == 1
    assert heard[0].isprintable()
    assert "warns: this image" in heard[0]


@pytest.mark.parametrize(
    ("header", "texts"),
    [
        ('299 - "one", 299 - "two"', ["one", "two"]),
        (r'299 - "a \"quoted\" word"', ['a "quoted" word']),
        ('199 - "miscellaneous"', []),
        ('299 - "open', ["open"]),
        ('299 host "named"', []),
        ("", []),
        ('299 - "\x1b[2J"', [r"\x1b[2J"]),
    ],
)
def test_only_warnings_of_code_299_are_read(header: str, texts: list[str]) -> None:
    assert warnings(header) == texts


def test_a_warning_has_an_end() -> None:
    assert sum(map(len, warnings('299 - "' + "x" * 10_000 + '"'))) <= 4096
