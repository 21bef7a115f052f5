"""Answers that would take all memory or time of who reads them, or end in a traceback: below what a proxy can do."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyrun.errors import ConfigError, RegistryError, Unauthorized
from pyrun.images.registry.access import Access
from pyrun.images.registry.auth import MAX_LIFETIME, challenges
from pyrun.images.registry.client import RegistryClient
from pyrun.images.registry.credentials import Credentials
from pyrun.images.registry.registries import Endpoint

from .faults import FaultServer, Request


def _client(host: str, credentials: Credentials | None = None) -> RegistryClient:
    return RegistryClient(
        Endpoint(host, "team/app", "1", False, False), "team/app:1", access=Access(credentials=credentials)
    )


def test_a_chunk_of_less_than_nothing_is_not_read_without_end(tmp_path: Path) -> None:
    def answer(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"-1\r\n")
        for _ in range(512):
            request.wfile.write(bytes(1 << 20))
        request.close_connection = True

    with FaultServer(answer, str(tmp_path / "log")) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(RegistryError):
            _client(server.host).get_manifest("1")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_challenge_of_a_million_words_is_soon_read() -> None:
    began = time.monotonic()
    challenges("a " * 1_000_000)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("lives", ["1" + "0" * 400, "1e999", "-1e999", "-" + "9" * 400, "true", "[]"])
def test_a_token_may_claim_to_live_as_long_as_it_likes(tmp_path: Path, lives: str) -> None:
    def answer(request: Request) -> None:
        if request.path.startswith("/token"):
            request.reply(200, f'{{"token": "abc", "expires_in": {lives}}}'.encode())
        else:
            realm = f'Bearer realm="http://{request.headers["Host"]}/token",service="tests"'
            request.reply(401, www_authenticate=realm)

    with FaultServer(answer, str(tmp_path / "log"), base=answer) as server:
        client = _client(server.host)
        with pytest.raises(Unauthorized):
            client.get_manifest("1")
        (token,) = client._authorizer._tokens.values()
        assert 0 < token.expires - time.monotonic() <= MAX_LIFETIME


@pytest.mark.parametrize(
    "make",
    [
        lambda: Credentials(registry_token="s3cret\n", source="a file"),
        lambda: Credentials(registry_token="s3cret\u20ac", source="a file"),
        lambda: Credentials("\ud800", "s3cret", source="a file"),
        lambda: Credentials("alice", "s3cret\udcff", source="a file"),
        lambda: Credentials(identity_token="s3cret\ud800", source="a file"),
    ],
)
def test_secrets_that_can_not_be_sent_are_refused_and_not_quoted(make: Callable[[], Credentials]) -> None:
    with pytest.raises(ConfigError, match="from a file") as caught:
        make()
    assert "s3cret" not in str(caught.value)
