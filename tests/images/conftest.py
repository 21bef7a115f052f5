from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyrun.images.content import ContentStore
from pyrun.images.local import ImageStore
from pyrun.images.record import Progress, PullResult
from pyrun.images.registry.registries import Registries
from pyrun.images.transfer.pull import pull
from pyrun.storage.contract import Env
from pyrun.storage.layers import LayerStore
from pyrun.storage.store import open_store
from support.faultproxy import Fault, FaultProxy
from support.registry import Registry

Serve = Callable[..., FaultProxy]


class Engine:
    """The stores below one root, and a pull into them by way of a registries.conf."""

    def __init__(self, root: Path, conf: Path, layers: LayerStore | None = None) -> None:
        self.root = root
        self.conf = conf
        self.layers = layers or open_store(Env(str(root)), "", {}).layers
        self.content = ContentStore(str(root))
        self.images = ImageStore(str(root))
        self.steps: list[Progress] = []

    def pull(
        self, text: str, platform: str | None = None, progress: Callable[[Progress], None] | None = None
    ) -> PullResult:
        registries = Registries.from_file(str(self.conf))
        return pull(
            registries.reference(text),
            platform=platform,
            content=self.content,
            images=self.images,
            layers=self.layers,
            registries=registries,
            progress=progress or self.steps.append,
        )

    def states(self, id: str) -> list[str]:
        """The states a layer went through, each once."""
        return list(dict.fromkeys(step.status for step in self.steps if step.id == id))

    def partial(self) -> list[str]:
        """Whatever is neither finished nor gone: ingest files, staging directories, temporary files. A download
        that the next pull goes on with is not among them."""
        return [
            os.path.join(folder, name)
            for sub in ("ingest", "staging", "images", "content")
            for folder, _, names in os.walk(self.root / sub)
            for name in names
            if sub == "staging" or name.startswith(".tmp") or (sub == "ingest" and self.content.stale(name))
        ] + [str(path) for path in (self.root / "staging").glob("*")]


@pytest.fixture
def engine(tmp_path: Path, registry: Registry, opened: Path) -> Engine:
    shutil.copytree(opened, tmp_path / "store", symlinks=True)
    return Engine(tmp_path / "store", registry.registries_conf(tmp_path / "registries.conf"))


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A repository name that no other test uses."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
    while "--" in name:
        name = name.replace("--", "-")
    return f"test/{name[:100]}".rstrip("-")


@pytest.fixture
def serve(tmp_path: Path, registry: Registry) -> Iterator[Serve]:
    """Starts a proxy with faults in front of the registry."""
    with ExitStack() as running:
        count = 0

        def start(*faults: Fault, upstream: str = registry.host, **options: Any) -> FaultProxy:
            nonlocal count
            count += 1
            log = tmp_path / f"proxy-{count}"
            return running.enter_context(FaultProxy(upstream, log, faults, **options))

        yield start


def through(engine: Engine, *hosts: str) -> None:
    """docker.io is the last of ``hosts``, the others its mirrors."""
    mirrors = "".join(f'[[registry.mirror]]\nlocation = "{host}"\ninsecure = true\n' for host in hosts[:-1])
    engine.conf.write_text(f'[[registry]]\nprefix = "docker.io"\nlocation = "{hosts[-1]}"\n{mirrors}')
