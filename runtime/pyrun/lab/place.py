"""Where the lab's tools work: a directory on the file system in question, as root over its files."""

from __future__ import annotations

import os
import signal
import sys

from ..errors import StorageError
from ..sandbox import rootless
from ..storage.contract import Env
from ..testing.rig import environment


def clear_up_on_sigterm() -> None:
    """Let SIGTERM end this process as an exception does, so that what was made is removed; its exit code is what a
    shell would say of the signal."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


class Place:
    """A context manager that gives an `Env` for ``root``. As an ordinary user this process enters a user namespace
    of its own, for good, as the engine does. What of ``root`` had to be made and is empty afterwards goes again.

    Raises `StorageError` where the directory can't be made, `Unsupported` where the namespace can't.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self._made: list[str] = []

    def __enter__(self) -> Env:
        clear_up_on_sigterm()
        try:
            missing = []
            path = self.root
            while not os.path.lexists(path):
                missing.append(path)
                path = os.path.dirname(path)
            for path in reversed(missing):
                os.mkdir(path, 0o700)
                self._made.append(path)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(13, "it is not yours to write in")
            os.scandir(self.root).close()
        except OSError as error:
            self._remove()
            raise StorageError(
                f"can't work in {self.root}: {error.strerror}", hint="Choose another with --root DIR."
            ) from error
        if rootless.needed():
            rootless.enter()
        return environment(self.root)

    def __exit__(self, *exc: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for path in reversed(self._made):
            try:
                os.rmdir(path)
            except OSError:
                return
