"""The lean parser understands the hot commands exactly as typer does, or leaves them to it."""

import importlib

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrun.cli import generate, lean, lean_table, main
from pyrun.cli.session import Session

TABLES = lean_table.COMMANDS


def reached(run, args):
    """What the body is called with when ``run`` (a function of `main`) acts on ``args``: the command, the
    session's fields, the parameters. None where it is not called. No body does anything here."""
    calls = []

    def stand_in(name):
        def body(session, **parameters):
            calls.append((name, {n: getattr(session, n) for n in Session.__slots__}, parameters))
            return 0

        return body

    with pytest.MonkeyPatch.context() as patch:
        for name in TABLES:
            patch.setattr(importlib.import_module(f"pyrun.cli.body.{name}"), name, stand_in(name))
        run(args, Session())
    return calls[0] if calls else None


def by_typer(args):
    return reached(main._run_typer, args)


def by_lean(args):
    assert lean.read(args) is not None
    return reached(main._run, args)


def test_the_table_is_what_typer_declares():
    assert generate.PATH.read_text() == generate.text(), "run: python -m pyrun.cli.generate"


@pytest.mark.parametrize(
    "option",
    [
        click.Option(["--count"], count=True),
        click.Option(["--on/--off"]),
        click.Option(["--number"], type=int),
        click.Option(["--must"], required=True),
        click.Option(["--pair"], nargs=2),
        click.Option(["--from"], envvar="FROM"),
        click.Option(["-ab", "both"]),
        click.Option(["--any-case"], type=click.Choice(["a"], case_sensitive=False)),
        click.Option(["--no"], is_flag=True, flag_value=False),
        click.Argument(["pair"], nargs=2),
        click.Argument(["perhaps"], required=False),
    ],
    ids=lambda option: option.name,
)
def test_what_the_table_can_not_say_is_refused_when_it_is_generated(option):
    def declared(**_):
        pass

    with pytest.raises(generate.Unrepresentable):
        generate.table(click.Command("x", params=[option]), declared)


# --- ordinary command lines are understood without typer


ORDINARY = [
    "ps",
    "ps -a",
    "ps -aq --no-trunc",
    "ps --format {{.Names}}",
    "--root /r --state=/s ps --all=false",
    "rm a",
    "rm -f a b",
    "rm a --force b",
    "rm -- -f",
    "rm a -- -f",
    "pull redis",
    "pull -aq --platform linux/arm64 --tls-verify=false redis",
    "pull --disable-content-trust=false --progress=json --creds a:b --authfile f redis:7",
    "run redis",
    "run --rm busybox true",
    "run -it --rm busybox sh",
    "run --rm --network none busybox true",
    "--root /r --state /s --config /c --debug run redis",
    "run -e A=b -eC=d --env=E --env F=g=h redis",
    "run -ite A=b --name web -h host -w /srv -u 1:2 -v /a:/b:ro --volume=/c redis redis-server --rm -x -- --help",
    "run --read-only --tmpfs /tmp --userns=host --pull=always --platform linux/arm64 redis",
    "run --rm=false --tty=0 -- redis -- x",
    "run --entrypoint= --storage overlay --storage-opt overlay.volatile=true --env-file f redis",
    "run -e --rm=false redis",
]


@pytest.mark.parametrize("line", ORDINARY)
def test_an_ordinary_command_line_needs_no_typer(line):
    assert by_lean(line.split()) == by_typer(line.split()) is not None


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--help"],
        ["-h"],
        ["--version"],
        ["-v", "run", "redis"],
        ["--root"],
        ["--nope", "run", "redis"],
        ["--debug=true", "run", "redis"],
        ["pull"],
        ["pull", "redis", "busybox"],
        ["tag", "a", "b"],
        ["container", "run", "redis"],
        ["__complete", "fish", "run"],
        ["run"],
        ["run", "--"],
        ["run", "--help"],
        ["run", "--rm", "--help", "redis"],
        ["run", "-e"],
        ["run", "--env"],
        ["run", "--nam", "web", "redis"],
        ["run", "--name-x=web", "redis"],
        ["run", "-Z", "redis"],
        ["run", "-iZ", "redis"],
        ["run", "-i=true", "redis"],
        ["run", "--rm=maybe", "redis"],
        ["run", "--rm=", "redis"],
        ["run", "--pull", "often", "redis"],
        ["run", "--pull=", "redis"],
        ["run", "---", "redis"],
        ["run", "--=x", "redis"],
        ["ps", "x"],
        ["ps", "-h"],
        ["rm"],
        ["rm", "-f"],
        ["rm", "a", "--nope"],
    ],
    ids=" ".join,
)
def test_what_is_not_certain_is_left_to_typer(args):
    given_args = list(args)
    assert lean.read(args) is None
    assert args == given_args


# --- any command line

VALUES = st.sampled_from(
    [
        "",
        "x",
        "A=b",
        "=",
        "-",
        "--",
        "-it",
        "--rm",
        "--rm=false",
        "--env",
        "missing",
        "1",
        "true",
        "redis",
        "\udcff",
    ]
) | st.text(st.sampled_from("-=aeiv f\x00é"), max_size=4)


@st.composite
def options(draw, table):
    """Words that give options of a table, each valid by itself, in every spelling."""
    words = []
    for name in draw(st.lists(st.sampled_from(sorted(table["options"])), max_size=5)):
        _, kind, choices = table["options"][name]
        value = draw(st.sampled_from(choices) if choices else VALUES)
        if kind == "flag":
            worded = table["flag_values"] and name.startswith("--")
            words.append(
                name + draw(st.sampled_from(["", "=true", "=false", "=1", "=F"] if worded else [""]))
            )
        elif draw(st.booleans()):
            words += [name, value]
        elif name.startswith("--"):
            words.append(f"{name}={value}")
        else:
            flags = [n[1] for n, option in table["options"].items() if len(n) == 2 and option[1] == "flag"]
            cluster = draw(st.lists(st.sampled_from(flags), max_size=2)) if flags else []
            words.append("-" + "".join(cluster) + name[1] + value)
            # Without a value of its own it takes the next word.
            words += [] if value else ["next"]
    return words


@st.composite
def valid(draw):
    """A whole command line that says something: it must be understood."""
    name = draw(st.sampled_from(["run", "run", "run", *TABLES]))
    table = TABLES[name]
    words = [*draw(options(lean_table.ROOT)), name, *draw(options(table))]
    if table["arguments"]:
        dashes = draw(st.booleans())
        most = 3 if any(many for _, many, _ in table["arguments"]) else len(table["arguments"])
        word = VALUES if dashes else st.sampled_from(["redis", "-", "", "a=b"])
        names = draw(st.lists(word, min_size=1, max_size=most))
        words += ["--", *names] if dashes else names
        if not table["interspersed"]:
            words += draw(st.lists(VALUES, max_size=3))
        elif not dashes:
            ends = [[], ["--"], ["--", "-f", "--", "x"]] if most > 1 else [[], ["--"]]
            words += [*draw(options(table)), *draw(st.sampled_from(ends))]
    return words


@st.composite
def anything(draw):
    """A command line with a mistake or two: words that were dropped, doubled, cut short or made up."""
    words = draw(valid())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(words)))
        change = draw(st.sampled_from(["drop", "double", "cut", "insert"]))
        if change == "insert":
            words.insert(
                at, draw(VALUES | st.sampled_from(["--rm=maybe", "--help", "-Z", "--name", "-e", "-w=x"]))
            )
        elif at < len(words):
            changed = {"drop": [], "double": words[at : at + 1] * 2, "cut": [words[at][:-1]]}[change]
            words[at : at + 1] = changed
    return words


@settings(max_examples=300, deadline=None)
@given(valid())
def test_every_valid_command_line_is_understood_as_typer_does(args):
    assert by_lean(args) == by_typer(args) is not None


@settings(max_examples=600, deadline=None)
@given(anything())
def test_whatever_is_understood_is_understood_as_typer_does(args):
    if lean.read(args) is not None:
        assert by_lean(args) == by_typer(args) is not None
