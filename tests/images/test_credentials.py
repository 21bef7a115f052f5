"""Stored credentials: the three files, the keys in them, and helpers."""

from __future__ import annotations

import base64
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from pyrun.errors import ConfigError, InvalidReference
from pyrun.images.registry.access import Access
from pyrun.images.registry.credentials import AuthFile, Credentials, changed, files, lookup, normalised
from pyrun.images.registry.helpers import Helper
from pyrun.images.registry.login import Server
from pyrun.images.registry.registries import Endpoint


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def write(path: Path, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without any of the files, and none named by the environment."""
    for name in ("REGISTRY_AUTH_FILE", "XDG_CONFIG_HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path


def found(path: Path, host: str, repository: str = "a/b") -> str | None:
    secret = lookup(host, repository, [str(path)])
    return f"{secret.username}:{secret.password}" if secret else None


# --- the files


def test_the_first_file_that_knows_the_registry_counts(home: Path) -> None:
    runtime = home / "run/containers/auth.json"
    lasting = home / ".config/containers/auth.json"
    docker = home / ".docker/config.json"
    assert files() == [str(runtime), str(lasting), str(docker)]
    write(docker, auths={"r.test": auth("docker:1"), "only.test": auth("docker:2")})
    assert lookup("r.test", "a/b", files()) == Credentials("docker", "1", source=str(docker))
    write(lasting, auths={"r.test": auth("lasting:3")})
    assert lookup("r.test", "a/b", files()) == Credentials("lasting", "3", source=str(lasting))
    write(runtime, auths={"r.test": auth("runtime:4")})
    assert lookup("r.test", "a/b", files()) == Credentials("runtime", "4", source=str(runtime))
    assert lookup("only.test", "a/b", files()) == Credentials("docker", "2", source=str(docker))


@pytest.mark.usefixtures("home")
def test_the_environment_moves_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/one")
    monkeypatch.setenv("DOCKER_CONFIG", "/two")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    uid = os.geteuid()
    assert files() == [
        f"/run/containers/{uid}/auth.json",
        "/one/containers/auth.json",
        "/two/config.json",
    ]
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(tmp_path / "mine")))
    assert files() == [str(tmp_path / "mine")]
    assert files(str(write(tmp_path / "other"))) == [str(tmp_path / "other")]


def test_a_file_that_was_asked_for_has_to_be_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no credential file") as caught:
        files(str(home / "absent"))
    assert "--authfile" in caught.value.hint
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(home / "gone"))
    with pytest.raises(ConfigError) as caught:
        files()
    assert "REGISTRY_AUTH_FILE" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON: .* in line 1"),
        ("[]", "is not a JSON object"),
        ("[" * 100_000, "is not JSON"),
        ('{"auths": []}', "auths is not an object"),
        ('{"auths": {"r.test": "s3cret"}}', r"auths\['r.test'\] is not an object"),
        ('{"auths": {"r.test": {"auth": 5}}}', "auth is not a string"),
        ('{"auths": {"r.test": {"auth": "s3cret!"}}}', "not the base64 form"),
        ('{"auths": {"r.test": {"auth": "czNjcmV0"}}}', "not the base64 form"),
        ('{"credHelpers": {"r.test": ["x"]}}', "is not a string"),
        ('{"credHelpers": {"r.test": "../../bin/sh"}}', "not the name of a credential helper"),
        ('{"credsStore": "a b;c"}', "not the name of a credential helper"),
        ('{"credsStore": 5}', "credsStore is not a string"),
    ],
)
def test_a_malformed_file_is_named_and_never_quoted(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "auth.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        lookup("r.test", "a/b", [str(path)])
    assert str(path) in caught.value.message
    assert "s3cret" not in repr(caught.value)
    assert "czNjcmV0" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_can_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        AuthFile.read(str(tmp_path))


# --- keys


def test_the_most_specific_key_counts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "auth.json",
        auths={
            "r.test": auth("host:1"),
            "r.test/team": auth("team:2"),
            "r.test/team/app": auth("app:3"),
            "r.test:5000": auth("port:4"),
        },
    )
    assert found(path, "r.test", "team/app") == "app:3"
    assert found(path, "r.test", "team/app/part") == "app:3"
    assert found(path, "r.test", "team/other") == "team:2"
    assert found(path, "r.test", "teams/app") == "host:1"
    assert found(path, "r.test:5000", "team/app") == "port:4"
    assert found(path, "sub.r.test", "team/app") is None


@pytest.mark.parametrize(
    "key",
    [
        "https://index.docker.io/v1/",
        "https://index.docker.io/v1",
        "docker.io",
        "index.docker.io",
        "registry-1.docker.io",
        "index.docker.io/v1/",
    ],
)
def test_docker_hub_has_many_names(tmp_path: Path, key: str) -> None:
    assert found(write(tmp_path / "f", auths={key: auth("me:pw")}), "registry-1.docker.io") == "me:pw"


def test_docker_hub_takes_namespaces_too(tmp_path: Path) -> None:
    path = write(tmp_path / "f", auths={"docker.io/team": auth("team:1"), "docker.io": auth("all:2")})
    assert found(path, "registry-1.docker.io", "team/app") == "team:1"
    assert found(path, "registry-1.docker.io", "library/redis") == "all:2"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("https://r.test/v2/", "r.test"),
        ("http://r.test:5000", "r.test:5000"),
        ("r.test/v1", "r.test"),
        ("r.test/team", "r.test/team"),
        ("R.test", "r.test"),
        ("https://index.docker.io/v1/", "docker.io"),
    ],
)
def test_a_key_stands_for_a_name(key: str, name: str) -> None:
    assert normalised(key) == name


def test_every_kind_of_secret_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f",
        auths={
            "colon.test": auth("me:p:w"),
            "plain.test": {"username": "me", "password": "pw"},
            "identity.test": {**auth("me:"), "identitytoken": "it"},
            "token.test": {"registrytoken": "rt"},
            "empty.test": {},
            "nul.test": auth("me:pw\0\0"),
        },
    )
    at = {
        name: lookup(f"{name}.test", "a", [str(path)])
        for name in ("colon", "plain", "identity", "token", "empty", "nul")
    }
    assert at["colon"] == Credentials("me", "p:w", source=str(path))
    assert at["plain"] == Credentials("me", "pw", source=str(path))
    assert at["identity"] == Credentials("me", "", "it", source=str(path))
    assert at["token"] == Credentials(registry_token="rt", source=str(path))
    assert at["empty"] is None
    assert at["nul"] == Credentials("me", "pw", source=str(path))


def test_secrets_are_not_in_the_repr() -> None:
    assert "s3cret" not in repr(Credentials("me", "s3cret", "s3cret", "s3cret"))


# --- helpers

HELPER = """#!{python}
import json, os, sys
store = {store!r}
verb, text = sys.argv[1], sys.stdin.read()
assert len(sys.argv) == 2
with open(store + ".log", "a") as log:
    print(verb, text if verb != "store" else json.loads(text)["ServerURL"], file=log)
try:
    kept = json.load(open(store))
except FileNotFoundError:
    kept = {{}}
if verb == "store":
    entry = json.loads(text)
    kept[entry["ServerURL"]] = entry
elif verb == "list":
    print(json.dumps({{server: entry["Username"] for server, entry in kept.items()}}))
elif text not in kept:
    print("credentials not found in native keychain")
    sys.exit(1)
elif verb == "get":
    print(json.dumps(kept[text]))
else:
    del kept[text]
json.dump(kept, open(store, "w"))
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """docker-credential-testing; its keychain is the file that is returned."""
    programs = tmp_path / "bin"
    programs.mkdir()
    store = tmp_path / "keychain"
    program = programs / "docker-credential-testing"
    program.write_text(HELPER.format(python=sys.executable, store=str(store)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return store


def broken(programs: Path, name: str, script: str) -> Helper:
    path = programs / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Helper(name, "the test")


def test_a_helper_keeps_gives_and_forgets(helper: Path) -> None:
    program = Helper("testing", "the test")
    assert program.get("r.test") is None
    program.store("r.test", "me", "pw")
    assert program.get("r.test") == Credentials("me", "pw", source="docker-credential-testing")
    assert program.list() == {"r.test": "me"}
    assert program.erase("r.test") is True
    assert program.erase("r.test") is False
    assert json.loads(helper.read_text()) == {}


@pytest.mark.usefixtures("helper")
def test_the_user_name_token_means_an_identity_token() -> None:
    program = Helper("testing", "the test")
    program.store("r.test", "<token>", "it")
    assert program.get("r.test") == Credentials(identity_token="it", source="docker-credential-testing")


def test_a_registrys_own_helper_counts_before_the_one_for_all(helper: Path, tmp_path: Path) -> None:
    Helper("testing", "the test").store("r.test", "me", "kept")
    path = write(
        tmp_path / "f",
        credHelpers={"r.test": "testing"},
        credsStore="absent",
        auths={"r.test": auth("me:plain")},
    )
    assert found(path, "r.test") == "me:kept"
    with pytest.raises(ConfigError, match=r"no program docker-credential-absent, which .*f names"):
        found(path, "other.test")


def test_what_the_helper_for_all_lacks_may_be_in_the_file(helper: Path, tmp_path: Path) -> None:
    Helper("testing", "the test").store("https://index.docker.io/v1/", "hub", "kept")
    path = write(
        tmp_path / "f",
        credsStore="testing",
        auths={"r.test": auth("me:plain"), "s.test/team": auth("team:plain")},
    )
    assert found(path, "r.test") == "me:plain"
    assert found(path, "registry-1.docker.io") == "hub:kept"
    assert found(path, "s.test", "team/app") == "team:plain"
    assert "get https://index.docker.io/v1/" in Path(f"{helper}.log").read_text()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("cat >/dev/null; echo 'the keychain is locked'; exit 1", "failed to get .*: the keychain is locked"),
        ("cat >/dev/null; echo oops >&2; exit 3", "failed to get .*: oops"),
        ("cat >/dev/null; exit 3", "exit code 3"),
        ("cat >/dev/null; echo not-json-s3cret", "answered 'get' with something else"),
        ("cat >/dev/null; echo '[1]'", "answered 'get' with something else"),
        ("cat >/dev/null; echo '{\"Username\": 5}'", "answered 'get' with something else"),
        ("exit 1", "exit code 1"),
    ],
)
@pytest.mark.usefixtures("helper")
def test_a_helper_that_fails_is_said_without_what_it_holds(tmp_path: Path, script: str, says: str) -> None:
    program = broken(tmp_path / "bin", "broken", script)
    with pytest.raises(ConfigError, match=says) as caught:
        program.get("r.test")
    assert "s3cret" not in str(caught.value)


@pytest.mark.usefixtures("helper")
def test_a_helper_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRUN_HELPER_TIMEOUT", "0.3")
    with pytest.raises(ConfigError, match="did not answer"):
        broken(tmp_path / "bin", "hanging", "exec sleep 30").get("r.test")


@pytest.mark.usefixtures("helper")
@pytest.mark.parametrize("where", ["", ">&2"])
def test_a_helper_that_says_no_end_of_things_is_ended(tmp_path: Path, where: str) -> None:
    program = broken(tmp_path / "bin", "endless", f"cat >/dev/null; exec cat /dev/zero {where}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match="with more than 4 MiB"):
        program.get("r.test")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.usefixtures("helper")
def test_a_helper_is_sent_more_than_a_pipe_holds(tmp_path: Path) -> None:
    secret = "s" * 1_000_000
    broken(tmp_path / "bin", "keeper", f"cat >{tmp_path}/kept").store("r.test", "me", secret)
    assert json.loads((tmp_path / "kept").read_text())["Secret"] == secret
    broken(tmp_path / "bin", "deaf", "exit 0").store("r.test", "me", secret)


def test_what_is_wrong_with_a_helper_is_said_only_where_it_is_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "f", credHelpers={"r.test": "absent"}, auths={"s.test": auth("me:pw")})
    broken_place, place = (Endpoint(host, "a/b", "1", False, False) for host in ("r.test", "s.test"))
    access = Access(authfile=str(path)).ahead([broken_place, place])
    path.unlink()  # nothing is read any more
    assert access.find(place) == Credentials("me", "pw", source=str(path))
    with pytest.raises(ConfigError, match="no program docker-credential-absent"):
        access.find(broken_place)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "a;b", "$(id)", "a\n"])
def test_only_a_word_is_a_helpers_name(name: str) -> None:
    with pytest.raises(ConfigError, match="not the name"):
        Helper(name, "the test")


# --- writing


def test_a_changed_file_keeps_what_was_not_touched(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f", psFormat="table", auths={"r.test": auth("a:b")}, HttpHeaders={"X": ["ü", 1.5]}
    )
    path.chmod(0o644)
    with changed(str(path)) as file:
        file.document["auths"] = {**file.auths, "s.test": auth("c:d")}
    kept = json.loads(path.read_text())
    assert kept["psFormat"] == "table"
    assert kept["HttpHeaders"] == {"X": ["ü", 1.5]}
    assert list(kept) == ["psFormat", "auths", "HttpHeaders"]
    assert list(kept["auths"]) == ["r.test", "s.test"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["f"]


def test_a_failed_change_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "f", auths={})
    before = path.read_bytes()

    def fail() -> None:
        with changed(str(path)) as file:
            file.document["auths"] = {"r.test": {}}
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["f"]


def test_a_malformed_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("{oops")
    with pytest.raises(ConfigError, match="not JSON"), changed(str(path)):
        pass
    assert path.read_text() == "{oops"


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    target = write(tmp_path / "dotfiles/config.json", auths={})
    link = tmp_path / "config.json"
    link.symlink_to(target)
    with changed(str(link)) as file:
        file.document["auths"] = {"r.test": auth("a:b")}
    assert link.is_symlink()
    assert "r.test" in json.loads(target.read_text())["auths"]


def test_logins_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "deep/auth.json")
    children = []
    for number in range(8):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                with changed(path) as file:
                    file.document["auths"] = {**file.auths, f"r{number}.test": auth("a:b")}
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 8
    assert len(json.loads(Path(path).read_text())["auths"]) == 8
    assert os.stat(os.path.dirname(path)).st_mode & 0o777 == 0o700


# --- what is logged in to


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io", "docker.io"),
        ("https://r.test/v2/", "r.test"),
        ("r.test:5000", "r.test:5000"),
        ("r.test/", "r.test"),
        ("r.test/team/app", "r.test/team/app"),
        ("localhost", "localhost"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_a_server_may_be_written_in_several_ways(text: str, server: str) -> None:
    assert str(Server.parse(text)) == server


@pytest.mark.parametrize(
    "text", ["", "team", "r.test/Team", "r.test/team:tag", "r test", "r.test:port", "/x"]
)
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match="not the name of a registry"):
        Server.parse(text)
