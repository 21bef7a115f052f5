"""What the command line means, read by the commands themselves, without running them."""

import click
import pytest

from pyrun.cli.app import root
from pyrun.cli.catalog import CATALOG, HIDDEN, PANELS, GroupEntry
from pyrun.cli.group import load
from pyrun.cli.session import Session


def parsed(name, *args):
    command = load(name, CATALOG[name])
    params = command.make_context(name, list(args), obj=Session()).params
    return {key: list(value) if isinstance(value, tuple) else value for key, value in params.items()}


def entries(table=CATALOG, path=()):
    for name, entry in table.items():
        yield (*path, name), entry
        if isinstance(entry, GroupEntry):
            yield from entries(entry.entries, (*path, name))


ENTRIES = dict(entries())


@pytest.mark.parametrize("path", ENTRIES, ids=" ".join)
def test_the_catalog_says_what_the_command_says_of_itself(path):
    entry = ENTRIES[path]
    help_text = load(path[-1], entry).help
    assert help_text
    assert help_text.splitlines()[0] == entry.help
    assert entry.panel in PANELS


def test_the_hidden_commands_load_and_are_not_listed():
    for name, entry in HIDDEN.items():
        assert load(name, entry).help.splitlines()[0] == entry.help
        assert name not in root().list_commands(click.Context(root()))


def test_run_has_exactly_the_options_of_its_reference():
    command = load("run", CATALOG["run"])
    options = {opt for param in command.params if isinstance(param, click.Option) for opt in param.opts}
    assert options == {
        *("-i", "--interactive", "-t", "--tty", "--rm", "--name", "-e", "--env", "--env-file"),
        *("-w", "--workdir", "-u", "--user", "--entrypoint", "-v", "--volume", "--network"),
        *("-h", "--hostname", "--read-only", "--tmpfs", "--pull", "--platform", "--storage"),
        *("--storage-opt", "--userns"),
    }


def test_run_stops_at_the_image():
    params = parsed("run", "-it", "--rm", "redis", "redis-server", "--rm", "-x", "--", "--help", "-h")
    assert params["image"] == "redis"
    assert params["command"] == ["redis-server", "--rm", "-x", "--", "--help", "-h"]
    assert params["interactive"] is params["tty"] is params["rm"] is True


def test_two_dashes_before_the_image_end_the_options():
    params = parsed("run", "-i", "--", "redis", "--", "x")
    assert (params["image"], params["command"]) == ("redis", ["--", "x"])


def test_on_run_h_is_the_host_name():
    assert parsed("run", "-h", "web", "redis")["hostname"] == "web"


@pytest.mark.parametrize(
    ("args", "env"),
    [
        (["-e", "A=b"], ["A=b"]),
        (["-eA=b"], ["A=b"]),
        (["-e", "A=b", "-e", "C"], ["A=b", "C"]),
        (["--env=A=b", "--env", "C=d"], ["A=b", "C=d"]),
        (["-ite", "A=b"], ["A=b"]),
        (["-ieA=b=c"], ["A=b=c"]),
        (["-e", "--rm=false"], ["--rm=false"]),
        (["--env", "-it"], ["-it"]),
        (["-e", ""], [""]),
    ],
)
def test_environment_variables_are_taken_in_every_spelling(args, env):
    params = parsed("run", *args, "redis")
    assert params["env"] == env
    assert params["rm"] is False


def test_repeated_options_keep_their_order():
    params = parsed("run", "-v", "/a:/a", "--volume=/b", "--tmpfs", "/t", "--storage-opt", "o.a=1", "redis")
    assert params["volume"] == ["/a:/a", "/b"]
    assert (params["tmpfs"], params["storage_opt"]) == (["/t"], ["o.a=1"])


def test_an_option_left_out_is_none_and_an_empty_one_is_empty():
    assert parsed("run", "redis")["entrypoint"] is None
    assert parsed("run", "--entrypoint", "", "redis")["entrypoint"] == ""
    assert parsed("run", "--entrypoint=", "redis")["entrypoint"] == ""
    assert parsed("run", "redis")["pull"] == "missing"


@pytest.mark.parametrize(
    ("args", "rm", "tty"),
    [
        (["--rm=true"], True, False),
        (["--rm=false"], False, False),
        (["--rm=1", "--tty=t"], True, True),
        (["--rm", "--rm=false"], False, False),
        (["--rm=false", "--rm"], True, False),
        (["-it", "--tty=false"], False, False),
        (["--tty=false", "-it"], False, True),
        (["--tty=0", "-i", "--rm=False"], False, False),
    ],
)
def test_a_flag_takes_true_and_false_and_the_last_word_counts(args, rm, tty):
    params = parsed("run", *args, "redis", "--rm=maybe")
    assert (params["rm"], params["tty"], params["command"]) == (rm, tty, ["--rm=maybe"])


def test_a_flag_takes_no_other_word():
    with pytest.raises(click.BadParameter, match="'maybe' is neither true nor false"):
        parsed("run", "--rm=maybe", "redis")


def test_history_is_for_people_unless_told_otherwise():
    assert parsed("history", "redis")["human"] is True
    assert parsed("history", "--human=false", "redis")["human"] is False
    assert parsed("history", "redis", "--human=false", "-q")["human"] is False
    assert parsed("history", "-H", "redis")["human"] is True
    assert parsed("history", "-H=false", "redis")["human"] is False
    assert parsed("commit", "-p=false", "box", "-p=true")["pause"] is True


@pytest.mark.parametrize("name", ["rm", "rmi", "inspect"])
def test_options_may_follow_names_elsewhere(name):
    option = "--spec" if name == "inspect" else "-f"
    params = parsed(name, "a", option, "b")
    assert ["a", "b"] in params.values()
    assert True in params.values()
    assert ["-x", "a"] in parsed(name, "--", "-x", "a").values()


def test_global_options_stand_before_the_command():
    session = Session()
    args = ["--root", "/r", "--state=/s", "--config", "/c", "--debug", "version", "--format={{1}}"]
    with root().make_context("pyrun", args, obj=session) as context:
        context.command.invoke(context)
    assert (session.root, session.state, session.config, session.debug) == ("/r", "/s", "/c", True)
    assert session.command == "pyrun version"
