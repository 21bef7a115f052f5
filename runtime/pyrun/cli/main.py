"""The ``pyrun`` command: runs the command line, and puts every failure into words and an exit code.

Exit codes: 125 for a command line that can't be acted on and for what fails in ``run`` itself, 126 and 127
where the container's command can't be executed or found, 1 for what fails elsewhere, 130 after Ctrl-C,
141 where the reader of the output went away; else the container's own.
"""

from __future__ import annotations

import os
import sys

from ..errors import PyrunError, UsageError
from .output import flush, warn
from .session import Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    import click

USAGE = 125
INTERRUPTED = 130  # 128 + SIGINT
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a program that doesn't catch it would end


def main() -> None:
    """The console script. Never returns: what Python would take down object by object goes with the process."""
    os._exit(program())


def program() -> int:
    """One run of the program, on this process's arguments; its exit code. All output is written."""
    session = Session()
    try:
        _open_standard_fds()
    except OSError as error:
        return report(PyrunError(f"can't open {os.devnull}: {error.strerror}"), session)
    code = invoke(sys.argv[1:], session)
    try:
        flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
        _drop_output()
    except PyrunError as error:
        _drop_output()
        code = report(error, session)
    return code


def invoke(args: list[str], session: Session) -> int:
    """Run one command line; the exit code. Whatever went wrong was said on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # A file name that is not UTF-8, or a locale without "…", is no reason to fail.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return _run(args, session)
    except PyrunError as error:
        _debug(session)
        return report(error, session)
    except KeyboardInterrupt:
        _debug(session)
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except Exception as error:
        _debug(session)
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        hint = "This is a mistake in pyrun. Please report it with what `pyrun --debug ...` shows."
        return report(PyrunError(f"internal error: {what}", hint=hint), session)


def _open_standard_fds() -> None:
    """Put /dev/null where the caller closed fd 0, 1 or 2: the next file opened would get that number, and
    what is meant for a terminal would be written into it. open(2) gives the lowest number that is free."""
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            return
        os.set_inheritable(fd, True)


def _run(args: list[str], session: Session) -> int:
    """Call the body of the command: by the lean parser where that is certain of every word, else by typer."""
    from .lean import read

    line = read(args)
    if line is None:
        return _run_typer(args, session)
    session.set(**line.globals)
    session.command = f"pyrun {line.command}"
    return line.body()(session, **line.parameters)


def _run_typer(args: list[str], session: Session) -> int:
    import click

    from .app import root

    command = root()
    try:
        with command.make_context("pyrun", args, obj=session) as context:
            result = command.invoke(context)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        _debug(session)
        return _report_usage(error, session)


def report(error: PyrunError, session: Session) -> int:
    """Say what failed and what to do; the exit code for it."""
    usage = isinstance(error, UsageError)
    warn(f"pyrun: {error}")
    if usage or session.shows_usage:
        warn(f"\nRun '{session.command} --help' for more information")
    if usage:
        return USAGE
    # What `run` exits with tells the container's own codes from the engine's: 125, 126, 127.
    return max(error.exit_code, session.failure) if session.failure == USAGE else session.failure


def _report_usage(error: click.ClickException, session: Session) -> int:
    import click

    from .command import usage

    message, hint = error.format_message(), ""
    if isinstance(error, click.NoSuchOption):
        message = f"unknown flag: {error.option_name}"
        if error.possibilities:
            hint = f"Did you mean {' or '.join(sorted(error.possibilities))}?\n"
    context = getattr(error, "ctx", None)
    lines = f"pyrun: {message[:1].lower()}{message[1:]}\n{hint}"
    if context is not None:
        lines += f"\n{usage(context)}\n"
    warn(f"{lines}\nRun '{session.command} --help' for more information")
    return USAGE


def _debug(session: Session) -> None:
    if session.debug:
        import traceback

        warn(traceback.format_exc().rstrip())


def _drop_output() -> None:
    """What is still buffered for standard output goes nowhere, so the interpreter's own flush can't fail."""
    try:
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, 1)
        os.close(null)
    except OSError:
        return


if __name__ == "__main__":
    main()
