"""Questions on the terminal."""

from __future__ import annotations

import sys

from ..errors import PyrunError

LOGIN = "Give them with --username and --password-stdin."


def is_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin is not None and sys.stdin.isatty()


def ask(prompt: str) -> str:
    """A line, without its end. The prompt goes to standard error: standard output is for results."""
    _need_terminal()
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise PyrunError("no answer came")
    return line.rstrip("\r\n")


def ask_password(prompt: str = "Password: ", instead: str = LOGIN) -> str:
    """A line that the terminal doesn't show. ``instead``: how to give it where there is none."""
    import getpass

    _need_terminal(instead)
    try:
        return getpass.getpass(prompt, stream=sys.stderr)
    except EOFError:
        raise PyrunError("no password came") from None


def _need_terminal(instead: str = LOGIN) -> None:
    if not is_terminal():
        raise PyrunError("there is no terminal to ask for user name and password", hint=instead)
