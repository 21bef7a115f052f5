"""What the words before the command said: where the store is, and how to fail."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    import click

    from ..engine import Engine


class Session:
    """One invocation of the program: its global options, and what `main` needs once it failed.

    command       as typed, for "Run 'pyrun run --help'"
    failure       the exit code for an engine error: 125 for commands whose own code is the container's
    shows_usage   whether such an error ends with that line, too
    """

    __slots__ = ("command", "config", "debug", "failure", "root", "shows_usage", "state")

    def __init__(self) -> None:
        self.root: str | None = None
        self.state: str | None = None
        self.config: str | None = None
        self.debug = False
        self.command = "pyrun"
        self.failure = 1
        self.shows_usage = False

    def set(self, *, root: str | None, state: str | None, config: str | None, debug: bool) -> None:
        """What the program's own options say."""
        self.root, self.state, self.config, self.debug = root, state, config, debug

    def engine(self, storage: str | None = None, storage_opts: Sequence[str] = ()) -> Engine:
        from ..engine import Engine

        return Engine(self.root, self.state, self.config, storage=storage, storage_opts=storage_opts)


def session(context: click.Context) -> Session:
    """The session of a command's context."""
    found = context.find_object(Session)
    assert found is not None  # `main` puts it there
    return found
