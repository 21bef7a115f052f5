"""Questions on the terminal."""

from __future__ import annotations

import sys

from ..errors import PyrunError


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


def ask_password(prompt: str = "Password: ") -> str:
    """A line that the terminal doesn't show."""
    import getpass

    _need_terminal()
    try:
        return getpass.getpass(prompt, stream=sys.stderr)
    except EOFError:
        raise PyrunError("no password came") from None


def _need_terminal() -> None:
    if not is_terminal():
        raise PyrunError(
            "there is no terminal to ask for user name and password",
            hint="Give them with --username and --password-stdin.",
        )
