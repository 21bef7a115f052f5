"""Layers shown in every manner a driver has, and beside it applied to a plain directory: the two must be equal."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..layers.remove import remove_tree
from ..storage.tarblob import TarBlob
from .trees import Tree, difference, snapshot

if TYPE_CHECKING:
    from .rig import Rig


@contextlib.contextmanager
def plain(rig: Rig, tars: Sequence[bytes | str]) -> Iterator[str]:
    """A directory beside the rig's layers to which ``tars`` were applied one after the other."""
    path = f"{rig.root}/oracle-{os.urandom(6).hex()}"
    os.mkdir(path)
    os.chmod(path, 0o755)
    try:
        for tar in tars:
            apply(tar, path)
        yield path
    finally:
        remove_tree(path)


def apply(tar: bytes | str, path: str) -> None:
    """Apply one layer to the directory ``path``."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        TarBlob(tar).unpack(fd, "apply")
    finally:
        os.close(fd)


def merged(rig: Rig, *tars: bytes) -> Tree:
    """What the layers of ``tars`` show, bottom to top: the same in a read-only view, through a writable rootfs,
    in that again after a remount, and on the oracle. Names that a lower layer has and the stack hides must not
    be found either. Directories' times count in the read-only view."""
    with plain(rig, tars) as oracle:
        expected = snapshot(oracle)
    hidden = _names(tars) - expected.keys()
    layers = rig.stack(*tars)
    with rig.view(layers) as root:
        expect(root.path, expected, "a read-only view", hidden)
    rw = rig.prepare(layers)
    try:
        with rig.rootfs(layers, rw) as root:
            expect(root.path, expected, "a writable rootfs", hidden)
            os.mkdir(f"{root.path}/made-and-removed")
            os.rmdir(f"{root.path}/made-and-removed")
        with rig.rootfs(layers, rw) as root:
            expect(root.path, expected, "a rootfs mounted again", hidden)
    finally:
        rig.discard(rw)
    return expected


def changed(
    rig: Rig, do: Callable[[str], object], *tars: bytes, times: bool = False, links: bool = True
) -> Tree:
    """What is there after ``do(path of the root)`` over the layers of ``tars``: the same at once, after a
    remount, with the change committed and ingested as a further layer, and on the oracle.

    ``times`` of files count only where asked for: ``do`` runs twice, at different times. ``links`` False: which
    names are one file does not count.
    """
    more = {"times": times, "links": links}
    layers = rig.stack(*tars)
    rw = rig.prepare(layers)
    try:
        with plain(rig, tars) as oracle:
            before = snapshot(oracle, **more).keys()
            do(oracle)
            expected = snapshot(oracle, **more)
        hidden = before - expected.keys()
        with rig.rootfs(layers, rw) as root:
            do(root.path)
            expect(root.path, expected, "a rootfs just changed", hidden, **more)
        with rig.rootfs(layers, rw) as root:
            expect(root.path, expected, "a changed rootfs mounted again", hidden, **more)
            tar = root.commit()
    finally:
        rig.discard(rw)
    top = rig.ingest(tar, layers[-1] if layers else None)
    with rig.view([*layers, top]) as root:
        expect(root.path, expected, "a view of the committed layer", hidden, **more)
    return expected


def expect(path: str, expected: Tree, where: str, hidden: set[bytes] = frozenset(), **more: bool) -> None:  # type: ignore[assignment]
    """The tree at ``path`` is ``expected``, and none of the names ``hidden`` is found."""
    found = difference(snapshot(path, **more), expected, ("the driver", "the oracle"))
    assert not found, f"{where} differs from the oracle:\n{found}"
    for name in sorted(hidden):
        if any(name.startswith(link + b"/") for link, node in expected.items() if node.kind == "symlink"):
            continue  # it would be looked up elsewhere
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(os.fsencode(path) + b"/" + name)
            raise AssertionError(f"{where} does not list {name!r}, yet it can be looked up")


def _names(tars: Sequence[bytes]) -> set[bytes]:
    """Names that the layers have or delete."""
    found = set()
    for tar in tars:
        with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8") as archive:
            for member in archive:
                name = member.name.strip("/").encode("utf-8", "surrogateescape")
                directory, slash, base = name.rpartition(b"/")
                found.add(directory + slash + base.removeprefix(b".wh."))
    return {name for name in found if name not in (b".", b"") and not name.endswith(b".wh..opq")}
