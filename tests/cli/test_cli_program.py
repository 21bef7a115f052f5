"""The `pyrun` program from outside: its words, streams and exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from pyrun.cli.catalog import CATALOG, GroupEntry

PYRUN = os.path.join(os.path.dirname(sys.executable), "pyrun")

# The same listing, read by the lean parser and by typer.
LISTINGS = (["ps"], ["container", "ls"])


def pyrun(*args, **options):
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([PYRUN, *args], text=True, timeout=60, check=False, **options)


def paths(table=CATALOG, path=()):
    for name, entry in table.items():
        yield (*path, name)
        if isinstance(entry, GroupEntry):
            yield from paths(entry.entries, (*path, name))


@pytest.mark.parametrize("path", [(), *paths()], ids=" ".join)
def test_every_command_has_a_help(path):
    done = pyrun(*path, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(" ".join(["Usage:  pyrun", *path]))
    assert "--help" in done.stdout
    # A default typer would have escaped for rich.
    assert "\\[" not in done.stdout


def test_without_arguments_there_is_help():
    assert pyrun().stdout == pyrun("--help").stdout
    assert pyrun().returncode == 0
    assert pyrun("image").stdout == pyrun("image", "--help").stdout


def test_the_help_lists_every_command():
    text = pyrun("--help").stdout
    for name, entry in CATALOG.items():
        assert f"  {name} " in text
        assert entry.help in text


def test_the_version_is_the_packages():
    from pyrun import __version__

    assert pyrun("--version").stdout == f"pyrun version {__version__}\n"
    assert pyrun("-v").stdout == f"pyrun version {__version__}\n"
    client = json.loads(pyrun("version", "--format", "json").stdout)["Client"]
    assert client["Version"] == pyrun("version", "-f", "{{.Client.Version}}").stdout.strip() == __version__
    assert client["KernelVersion"] == os.uname().release
    text = pyrun("version").stdout
    assert text.startswith("Client:\n")
    assert f"{client['Os']}/{client['Arch']}" in text
    assert "{}.{}.{}".format(*sys.version_info[:3]) in text


@pytest.mark.parametrize(
    ("args", "words", "help_of"),
    [
        (["run", "--nope", "redis"], "unknown flag: --nope", "pyrun run"),
        (["run", "-Z", "redis"], "unknown flag: -Z", "pyrun run"),
        (["run"], "missing argument 'IMAGE'", "pyrun run"),
        (
            ["run", "--pull", "often", "redis"],
            "'often' is not one of 'always', 'missing', 'never'",
            "pyrun run",
        ),
        (["run", "--rm=perhaps", "redis"], "'perhaps' is neither true nor false", "pyrun run"),
        (["run", "-e"], "option '-e' requires an argument", "pyrun run"),
        (["images", "--nope"], "unknown flag: --nope", "pyrun images"),
        (["rmi"], "missing argument 'IMAGE...'", "pyrun rmi"),
        (["tag", "a"], "missing argument 'NAME[:TAG]'", "pyrun tag"),
        (["tag", "a", "b", "c"], "unexpected extra argument", "pyrun tag"),
        (["image", "rm", "--nope"], "unknown flag: --nope", "pyrun image rm"),
        (
            ["inspect", "--type", "volume", "x"],
            "'volume' is not one of 'container', 'image'",
            "pyrun inspect",
        ),
        (["completion", "csh"], "'csh' is not one of 'bash', 'zsh', 'fish'", "pyrun completion"),
        (["nope"], "unknown command: pyrun nope", "pyrun"),
        (["image", "nope"], "unknown command: pyrun image nope", "pyrun image"),
        (["--nope"], "unknown flag: --nope", "pyrun"),
        (["--root"], "option '--root' requires an argument", "pyrun"),
    ],
)
def test_a_command_line_that_can_not_be_read_exits_with_125(args, words, help_of):
    done = pyrun(*args)
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr.startswith("pyrun: ")
    assert words in done.stderr
    assert f"\nUsage:  {help_of} " in done.stderr
    assert done.stderr.endswith(f"\n\nRun '{help_of} --help' for more information\n")
    assert "Traceback" not in done.stderr


def test_a_mistyped_name_brings_the_right_one():
    assert "Did you mean image or images" in pyrun("imagse").stderr
    assert "Did you mean --format?" in pyrun("images", "--fromat=x").stderr


@pytest.mark.parametrize("command", [["run"], ["container", "run"]])
def test_a_terminal_is_not_made_of_something_else(command):
    done = pyrun(*command, "-it", "redis")
    assert done.returncode == 1
    assert done.stderr.startswith("pyrun: the input device is not a TTY\n")


@pytest.mark.parametrize("command", [["run"], ["pull"]])
def test_a_reference_that_is_none_is_an_error_in_words(command, tmp_path):
    done = pyrun("--root", str(tmp_path / "r"), "--state", str(tmp_path / "s"), *command, "Not/A/Reference!")
    assert done.returncode == (125 if command == ["run"] else 1)
    assert "'Not/A/Reference!' is not an image reference" in done.stderr
    assert done.stderr.endswith("Run 'pyrun run --help' for more information\n") is (command == ["run"])
    assert "Traceback" not in done.stderr


def test_debug_shows_where_an_error_arose(tmp_path):
    done = pyrun("--debug", "--root", str(tmp_path / "r"), "pull", "Not/A/Reference!")
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.index("Traceback") < done.stderr.index("pyrun: ")


@pytest.mark.parametrize("path", [["run"], ["container", "run"]], ids=" ".join)
@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["", "debug"])
def test_an_error_reads_the_same_whoever_parsed_the_command_line(path, debug, tmp_path):
    # The lean parser reads `run`, typer `container run`.
    store = ["--root", str(tmp_path / "r"), "--state", str(tmp_path / "s")]
    for args, code, words in (
        (["Not/A/Reference!"], 125, "'Not/A/Reference!' is not an image reference"),
        (["--pull", "never", "nothing"], 125, "no such image: nothing"),
        (["--storage-opt", "x", "nothing"], 125, "invalid storage option 'x'"),
        (["-e", "A=\x1b", "-it", "nothing"], 1, "the input device is not a TTY"),
    ):
        done = pyrun(*debug, *store, *path, *args)
        assert done.returncode == code
        trace, _, said = done.stderr.rpartition("pyrun: ")
        assert said.startswith(words)
        assert said.endswith(f"Run 'pyrun {' '.join(path)} --help' for more information\n") is (code == 125)
        assert trace.startswith("Traceback (most recent call last)") if debug else not trace


@pytest.mark.parametrize("args", [["--help"], ["version"], ["completion", "bash"], ["--version"], *LISTINGS])
def test_a_full_disk_is_told(args, tmp_path):
    with open("/dev/full", "w") as full:
        done = pyrun("--root", str(tmp_path / "r"), "--state", str(tmp_path / "s"), *args, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("pyrun: can't write the output: No space left on device\n")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("args", [["--help"], ["version"], ["completion", "bash"], *LISTINGS])
def test_a_reader_that_went_away_ends_it_quietly(args, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = pyrun("--root", str(tmp_path / "r"), "--state", str(tmp_path / "s"), *args, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_closed_output_is_an_error_and_no_traceback():
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec '{PYRUN}' version >&-"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "pyrun: can't write the output: standard output is closed\n"


def test_a_closed_standard_error_does_not_stop_a_pull(fresh):
    line = fresh.argv("run", "--rm", "--pull", "always", "busybox", "echo", "ran")
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *line], env=fresh.env, stdout=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"ran\n")


LOOK = """
import json, os, sys
from pyrun.cli import main as program
def invoke(args, session):
    with open(__file__) as file:
        fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]
        os.write(9, json.dumps([file.fileno(), *fds]).encode())
    return 7
program.invoke = invoke
program.main()
"""


@pytest.mark.parametrize("closed", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}], ids=str)
def test_no_file_opened_later_stands_in_for_a_closed_standard_stream(closed, tmp_path):
    script = tmp_path / "look.py"
    script.write_text(LOOK)
    redirects = " ".join(f"{fd}>&-" for fd in sorted(closed))
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec '{sys.executable}' '{script}' 9>&1 {redirects}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    fd, *streams = json.loads(done.stdout)
    assert fd > 2
    assert {at for at, stream in enumerate(streams) if stream == os.devnull} == closed | {0}
    assert (done.returncode, done.stderr) == (7, "")


def test_a_closed_or_full_standard_error_changes_no_exit_code():
    for redirect in ("2>&-", "2>/dev/full"):
        done = subprocess.run(["/bin/sh", "-c", f"exec '{PYRUN}' nope {redirect}"], check=False)
        assert done.returncode == 125


def test_words_beyond_the_locale_are_escaped_and_not_fatal():
    done = pyrun("version", "-f", '{{"\u2026\u00e9"}}', env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.stdout == "\\u2026\\xe9\n"


def test_a_template_that_fails_is_told_and_exits_with_1():
    done = pyrun("version", "-f", "{{.Server.Version}}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(
        'pyrun: template parsing error: template: :1:2: executing "" at <.Server.Version>: '
        'map has no entry for key "Server"\n'
    )


@pytest.mark.parametrize("command", ["pull", "run"])
def test_ctrl_c_ends_it_without_a_traceback(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"127.0.0.1:{silent.getsockname()[1]}/x"
        process = subprocess.Popen(
            [PYRUN, "--root", str(tmp_path / "r"), "--state", str(tmp_path / "s"), command, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        silent.settimeout(30)
        silent.accept()  # it has connected, and waits for an answer that never comes
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in shown
