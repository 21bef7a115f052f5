"""Registries with CAs and client certificates of their own, and the way to them through proxies."""

from __future__ import annotations

import socketserver
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.errors import ConfigError, RegistryError, Unauthorized
from pyrun.images.registry import tls
from pyrun.images.registry.access import Access
from pyrun.images.registry.client import RegistryClient
from pyrun.images.registry.credentials import Credentials
from pyrun.images.registry.proxy import Proxies
from pyrun.images.registry.registries import Endpoint
from support.certificates import Authority, openssl
from support.httpproxy import HttpProxy
from support.registry import Pushed, Registry, tar
from support.serving import Served
from support.socksproxy import SocksProxy
from support.token_server import TokenServer

from .faults import FaultServer, Request, closed_port

SAN = ("IP:127.0.0.1", "DNS:localhost", "DNS:registry.test")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def image(registry: Registry) -> Pushed:
    return registry.push_image("team/app", "1", [tar({"etc/motd": b"hello\n"})], other_platform=False)


def secured(
    directory: Path, registry: Registry, authority: Authority, *clients: Path, **settings: object
) -> Registry:
    """The registry's content behind TLS; ``clients``: CAs whose certificates are asked for."""
    certificate, key = authority.issue("registry", *SAN)
    client = authority.trusting()
    if clients:
        client.load_cert_chain(*map(str, authority.issue("tester")))
    section = {"certificate": str(certificate), "key": str(key)}
    listed = {"clientcas": [str(path) for path in clients]} if clients else {}
    return Registry(
        directory,
        root=registry.root,
        settings={"http": {"tls": {**section, **listed}}, **settings},
        client=client,
    )


@pytest.fixture(scope="module")
def secure(
    registry: Registry, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Registry]:
    with secured(tmp_path_factory.mktemp("tls"), registry, authority) as running:
        yield running


@pytest.fixture(autouse=True)
def plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither proxies nor certificates of this machine's own."""
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(tls, "SYSTEM", (str(tmp_path / "containers"), str(tmp_path / "docker")))


def certs_d(base: Path, host: str, **files: Path) -> Path:
    """A directory for ``host`` below ``base``; ``ca_crt=path`` becomes ca.crt."""
    directory = base / host
    directory.mkdir(parents=True)
    for name, path in files.items():
        (directory / name.replace("_", ".")).write_bytes(path.read_bytes())
    return directory


def fetch(host: str, image: Pushed, *, insecure: bool = False, **access: object) -> bool:
    """Whether the image's manifest can be had; raises why not."""
    connected = RegistryClient(
        Endpoint(host, "team/app", "1", insecure, False),
        "app",
        access=Access(**access),  # type: ignore[arg-type]
    )
    return connected.get_manifest("1")[2] == image.digest


# --- CAs


def test_an_unknown_ca_is_refused_and_the_error_says_where_it_belongs(
    secure: Registry, image: Pushed
) -> None:
    with pytest.raises(RegistryError, match="certificate can't be verified") as caught:
        fetch(secure.host, image)
    assert f"/etc/containers/certs.d/{secure.host}/ca.crt" in caught.value.hint


@pytest.mark.parametrize("where", ["config/containers/certs.d", "containers", "docker"])
def test_a_registrys_ca_is_found_in_each_place(
    secure: Registry, image: Pushed, authority: Authority, tmp_path: Path, where: str
) -> None:
    certs_d(tmp_path / where, secure.host, ca_crt=authority.certificate)
    assert fetch(secure.host, image)


def test_the_first_directory_that_exists_is_the_only_one(
    secure: Registry, image: Pushed, authority: Authority, tmp_path: Path
) -> None:
    certs_d(tmp_path / "containers", secure.host)
    certs_d(tmp_path / "docker", secure.host, ca_crt=authority.certificate)
    with pytest.raises(RegistryError, match="can't be verified"):
        fetch(secure.host, image)


def test_another_registrys_ca_does_not_count(
    secure: Registry, image: Pushed, authority: Authority, tmp_path: Path
) -> None:
    certs_d(tmp_path / "containers", "127.0.0.1:1", ca_crt=authority.certificate)
    with pytest.raises(RegistryError, match="can't be verified"):
        fetch(secure.host, image)


def test_a_directory_of_certificates_may_be_named(
    secure: Registry, image: Pushed, authority: Authority, tmp_path: Path
) -> None:
    directory = certs_d(tmp_path, "mine", ca_crt=authority.certificate)
    assert fetch(secure.host, image, cert_dir=str(directory))
    with pytest.raises(ConfigError, match="no directory"):
        fetch(secure.host, image, cert_dir=str(tmp_path / "absent"))


def test_tls_verify_false_believes_any_certificate_and_true_none_but_valid_ones(
    secure: Registry, registry: Registry, image: Pushed
) -> None:
    assert fetch(secure.host, image, tls_verify=False)
    with pytest.raises(RegistryError, match="can't be verified"):
        fetch(secure.host, image, insecure=True, tls_verify=True)
    with pytest.raises(RegistryError, match="TLS failed"):
        fetch(registry.host, image, tls_verify=True)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"client.cert": "x"}, "client.cert has no key client.key"),
        ({"client.key": "x"}, "client.key has no certificate client.cert"),
        ({"ca.crt": "garbage"}, "ca.crt does not hold CA certificates in PEM form"),
        (
            {"client.cert": "garbage", "client.key": "garbage"},
            "client.cert does not hold a client certificate",
        ),
    ],
)
def test_a_directory_that_makes_no_sense_is_named(
    secure: Registry, image: Pushed, tmp_path: Path, files: dict[str, str], says: str
) -> None:
    directory = certs_d(tmp_path / "containers", secure.host)
    for name, content in files.items():
        (directory / name).write_text(content)
    with pytest.raises(ConfigError, match=says):
        fetch(secure.host, image)


# --- client certificates


def test_a_client_certificate_opens_a_registry_that_wants_one(
    registry: Registry, image: Pushed, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("alice")
    with secured(tmp_path / "r", registry, authority, authority.certificate) as strict:
        directory = certs_d(tmp_path / "containers", strict.host, ca_crt=authority.certificate)
        with pytest.raises(RegistryError) as caught:
            fetch(strict.host, image)
        assert "client.cert" in caught.value.hint
        (directory / "alice.cert").write_bytes(certificate.read_bytes())
        (directory / "alice.key").write_bytes(key.read_bytes())
        assert fetch(strict.host, image)


def test_an_encrypted_key_is_an_error_and_no_question(
    secure: Registry, image: Pushed, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("bob")
    locked = tmp_path / "locked.key"
    openssl("rsa", "-aes256", "-passout", "pass:x", "-in", str(key), "-out", str(locked))
    certs_d(
        tmp_path / "containers",
        secure.host,
        ca_crt=authority.certificate,
        b_cert=certificate,
        b_key=locked,
    )
    with pytest.raises(ConfigError, match="not encrypted"):
        fetch(secure.host, image)


def test_a_registrys_ca_is_believed_of_its_token_server(
    registry: Registry, image: Pushed, authority: Authority, tmp_path: Path
) -> None:
    pair = authority.issue("tokens", *SAN)
    with (
        TokenServer(tmp_path / "tokens", authority, {"alice": "pw"}, tls=pair) as tokens,
        secured(tmp_path / "r", registry, authority, auth=tokens.registry_auth) as running,
    ):
        certs_d(tmp_path / "containers", running.host, ca_crt=authority.certificate)
        assert fetch(running.host, image, credentials=Credentials("alice", "pw"))
        assert tokens.asked()[-1].user == "alice"


def test_a_registry_with_tls_can_not_send_passwords_to_a_token_server_without(
    registry: Registry, image: Pushed, authority: Authority, tmp_path: Path
) -> None:
    with (
        TokenServer(tmp_path / "tokens", authority, {"alice": "pw"}) as tokens,
        secured(tmp_path / "r", registry, authority, auth=tokens.registry_auth) as running,
    ):
        certs_d(tmp_path / "containers", running.host, ca_crt=authority.certificate)
        with pytest.raises(Unauthorized, match="not https"):
            fetch(running.host, image, credentials=Credentials("alice", "pw"))
        assert tokens.asked() == []


# --- proxies


def test_tls_goes_through_a_proxys_tunnel(
    secure: Registry, image: Pushed, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certs_d(tmp_path / "containers", "registry.test:5000", ca_crt=authority.certificate)
    with HttpProxy(tmp_path, secure.host, "me:p@ss") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@{proxy.host}")
        assert fetch("registry.test:5000", image)
        ((method, target, _, authorization),) = proxy.requests()
        assert (method, target, authorization) == ("CONNECT", "registry.test:5000", None)


def test_plain_http_goes_through_a_proxy_as_whole_addresses(
    registry: Registry, image: Pushed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpProxy(tmp_path, registry.host, "me:pw") as proxy:
        monkeypatch.setenv("http_proxy", f"me:pw@{proxy.host}")
        assert fetch("registry.test:5000", image, insecure=True)
        assert [(method, target) for method, target, *_ in proxy.requests()] == [
            ("GET", "registry.test:5000")
        ] * 2


def test_a_proxy_that_wants_credentials_is_named_without_them(
    tmp_path: Path, image: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpProxy(tmp_path, "127.0.0.1:1", "me:pw") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.host}")
        with pytest.raises(RegistryError, match=f"the proxy {proxy.host} wants credentials"):
            fetch("registry.test", image)
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s3cret@{proxy.host}")
        with pytest.raises(RegistryError, match="refuses the credentials") as caught:
            fetch("registry.test", image)
        assert "s3cret" not in str(caught.value)
        monkeypatch.setenv("HTTP_PROXY", f"http://me:s3cret@{proxy.host}")
        with pytest.raises(RegistryError, match="refuses the credentials"):
            fetch("registry.test", image, insecure=True)


def test_a_proxy_that_refuses_or_is_not_there_is_said(
    tmp_path: Path, image: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpProxy(tmp_path, "") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.host)
        with pytest.raises(RegistryError, match=r"does not connect to registry.test:443: HTTP/1.1 403"):
            fetch("registry.test", image)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(
        RegistryError, match=r"proxy 127.0.0.1:.* can't be reached: connection refused"
    ) as caught:
        fetch("registry.test", image)
    assert "HTTPS_PROXY" in caught.value.hint


@pytest.mark.parametrize("user", ["", "me:p@ss"])
def test_socks_proxies_are_gone_through(
    secure: Registry,
    registry: Registry,
    image: Pushed,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    user: str,
) -> None:
    certs_d(tmp_path / "containers", "registry.test:5000", ca_crt=authority.certificate)
    given = user.replace(":p@", ":p%40") + "@" if user else ""
    with SocksProxy(tmp_path, secure.host, user) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"socks5://{given}{proxy.host}")
        assert fetch("registry.test:5000", image)
        assert proxy.requests() == [("registry.test", 5000)]
    (tmp_path / "plain").mkdir()
    with SocksProxy(tmp_path / "plain", registry.host, user) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"socks5h://{given}{proxy.host}")
        assert fetch("plain.test", image, insecure=True)
        assert set(proxy.requests()) == {("plain.test", 80)}


class _NoSocks(socketserver.StreamRequestHandler):
    """What an HTTP server says of a greeting that it doesn't understand."""

    def handle(self) -> None:
        self.wfile.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")


def test_what_a_socks_proxy_refuses_is_said(
    tmp_path: Path, image: Pushed, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SocksProxy(tmp_path, "127.0.0.1:1", "me:pw") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"socks5://{proxy.host}")
        with pytest.raises(RegistryError, match=f"the proxy {proxy.host} wants credentials"):
            fetch("registry.test", image)
        monkeypatch.setenv("HTTPS_PROXY", f"socks5://me:s3cret@{proxy.host}")
        with pytest.raises(RegistryError, match="refuses the credentials") as caught:
            fetch("registry.test", image)
        assert "s3cret" not in str(caught.value)
        monkeypatch.setenv("HTTPS_PROXY", f"socks5://me:pw@{proxy.host}")
        with pytest.raises(RegistryError, match=r"does not connect to registry.test:443: connection refused"):
            fetch("registry.test", image)
    with Served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), _NoSocks)) as no_socks:
        monkeypatch.setenv("HTTPS_PROXY", f"socks5://{no_socks.host}")
        with pytest.raises(RegistryError, match=r"the proxy .* does not connect"):
            fetch("registry.test", image)


@pytest.mark.parametrize("value", ["socks4://127.0.0.1:1", "https://:s3cret@", "http://[::1"])
def test_an_address_of_a_proxy_that_makes_no_sense_is_not_quoted(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        Proxies()
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_loopback_is_never_asked_through_a_proxy(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://p.test")
    assert Proxies().choose("http", host, 80) is None


@pytest.mark.parametrize(
    ("exceptions", "host", "port", "direct"),
    [
        ("", "r.test", 443, False),
        ("*", "r.test", 443, True),
        ("r.test", "r.test", 443, True),
        ("r.test", "sub.r.test", 443, True),
        ("r.test", "other-r.test", 443, False),
        (".r.test", "sub.r.test", 443, True),
        (".r.test", "r.test", 443, False),
        ("*.r.test", "sub.r.test", 443, True),
        ("r.test:5000", "r.test", 5000, True),
        ("r.test:5000", "r.test", 443, False),
        ("R.TEST", "r.Test", 443, True),
        ("x, r.test ,y", "r.test", 443, True),
        ("10.0.0.0/8", "10.1.2.3", 443, True),
        ("10.0.0.0/8", "11.1.2.3", 443, False),
        ("10.0.0.0/8", "ten.test", 443, False),
        ("fd00::/8", "fd00::1", 443, True),
        ("192.0.2.1", "192.0.2.1", 443, True),
        ("192.0.2.1:5000", "192.0.2.1", 443, False),
        ("[2001:db8::1]:5000", "2001:db8::1", 5000, True),
        ("2001:db8::1", "2001:db8::1", 443, True),
        ("10.0.0.0/99,junk/", "10.0.0.1", 443, False),
        ("0.1", "10.0.0.1", 443, False),
    ],
)
def test_no_proxy_says_what_is_reached_directly(
    monkeypatch: pytest.MonkeyPatch, exceptions: str, host: str, port: int, direct: bool
) -> None:
    monkeypatch.setenv("https_proxy", "http://p.test:3128")
    monkeypatch.setenv("no_proxy", exceptions)
    assert (Proxies().choose("https", host, port) is None) == direct
    assert Proxies().choose("http", host, port) is None


def test_a_registry_can_not_lead_a_proxy_to_this_machines_network(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Pushed
) -> None:
    def registry_of_traps(request: Request) -> None:
        request.reply(307, location="http://169.254.169.254/latest/meta-data")

    with (
        FaultServer(registry_of_traps, str(tmp_path / "log")) as server,
        HttpProxy(tmp_path, server.host) as proxy,
    ):
        monkeypatch.setenv("HTTP_PROXY", proxy.host)
        with pytest.raises(RegistryError, match="an address of this machine or link"):
            fetch("registry.test:5000", image, insecure=True)
        assert all("169.254" not in target for _, target, *_ in proxy.requests())


def test_a_client_certificate_is_shown_to_the_registry_alone(authority: Authority) -> None:
    certificate, key = authority.issue("carol")
    found = tls.Certificates((str(authority.certificate),), ((str(certificate), str(key)),))
    shown = _subject_seen(authority, found.context(verify=False, client=True))
    hidden = _subject_seen(authority, found.context(verify=False, client=False))
    assert shown
    assert not hidden


def _subject_seen(authority: Authority, client: ssl.SSLContext) -> bool:
    """Whether a server that asks for a certificate gets one, in memory."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*map(str, authority.issue("server", *SAN)))
    server.load_verify_locations(str(authority.certificate))
    server.verify_mode = ssl.CERT_OPTIONAL
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    inside = client.wrap_bio(to_client, to_server)
    outside = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (inside, outside):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return bool(outside.getpeercert())
