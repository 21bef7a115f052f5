"""How `main` turns what went wrong into words and exit codes."""

import pytest

from pyrun import errors
from pyrun.cli import main
from pyrun.cli.session import Session


def session(command="pyrun rm"):
    found = Session()
    found.command = command
    return found


def running():
    found = session("pyrun run")
    found.failure, found.shows_usage = 125, True
    return found


@pytest.mark.parametrize(
    ("error", "in_run", "elsewhere"),
    [
        (errors.RegistryError("no route"), 125, 1),
        (errors.NotFound("no such image"), 125, 1),
        (errors.KernelError("mount: EPERM"), 125, 1),
        (errors.ContainerError("no"), 125, 1),
        (errors.UsageError("bad"), 125, 125),
        (errors.CommandNotExecutable("no"), 126, 1),
        (errors.CommandNotFound("no"), 127, 1),
    ],
)
def test_an_error_has_the_exit_code_docker_gives_it(error, in_run, elsewhere, capsys):
    assert main.report(error, running()) == in_run
    assert main.report(error, session()) == elsewhere
    assert capsys.readouterr().out == ""


def test_an_error_of_run_ends_with_where_to_look(capsys):
    main.report(errors.RegistryError("can't reach docker.io", hint="Check the network."), running())
    assert capsys.readouterr().err == (
        "pyrun: can't reach docker.io\nCheck the network.\n\nRun 'pyrun run --help' for more information\n"
    )


def test_an_error_of_another_command_is_its_words_and_its_hint(capsys):
    main.report(errors.NotFound("no such container: x", hint="See pyrun ps -a."), session())
    assert capsys.readouterr().err == "pyrun: no such container: x\nSee pyrun ps -a.\n"


def test_control_bytes_in_an_error_are_escaped(capsys):
    main.report(errors.RegistryError("the registry says \x1b[2J"), session())
    assert capsys.readouterr().err == "pyrun: the registry says \\x1b[2J\n"


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ""),
        (errors.Conflict("the name is taken"), 1, "pyrun: the name is taken\n"),
        (ZeroDivisionError("one by none"), 1, "pyrun: internal error: ZeroDivisionError: one by none\n"),
        (
            OSError(5, "Input/output error"),
            1,
            "pyrun: internal error: OSError: [Errno 5] Input/output error\n",
        ),
    ],
)
def test_no_traceback_reaches_the_user(raised, code, words, capsys, monkeypatch):
    def fail(*_):
        raise raised

    monkeypatch.setattr(main, "_run", fail)
    assert main.invoke([], session()) == code
    shown = capsys.readouterr().err
    assert shown.startswith(words)
    assert "Traceback" not in shown
    debugging = session()
    debugging.debug = True
    assert main.invoke([], debugging) == code
    assert "Traceback (most recent call last)" in capsys.readouterr().err
