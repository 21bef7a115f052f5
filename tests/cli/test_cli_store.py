"""The commands on a real store, with images out of a real registry."""

import json
import os
import pty
import subprocess
import sys

import pytest

from support.registry import Registry, tar

PYRUN = os.path.join(os.path.dirname(sys.executable), "pyrun")
REPOSITORY = "library/cli-words"
NAME = "cli-words"
HOSTILE = "RUN echo \x1b]0;owned\x07\x9b2J"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount overlays")


class Pyrun:
    def __init__(self, directory, registry: Registry):
        self.options = ["--root", str(directory / "root"), "--state", str(directory / "state")]
        conf = registry.registries_conf(directory / "registries.conf")
        self.env = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(conf), "TZ": "UTC"}

    def __call__(self, *args):
        return subprocess.run(
            [PYRUN, *self.options, *args],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def on_a_terminal(self, *args):
        """(exit code, what the terminal got)."""
        pid, master = pty.fork()
        if pid == 0:
            os.execve(PYRUN, [PYRUN, *self.options, *args], self.env)
        seen = b""
        while True:
            try:
                chunk = os.read(master, 65536)
            except OSError:  # EIO: the program is gone
                break
            seen += chunk
        os.close(master)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


@pytest.fixture(scope="module")
def pushed(registry):
    layers = [tar({"etc": None, "etc/motd": b"hello"}), tar({"data": bytes(40_000)})]
    history = [
        {"created": "2024-01-02T03:04:05Z", "created_by": HOSTILE},
        {"created": "2024-01-02T03:04:06Z", "created_by": "COPY data /data", "comment": "a comment"},
    ]
    return registry.push_image(REPOSITORY, "latest", layers, {"Env": ["A=b"]}, history=history)


@pytest.fixture
def fresh(tmp_path, registry, pushed):
    """A store of the test's own."""
    return Pyrun(tmp_path, registry)


@pytest.fixture(scope="module")
def pyrun(tmp_path_factory, registry, pushed):
    """A store with the image in it, for tests that only look."""
    found = Pyrun(tmp_path_factory.mktemp("store"), registry)
    assert found("pull", NAME).returncode == 0
    return found


def short(digest):
    return digest.removeprefix("sha256:")[:12]


def test_a_pull_is_told_in_dockers_words(fresh, pushed):
    done = fresh("pull", NAME)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["Using default tag: latest", f"latest: Pulling from {REPOSITORY}"]
    assert lines[-3:] == [
        f"Digest: {pushed.digest}",
        f"Status: Downloaded newer image for {NAME}:latest",
        f"docker.io/{REPOSITORY}:latest",
    ]
    for digest in pushed.layer_digests:
        of_layer = [line.partition(": ")[2] for line in lines if line.startswith(short(digest))]
        assert of_layer[0] == "Pulling fs layer"
        assert of_layer[-1] == "Pull complete"
        assert len(of_layer) == len(set(of_layer)), "a state is printed once"

    again = fresh("pull", f"{NAME}:latest").stdout.splitlines()
    assert again[0] == f"latest: Pulling from {REPOSITORY}"
    assert len(again) == 4, "nothing is said of layers where the image is up to date"
    assert f"Status: Image is up to date for {NAME}:latest" in again


def test_a_quiet_pull_prints_the_full_name_only(fresh):
    done = fresh("pull", "-q", NAME)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"docker.io/{REPOSITORY}:latest\n", "")


def test_a_pull_on_a_terminal_redraws_a_line_a_layer(fresh, pushed):
    code, seen = fresh.on_a_terminal("pull", NAME)
    assert code == 0
    assert f"\x1b[2K{short(pushed.layer_digests[0])}: Pull complete" in seen
    assert seen.count("Pulling fs layer\r\n") == len(pushed.layer_digests)
    assert seen.endswith(f"docker.io/{REPOSITORY}:latest\r\n")


def test_under_run_the_pull_is_told_on_standard_error(fresh):
    done = fresh("run", "--rm", NAME, "/no-such-program")
    assert done.returncode == 127
    assert done.stdout == ""
    assert done.stderr.startswith(
        f"Unable to find image '{NAME}:latest' locally\nlatest: Pulling from {REPOSITORY}\n"
    )
    assert done.stderr.endswith("\n\nRun 'pyrun run --help' for more information\n")
    assert "Using default tag" not in done.stderr


def test_images_lists_what_was_pulled(pyrun, pushed):
    header, line = pyrun("images").stdout.splitlines()
    assert header.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert line.split()[:3] == [NAME, "latest", short(pushed.config_digest)]
    assert pyrun("images", "-q").stdout == short(pushed.config_digest) + "\n"
    assert pyrun("images", "-q", "--no-trunc").stdout == pushed.config_digest + "\n"
    assert pyrun("image", "ls", "--format", "{{.Digest}}").stdout == pushed.digest + "\n"
    assert pyrun("images", NAME).stdout.splitlines()[1] == line
    assert len(pyrun("images", f"{NAME}:other").stdout.splitlines()) == 1


def test_history_escapes_what_would_steer_a_terminal(pyrun, pushed):
    header, newest, oldest = pyrun("history", "--no-trunc", NAME).stdout.splitlines()
    assert header.split("   ")[0] == "IMAGE"
    assert newest.startswith(pushed.config_digest)
    assert newest.endswith("a comment")
    assert oldest.startswith("<missing>")
    assert "RUN echo \\x1b]0;owned\\x07\\x9b2J" in oldest
    _, seen = pyrun.on_a_terminal("history", "--no-trunc", "--format", "{{.CreatedBy}}", NAME)
    assert "\x1b" not in seen
    raw = pyrun("history", "--no-trunc", "--format", "{{.CreatedBy}}", NAME).stdout.splitlines()[-1]
    assert raw == HOSTILE, "a program gets the bytes as they are"


def test_exact_history_shows_times_and_bytes(pyrun):
    lines = pyrun("history", "--human=false", NAME).stdout.splitlines()
    assert "2024-01-02T03:04:06Z" in lines[1]
    assert any(field.isdecimal() and int(field) >= 40_000 for field in lines[1].split())


def test_inspect_is_an_array_and_says_what_is_missing(pyrun, pushed):
    done = pyrun("inspect", NAME, "nothing-of-that-name")
    assert done.returncode == 1
    assert [found["Id"] for found in json.loads(done.stdout)] == [pushed.config_digest]
    assert done.stderr == "error: no such object: nothing-of-that-name\n"
    nothing = pyrun("inspect", "nothing-of-that-name")
    assert (nothing.returncode, nothing.stdout) == (1, "[]\n")
    assert pyrun("inspect", "--type", "container", NAME).stdout == "[]\n"
    assert pyrun("image", "inspect", "-f", "{{index .Config.Env 0}} {{json .RepoTags}}", NAME).stdout == (
        f'A=b ["{NAME}:latest"]\n'
    )


def test_a_field_that_is_not_there_is_named(pyrun):
    done = pyrun("images", "--format", "{{.Nope}}")
    assert done.returncode == 1
    assert 'map has no entry for key "Nope"\nFields here: ' in done.stderr
    assert "Repository" in done.stderr


def test_several_names_are_worked_through_though_one_fails(fresh):
    assert fresh("pull", "-q", NAME).returncode == 0
    assert fresh("tag", NAME, "two:2").returncode == 0
    done = fresh("rmi", "two:2", "nothing-of-that-name", NAME)
    assert done.returncode == 1
    assert done.stdout.startswith("Untagged: two:2\n")
    assert f"\nUntagged: {NAME}:latest\n" in done.stdout
    assert "\nDeleted: sha256:" in done.stdout
    assert "no such image: nothing-of-that-name" in done.stderr
    forced = fresh("rmi", "-f", NAME)
    assert (forced.returncode, forced.stdout) == (0, "")
    assert "no such image" in forced.stderr


def test_containers_are_listed_and_removed_by_name(fresh):
    assert fresh("run", "--name", "first", NAME, "/no-such-program").returncode == 127
    assert fresh("ps", "-q").stdout == ""
    listed = fresh("ps", "-a", "--format", "{{.Names}} {{.Image}} {{.Command}}").stdout
    assert listed == f'first {NAME} "/no-such-program"\n'
    full = fresh("ps", "-aq", "--no-trunc").stdout.strip()
    assert len(full) == 64
    assert fresh("ps", "-aq").stdout.strip() == full[:12]
    spec = json.loads(fresh("inspect", "--spec", "first").stdout)
    assert spec["process"]["args"] == ["/no-such-program"]
    assert fresh("container", "inspect", "-f", "{{.Name}}", "first").stdout.strip().lstrip("/") == "first"
    done = fresh("rm", "nothing-of-that-name", "first")
    assert (done.returncode, done.stdout) == (1, "first\n")
    assert done.stderr.startswith("pyrun: ")
    forced = fresh("rm", "-f", "nothing-of-that-name")
    assert (forced.returncode, forced.stdout, forced.stderr) == (0, "", "")


def test_the_doctor_and_info_speak_of_this_store(pyrun):
    done = pyrun("storage", "doctor")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].split() == ["DRIVER", "STATE", "WHY", "FIX"]
    records = [
        json.loads(line) for line in pyrun("storage", "doctor", "--format", "json").stdout.splitlines()
    ]
    assert [record["State"] for record in records].count("selected") == 1
    info = json.loads(pyrun("info", "--format", "json").stdout)
    assert info["store"]["root"] == pyrun.options[1]
    assert f" root: {pyrun.options[1]}\n" in pyrun("info").stdout
