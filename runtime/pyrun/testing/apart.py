"""Parts of a case that mount or change the process's ids: they run in a forked child."""

from __future__ import annotations

import os
from collections.abc import Callable

from ..kernel import mount as m
from .children import run


def apart(work: Callable[[], object], *, mounts: bool = True, seconds: float = 60) -> None:
    """Run ``work`` in a child process, with a mount namespace of its own where ``mounts``. Raises AssertionError,
    with the child's traceback, for whatever it raises, and when it takes longer than ``seconds``."""

    def quietly() -> None:
        work()

    run(quietly, mounts=mounts, seconds=seconds).result()


def tmpfs(path: str, options: str) -> None:
    """Mount a tmpfs on ``path``, e.g. with "size=1m". In the child of `apart`."""
    m.mount(b"tmpfs", os.fsencode(path), b"tmpfs", 0, options.encode())
