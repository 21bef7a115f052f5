"""A driver's rootfs and a plain directory on the same file system, to which the same is done: they must stay alike."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from errno import errorcode
from typing import Any

from ..storage.contract import Layer
from .oracle import apply
from .rig import Rig, Rootfs
from .trees import Tree, difference, snapshot

_SINCE_THE_START = -(1 << 63)


class Twins:
    """A mounted rootfs over some layers, and the oracle.

    path   the rootfs of the driver under test; it changes with `remount`
    plain  the oracle: a plain directory into which the same layers were unpacked
    made   the image's layers; ``layers`` are those that are mounted, mended
    """

    def __init__(self, rig: Rig, *tars: bytes) -> None:
        self.rig = rig
        self.plain = f"{rig.root}/plain-{os.urandom(6).hex()}"
        os.mkdir(self.plain, 0o755)
        self.made: list[Layer] = []
        for tar in tars:
            self.made.append(rig.ingest(tar, self.made[-1] if self.made else None))
            apply(tar, self.plain)
        self.layers = rig.layers.mended(self.made)
        self.rw = rig.prepare(self.layers)
        self.began = time.time_ns() - 100_000_000  # the kernel's clock for files is a little behind
        self._mounted: contextlib.AbstractContextManager[Rootfs] | None = None
        self.remount()

    def remount(self) -> None:
        """Let go of the mount and make it anew."""
        self.unmount()
        mounted = self.rig.rootfs(self.layers, self.rw)
        self.root = mounted.__enter__()
        self._mounted = mounted
        self.path = self.root.path

    def unmount(self) -> None:
        if self._mounted is not None:
            mounted, self._mounted = self._mounted, None
            mounted.__exit__(None, None, None)

    def both(self, operation: Callable[..., Any], *args: Any) -> Any:
        """Call ``operation(path, *args)`` on the plain directory and on the rootfs; what it returns must be the
        same. Returns that. Where it should fail, it is a matter for `outcome`."""
        expected = operation(self.plain, *args)
        got = outcome(operation, self.path, *args)
        if isinstance(expected, dict) and isinstance(got, dict):
            wrong = {
                key: (expected.get(key), got.get(key))
                for key in expected.keys() | got.keys()
                if expected.get(key) != got.get(key)
            }
            assert not wrong, f"(expected, got) differ: {wrong}"
        assert got == expected
        return got

    def same(self, path: str = "", *, when: str = "") -> None:
        """The trees are alike: the rootfs's, or that of ``path``, and the plain directory's.

        Files written since the start have any time since then.
        """
        found = difference(
            self._snapshot(path or self.path), self._snapshot(self.plain), ("the driver", "the oracle")
        )
        assert not found, f"{when}: {found}" if when else found

    def _snapshot(self, path: str) -> Tree:
        return {
            name: node._replace(mtime=_SINCE_THE_START) if node.mtime > self.began else node
            for name, node in snapshot(path, links=self.rig.caps.hardlinks).items()
        }

    def committed(self) -> list[Layer]:
        """Commit the rootfs and ingest the layer: the stack that shows it all."""
        above = self.rig.ingest(self.root.commit(), self.made[-1] if self.made else None)
        return self.rig.layers.mended([*self.made, above])

    def settle(self) -> None:
        """The trees are alike now, after a remount, and as an image with one more layer."""
        self.same(when="live")
        self.remount()
        self.same(when="after a remount")
        stack = self.committed()
        with self.rig.view(stack) as view:
            self.same(view.path, when="committed and ingested")


@contextlib.contextmanager
def twins(rig: Rig, *tars: bytes, settle: bool = True) -> Iterator[Twins]:
    """`Twins` over the layers ``tars``; at the end they are compared (see `Twins.settle`) and removed."""
    pair = Twins(rig, *tars)
    try:
        yield pair
        if settle:
            pair.settle()
    finally:
        pair.unmount()
        rig.discard(pair.rw)


def outcome(operation: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """What ``operation`` returns, or the name of the errno that it fails with."""
    try:
        return operation(*args, **more)
    except OSError as error:
        return errorcode.get(error.errno or 0, str(error))
