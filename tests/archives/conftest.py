from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.pyrun import Pyrun, copy_store


class Store:
    """A store that starts empty, and what a failed command may leave in it: nothing half made."""

    def __init__(self, directory: Path, opened: Path | None = None) -> None:
        if opened is not None:
            copy_store(opened, directory / "store")
        self.directory = directory
        self.pyrun = Pyrun(directory / "store", directory / "state")

    def unfinished(self, *, parts: bool = True) -> list[str]:
        """Whatever is neither whole nor gone; without ``parts`` no blobs that the next load goes on with."""
        root = self.pyrun.root
        found = [str(path) for sub in ("ingest", "staging") for path in (root / sub).glob("*")]
        found = [path for path in found if parts or not path.endswith(".part")]
        found += [str(path) for sub in ("images", "content") for path in (root / sub).glob(".*")]
        # Of a writer that was killed: the next one looks at all records then.
        return [path for path in found if not path.endswith("/.unpublished")]

    def images(self) -> list[str]:
        return sorted(
            self.pyrun.ok("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines()
        )


def _opened(request: pytest.FixtureRequest) -> Path | None:
    """An ordinary user's store is opened anew each time."""
    return None if os.geteuid() else request.getfixturevalue("opened")


@pytest.fixture
def store(base: Path, request: pytest.FixtureRequest) -> Store:
    directory = base / f"archives-{abs(hash(request.node.nodeid)):x}-{os.getpid()}"
    directory.mkdir()
    return Store(directory, _opened(request))


@pytest.fixture(scope="module")
def shared(base: Path, request: pytest.FixtureRequest) -> Store:
    """One for tests of what changes nothing."""
    directory = base / f"archives-{request.module.__name__}"
    directory.mkdir()
    return Store(directory, _opened(request))
