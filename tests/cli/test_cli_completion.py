"""Shell completion: what is offered, and in the shells themselves where they are installed."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from pyrun.cli.app import root
from pyrun.cli.complete import after_break, candidates
from pyrun.cli.completion import SCRIPTS
from pyrun.images.local import ImageStore
from pyrun.images.record import Image

BIN = os.path.dirname(sys.executable)
PYRUN = os.path.join(BIN, "pyrun")


def offered(*words):
    return [value for _, value, _ in candidates(root(), list(words[:-1]), words[-1])]


def test_commands_and_subcommands_are_offered():
    assert set(offered("i")) == {"images", "image", "import", "info", "inspect"}
    assert offered("image", "h") == ["history"]
    assert "__complete" not in offered("")
    assert "__complete" not in offered("__")


def test_options_of_the_command_are_offered():
    assert {"--env", "--env-file", "--entrypoint"} <= set(offered("run", "--en"))
    assert "--root" in offered("--r")


def test_values_of_an_option_are_offered_in_both_spellings():
    assert offered("run", "--pull", "") == ["always", "missing", "never"]
    assert offered("run", "--pull=n") == ["--pull=never"]
    assert offered("completion", "") == ["bash", "zsh", "fish"]


def test_after_the_image_nothing_of_pyrun_is_offered():
    assert offered("run", "redis", "--pu") == []


def test_paths_are_left_to_the_shell():
    assert candidates(root(), ["--root"], "/e")[0][0] == "dir"
    assert candidates(root(), ["run", "--env-file"], "/e")[0][0] == "file"


def test_a_store_that_can_not_be_read_offers_nothing_and_says_nothing():
    done = subprocess.run(
        [PYRUN, "__complete", "fish", "--root", "/proc/nope", "--state", "/proc/nope", "rm", ""],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_local_images_are_offered_by_their_familiar_names(tmp_path):
    images = ImageStore(str(tmp_path / "root"))
    for reference in ("docker.io/library/redis:7", "localhost:5000/team/app:1.0"):
        images.put(
            Image(
                reference=reference,
                digest="sha256:" + "a" * 64,
                manifest="sha256:" + "b" * 64,
                id="sha256:" + "c" * 64,
                platform="linux/amd64",
                created="",
                config={},
                layers=[],
            )
        )
    options = ["--root", str(tmp_path / "root"), "--state", str(tmp_path / "state")]
    assert offered(*options, "run", "-it", "re") == ["redis:7"]
    assert set(offered(*options, "rmi", "")) == {"redis:7", "localhost:5000/team/app:1.0"}
    bash = [PYRUN, "__complete", "bash", " :=", f"pyrun {' '.join(options)} rmi localhost:5"]
    assert (
        subprocess.run(bash, capture_output=True, text=True, check=True).stdout
        == "plain\t5000/team/app:1.0\t\n"
    )


@pytest.mark.parametrize(
    ("value", "incomplete", "breaks", "rest"),
    [
        ("redis:7", "re", ":=", "redis:7"),
        ("redis:7", "redis:", ":=", "7"),
        ("localhost:5000/a:1", "localhost:5000/a:", ":=", "1"),
        ("--pull=never", "--pull=n", ":=", "never"),
        ("--pull=never", "--pull=n", ":", "--pull=never"),
        ("redis:7", "redis:", "", "redis:7"),
    ],
)
def test_bash_gets_the_part_after_its_word_break(value, incomplete, breaks, rest):
    assert after_break(value, incomplete, breaks) == rest


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_is_one_its_shell_can_read(shell):
    text = subprocess.run([PYRUN, "completion", shell], capture_output=True, text=True, check=True).stdout
    assert text == SCRIPTS[shell]
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [program, "-n", "/dev/stdin"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def bash():
    """An interactive bash that has sourced the script: ``typed(text)`` is the line as it stands after it."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    pid, master = pty.fork()
    if pid == 0:
        os.environ["PATH"] = f"{BIN}:{os.environ['PATH']}"
        os.environ["TERM"] = "dumb"
        os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])

    def read_until(wanted, seconds=20.0):
        seen, end = b"", time.monotonic() + seconds
        while wanted not in seen and time.monotonic() < end:
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 65536)
        return seen.decode()

    def typed(text, wanted):
        os.write(master, text.encode() + b"\t")
        line = read_until(wanted.encode())
        os.write(master, b"\x15")  # erase the line
        return line

    os.write(
        master,
        b"PS1=; bind 'set enable-bracketed-paste off'; source <(pyrun completion bash); echo so''urced\n",
    )
    assert "sourced" in read_until(b"sourced")
    yield typed
    os.write(master, b"\x15exit\n")
    os.close(master)
    os.waitpid(pid, 0)


def test_bash_completes_commands_values_and_paths(bash, tmp_path):
    (tmp_path / "some-directory").mkdir()
    assert "pyrun version " in bash("pyrun vers", "version ")
    assert "--pull=never" in bash("pyrun run --pull=ne", "--pull=never")
    assert "some-directory/" in bash(f"pyrun --root {tmp_path}/so", "some-directory/")
