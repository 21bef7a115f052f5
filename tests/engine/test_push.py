"""``pyrun push``: what it prints and returns, who can read what it pushed, and what it needs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyrun.engine import Engine
from support.account import command_of
from support.certificates import Authority
from support.podman import Podman
from support.pyrun import Pyrun, terminal
from support.registry import HOST_ARCHITECTURE, OCI_MANIFEST, OTHER_ARCHITECTURE, Registry, tar
from support.token_server import TokenServer
from support.uploadproxy import Rule, UploadProxy, slow

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")


@pytest.fixture(scope="module")
def target(registry: Registry, base: Path) -> Iterator[Registry]:
    """An empty registry to push to; use repositories of your own in it."""
    with Registry(base / "target") as running:
        yield running


@pytest.fixture
def name(target: Registry, request: pytest.FixtureRequest) -> str:
    """A repository of this test's own."""
    return f"{target.host}/push/{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"


def layers(pyrun: Pyrun, image: str) -> list[tuple[str, str]]:
    """(digest, media type) of the layers, by the stored manifest."""
    digest = pyrun.image(image)["Descriptor"]["Digest"]
    document = json.loads(blob(pyrun, digest))
    return [(layer["digest"], layer["mediaType"]) for layer in document["layers"]]


def blob(pyrun: Pyrun, digest: str) -> bytes:
    return (pyrun.root / "content/blobs" / digest.replace(":", "/")).read_bytes()


def manifest_of(pyrun: Pyrun, image: str) -> str:
    """The digest of the platform's manifest."""
    records = (json.loads(path.read_text()) for path in (pyrun.root / "images").glob("*.json"))
    return str(next(r["manifest"] for r in records if r["reference"] == image))


# --- what is printed


def test_a_push_says_what_docker_says(pulled: Pyrun, name: str) -> None:
    pulled.ok("tag", "redis", f"{name}:7")
    lines = pulled.ok("push", f"{name}:7").splitlines()
    digest = manifest_of(pulled, "docker.io/library/redis:latest")
    ids = [layer.partition(":")[2][:12] for layer, _ in _manifest_layers(pulled, digest)]
    assert lines[0] == f"The push refers to repository [{name}]"
    assert lines[1:4] == [f"{id}: Preparing" for id in ids]
    for id in ids:
        states = [line.partition(": ")[2] for line in lines if line.startswith(id)]
        assert states == ["Preparing", "Pushing", "Pushed"]
    assert lines[-1] == f"7: digest: {digest} size: {len(blob(pulled, digest))}"
    again = pulled.ok("image", "push", f"{name}:7").splitlines()
    assert [f"{id}: Layer already exists" in again for id in ids] == [True] * 3
    pulled.ok("rmi", f"{name}:7")


def _manifest_layers(pyrun: Pyrun, digest: str) -> list[tuple[str, str]]:
    return [(layer["digest"], layer["mediaType"]) for layer in json.loads(blob(pyrun, digest))["layers"]]


def test_without_a_tag_it_is_latest_and_said(pulled: Pyrun, name: str) -> None:
    pulled.ok("tag", "busybox", name)
    lines = pulled.ok("push", name).splitlines()
    assert lines[0] == "Using default tag: latest"
    assert lines[-1].startswith("latest: digest: sha256:")
    pulled.ok("rmi", name)


def test_quiet_prints_the_full_name_alone(pulled: Pyrun, name: str) -> None:
    assert pulled.ok("push", "-q", "busybox", f"{name}:1") == f"{name}:1\n"
    assert pulled.ok("push", "--disable-content-trust", "--quiet", "busybox", f"{name}:1") == f"{name}:1\n"


def test_json_is_an_object_a_line(pulled: Pyrun, name: str) -> None:
    events = [
        json.loads(line) for line in pulled.ok("push", "--progress=json", "busybox", f"{name}:1").splitlines()
    ]
    digest = manifest_of(pulled, "docker.io/library/busybox:latest")
    size = len(blob(pulled, digest))
    assert events[-1] == {"status": "Pushed", "reference": f"{name}:1", "digest": digest, "size": size}
    counted = [event for event in events if event["status"] == "Pushing"]
    assert counted
    assert all(0 <= event["current"] <= event["total"] for event in counted)


def test_a_terminal_gets_a_bar_a_layer(pulled: Pyrun, name: str) -> None:
    with terminal(pulled, "push", "redis", f"{name}:1", size=(24, 100)) as window:
        seen = window.read_until(rb"1: digest: sha256:[0-9a-f]{64} size: \d+")
        assert window.wait() == 0
    assert b"\x1b[" in seen
    assert b"Pushing [" in seen
    assert seen.count(b": Pushed") == 3


def test_the_digest_goes_to_a_file(pulled: Pyrun, name: str, tmp_path: Path) -> None:
    pulled.ok("push", "-q", "--digestfile", str(tmp_path / "digest"), "busybox", f"{name}:1")
    assert (tmp_path / "digest").read_text() == manifest_of(pulled, "docker.io/library/busybox:latest")


def test_all_tags_of_a_repository_go_at_once(pulled: Pyrun, name: str, target: Registry) -> None:
    for tag in ("1", "2", "latest"):
        pulled.ok("tag", "busybox", f"{name}:{tag}")
    pulled.ok("tag", "redis", f"{name}:redis")
    out = pulled.ok("push", "-a", name)
    assert out.count("The push refers to repository") == 1
    ends = [line.partition(":")[0] for line in out.splitlines() if ": digest: " in line]
    assert ends == ["1", "2", "latest", "redis"]
    path = name.partition("/")[2]
    tags = json.loads(target.request("GET", f"/v2/{path}/tags/list")[2])["tags"]
    assert sorted(tags) == ends
    assert pulled.ok("push", "-aq", name).splitlines() == [f"{name}:{tag}" for tag in ends]
    pulled.ok("rmi", *(f"{name}:{tag}" for tag in ends))


# --- what is refused


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("nothing-here",), 1, "no local image has the name nothing-here:latest"),
        (("busybox@sha256:" + "0" * 64,), 1, "it has a digest"),
        (("Busybox",), 1, "must be lowercase"),
        (("-a", "busybox:1"), 125, "tag can't be used with --all-tags/-a"),
        (("-a", "nothing-here"), 1, "no local image has a tag of nothing-here"),
        (("-a", "busybox", "x"), 125, "exclude each other"),
        (("-a", "--digestfile=x", "busybox"), 125, "exclude each other"),
        (("--all-platforms", "--platform=linux/arm64", "busybox"), 125, "exclude each other"),
        (("--platform=marzipan", "busybox"), 125, "not an architecture"),
        (("--progress=loud", "busybox"), 125, "no such kind"),
        (("busybox", "oci-archive:x.tar"), 125, "pyrun save"),
        (("busybox", "x@sha256:" + "0" * 64), 1, "it has a digest"),
        ((), 125, "missing argument"),
    ],
)
def test_what_can_not_be_pushed_is_said(pulled: Pyrun, args: tuple[str, ...], code: int, said: str) -> None:
    done = pulled("push", *args)
    assert said in done.stderr.lower() if said == "missing argument" else said in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_store_that_does_not_exist_is_not_made(base: Path, mirror: Path) -> None:
    with tempfile.TemporaryDirectory(dir=base) as directory:
        pyrun = Pyrun(Path(directory) / "store", Path(directory) / "state")
        assert pyrun("push", "busybox").returncode == 1
        assert not pyrun.root.exists()


# --- who reads what was pushed


def compressed_image(pulled: Pyrun, registry: Registry, compression: str) -> str:
    """redis of three layers, compressed so, in the source registry; its name."""
    import gzip

    tars = [
        gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        for data in (blob(pulled, digest) for digest, _ in _manifest_layers(pulled, redis_manifest(pulled)))
    ]
    config = json.loads(blob(pulled, json.loads(blob(pulled, redis_manifest(pulled)))["config"]["digest"]))
    registry.push_image(f"push/redis-{compression}", "1", tars, config["config"], compression=(compression,))
    return f"push/redis-{compression}:1"


def redis_manifest(pulled: Pyrun) -> str:
    return manifest_of(pulled, "docker.io/library/redis:latest")


@pytest.fixture(scope="module", params=["gzip", "zstd", pytest.param("plain", marks=pytest.mark.long)])
def redis(
    request: pytest.FixtureRequest, pulled: Pyrun, registry: Registry, target: Registry
) -> tuple[str, str]:
    """(local name, name in ``target``) of redis with layers of each kind, pushed."""
    local = compressed_image(pulled, registry, request.param)
    pulled.ok("pull", "-q", local)
    there = f"{target.host}/{local}"
    pulled.ok("push", "-q", local, there)
    return local, there


@needs_skopeo
def test_skopeo_copies_it_byte_for_byte(pulled: Pyrun, redis: tuple[str, str], tmp_path: Path) -> None:
    local, there = redis
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{there}"],
        check=True,
        capture_output=True,
    ).stdout
    digest = manifest_of(pulled, f"docker.io/{local}")
    assert raw == blob(pulled, digest)
    subprocess.run(
        ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{there}", f"dir:{tmp_path}"],
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "manifest.json").read_bytes() == raw
    for found in [json.loads(raw)["config"], *json.loads(raw)["layers"]]:
        assert (tmp_path / found["digest"].partition(":")[2]).read_bytes() == blob(pulled, found["digest"])


def test_podman_pulls_and_runs_it(pulled: Pyrun, redis: tuple[str, str], base: Path) -> None:
    local, there = redis
    with Podman(base / "podman") as podman:
        id = podman("pull", "-q", "--tls-verify=false", there).strip()
        assert f"sha256:{id}" == pulled.image(local)["Id"]
        assert podman.output(there, "redis-server", "--version") == pulled.ok(
            "run", "--rm", local, "redis-server", "--version"
        )


def test_pyrun_pulls_it_into_another_store_with_the_same_id(
    pulled: Pyrun, redis: tuple[str, str], base: Path
) -> None:
    local, there = redis
    with tempfile.TemporaryDirectory(dir=base) as directory:
        other = Pyrun(Path(directory) / "store", Path(directory) / "state")
        other.ok("pull", "-q", there)
        assert other.image(there)["Id"] == pulled.image(local)["Id"]
        assert other.sh("redis-server --version", image=there) == pulled.sh(
            "redis-server --version", image=local
        )


# --- what else is pushed


def test_an_id_alone_does_not_tell_where_to_push(pulled: Pyrun) -> None:
    short = pulled.ok("images", "-q", "busybox").split()[0]
    done = pulled("push", short)
    assert done.returncode == 1
    assert f"{short} is the ID of an image" in done.stderr
    assert f"pyrun push {short} NAME[:TAG]" in done.stderr


def test_a_platform_that_is_not_there_is_missed_in_the_local_image(pulled: Pyrun, name: str) -> None:
    done = pulled("push", "--platform=linux/riscv64", "busybox", f"{name}:1")
    assert done.returncode == 1
    assert "busybox" in done.stderr.splitlines()[0]
    assert name not in done.stderr


def test_an_image_of_another_platform_is_pushed(
    pulled: Pyrun, registry: Registry, target: Registry, name: str
) -> None:
    other = f"linux/{OTHER_ARCHITECTURE}"
    registry.push_image("push/two", "1", [tar({"a": b"1"})])
    pulled.ok("pull", "-q", "--platform", other, "push/two:1")
    out = pulled.ok("push", "push/two:1", f"{name}:1")
    digest = manifest_of(pulled, "docker.io/push/two:1")
    assert f"1: digest: {digest} " in out
    done = pulled("push", "--platform", f"linux/{HOST_ARCHITECTURE}", "push/two:1", f"{name}:2")
    assert done.returncode == 1
    assert "pyrun pull --platform" in done.stderr
    pulled.ok("pull", "-q", "push/two:1")
    out = pulled.ok("push", "push/two:1", f"{name}:2")
    index = next(
        json.loads(path.read_text())["digest"]
        for path in (pulled.root / "images").glob("docker.io%2Fpush%2Ftwo%3A1.json")
    )
    assert f"2: digest: {index} " in out
    pulled.ok("rmi", "-f", "push/two:1")


def test_an_image_by_its_id_is_pushed_by_name(pulled: Pyrun, name: str) -> None:
    id = pulled.image("busybox")["Id"]
    pulled.ok("push", "-q", id.partition(":")[2][:12], f"docker://{name}:id")
    assert pulled("push", id.partition(":")[2][:12]).returncode == 1


def test_a_saved_and_loaded_image_is_pushed_and_pulled_with_the_same_id(
    pulled: Pyrun, name: str, base: Path
) -> None:
    with tempfile.TemporaryDirectory(dir=base) as directory:
        archive = Path(directory) / "busybox.tar"
        pulled.ok("save", "-o", str(archive), "busybox")
        one = Pyrun(Path(directory) / "one", Path(directory) / "state")
        one.ok("load", "-q", "-i", str(archive))
        one.ok("push", "-q", "busybox", f"{name}:1")
        two = Pyrun(Path(directory) / "two", Path(directory) / "state")
        two.ok("pull", "-q", f"{name}:1")
        assert two.image(f"{name}:1")["Id"] == pulled.image("busybox")["Id"]


def test_a_committed_container_runs_elsewhere(fresh: Pyrun, name: str, base: Path) -> None:
    fresh.ok("run", "--name", "made", "busybox", "sh", "-c", "echo changed > /made; rm /etc/shadow")
    unnamed = fresh.ok("commit", "-q", "made").strip()
    fresh.ok("push", "-q", unnamed, f"{name}:unnamed")
    fresh.ok("commit", "-q", "made", f"{name}:1")
    fresh.ok("rm", "made")
    fresh.ok("push", "-q", f"{name}:1")
    look = "cat /made; test -e /etc/shadow || echo gone"
    with Podman(base / "podman") as podman:
        id = podman("pull", "-q", "--tls-verify=false", f"{name}:1").strip()
        assert f"sha256:{id}" == fresh.image(f"{name}:1")["Id"]
        assert podman.output(f"{name}:1", "sh", "-c", look) == "changed\ngone\n"
        podman("pull", "-q", "--tls-verify=false", f"{name}:unnamed")


def test_the_repository_digest_is_shown_once_it_is_pushed(fresh: Pyrun, name: str) -> None:
    fresh.ok("tag", "busybox", f"{name}:1")
    assert f"{name}@" not in json.dumps(fresh.image(f"{name}:1")["RepoDigests"])
    fresh.ok("push", "-q", f"{name}:1")
    digest = manifest_of(fresh, f"{name}:1")
    assert f"{name}@{digest}" in fresh.image(f"{name}:1")["RepoDigests"]
    out = fresh.ok("pull", f"{name}:1")
    assert "Image is up to date" in out


# --- what it needs


def test_no_storage_driver_is_needed(fresh: Pyrun, name: str) -> None:
    record = fresh.root / "storage.json"
    document = json.loads(record.read_text())
    document["driver"] = "uninstalled"
    record.write_text(json.dumps(document))
    assert fresh.ok("push", "-q", "busybox", f"{name}:1") == f"{name}:1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make an account for the test")
def test_an_ordinary_user_pushes(account: str, installation: Path, mirror: Path, name: str) -> None:
    with command_of(account, installation, mirror) as user:
        user.ok("pull", "-q", "busybox")
        assert user.ok("push", "-q", "busybox", f"{name}:1") == f"{name}:1\n"
        user.ok("tag", "busybox", f"{name}:2")
        user.ok("push", "-q", f"{name}:2")
        assert f"{name}@sha256:" in user.ok("image", "inspect", f"{name}:2")


def test_the_api_returns_what_was_pushed(pulled: Pyrun, name: str) -> None:
    engine = Engine(root=str(pulled.root), state=str(pulled.state))
    steps: list[str] = []
    result = engine.push("busybox", f"{name}:api", progress=lambda step: steps.append(step.status))
    assert result.reference == f"{name}:api"
    assert result.digest == manifest_of(pulled, "docker.io/library/busybox:latest")
    assert result.size == len(blob(pulled, result.digest))
    assert steps[-1] == f"api: digest: {result.digest} size: {result.size}"
    for tag in ("a", "b"):
        engine.tag("busybox", f"{name}:{tag}")
    assert [found.reference for found in engine.push_all(name)] == [f"{name}:a", f"{name}:b"]
    for tag in ("a", "b"):
        engine.remove_image(f"{name}:{tag}")


# --- where to, and with what


def conf(directory: Path, text: str) -> dict[str, str]:
    path = directory / "registries.conf"
    path.write_text(text)
    return {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(path)}


def test_it_goes_to_the_primary_location_and_to_no_mirror(
    pulled: Pyrun, target: Registry, registry: Registry, tmp_path: Path
) -> None:
    env = conf(
        tmp_path,
        f'[[registry]]\nprefix = "example.org/team"\nlocation = "{target.host}/moved"\n'
        f'[[registry.mirror]]\nlocation = "{registry.host}"\n',
    )
    pulled.ok("push", "-q", "busybox", "example.org/team/app:1", env=env)
    accept = {"Accept": OCI_MANIFEST}
    assert target.request("GET", "/v2/moved/app/manifests/1", **accept)[0] == 200
    assert registry.request("GET", "/v2/app/manifests/1", **accept)[0] == 404


def test_a_blocked_registry_gets_nothing(pulled: Pyrun, target: Registry, tmp_path: Path) -> None:
    env = conf(tmp_path, f'[[registry]]\nlocation = "{target.host}"\nblocked = true\n')
    done = pulled("push", "busybox", f"{target.host}/blocked/x:1", env=env)
    assert done.returncode == 1
    assert "is blocked by" in done.stderr


@pytest.fixture(scope="module")
def authority(base: Path) -> Authority:
    return Authority(base / "push-ca")


@pytest.fixture(scope="module")
def guarded(base: Path, authority: Authority) -> Iterator[tuple[Registry, TokenServer]]:
    """A registry with TLS of its own CA that asks for tokens, of a server that knows one user."""
    import ssl

    certificate, key = authority.issue("127.0.0.1", "IP:127.0.0.1")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    with TokenServer(base / "push-tokens", authority, {"alice": "secret"}, tls=(certificate, key)) as tokens:
        settings = {
            "auth": tokens.registry_auth,
            "http": {"tls": {"certificate": str(certificate), "key": str(key)}},
        }
        with Registry(base / "guarded", settings=settings, client=context) as running:
            yield running, tokens


@pytest.fixture
def certs(authority: Authority, tmp_path: Path) -> str:
    directory = tmp_path / "certs"
    directory.mkdir()
    shutil.copy(authority.certificate, directory / "ca.crt")
    return str(directory)


def test_credentials_and_a_ca_open_a_registry(
    pulled: Pyrun, guarded: tuple[Registry, TokenServer], certs: str, authority: Authority, base: Path
) -> None:
    registry, tokens = guarded
    options = ("--creds", "alice:secret", "--cert-dir", certs)
    env = {**os.environ, "SSL_CERT_FILE": str(authority.certificate)}
    pulled.ok("push", "-q", *options, "redis", f"{registry.host}/alice/redis:1", env=env)
    asked = [scope for request in tokens.asked() for scope in request.scopes]
    assert "repository:alice/redis:pull,push" in asked
    with tempfile.TemporaryDirectory(dir=base) as directory:
        other = Pyrun(Path(directory) / "store", Path(directory) / "state", env=env)
        other.ok("pull", "-q", *options, f"{registry.host}/alice/redis:1")
        assert other.image(f"{registry.host}/alice/redis:1")["Id"] == pulled.image("redis")["Id"]
        # What was pulled from there is mounted from there.
        out = other.ok("push", *options, f"{registry.host}/alice/redis:1", f"{registry.host}/bob/redis:1")
        assert out.count("Mounted from alice/redis") == 3
        asked = [scope for request in tokens.asked() for scope in request.scopes]
        assert "repository:alice/redis:pull" in asked


@pytest.mark.parametrize("creds", ["alice:wrong", None])
def test_who_may_not_push_is_told_so_and_exits_with_1(
    pulled: Pyrun, guarded: tuple[Registry, TokenServer], certs: str, authority: Authority, creds: str | None
) -> None:
    registry, _ = guarded
    options = [*(["--creds", creds] if creds else []), "--cert-dir", certs]
    nobody = Path(certs) / "auth.json"
    nobody.write_text("{}")
    env = {**os.environ, "SSL_CERT_FILE": str(authority.certificate), "REGISTRY_AUTH_FILE": str(nobody)}
    done = pulled("push", *options, "busybox", f"{registry.host}/carol/x:1", env=env)
    assert done.returncode == 1
    assert "pyrun login" in done.stderr
    assert "secret" not in done.stderr + done.stdout
    assert "wrong" not in done.stdout


# --- giving up


def test_ctrl_c_ends_it_at_once_with_130(pulled: Pyrun, target: Registry, tmp_path: Path) -> None:
    with UploadProxy(target.host, tmp_path / "log", Rule(slow(5), "PUT.*uploads")) as proxy:
        running = pulled.start(
            "push", "redis", f"{proxy.host}/interrupted/x:1", stdout=subprocess.PIPE, text=True
        )
        assert running.stdout is not None
        for line in running.stdout:
            if line.endswith("Pushing\n"):
                break
        running.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert running.wait(20) == 130
        running.stdout.close()
        assert time.monotonic() - began < 8
    uploads = target.root / "docker/registry/v2/repositories/interrupted/x/_uploads"
    assert [str(path) for path in uploads.glob("*/startedat")] == []
    assert not list((pulled.root / "leases").glob("*"))
