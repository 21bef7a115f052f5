"""What must hold of a store whatever died in it, once what the dead left was cleared up; and an image that has
something of everything, with a container's life on it, for cases in which somebody dies."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..kernel.process import set_child_subreaper
from ..storage import records
from ..storage.listing import listing
from .fixtures import child_processes
from .rig import Rig
from .tars import Dir, Fifo, File, Link, Opaque, Symlink, Whiteout, tar
from .trees import Node, difference, snapshot

if TYPE_CHECKING:
    from ..storage.contract import Layer

# Bytes that no zeros, no shift and no other file can be taken for.
CONTENT = b"".join(b"%07d\n" % n for n in range(24 << 10))  # 192 KiB

LOWER = tar(
    Dir("etc"),
    File("etc/motd", b"hello\n"),
    File("etc/gone", b"gone\n"),
    File("etc/linked", b"two names\n"),
    Link("etc/other", "etc/linked"),
    Dir("tmp", 0o1777),
    Dir("usr"),
    Dir("usr/bin"),
    File("usr/bin/tool", CONTENT, 0o4755),
    Symlink("usr/sh", "bin/tool"),
    Dir("var"),
    File("var/old", b"hidden\n"),
)
UPPER = tar(
    Dir("etc"),
    Whiteout("etc/gone"),
    File("etc/noted", b"attributes\n", 0o640, uid=5, gid=6, xattrs={"user.note": b"kept"}),
    Fifo("etc/fifo"),
    Dir("var"),
    Opaque("var"),
    File("var/new", CONTENT[:5000]),
    File("tmp/implied", b"in a directory that is not listed\n"),
)


def image(rig: Rig) -> list[Layer]:
    """The layers of `LOWER` and `UPPER`, as they are mounted."""
    return rig.stack(LOWER, UPPER)


def life(rig: Rig, below: Layer) -> dict[str, Any]:
    """A layer and a container, from beginning to end: `UPPER` is ingested over ``below``, a container prepared,
    mounted, written to, committed and removed, and the layer removed."""
    layers = rig.layers.mended([below, rig.ingest(UPPER, below)])
    rw = rig.prepare(layers)
    write(rig, layers, rw)
    rig.discard(rw)
    for layer in reversed(layers[1:]):
        rig.layers.remove(layer.id)
    return {}


def write(rig: Rig, layers: Sequence[Layer], rw: str) -> bytes:
    """What the container of `life` does; the tar that committing it gives."""
    with rig.rootfs(layers, rw) as root:
        with open(f"{root.path}/etc/motd", "ab") as file:
            file.write(b"world\n")
        with open(f"{root.path}/made", "wb") as file:
            file.write(CONTENT)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{root.path}/usr/sh")
        return root.commit()


def shown(rig: Rig, layers: Sequence[Layer]) -> dict[bytes, Node]:
    """The tree that ``layers`` show."""
    with rig.view(layers) as view:
        return snapshot(view.path)


def assert_shown(rig: Rig, layers: Sequence[Layer], wanted: dict[bytes, Node]) -> None:
    found = difference(shown(rig, layers), wanted, ("now", "as it should be"))
    assert not found, found


def assert_sound(rig: Rig, *, power_cut: bool = False) -> None:
    """No half-made thing is left, and every layer is what was recorded when it was made.

    To be asked when nobody works in the store, after `Rig.sweep`. After a ``power_cut`` there may be layers that
    `LayerStore.find` passes over, and containers that lost what they were.
    """
    staged = os.listdir(f"{rig.root}/staging")
    assert staged == [], f"left in the staging directory: {staged}"
    for key in list(rig.layers.keys()):
        path = rig.layers.path(key)
        if power_cut and rig.layers.find(key) is None:
            continue
        assert os.path.exists(f"{path}/meta.json"), f"layer {key} has no record"
        meta = records.read(f"{path}/meta.json")
        assert meta["listing"] in ("", listing(path)), f"layer {key} differs from what was recorded of it"
    for name in os.listdir(f"{rig.root}/containers") if not power_cut else ():
        assert os.path.isdir(f"{rig.root}/containers/{name}/rw"), f"container {name} is half-made"


def mounts(root: str) -> list[str]:
    """The mounts of this mount namespace that have to do with the directory ``root``: mounted below it, or over
    layers in it."""
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if root in line]


@contextlib.contextmanager
def nothing_left(root: str, patience: float = 10) -> Iterator[None]:
    """Whatever dies in this block, afterwards no process of it may run, and no mount of the store ``root`` be
    there.

    Orphans become this process's children meanwhile, so the servers of dead containers are found.
    """
    before, mounted = child_processes(), mounts(root)
    set_child_subreaper(True)
    try:
        try:
            yield
        finally:
            left = _outlived(before, patience)
    finally:
        set_child_subreaper(False)
    assert not left, f"processes were left: {left}"
    assert mounts(root) == mounted


def _outlived(before: set[int], patience: float) -> dict[int, str]:
    """Children that are not among ``before`` and don't end in ``patience`` seconds, which are killed: pid and
    command."""
    deadline = time.monotonic() + patience
    while True:
        left = {pid: _command(pid) for pid in child_processes() - before if not _reaped(pid)}
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    for pid in left:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return left


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return ""
