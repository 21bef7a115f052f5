"""Authorization at real registries: basic, and tokens from a server of the tests' own."""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.errors import RegistryError, Unauthorized
from pyrun.images.registry.access import Access
from pyrun.images.registry.auth import widened
from pyrun.images.registry.client import RegistryClient
from pyrun.images.registry.credentials import Credentials
from pyrun.images.registry.registries import Endpoint
from support.certificates import Authority
from support.registry import OCI_MANIFEST, Pushed, Registry, sha256, tar
from support.token_server import TokenServer

from .faults import FaultServer, Request

USER, PASSWORD = "alice", "s3cret-Pw"
# bcrypt of the password: the only kind that docker-registry takes
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuug31dkSyVxrsFMUodgTDe/x8GylKmO.S\n"
ALICE = Credentials(USER, PASSWORD, source="the test")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def images(registry: Registry) -> dict[str, Pushed]:
    """The same in three repositories, by their names."""
    layer = tar({"etc/motd": b"hello\n"})
    return {
        name: registry.push_image(name, "1", [layer], other_platform=False)
        for name in ("private/app", "private/other", "public/app")
    }


@pytest.fixture(scope="module")
def basic(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """The registry's content, behind a password."""
    directory = tmp_path_factory.mktemp("basic")
    (directory / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    with Registry(directory, root=registry.root, settings={"auth": auth}) as running:
        yield running


class Guarded:
    """A registry that believes a token server."""

    def __init__(self, tokens: TokenServer, registry: Registry) -> None:
        self.tokens = tokens
        self.host = registry.host
        self.registry = registry

    def client(
        self, path: str, credentials: Credentials | None = None, *, actions: str = "pull"
    ) -> RegistryClient:
        return client(self.host, path, credentials, actions=actions)


@pytest.fixture
def guarded(
    registry: Registry, authority: Authority, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Guarded]:
    options = getattr(request, "param", {})
    with (
        TokenServer(tmp_path / "tokens", authority, {USER: PASSWORD}, **options) as tokens,
        Registry(tmp_path, root=registry.root, settings={"auth": tokens.registry_auth}) as running,
    ):
        yield Guarded(tokens, running)


def client(
    host: str,
    path: str,
    credentials: Credentials | None = None,
    *,
    actions: str = "pull",
    mirror: bool = False,
    authfile: Path | None = None,
) -> RegistryClient:
    if authfile is None:
        authfile = Path(os.devnull)
    access = Access(credentials, str(authfile))
    return RegistryClient(Endpoint(host, path, "1", False, mirror), path, actions=actions, access=access)


# --- basic


def test_basic_credentials_open_a_registry(basic: Registry, images: dict[str, Pushed]) -> None:
    found = client(basic.host, "private/app", ALICE).get_manifest("1")
    assert found[2] == images["private/app"].digest


@pytest.mark.usefixtures("images")
def test_without_credentials_the_error_says_how_to_log_in(basic: Registry) -> None:
    with pytest.raises(Unauthorized, match="wants credentials for private/app") as caught:
        client(basic.host, "private/app").get_manifest("1")
    assert f"pyrun login {basic.host}" in caught.value.hint


@pytest.mark.usefixtures("images")
def test_a_wrong_password_is_said_without_it(basic: Registry) -> None:
    wrong = Credentials(USER, "guess-4711", source="a file")
    with pytest.raises(Unauthorized, match=r"refuses the credentials of alice from a file") as caught:
        client(basic.host, "private/app", wrong).get_manifest("1")
    assert "guess" not in f"{caught.value}{caught.value!r}{caught.value.__context__!r}{wrong!r}"


def test_a_password_is_not_sent_before_it_is_asked_for(tmp_path: Path) -> None:
    def open_to_all(request: Request) -> None:
        request.document(b"{}")

    with FaultServer(open_to_all, str(tmp_path / "log")) as server:
        client(server.host, "a/b", ALICE).get_manifest("1")
        assert all("authorization" not in headers for _, _, headers in server.requests())


def test_a_mirror_never_gets_the_password_of_the_registry(tmp_path: Path) -> None:
    def curious(request: Request) -> None:
        request.reply(401, www_authenticate='Basic realm="please"')

    with FaultServer(curious, str(tmp_path / "log"), base=curious) as server:
        with pytest.raises(Unauthorized):
            client(server.host, "a/b", ALICE, mirror=True).get_manifest("1")
        assert all("authorization" not in headers for _, _, headers in server.requests())


@pytest.mark.parametrize("status", [302, 307])
def test_a_password_stays_behind_when_a_registry_redirects_elsewhere(tmp_path: Path, status: int) -> None:
    def elsewhere(request: Request) -> None:
        request.reply(401 if "authorization" in {k.lower() for k in request.headers} else 200, b"layer")

    with FaultServer(elsewhere, str(tmp_path / "other")) as other:

        def registry(request: Request) -> None:
            if request.headers.get("Authorization"):
                request.reply(status, location=f"http://{other.host}/x")
            else:
                request.reply(401, www_authenticate='Basic realm="r"')

        with FaultServer(registry, str(tmp_path / "log")) as server:
            assert client(server.host, "a/b", ALICE).get_blob(sha256(b"layer"), 5) == b"layer"
        assert [headers.get("authorization") for _, _, headers in other.requests()] == [None]


def test_a_challenge_from_where_a_redirect_led_is_not_answered(tmp_path: Path) -> None:
    def curious(request: Request) -> None:
        request.reply(401, www_authenticate='Basic realm="please"')

    with FaultServer(curious, str(tmp_path / "other")) as other:

        def registry(request: Request) -> None:
            request.reply(307, location=f"http://{other.host}/x")

        with FaultServer(registry, str(tmp_path / "log")) as server, pytest.raises(Unauthorized):
            client(server.host, "a/b", ALICE).get_blob(sha256(b"layer"), 5)
        assert [headers.get("authorization") for _, _, headers in other.requests()] == [None]


def test_an_address_elsewhere_gets_no_credentials(basic: Registry, tmp_path: Path) -> None:
    def store(request: Request) -> None:
        request.reply(200, b"there")

    with FaultServer(store, str(tmp_path / "log")) as other:
        connected = client(basic.host, "private/app", ALICE)
        assert connected.request("GET", f"http://{other.host}/upload", {}).read(100) == b"there"
        assert other.requests()[-1][2].get("authorization") is None


# --- tokens


def test_what_everybody_may_pull_needs_no_credentials(guarded: Guarded, images: dict[str, Pushed]) -> None:
    connected = guarded.client("public/app")
    assert connected.get_manifest("1")[2] == images["public/app"].digest
    (asked,) = guarded.tokens.asked()
    assert (asked.method, asked.user, asked.scopes) == ("GET", "", ["repository:public/app:pull"])


@pytest.mark.usefixtures("images")
def test_a_private_repository_is_said_to_need_a_login(guarded: Guarded) -> None:
    with pytest.raises(Unauthorized) as caught:
        guarded.client("private/app").get_manifest("1")
    assert f"pyrun login {guarded.host}" in caught.value.hint


def test_a_password_is_exchanged_for_a_token(guarded: Guarded, images: dict[str, Pushed]) -> None:
    connected = guarded.client("private/app", ALICE)
    assert connected.get_manifest("1")[2] == images["private/app"].digest
    assert connected.get_blob(images["private/app"].config_digest, _config_size(images)) is not None
    (asked,) = guarded.tokens.asked()
    assert (asked.user, asked.fields["account"], asked.granted) == (USER, USER, True)


def _config_size(images: dict[str, Pushed]) -> int:
    return int(images["private/app"].manifest["config"]["size"])


@pytest.mark.usefixtures("images")
def test_a_wrong_password_at_the_token_server_is_said_with_its_reason(guarded: Guarded) -> None:
    with pytest.raises(Unauthorized, match=r"refuses the credentials of alice.*wrong user or password"):
        guarded.client("private/app", Credentials(USER, "no")).get_manifest("1")


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("guarded", [{"name": "access_token"}], indirect=True)
def test_a_token_may_be_called_access_token(guarded: Guarded) -> None:
    guarded.client("private/app", ALICE).get_manifest("1")


@pytest.mark.usefixtures("images")
def test_an_identity_token_is_exchanged_without_a_password(guarded: Guarded) -> None:
    (identity,) = guarded.tokens.identities
    guarded.client("private/app", Credentials(identity_token=identity)).get_manifest("1")
    (asked,) = guarded.tokens.asked()
    assert (asked.method, asked.user, asked.fields["client_id"]) == ("POST", USER, "pyrun")
    assert asked.scopes == ["repository:private/app:pull"]


@pytest.mark.usefixtures("images")
def test_an_identity_token_that_was_taken_back_is_refused_in_words(guarded: Guarded) -> None:
    with pytest.raises(Unauthorized, match=r"token server .* refuses the credentials"):
        guarded.client("private/app", Credentials(identity_token="old")).get_manifest("1")


@pytest.mark.usefixtures("images")
def test_a_registry_token_is_sent_as_it_is(guarded: Guarded) -> None:
    token = guarded.tokens.token(USER, ["repository:private/app:pull"])
    guarded.client("private/app", Credentials(registry_token=token)).get_manifest("1")
    assert guarded.tokens.asked() == []


@pytest.mark.usefixtures("images")
def test_pushing_asks_for_more_and_a_mount_for_another_repository(
    guarded: Guarded, images: dict[str, Pushed]
) -> None:
    connected = guarded.client("private/new", ALICE, actions="pull,push")
    layer = images["private/app"].layer_digests[0]
    mount = f"blobs/uploads/?mount={layer}&from=private/app"
    response = connected.request("POST", mount, {}, b"", scopes=("repository:private/app:pull",))
    response.discard()
    assert response.status == 201
    assert guarded.tokens.asked()[-1].scopes == [
        "repository:private/new:pull,push",
        "repository:private/app:pull",
    ]


def test_a_body_is_sent_whole_again_after_a_challenge(tmp_path: Path) -> None:
    # A registry whose /v2/ asks for nothing, so that only the request itself finds out.
    class Uploads(Request):
        def do_PUT(self) -> None:  # noqa: N802
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.headers.get("Authorization"):
                self.reply(401, www_authenticate='Basic realm="r"')
            else:
                self.reply(201, body)

    blob = tmp_path / "blob"
    blob.write_bytes(b"..content")
    with _Puts(Uploads, str(tmp_path / "puts")) as server, open(blob, "rb") as file:
        file.seek(2)
        connected = client(server.host, "a/b", ALICE)
        response = connected.request("PUT", "blobs/uploads/1", {"Content-Length": "7"}, file)
        assert (response.status, response.read(100)) == (201, b"content")


class _Puts(FaultServer):
    """A `FaultServer` with another handler."""

    def __init__(self, handler: type[Request], log: str) -> None:
        super().__init__(Request.reply_ok, log)
        self._server.RequestHandlerClass = handler


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("guarded", [{"really": 2}], indirect=True)
def test_a_token_that_ran_out_is_renewed_in_the_middle(guarded: Guarded) -> None:
    connected = guarded.client("private/app", ALICE)
    connected.get_manifest("1")
    time.sleep(3.2)  # past what the registry takes, not past what it was said to live
    connected.get_manifest("1")
    assert [asked.granted for asked in guarded.tokens.asked()] == [True, True]


@pytest.mark.usefixtures("images")
@pytest.mark.parametrize("guarded", [{"lifetime": 1, "really": 300}], indirect=True)
def test_a_token_lives_a_minute_whatever_it_says(guarded: Guarded) -> None:
    connected = guarded.client("private/app", ALICE)
    connected.get_manifest("1")
    time.sleep(1.2)
    connected.get_manifest("1")
    assert len(guarded.tokens.asked()) == 1


@pytest.mark.usefixtures("images")
def test_forked_workers_use_the_token_of_their_parent(guarded: Guarded) -> None:
    connected = guarded.client("private/app", ALICE)
    connected.authorize()
    connected.close()
    for _ in range(2):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                connected.get_manifest("1")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
    assert len(guarded.tokens.asked()) == 1


@pytest.mark.usefixtures("images")
def test_threads_that_need_one_token_fetch_it_once(guarded: Guarded) -> None:
    connected = guarded.client("private/app", ALICE)
    _ = connected.url("")
    connected.close()
    threads = [threading.Thread(target=connected.authorize) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(guarded.tokens.asked()) == 1


def test_scopes_widen_for_what_is_asked_for_only() -> None:
    scopes = ("repository:a/b:pull", "repository:c:pull")
    assert widened(scopes, "repository:a/b:pull,push repository:secret:pull") == (
        "repository:a/b:pull,push",
        "repository:c:pull",
    )
    assert widened(scopes, "repository:a/b:fly registry:catalog:*") == scopes


def test_an_insufficient_scope_is_tried_once_more_with_the_wider_one(tmp_path: Path) -> None:
    def registry(request: Request) -> None:
        realm = f'Bearer realm="http://{request.headers["Host"]}/token",service="s"'
        if request.path.startswith("/token"):
            wide = "pull%2Cpush" in request.path or "pull,push" in request.path
            request.reply(200, b'{"token": "%s"}' % (b"wide" if wide else b"narrow"))
        elif request.headers.get("Authorization") == "Bearer wide":
            request.document(b"{}")
        else:
            wants = 'error="insufficient_scope",scope="repository:a/b:pull,push repository:c/d:pull"'
            request.reply(401, www_authenticate=f"{realm},{wants}")

    def base(request: Request) -> None:
        request.reply(401, www_authenticate=f'Bearer realm="http://{request.headers["Host"]}/token"')

    with FaultServer(registry, str(tmp_path / "log"), base=base) as server:
        connected = client(server.host, "a/b")
        connected.get_manifest("1")
        connected.get_manifest("1")
        paths = [path for _, path, _ in server.requests()]
    assert len([path for path in paths if path.startswith("/token")]) == 2
    assert "c%2Fd" not in "".join(paths)
    assert len([path for path in paths if path.startswith("/v2/a/b")]) == 3


def test_a_scope_that_stays_insufficient_is_an_error_after_one_more_try(tmp_path: Path) -> None:
    def registry(request: Request) -> None:
        realm = f'Bearer realm="http://{request.headers["Host"]}/token"'
        if request.path.startswith("/token"):
            request.reply(200, b'{"token": "never enough"}')
        else:
            request.reply(
                401, www_authenticate=f'{realm},error="insufficient_scope",scope="repository:a/b:pull"'
            )

    with FaultServer(registry, str(tmp_path / "log")) as server:
        with pytest.raises(Unauthorized):
            client(server.host, "a/b", ALICE).get_manifest("1")
        assert len([path for _, path, _ in server.requests() if path.startswith("/v2/a")]) <= 2


def test_a_token_server_elsewhere_without_tls_gets_no_password(tmp_path: Path) -> None:
    def registry(request: Request) -> None:
        request.reply(401, www_authenticate='Bearer realm="http://tokens.invalid/token"')

    with (
        FaultServer(registry, str(tmp_path / "log")) as server,
        pytest.raises(Unauthorized, match="which is not https"),
    ):
        client(server.host, "a/b", ALICE).get_manifest("1")


def test_an_identity_token_is_not_sent_to_where_the_token_server_redirects(tmp_path: Path) -> None:
    def elsewhere(request: Request) -> None:
        request.reply(200, b'{"token": "stolen"}')

    with FaultServer(elsewhere, str(tmp_path / "other")) as other:

        class Tokens(Request):
            def do_POST(self) -> None:  # noqa: N802
                self.rfile.read(int(self.headers["Content-Length"]))
                self.reply(307, location=f"http://{other.host}/token")

        with _Puts(Tokens, str(tmp_path / "tokens")) as tokens:

            def registry(request: Request) -> None:
                request.reply(401, www_authenticate=f'Bearer realm="http://{tokens.host}/token"')

            with (
                FaultServer(registry, str(tmp_path / "log")) as server,
                pytest.raises(RegistryError, match="status 307"),
            ):
                client(server.host, "a/b", Credentials(identity_token="t0p")).get_manifest("1")
        assert other.requests() == []


def test_v2_is_asked_once_a_host(tmp_path: Path) -> None:
    def registry(request: Request) -> None:
        request.document(b"{}")

    with FaultServer(registry, str(tmp_path / "log")) as server:
        connected = client(server.host, "a/b")
        for _ in range(3):
            connected.get_manifest("1")
        assert [path for _, path, _ in server.requests()].count("/v2/") == 1


def test_what_a_user_may_not_do_is_told_from_a_wrong_password(tmp_path: Path) -> None:
    def registry(request: Request) -> None:
        if request.path.startswith("/token"):
            request.reply(200, b'{"token": "of nobody"}')
        elif request.path.endswith("blobs/" + sha256(b"")):
            request.reply(403, b'{"errors": [{"code": "DENIED", "message": "pulls are disabled"}]}')
        else:
            realm = f'Bearer realm="http://{request.headers["Host"]}/token"'
            request.reply(401, www_authenticate=realm)

    def base(request: Request) -> None:
        request.reply(401, www_authenticate=f'Bearer realm="http://{request.headers["Host"]}/token"')

    with FaultServer(registry, str(tmp_path / "log"), base=base) as server:
        connected = client(server.host, "a/b", ALICE)
        with pytest.raises(Unauthorized, match="denies access to a/b with the credentials of alice"):
            connected.get_manifest("1")
        with pytest.raises(
            Unauthorized, match="of alice from the test: denied: pulls are disabled"
        ) as caught:
            connected.get_blob(sha256(b""), 0)
    assert "what this user may do" in caught.value.hint


def test_credentials_come_from_the_file_only_where_asked(basic: Registry, tmp_path: Path) -> None:
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    file = tmp_path / "auth.json"
    file.write_text(f'{{"auths": {{"{basic.host}/private/app": {{"auth": "{auth}"}}}}}}')
    client(basic.host, "private/app", authfile=file).get_manifest("1")
    with pytest.raises(Unauthorized):
        client(basic.host, "private/other", authfile=file).get_manifest("1")


def test_the_manifest_type_survives_authorization(basic: Registry, images: dict[str, Pushed]) -> None:
    assert client(basic.host, "public/app", ALICE).get_manifest("1")[1] == OCI_MANIFEST
