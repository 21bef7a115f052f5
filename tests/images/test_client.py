"""The registry client against servers that misbehave."""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyrun.errors import DigestMismatch, ImageError, ManifestUnknown, RegistryError, Unauthorized
from pyrun.images.registry.auth import challenges
from pyrun.images.registry.client import RegistryClient
from pyrun.images.registry.origin import is_inward
from pyrun.images.registry.registries import Endpoint
from support.registry import OCI_MANIFEST, sha256

from .faults import FaultServer, Request, closed_port

Serve = Callable[..., FaultServer]
LAYER = b"layer bytes"
DIGEST = sha256(LAYER)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    running: list[FaultServer] = []

    def start(
        answer: Callable[[Request], None],
        *,
        tls: tuple[str, str] | None = None,
        base: Callable[[Request], None] | None = None,
    ) -> FaultServer:
        server = FaultServer(answer, str(tmp_path / f"requests-{len(running)}"), tls=tls, base=base)
        running.append(server)
        return server.__enter__()

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl (package openssl)")
    folder = tmp_path_factory.mktemp("tls")
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
            " -subj /CN=localhost"
            f" -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -out {paths[0]} -keyout {paths[1]}"
        ).split(),
        check=True,
        capture_output=True,
    )
    return paths


def client(host: str, *, insecure: bool = False, patience: float = 60) -> RegistryClient:
    return RegistryClient(Endpoint(host, "team/app", "1", insecure, False), "app:1", patience=patience)


def everything(content: bytes | None, status: int = 200, **headers: str) -> Callable[[Request], None]:
    return lambda request: request.reply(status, content or b"", **headers)


def test_a_manifest_comes_with_the_digest_of_its_bytes_whatever_the_registry_claims(serve: Serve) -> None:
    lying = everything(b"{}", docker_content_digest=DIGEST, content_type=OCI_MANIFEST)
    assert client(serve(lying).host).get_manifest("1") == (b"{}", OCI_MANIFEST, sha256(b"{}"))


def test_a_manifest_by_digest_with_other_bytes_is_refused(serve: Serve) -> None:
    with pytest.raises(DigestMismatch, match="tampered"):
        client(serve(everything(b"{}")).host).get_manifest(DIGEST)


def test_all_four_manifest_types_are_asked_for_and_no_encoding(serve: Serve) -> None:
    server = serve(lambda request: request.document(b"{}"))
    assert client(server.host).head_manifest("1") == sha256(b"{}")
    method, path, headers = server.requests()[-1]
    assert (method, path) == ("HEAD", "/v2/team/app/manifests/1")
    assert headers["accept"].count("application/vnd.") == 4
    assert headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [405, 200])
def test_a_head_without_a_digest_leaves_it_to_the_get(serve: Serve, status: int) -> None:
    assert client(serve(everything(b"{}", status)).host).head_manifest("1") is None


def error(code: str, message: str) -> bytes:
    return f'{{"errors":[{{"code":"{code}","message":"{message}"}}]}}'.encode()


def test_a_missing_tag_is_said_with_the_registrys_reason(serve: Serve) -> None:
    missing = everything(error("MANIFEST_UNKNOWN", "manifest unknown"), 404)
    with pytest.raises(ManifestUnknown) as caught:
        client(serve(missing).host).head_manifest("1")
    assert caught.value.message == "manifest for app:1 not found: manifest unknown"


def test_control_bytes_in_the_registrys_words_are_escaped(serve: Serve) -> None:
    evil = everything(error("DENIED", r"\u001b[2J\u202eno\nway"), 403)
    with pytest.raises(Unauthorized) as caught:
        client(serve(evil).host).get_manifest("1")
    assert caught.value.message.isprintable()
    assert r"\x1b[2J\u202eno way" in caught.value.message


@pytest.mark.parametrize(
    ("status", "body", "kind", "says"),
    [
        (403, b"", Unauthorized, "denies access to app:1"),
        (401, b"", Unauthorized, "credentials"),
        (404, b"<html>", ManifestUnknown, "not found at 127"),
        (429, b"", RegistryError, "limits"),
        (500, error("UNKNOWN", "disk"), RegistryError, "status 500 .*unknown: disk"),
        (503, b'{"errors": 5}', RegistryError, "status 503"),
        (200, b"x" * (4 << 20) + b"yy", ImageError, "larger than 4 MiB"),
        (404, b"[" * 100_000, ManifestUnknown, "not found"),
    ],
)
def test_every_answer_but_the_right_one_is_an_error_in_words(
    serve: Serve, status: int, body: bytes, kind: type[ImageError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        client(serve(everything(body, status)).host).get_manifest("1")


def test_too_many_requests_tells_how_long_to_wait(serve: Serve) -> None:
    with pytest.raises(RegistryError) as caught:
        client(serve(everything(b"", 429, retry_after="17")).host).get_manifest("1")
    assert "17 s" in caught.value.hint


def test_a_body_without_an_end_is_read_no_further_than_its_size(serve: Serve) -> None:
    def endless(request: Request) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(bytes(65536))

    server = serve(endless)
    with pytest.raises(ImageError, match="larger than its manifest says"):
        client(server.host).get_blob(DIGEST, len(LAYER))
    with pytest.raises(ImageError, match="larger than 4 MiB"):
        client(server.host).get_manifest("1")


def test_an_answer_that_breaks_off_is_an_error(serve: Serve) -> None:
    def short(request: Request) -> None:
        request.reply(200, b"{}", content_length="500")
        request.close_connection = True

    with pytest.raises(RegistryError, match="in the middle"):
        client(serve(short).host).get_manifest("1")


def test_an_encoded_blob_is_refused(serve: Serve) -> None:
    with pytest.raises(RegistryError, match="encoding 'gzip'"):
        client(serve(everything(LAYER, content_encoding="gzip")).host).open_blob(DIGEST)


def without_end(start: bytes, again: bytes, pause: float) -> Callable[[Request], None]:
    def answer(request: Request) -> None:
        request.wfile.write(start)
        while True:
            request.wfile.write(again)
            time.sleep(pause)

    return answer


HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SLOW = {
    "a header drips": (HEAD + b"X-Padding: ", b"a", 0.02),
    "the head stops": (HEAD, b"", 0.02),
    "interim answers drip": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02),
    "interim answers flood": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 500, 0),
    "the body drips": (HEAD + b"Content-Length: 1000000\r\n\r\n", b"a", 0.02),
    "chunks drip": (CHUNKED, b"1\r\na\r\n", 0.02),
    "trailers flood": (CHUNKED + b"1\r\na\r\n0\r\n", b"X-More: x\r\n" * 500, 0),
}


@pytest.mark.parametrize("way", SLOW)
@pytest.mark.parametrize("kind", ["manifest", "layer"])
def test_an_answer_that_never_gets_anywhere_is_given_up(serve: Serve, way: str, kind: str) -> None:
    connected = client(serve(without_end(*SLOW[way])).host, patience=0.3)

    def fetch() -> None:
        if kind == "manifest":
            connected.get_manifest("1")
        buffer = memoryview(bytearray(64 << 10))
        response = connected.open_blob(DIGEST)
        while response.readinto(buffer):
            pass

    began = time.monotonic()
    with pytest.raises(RegistryError, match="does not answer in time"):
        fetch()
    assert time.monotonic() - began < 3


def test_a_layer_that_makes_progress_may_take_longer_than_a_document(serve: Serve) -> None:
    piece = bytes(64 << 10)

    def slowly(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(10 * len(piece)))
        request.end_headers()
        for _ in range(10):
            request.wfile.write(piece)
            time.sleep(0.1)

    response = client(serve(slowly).host, patience=0.5).open_blob(DIGEST)
    buffer = memoryview(bytearray(len(piece)))
    assert sum(iter(lambda: response.readinto(buffer), 0)) == 10 * len(piece)


def test_time_that_the_client_itself_takes_does_not_count(serve: Serve) -> None:
    connected = client(serve(everything(LAYER)).host, patience=0.2)
    response = connected.open_blob(DIGEST)
    time.sleep(0.4)
    buffer = memoryview(bytearray(100))
    assert response.readinto(buffer) == len(LAYER)
    time.sleep(0.4)
    assert response.readinto(buffer) == 0
    assert connected.get_blob(DIGEST, len(LAYER)) == LAYER


def test_a_registry_that_drips_its_first_answer_is_given_up(serve: Serve) -> None:
    drips = without_end(HEAD + b"X-Padding: ", b"a", 0.02)
    began = time.monotonic()
    with pytest.raises(RegistryError):
        client(serve(drips, base=drips).host, patience=0.3).get_manifest("1")
    assert time.monotonic() - began < 3


# --- redirects


def test_a_redirect_is_followed_and_the_token_stays_behind(serve: Serve) -> None:
    store = serve(everything(LAYER))

    def registry(request: Request) -> None:
        if request.path.startswith("/token"):
            request.reply(200, b'{"token": "secret"}')
        elif "authorization" not in {name.lower() for name in request.headers}:
            realm = f"http://{request.headers['Host']}/token"
            request.reply(
                401, www_authenticate=f'Bearer realm="{realm}",service="r",scope="repository:other:push"'
            )
        else:
            request.reply(307, location=f"http://{store.host}/blob?signature=a%2Fb")

    server = serve(registry)
    assert client(server.host).get_blob(DIGEST, len(LAYER)) == LAYER
    asked = [(path, headers.get("authorization")) for _, path, headers in server.requests() if path != "/v2/"]
    assert asked == [
        (f"/v2/team/app/blobs/{DIGEST}", None),
        ("/token?service=r&scope=repository%3Ateam%2Fapp%3Apull", None),
        (f"/v2/team/app/blobs/{DIGEST}", "Bearer secret"),
    ]
    assert [(path, headers.get("authorization")) for _, path, headers in store.requests()] == [
        ("/blob?signature=a%2Fb", None)
    ]


def test_a_redirect_loop_ends(serve: Serve) -> None:
    server = serve(lambda request: request.reply(302, location=request.path))
    with pytest.raises(RegistryError, match="more than 10 times"):
        client(server.host).get_manifest("1")
    assert len(server.requests()) == 12  # the question whether it speaks HTTP, and eleven


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://user:pw@127.0.0.1/",
        "http://[::1",
        "gopher:x",
    ],
)
def test_a_redirect_to_what_is_not_http_is_refused(serve: Serve, location: str) -> None:
    with pytest.raises(RegistryError, match="not an address that can be fetched"):
        client(serve(everything(b"", 302, location=location)).host).get_manifest("1")


def test_a_redirect_from_https_to_http_is_refused(serve: Serve, certificate: tuple[str, str]) -> None:
    plain = serve(everything(LAYER))
    secure = serve(everything(b"", 307, location=f"http://{plain.host}/"), tls=certificate)
    with pytest.raises(RegistryError, match="from https to http"):
        client(secure.host, insecure=True).get_blob(DIGEST, len(LAYER))
    assert plain.requests() == []


ELSEWHERE = """
import sys
from pyrun.errors import RegistryError
from tests_images import FaultServer, client, everything
address, log = sys.argv[1:]
with (
    FaultServer(everything(b"{}"), log + "-in") as inside,
    FaultServer(everything(b"{}"), log + "-cloud", address="169.254.169.254") as cloud,
):
    for where in (f"http://{inside.host}/", f"http://localhost:{inside.port}/", f"http://{cloud.host}/latest/"):
        with FaultServer(everything(b"", 307, location=where), log, address=address) as outside:
            try:
                client(outside.host, insecure=True).get_manifest("1")
            except RegistryError as error:
                assert "an address of this machine or link" in error.message, error
            else:
                raise SystemExit("followed")
    realm = f'Bearer realm="http://{inside.host}/token"'
    with FaultServer(everything(b"", 401, www_authenticate=realm), log, address=address) as outside:
        try:
            client(outside.host, insecure=True).get_manifest("1")
        except RegistryError as error:
            assert "an address of this machine or link" in error.message, error
        else:
            raise SystemExit("followed")
    assert inside.requests() == cloud.requests() == []
"""


@pytest.mark.parametrize(
    ("address", "inward"),
    [
        *((text, True) for text in ("127.0.0.1", "::1", "0.0.0.0", "::", "169.254.169.254", "fe80::1")),
        *((text, True) for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16")),
        *(
            (text, False)
            for text in ("10.0.0.1", "192.168.1.1", "fd00::1", "100.100.100.201", "93.184.216.34")
        ),
    ],
)
def test_addresses_of_this_machine_its_link_and_its_cloud_are_told(address: str, inward: bool) -> None:
    assert is_inward(ipaddress.ip_address(address)) is inward


def test_a_registry_elsewhere_can_not_lead_to_this_machines_loopback_or_its_clouds_metadata(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network namespace")
    # A public address, in a network namespace of its own where it belongs to lo.
    script = ELSEWHERE.replace(
        "from tests_images import FaultServer, client, everything",
        "from images.faults import FaultServer\nfrom images.test_client import client, everything",
    )
    loopback = (
        "ip link set lo up && ip addr add 203.0.113.7/32 dev lo && ip addr add 169.254.169.254/32 dev lo"
        ' && exec "$@"'
    )
    log = str(tmp_path / "log")
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", loopback, "sh", sys.executable, "-c", script, "203.0.113.7", log],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


# --- reaching it


def test_nobody_listening_is_said_in_words() -> None:
    host = f"127.0.0.1:{closed_port()}"
    with pytest.raises(RegistryError, match=f"registry {host} can't be reached: connection refused"):
        client(host).get_manifest("1")


def test_a_name_that_does_not_resolve_is_said_in_words() -> None:
    with pytest.raises(
        RegistryError, match=r"no-such-host\.invalid can't be reached: its name can't be resolved"
    ):
        client("no-such-host.invalid").get_manifest("1")


def test_an_answer_that_is_not_http_is_said_in_words(serve: Serve) -> None:
    def garbage(request: Request) -> None:
        request.wfile.write(b"SSH-2.0-OpenSSH_9\r\n")
        request.close_connection = True

    with pytest.raises(RegistryError, match="its answer is not HTTP"):
        client(serve(garbage).host).get_manifest("1")


def test_an_untrusted_certificate_is_refused_and_plain_http_not_tried(
    serve: Serve, certificate: tuple[str, str]
) -> None:
    server = serve(everything(b"{}"), tls=certificate)
    with pytest.raises(RegistryError, match="certificate can't be verified") as caught:
        client(server.host).get_manifest("1")
    assert "insecure = true" in caught.value.hint
    assert server.requests() == []


def test_an_insecure_registry_may_have_an_untrusted_certificate(
    serve: Serve, certificate: tuple[str, str]
) -> None:
    server = serve(everything(b"{}"), tls=certificate)
    assert client(server.host, insecure=True).get_manifest("1")[0] == b"{}"


PORTLESS = """
import contextlib, sys
from images.faults import FaultServer
from images.test_client import client, everything
certificate, log, plain = sys.argv[1:3], sys.argv[3], sys.argv[4]
web = everything(b"", int(plain or 0), **({"location": "https://127.0.0.1/"} if plain == "301" else {}))
with contextlib.ExitStack() as running:
    if plain:
        running.enter_context(FaultServer(web, log, port=80, base=web))
    secure = running.enter_context(FaultServer(everything(b"{}"), log, tls=certificate, port=443))
    assert client("127.0.0.1", insecure=True).get_manifest("1")[0] == b"{}"
    try:
        client("127.0.0.1").get_manifest("1")
    except Exception as error:
        assert "certificate can't be verified" in str(error), error
    else:
        raise SystemExit("an untrusted certificate was believed")
"""


@pytest.mark.parametrize("plain", ["", "301", "404", "503"])
def test_without_a_port_tls_follows_where_plain_http_finds_no_registry(
    tmp_path: Path, certificate: tuple[str, str], plain: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for a network namespace")
    loopback = 'ip link set lo up && exec "$@"'
    arguments = [sys.executable, "-c", PORTLESS, *certificate, str(tmp_path / "log"), plain]
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", loopback, "sh", *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("status", [302, 404, 503])
def test_a_web_server_on_loopback_is_said_to_be_no_registry(serve: Serve, status: int) -> None:
    web = everything(b"", status, **({"location": "/"} if status == 302 else {}))
    with pytest.raises(RegistryError, match=f"plain HTTP gives status {status} for /v2/") as caught:
        client(serve(web, base=web).host).get_manifest("1")
    assert "insecure" not in caught.value.hint


def test_what_calls_itself_a_registry_is_one_whatever_its_status(serve: Serve) -> None:
    busy = everything(b"", 503, docker_distribution_api_version="registry/2.0")
    assert client(serve(everything(b"{}"), base=busy).host).get_manifest("1")[0] == b"{}"


def test_a_trusted_certificate_is_enough(
    serve: Serve, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    assert client(serve(everything(b"{}"), tls=certificate).host).get_manifest("1")[0] == b"{}"


def test_plain_http_is_not_spoken_beyond_loopback() -> None:
    probe = "203.0.113.1:80"
    assert client(probe)._transport.plain_allowed is False
    assert client(probe)._transport.url("/v2/").startswith("https://")
    assert client("127.0.0.1.example:80")._transport.plain_allowed is False


def test_a_connection_that_was_closed_meanwhile_is_opened_again(serve: Serve) -> None:
    def once(request: Request) -> None:
        request.document(b"{}")
        request.close_connection = True  # without having said so

    connected = client(serve(once).host)
    assert connected.get_manifest("1")[0] == b"{}"
    time.sleep(0.05)
    assert connected.get_manifest("1")[0] == b"{}"


def test_one_connection_serves_many_requests(serve: Serve) -> None:
    server = serve(lambda request: request.document(str(request.client_address[1]).encode()))
    connected = client(server.host)
    ports = set()
    for _ in range(3):
        connected.head_manifest("1")
        ports.add(connected.get_manifest("1")[0])
    assert len(ports) == 1


# --- tokens


@pytest.mark.parametrize(
    ("header", "parsed"),
    [
        (
            'Bearer realm="https://a/t",service="s",scope="x y"',
            [("bearer", {"realm": "https://a/t", "service": "s", "scope": "x y"})],
        ),
        ('Basic realm="a, b", Bearer realm=c', [("basic", {"realm": "a, b"}), ("bearer", {"realm": "c"})]),
        (r'bearer realm="a\"b"', [("bearer", {"realm": 'a"b'})]),
        ("Negotiate", [("negotiate", {})]),
        ('Bearer realm="open', [("bearer", {"realm": "open"})]),
        ("", []),
        ("=", []),
        ('"', [('"', {})]),
    ],
)
def test_a_challenge_is_read_as_rfc_9110_writes_it(
    header: str, parsed: list[tuple[str, dict[str, str]]]
) -> None:
    assert challenges(header) == parsed


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"{}"),
        (200, b"[]"),
        (200, b"nope"),
        (200, b'{"token": 5}'),
        (200, b'{"token": "a\\nb: c"}'),
        (500, b""),
    ],
)
def test_a_token_server_without_a_token_is_an_error(serve: Serve, status: int, body: bytes) -> None:
    def registry(request: Request) -> None:
        if request.path.startswith("/token"):
            request.reply(status, body)
        else:
            request.reply(401, www_authenticate=f'Bearer realm="http://{request.headers["Host"]}/token"')

    with pytest.raises(RegistryError, match="token server"):
        client(serve(registry).host).get_manifest("1")


def test_a_private_repository_is_refused_in_words(serve: Serve) -> None:
    server = serve(everything(b"", 401, www_authenticate='Basic realm="r"'))
    with pytest.raises(Unauthorized, match="wants credentials for app:1"):
        client(server.host).get_manifest("1")


def test_a_config_that_differs_from_its_digest_is_refused(serve: Serve) -> None:
    with pytest.raises(DigestMismatch):
        client(serve(everything(b"Layer bytes")).host).get_blob(DIGEST, len(LAYER))
