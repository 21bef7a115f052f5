"""What a driver's probe stands on: a place to try things in, and a namespace to try idmapped mounts with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..kernel import userns
from ..layers.remove import remove_tree
from .locks import Staging

if TYPE_CHECKING:
    from .contract import Env

# Ids no host uses; the trial only asks whether the kernel maps at all.
_MAP = [userns.IdMap(0, 0x7FFD0000, 65536)]


@contextmanager
def directory(env: Env, driver: str) -> Iterator[str]:
    """The path of an empty directory of the store, removed afterwards. It is a staging entry: should the process
    be killed, the next command clears it up, by the ``remove`` of ``driver``. Raises OSError, as on a full or
    read-only file system."""
    stage = Staging(f"{env.root}/staging").new(driver)
    try:
        yield stage.path
    finally:
        try:
            remove_tree(stage.path)
        finally:
            stage.close()


@contextmanager
def namespace(env: Env) -> Iterator[int | None]:
    """An ``idmap`` for a trial of `Driver.mount`; None in a user namespace, where the engine never gives one:
    containers share that namespace. Raises OSError where the kernel refuses user namespaces."""
    if env.userns:
        yield None
        return
    fd = userns.hold(_MAP, _MAP)
    try:
        yield fd
    finally:
        os.close(fd)
