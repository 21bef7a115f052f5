"""`pyrun login` and `logout`, and what pull and push do with what they keep, at real registries."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyrun.engine import Engine
from pyrun.errors import NotFound, Unauthorized
from support.account import as_account
from support.certificates import Authority
from support.pyrun import Pyrun, Terminal
from support.registry import Pushed, Registry, tar
from support.token_server import TokenServer

USER, PASSWORD = "alice", "s3cret-Pw"
HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuug31dkSyVxrsFMUodgTDe/x8GylKmO.S\n"

HELPER = """#!{python}
import json, os, sys
store = os.environ["TEST_KEYCHAIN"]
verb, text = sys.argv[1], sys.stdin.read()
try:
    kept = json.load(open(store))
except FileNotFoundError:
    kept = {{}}
if verb == "store":
    kept[json.loads(text)["ServerURL"]] = dict(json.loads(text), uid=os.getuid())
elif verb == "list":
    print(json.dumps({{server: entry["Username"] for server, entry in kept.items()}}))
elif text not in kept:
    print("credentials not found in native keychain")
    sys.exit(1)
elif verb == "get":
    if kept[text]["uid"] != os.getuid():
        print("this keychain belongs to another user")
        sys.exit(1)
    print(json.dumps(kept[text]))
else:
    del kept[text]
json.dump(kept, open(store, "w"))
"""


@pytest.fixture(scope="module")
def conf(base: Path) -> Path:
    """A registries.conf without anything: loopback needs nothing."""
    path = base / "empty.conf"
    path.write_text("")
    return path


@pytest.fixture(scope="module")
def private(registry: Registry) -> Pushed:
    return registry.push_image("private/app", "1", [tar({"etc/motd": b"hello\n"}), tar({"etc/x": b"x"})])


@pytest.fixture(scope="module")
def basic(registry: Registry, base: Path, private: Pushed) -> Iterator[Registry]:
    """The registry's content behind a password."""
    directory = base / "basic"
    directory.mkdir()
    (directory / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
    with Registry(directory, root=registry.root, settings={"auth": auth}) as running:
        yield running


@pytest.fixture(scope="module")
def authority(base: Path) -> Authority:
    return Authority(base / "authority")


@pytest.fixture
def tokens(authority: Authority, tmp_path: Path) -> Iterator[TokenServer]:
    with TokenServer(tmp_path / "tokens", authority, {USER: PASSWORD}, identity_tokens=True) as running:
        yield running


@pytest.fixture
def guarded(registry: Registry, private: Pushed, tokens: TokenServer, tmp_path: Path) -> Iterator[Registry]:
    """The registry's content behind a token server."""
    auth = tokens.registry_auth
    with Registry(tmp_path / "guarded", root=registry.root, settings={"auth": auth}) as running:
        yield running


class User:
    """pyrun with a home of its own."""

    def __init__(self, home: Path, conf: Path, prefix: list[str] | None = None, command: str = "") -> None:
        self.home = home
        self.auth_file = home / "run/containers/auth.json"
        self.docker_file = home / ".docker/config.json"
        self.keychain = home / "keychain"
        env = {
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_DATA_HOME": str(home / ".local"),
            "CONTAINERS_REGISTRIES_CONF": str(conf),
            "TEST_KEYCHAIN": str(self.keychain),
            "PATH": f"{home}/bin:{os.environ['PATH']}",
        }
        self.pyrun = Pyrun(home / "store", home / "state", env=env, prefix=prefix)
        for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG"):
            self.pyrun.env.pop(name, None)
        if command:
            self.pyrun.command = command

    def login(self, *args: str, password: str = PASSWORD) -> subprocess.CompletedProcess[Any]:
        return self.pyrun("login", "-u", USER, "--password-stdin", *args, input=password)

    def auths(self, path: Path | None = None) -> dict[str, Any]:
        document: dict[str, dict[str, Any]] = json.loads((path or self.auth_file).read_text())
        return document["auths"]

    def install_helper(self) -> None:
        program = self.home / "bin/docker-credential-testing"
        program.parent.mkdir()
        program.write_text(HELPER.format(python=sys.executable))
        program.chmod(0o755)


@pytest.fixture
def user(base: Path, conf: Path) -> Iterator[User]:
    with tempfile.TemporaryDirectory(prefix="user-", dir=base) as home:
        (Path(home) / "run").mkdir()
        yield User(Path(home), conf)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# --- logging in


def test_a_login_is_kept_where_podman_keeps_it(user: User, basic: Registry) -> None:
    done = user.login(basic.host)
    assert (done.returncode, done.stdout) == (0, "Login Succeeded\n"), done.stderr
    assert user.auths() == {basic.host: {"auth": encoded(f"{USER}:{PASSWORD}")}}
    assert user.auth_file.stat().st_mode & 0o777 == 0o600
    assert user.auth_file.parent.stat().st_mode & 0o777 == 0o700
    assert f"WARNING! Your credentials are stored unencrypted in '{user.auth_file}'." in done.stderr
    assert user.pyrun.ok("login", "--get-login", basic.host) == f"{USER}\n"


def test_nothing_is_kept_of_a_wrong_password_and_nothing_said_of_it(user: User, basic: Registry) -> None:
    done = user.login(basic.host, password="guess-4711\n")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"can't log in to {basic.host}: {basic.host} refuses the credentials of alice: " in done.stderr
    assert "guess" not in done.stderr
    assert not user.auth_file.exists()


def test_a_variable_that_is_empty_is_not_docker_hub(user: User) -> None:
    for command in ("login", "logout"):
        done = user.pyrun(command, "")
        assert (done.returncode, done.stdout) == (1, "")
        assert "'' is not the name of a registry" in done.stderr


def test_a_private_image_can_be_pulled_after_the_login_and_not_after_the_logout(
    user: User, basic: Registry
) -> None:
    image = f"{basic.host}/private/app:1"
    denied = user.pyrun("pull", image)
    assert denied.returncode == 1
    assert f"log in: pyrun login {basic.host}" in denied.stderr
    assert user.login(basic.host).returncode == 0
    assert user.pyrun.ok("pull", "-q", image) == f"{image}\n"
    done = user.pyrun("logout", basic.host)
    assert (done.returncode, done.stdout) == (0, f"Removing login credentials for {basic.host}\n")
    assert user.auths() == {}
    assert user.pyrun("pull", image).returncode == 1
    again = user.pyrun("logout", basic.host)
    assert (again.returncode, again.stdout) == (0, f"Not logged in to {basic.host}\n")
    missing = user.pyrun("login", "--get-login", basic.host)
    assert missing.returncode == 1
    assert "not logged in" in missing.stderr


def test_a_private_image_can_be_pushed_and_pulled_with_tokens(
    user: User, guarded: Registry, tokens: TokenServer
) -> None:
    assert user.login(guarded.host).returncode == 0
    image = f"{guarded.host}/private/app:1"
    user.pyrun.ok("pull", "-q", image)
    pulled = [asked for asked in tokens.asked() if asked.scopes]
    assert [asked.scopes for asked in pulled] == [["repository:private/app:pull"]]
    user.pyrun.ok("tag", image, f"{guarded.host}/private/copy:2")
    user.pyrun.ok("push", "-q", f"{guarded.host}/private/copy:2")
    user.pyrun.ok("pull", "-q", f"{guarded.host}/private/copy:2")
    assert all(asked.granted for asked in tokens.asked())
    assert any("repository:private/copy:pull,push" in asked.scopes for asked in tokens.asked())


def test_an_identity_token_is_kept_in_place_of_the_password(
    user: User, guarded: Registry, tokens: TokenServer
) -> None:
    assert user.login(guarded.host).returncode == 0
    (identity,) = tokens.identities
    assert user.auths() == {guarded.host: {"auth": encoded(f"{USER}:"), "identitytoken": identity}}
    user.pyrun.ok("pull", "-q", f"{guarded.host}/private/app:1")
    assert tokens.asked()[-1].method == "POST"
    assert user.pyrun.ok("login", "--get-login", guarded.host) == f"{USER}\n"


def test_a_wrong_password_at_a_token_server_is_refused(user: User, guarded: Registry) -> None:
    done = user.login(guarded.host, password="no")
    assert done.returncode == 1
    assert "wrong user or password" in done.stderr
    assert not user.auth_file.exists()


def test_other_logins_and_settings_stay_as_they_are(user: User, basic: Registry) -> None:
    before = {"auths": {"r.test": {"auth": encoded("me:pw"), "x": 1}}, "credHelpers": {"s.test": "none"}}
    user.auth_file.parent.mkdir()
    user.auth_file.write_text(json.dumps(before))
    assert user.login(basic.host).returncode == 0
    after = json.loads(user.auth_file.read_text())
    del after["auths"][basic.host]
    assert after == before
    user.pyrun.ok("logout", basic.host)
    assert json.loads(user.auth_file.read_text()) == before


def test_a_namespace_can_have_a_login_of_its_own(user: User, basic: Registry) -> None:
    assert user.login(f"{basic.host}/private").returncode == 0
    assert list(user.auths()) == [f"{basic.host}/private"]
    user.pyrun.ok("pull", "-q", f"{basic.host}/private/app:1")
    user.pyrun.ok("logout", f"{basic.host}/private")
    assert user.auths() == {}


def test_dockers_file_is_written_in_dockers_form_where_that_is_asked_for(user: User, basic: Registry) -> None:
    done = user.login("--compat-auth-file", str(user.docker_file), basic.host)
    assert done.returncode == 0, done.stderr
    assert list(user.auths(user.docker_file)) == [basic.host]
    assert not user.auth_file.exists()
    user.pyrun.ok("pull", "-q", f"{basic.host}/private/app:1")
    # It is docker's: a plain logout leaves it and says so.
    left = user.pyrun("logout", basic.host)
    assert left.returncode == 1
    assert str(user.docker_file) in left.stderr
    user.pyrun.ok("logout", "--compat-auth-file", str(user.docker_file), basic.host)
    assert user.auths(user.docker_file) == {}


def test_a_file_of_ones_own_is_used_alone(user: User, basic: Registry) -> None:
    own = user.home / "deep/own.json"
    assert user.login("--authfile", str(own), basic.host).returncode == 0
    image = f"{basic.host}/private/app:1"
    assert user.pyrun("pull", image).returncode == 1
    user.pyrun.ok("pull", "-q", "--authfile", str(own), image)
    user.pyrun.env["REGISTRY_AUTH_FILE"] = str(own)
    user.pyrun.ok("pull", "-q", image)
    assert user.pyrun.ok("login", "--get-login", basic.host) == f"{USER}\n"
    missing = user.pyrun("pull", "--authfile", "/no/such/file", image)
    assert missing.returncode == 1
    assert "no credential file /no/such/file" in missing.stderr


def test_existing_credentials_are_tried_first(user: User, basic: Registry) -> None:
    assert user.login(basic.host).returncode == 0
    before = user.auth_file.read_bytes()
    done = user.pyrun("login", basic.host)
    assert done.returncode == 0
    assert done.stdout == "Authenticating with existing credentials... [Username: alice]\nLogin Succeeded\n"
    assert user.auth_file.read_bytes() == before


def test_creds_of_a_command_count_for_it_alone(user: User, basic: Registry) -> None:
    image = f"{basic.host}/private/app:1"
    user.pyrun.ok("pull", "-q", "--creds", f"{USER}:{PASSWORD}", image)
    assert not user.auth_file.exists()
    wrong = user.pyrun("pull", "--creds", f"{USER}:guess-4711", image)
    assert wrong.returncode == 1
    assert "credentials of alice from --creds" in wrong.stderr
    assert "Check user name and password." in wrong.stderr
    assert "guess" not in wrong.stderr


def test_a_password_that_can_not_be_asked_for_is_told_how_to_give(user: User, basic: Registry) -> None:
    done = user.pyrun("pull", "--creds", USER, f"{basic.host}/private/app:1")
    assert done.returncode == 1
    assert "--creds USERNAME:PASSWORD" in done.stderr


@pytest.mark.parametrize("debug", [True, False])
def test_no_secret_is_ever_shown(user: User, basic: Registry, debug: bool) -> None:
    options = ["--debug"] if debug else []
    secrets = ("guess-4711", encoded(f"{USER}:guess-4711"))
    user.auth_file.parent.mkdir()
    user.auth_file.write_text(json.dumps({"auths": {basic.host: {"auth": secrets[1]}}}))
    runs = [
        user.pyrun(*options, "pull", f"{basic.host}/private/app:1"),
        user.pyrun(*options, "login", basic.host),
        user.pyrun(*options, "login", "-u", USER, "-p", secrets[0], basic.host),
    ]
    user.auth_file.write_text(json.dumps({"auths": {basic.host: {"auth": secrets[1] + "!"}}}))
    runs.append(user.pyrun(*options, "pull", f"{basic.host}/private/app:1"))
    user.auth_file.write_text(user.auth_file.read_text()[:-4])
    runs.append(user.pyrun(*options, "pull", f"{basic.host}/private/app:1"))
    for done in runs:
        assert done.returncode == 1
        assert ("Traceback" in done.stderr) == debug
        for secret in secrets:
            assert secret not in done.stdout + done.stderr


def test_a_password_in_the_arguments_is_warned_of(user: User, basic: Registry) -> None:
    done = user.pyrun("login", "-u", USER, "-p", PASSWORD, basic.host)
    assert done.returncode == 0
    assert "WARNING! Using --password via the CLI is insecure. Use --password-stdin." in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-u", "a", "-p", "b", "--password-stdin"], "mutually exclusive"),
        (["--password-stdin"], "needs --username"),
        (["-p", "x"], "needs --username"),
        (["-u", "a:b", "-p", "x"], "can't have a colon"),
        (["-u", "a", "-p", ""], "the password is empty"),
        (["-u", "a", "-p", "x", "not/a/Server"], "not the name of a registry"),
        (["-u", "a", "-p", "x", "--authfile", "a", "--compat-auth-file", "b"], "can't both be given"),
        (["-u", "a", "-p", "x", "--compat-auth-file", "b", "r.test/ns"], "whole registries"),
    ],
)
def test_what_makes_no_sense_is_refused(user: User, args: list[str], says: str) -> None:
    done = user.pyrun("login", *args)
    assert done.returncode in (1, 125)
    assert says in done.stderr


def test_without_a_terminal_nobody_is_asked(user: User, basic: Registry) -> None:
    done = user.pyrun("login", basic.host)
    assert done.returncode == 1
    assert "no terminal" in done.stderr
    assert "--password-stdin" in done.stderr


def test_on_a_terminal_the_password_is_not_shown(user: User, basic: Registry) -> None:
    terminal = Terminal(user.pyrun.argv("login", basic.host), user.pyrun.env)
    try:
        terminal.read_until(b"Username: ")
        terminal.send(f"{USER}\n".encode())
        shown = terminal.read_until(b"Password: ")
        terminal.send(f"{PASSWORD}\n".encode())
        shown += terminal.read_until(b"Login Succeeded")
        assert terminal.wait() == 0
    finally:
        terminal.close()
    assert PASSWORD.encode() not in shown
    assert list(user.auths()) == [basic.host]


def test_all_logins_can_be_taken_back_at_once(user: User, basic: Registry) -> None:
    assert user.login(basic.host).returncode == 0
    assert user.login(f"{basic.host}/private").returncode == 0
    user.pyrun.ok("logout", "--all")
    assert user.auths() == {}


def test_a_malformed_file_is_named(user: User, basic: Registry) -> None:
    user.auth_file.parent.mkdir()
    user.auth_file.write_text("{nonsense")
    for done in (user.pyrun("pull", f"{basic.host}/private/app:1"), user.login(basic.host)):
        assert done.returncode == 1
        assert f"the credential file {user.auth_file} is not JSON" in done.stderr
    assert user.auth_file.read_text() == "{nonsense"


# --- beside other tools


def skopeo(user: User, *args: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo (package skopeo)")
    return subprocess.run(
        ["skopeo", *args],
        env=user.pyrun.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_skopeo_uses_the_logins_of_pyrun(user: User, basic: Registry, guarded: Registry) -> None:
    for host in (basic.host, guarded.host):  # a password, and an identity token
        image = f"docker://{host}/private/app:1"
        assert skopeo(user, "inspect", "--tls-verify=false", image).returncode != 0
        assert user.login(host).returncode == 0
        done = skopeo(user, "inspect", "--tls-verify=false", image)
        assert done.returncode == 0, done.stderr


def test_pyrun_uses_the_logins_of_skopeo_and_takes_them_back(user: User, basic: Registry) -> None:
    done = skopeo(user, "login", "--tls-verify=false", "-u", USER, "-p", PASSWORD, basic.host)
    assert done.returncode == 0, done.stderr
    assert user.pyrun.ok("login", "--get-login", basic.host) == f"{USER}\n"
    user.pyrun.ok("pull", "-q", f"{basic.host}/private/app:1")
    user.pyrun.ok("logout", basic.host)
    assert skopeo(user, "logout", basic.host).returncode != 0  # there is nothing left


# --- TLS


@pytest.fixture(scope="module")
def secure(registry: Registry, base: Path, basic: Registry, authority: Authority) -> Iterator[Registry]:
    """The registry's content behind TLS and a password."""
    certificate, key = authority.issue("registry", "IP:127.0.0.1")
    tls = {"certificate": str(certificate), "key": str(key)}
    settings = {**basic.settings, "http": {"tls": tls}}
    with Registry(
        base / "secure", root=registry.root, settings=settings, client=authority.trusting()
    ) as running:
        yield running


def test_a_registrys_ca_is_taken_from_a_directory(user: User, secure: Registry, authority: Authority) -> None:
    image = f"{secure.host}/private/app:1"
    untrusted = user.login(secure.host)
    assert untrusted.returncode == 1
    assert "certificate can't be verified" in untrusted.stderr
    assert not user.auth_file.exists()
    directory = user.home / "certs"
    directory.mkdir()
    (directory / "ca.crt").write_bytes(authority.certificate.read_bytes())
    assert user.login("--cert-dir", str(directory), secure.host).returncode == 0
    assert user.pyrun("pull", image).returncode == 1
    user.pyrun.ok("pull", "-q", "--cert-dir", str(directory), image)
    lasting = user.home / ".config/containers/certs.d" / secure.host
    lasting.parent.mkdir(parents=True)
    directory.rename(lasting)
    user.pyrun.ok("pull", "-q", image)


def test_verification_can_be_turned_off_and_insisted_on(
    user: User, secure: Registry, basic: Registry
) -> None:
    assert user.login("--tls-verify=false", secure.host).returncode == 0
    user.pyrun.ok("pull", "-q", "--tls-verify=false", f"{secure.host}/private/app:1")
    plain = user.login("--tls-verify", basic.host)
    assert plain.returncode == 1
    assert "TLS failed" in plain.stderr


# --- helpers


@pytest.mark.parametrize("setting", ["credsStore", "credHelpers"])
def test_a_helper_keeps_the_login_where_one_is_configured(user: User, basic: Registry, setting: str) -> None:
    user.install_helper()
    user.docker_file.parent.mkdir()
    configured = "testing" if setting == "credsStore" else {basic.host: "testing"}
    user.docker_file.write_text(json.dumps({setting: configured}))
    done = user.login(basic.host, "-v")
    assert (done.returncode, done.stdout) == (0, "Used: docker-credential-testing\nLogin Succeeded\n")
    assert "unencrypted" not in done.stderr
    assert json.loads(user.keychain.read_text())[basic.host]["Secret"] == PASSWORD
    assert not user.auth_file.exists()
    assert json.loads(user.docker_file.read_text()) == {setting: configured}
    user.pyrun.ok("pull", "-q", f"{basic.host}/private/app:1")
    user.pyrun.ok("logout", basic.host)
    assert json.loads(user.keychain.read_text()) == {}


def test_registries_conf_can_put_a_helper_before_the_files(user: User, basic: Registry) -> None:
    user.install_helper()
    conf = user.home / "registries.conf"
    conf.write_text('credential-helpers = ["testing", "containers-auth.json"]\n')
    user.pyrun.env["CONTAINERS_REGISTRIES_CONF"] = str(conf)
    assert user.login(basic.host).returncode == 0
    assert list(json.loads(user.keychain.read_text())) == [basic.host]
    assert not user.auth_file.exists()
    image = f"{basic.host}/private/app:1"
    user.pyrun.ok("pull", "-q", image)
    user.pyrun.ok("logout", basic.host)
    assert json.loads(user.keychain.read_text()) == {}
    own = user.home / "own.json"
    assert user.login("--authfile", str(own), basic.host).returncode == 0
    assert user.pyrun("pull", image).returncode == 1
    user.auth_file.parent.mkdir()
    own.rename(user.auth_file)
    user.pyrun.ok("pull", "-q", image)


def test_a_helper_that_is_missing_is_named(user: User, basic: Registry) -> None:
    user.docker_file.parent.mkdir()
    user.docker_file.write_text('{"credsStore": "absent"}')
    done = user.pyrun("pull", f"{basic.host}/private/app:1")
    assert done.returncode == 1
    assert f"no program docker-credential-absent, which {user.docker_file} names" in done.stderr


# --- by the Python API


def test_the_python_api_logs_in_and_out(user: User, basic: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "CONTAINERS_REGISTRIES_CONF"):
        monkeypatch.setenv(name, user.pyrun.env[name])
    engine = Engine(str(user.pyrun.root), str(user.pyrun.state))
    with pytest.raises(Unauthorized):
        engine.login(basic.host, USER, "no")
    with pytest.raises(NotFound):
        engine.login(basic.host)
    done = engine.login(basic.host, USER, PASSWORD)
    assert (done.server, done.username, done.stored) == (basic.host, USER, str(user.auth_file))
    assert not done.encrypted
    assert PASSWORD not in repr(done)
    assert engine.logged_in(basic.host) == USER
    assert engine.login(basic.host).existing
    assert engine.logout(basic.host).removed == (str(user.auth_file),)
    with pytest.raises(NotFound):
        engine.logged_in(basic.host)


# --- as an ordinary user


def test_an_ordinary_users_keychain_is_asked_as_that_user(
    base: Path, conf: Path, basic: Registry, account: str, installation: Path
) -> None:
    with tempfile.TemporaryDirectory(prefix="user-", dir=base) as directory:
        home = Path(directory)
        user = User(home, conf, as_account(account), str(installation / "bin/pyrun"))
        user.install_helper()
        program = home / "bin/docker-credential-testing"
        program.write_text(HELPER.format(python=installation / "bin/python"))
        (home / "run").mkdir()
        user.docker_file.parent.mkdir()
        user.docker_file.write_text('{"credsStore": "testing"}')
        subprocess.run(["chown", "-R", f"{account}:", directory], check=True)
        done = user.login(basic.host)
        assert done.returncode == 0, done.stderr
        # The helper refuses everybody but the user who stored: root of a user namespace, too.
        user.pyrun.ok("pull", "-q", "--storage", "vfs", f"{basic.host}/private/app:1")
        user.docker_file.write_text("{}")
        done = user.login(basic.host)
        assert (home / "run/containers/auth.json").stat().st_mode & 0o777 == 0o600
        user.pyrun.ok("pull", "-q", f"{basic.host}/private/app:1")
