"""What a command imports: the start of `pyrun` is most of the time a user waits."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "msgspec",
    "rich",
    "pyroute2",
    "asyncio",
    "pydantic",
    "http.client",
    "ssl",
    "prctl",
    "importlib.metadata",
}

PROBE = """
import json, os, sys
args = json.loads(sys.argv[1])
sys.argv = ["pyrun", *args]
from pyrun.cli.main import program
try:
    program()
except SystemExit:
    pass
os.write(3, json.dumps(sorted(sys.modules)).encode())
"""


# What an ordinary line of a hot command does without (`pyrun.cli.lean`).
COMMAND_LINE = {"click", "typer", "argparse", "shutil", "inspect", "gettext"}
# What `run` of a local image does without, in the engine and in the container's first process before it
# executes the program. (Without a configuration file, that is: it is TOML.)
UNUSED = {
    *HEAVY - {"prctl"},
    *COMMAND_LINE,
    *("dataclasses", "pathlib", "typing", "subprocess", "logging", "tomllib", "pluggy", "hashlib"),
    *("threading", "tempfile", "datetime", "traceback"),
}


def modules(*args):
    """Every module imported by ``pyrun ARGS``, and whether it printed something."""
    script = [sys.executable, "-c", PROBE, json.dumps(args)]
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec 3>&1 >/dev/null 2>&1; exec "$@"', "sh", *script],
        capture_output=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stdout))


def commands(loaded):
    from pyrun.cli.catalog import CATALOG, HIDDEN, GroupEntry

    def targets(table):
        for entry in table.values():
            if isinstance(entry, GroupEntry):
                yield from targets(entry.entries)
            else:
                yield "pyrun.cli." + entry.target.partition(":")[0]

    return loaded & {*targets(CATALOG), *targets(HIDDEN)}


@pytest.mark.parametrize("args", [[], ["--help"], ["image", "--help"], ["--version"]])
def test_help_imports_no_command_and_no_engine(args):
    loaded = modules(*args)
    assert not commands(loaded)
    assert "pyrun.engine" not in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "name", ["run", "pull", "images", "rmi", "tag", "history", "inspect", "ps", "rm", "info"]
)
def test_the_help_of_a_command_imports_that_command_only(name):
    loaded = modules(name, "--help")
    assert commands(loaded) == {f"pyrun.cli.{name}"}
    assert "pyrun.engine" not in loaded
    assert not loaded & HEAVY


def test_listing_commands_import_nothing_heavy(tmp_path):
    for args in (["image", "ls"], ["container", "ls", "-a"], ["version"]):
        loaded = modules("--root", str(tmp_path / "root"), "--state", str(tmp_path / "state"), *args)
        name = {"image": "images", "container": "ps"}.get(args[0], args[0])
        assert commands(loaded) == {f"pyrun.cli.{name}"}
        assert not loaded & HEAVY
        assert "pyrun.cli.template" not in loaded


def test_completing_a_command_imports_no_command():
    assert commands(modules("__complete", "fish", "i")) == {"pyrun.cli.complete"}


def test_run_without_a_pull_imports_no_registry_client_and_no_display(tmp_path):
    loaded = modules(
        *("--root", str(tmp_path / "root"), "--state", str(tmp_path / "state")),
        *("run", "--pull", "never", "nothing-of-that-name"),
    )
    assert "pyrun.images.local" in loaded
    assert not loaded & {"pyrun.cli.progress", "pyrun.images.registry.client", "pyrun.images.transfer.pull"}
    # The drivers are entry points; the capability set is set through prctl.
    assert not loaded & (HEAVY - {"importlib.metadata", "prctl"})


def imported(pyrun, *args):
    """Every module that an import statement loaded, in the command and in what it forked."""
    done = pyrun(*args, env={**pyrun.env, "PYTHONPROFILEIMPORTTIME": "1"})
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {fields[-1].strip() for fields in lines}


def unwelcome(loaded, names):
    return {
        module for module in loaded if any(module == name or module.startswith(f"{name}.") for name in names)
    }


def test_run_of_a_local_image_imports_only_what_it_uses(pyrun):
    run = ("run", "--rm", "--network", "none", "busybox", "true")
    pyrun.ok(*run)  # the store then knows where its driver is
    loaded = imported(pyrun, *run)
    assert "pyrun.sandbox.init" in loaded
    assert not unwelcome(loaded, UNUSED)
    assert not commands(loaded)


def test_images_ps_and_rm_import_no_command_line_parser(pyrun):
    for args in (["images"], ["images", "-q"], ["ps", "-a"], ["rm", "-f", "nothing-of-that-name"]):
        loaded = imported(pyrun, *args)
        assert "pyrun.engine" in loaded
        assert not unwelcome(loaded, COMMAND_LINE | HEAVY)
        assert not commands(loaded)
