"""Mending a stack of layers that were unpacked independently of each other.

Two things a layer means only together with those below it:

* A directory that a layer goes through and does not list keeps the attributes that lower layers gave it. Alone,
  the layer had to invent some (0755, 0:0), and in a union the topmost directory's show: /tmp would lose 1777. One
  further layer on top, made here, lists such directories with the attributes they should have.
* An opaque mark on a layer's root hides everything below, and union file systems ignore it there: the lower
  layers are left out of the stack.

What was found is kept per stack in ``layers/<driver>/.mended/<top layer>.json``, so it is found out once.
"""

from __future__ import annotations

import io
import os
import stat

from ..errors import PyrunError
from ..layers.names import PRIVATE_XATTRS
from ..layers.pack import pack
from . import records
from .changes import added
from .contract import Change, Layer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from .layers import LayerStore

    # mode, uid, gid, mtime in ns, xattrs
    Attributes = tuple[int, int, int, int, tuple[tuple[str, bytes], ...]]

_O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def mended(store: LayerStore, layers: Sequence[Layer], record: str, key: str) -> list[Layer]:
    """The stack to mount in place of ``layers`` (bottom to top, all committed). What is found is kept under
    ``key`` in the file ``record``: how many layers are left out, and the id of the one on top, "" for none."""
    implied = [_notes(layer) for layer in layers]
    bottom = max((at for at, (_, opaque) in enumerate(implied) if opaque), default=0)
    stack = list(layers[bottom:])
    tar = b""
    if any(names for names, _ in implied[bottom + 1 :]):
        tar = _patch(store, stack, [names for names, _ in implied[bottom:]])
    patch = None
    if tar:
        from .tarblob import TarBlob

        patch = store.ingest(TarBlob(tar))
    known = _known(record)
    known[key] = [bottom, patch.id if patch else ""]
    os.makedirs(os.path.dirname(record), mode=0o700, exist_ok=True)
    records.write(record, known, durable=False)
    return [*stack, patch] if patch else stack


def patches(store: LayerStore, live: Iterable[str]) -> set[str]:
    """Ids of the layers made here for stacks whose layers are all in ``live``: those are live, too."""
    known = {os.path.basename(store.path(id)) for id in live}
    found = set()
    for path in _records(store):
        for key, (_, patch) in _known(path).items():
            if patch and known.issuperset(key.split(",")):
                found.add(patch)
    return found


def mended_by(store: LayerStore, id: str) -> list[str]:
    """The ids, bottom to top, of a stack that the layer ``id`` mends; empty where it mends none."""
    for path in _records(store):
        for key, (_, patch) in _known(path).items():
            if patch == id:
                names = key.split(",")
                return [name.replace("-", ":") if "-" in name else f"sha256:{name}" for name in names]
    return []


def forget(store: LayerStore, id: str) -> None:
    """Drop what is known of stacks with the layer ``id``, which was removed."""
    name = os.path.basename(store.path(id))
    for path in _records(store):
        known = _known(path)
        left = {key: stack for key, stack in known.items() if name not in key.split(",")}
        if not left:
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
        elif left != known:
            records.write(path, left, durable=False)


def _records(store: LayerStore) -> list[str]:
    try:
        return [f"{store.directory}/.mended/{name}" for name in os.listdir(f"{store.directory}/.mended")]
    except FileNotFoundError:
        return []


def _known(path: str) -> dict[str, list[Any]]:
    """What a record holds, as far as it is sound; the rest is found out again."""
    try:
        found = records.read(path)
    except (FileNotFoundError, PyrunError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: stack for key, stack in found.items() if isinstance(stack, list) and len(stack) == 2}


def _notes(layer: Layer) -> tuple[list[bytes], bool]:
    try:
        notes = records.read(f"{layer.path}/notes.json")
    except FileNotFoundError:
        return [], False
    return [os.fsencode(name) for name in notes["implied"]], bool(notes["opaque_root"])


def _patch(store: LayerStore, stack: Sequence[Layer], implied: Sequence[list[bytes]]) -> bytes:
    """The tar of a layer that mends ``stack``; empty where nothing is wrong with it."""
    wanted: dict[bytes, Attributes] = {}
    for at in range(1, len(stack)):
        if wanted:
            # What the layer lists, or has in place of the directory, is its own affair again.
            own = _look(store, stack[at : at + 1], wanted)
            for name in [n for n, found in own.items() if found and n not in implied[at]]:
                del wanted[name]
        if implied[at]:
            for name, found in _look(store, stack[:at], implied[at]).items():
                if found is None:
                    wanted.pop(name, None)
                else:
                    wanted.setdefault(name, found)
    shown = _look(store, stack, wanted)
    wrong = {
        n: want for n, want in wanted.items() if (have := shown[n]) and _but_time(have) != _but_time(want)
    }
    if not wrong:
        return b""
    parents = {name[:i] for name in wrong for i, byte in enumerate(name) if byte == 0x2F} | {b""}
    listed = {**_look(store, stack, parents - wrong.keys()), **wrong}
    return _tar(store, {name: found for name, found in listed.items() if found})


def _but_time(found: Attributes) -> tuple[object, ...]:
    return (*found[:3], found[4])


def _look(
    store: LayerStore, layers: Sequence[Layer], names: Iterable[bytes]
) -> dict[bytes, Attributes | None]:
    """The attributes that the directories ``names`` have in a view of ``layers``; None for what is none."""
    result: dict[bytes, Attributes | None] = {}
    mount = store.driver.mount(layers, None)
    try:
        for name in names:
            fd = os.open(".", _O_DIRECTORY, dir_fd=mount)
            try:
                for part in filter(None, name.split(b"/")):
                    inner = os.open(part, _O_DIRECTORY, dir_fd=fd)
                    os.close(fd)
                    fd = inner
                st = os.fstat(fd)
                xattrs = tuple(
                    (key, os.getxattr(fd, key))
                    for key in sorted(os.listxattr(fd))
                    if not key.startswith(PRIVATE_XATTRS)
                )
                result[name] = (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns, xattrs)
            except (FileNotFoundError, NotADirectoryError):
                result[name] = None
            except OSError as error:
                if error.errno != 40:  # ELOOP: a symbolic link
                    raise
                result[name] = None
            finally:
                os.close(fd)
    finally:
        os.close(mount)
    return result


def _tar(store: LayerStore, listed: dict[bytes, Attributes]) -> bytes:
    """A tar of these directories and nothing else."""
    from ..layers.remove import remove_tree

    stage = store.staging.new(store.driver.name)
    try:
        top = os.open(stage.path, _O_DIRECTORY)
        try:
            for name in sorted(listed):
                if name:
                    os.mkdir(name, 0o700, dir_fd=top)
            for name in sorted(listed, reverse=True):
                mode, uid, gid, mtime_ns, xattrs = listed[name]
                fd = os.open(name or b".", _O_DIRECTORY, dir_fd=top)
                try:
                    os.fchown(fd, uid, gid)
                    os.fchmod(fd, mode)
                    for key, value in xattrs:
                        os.setxattr(fd, key, value)
                    os.utime(fd, ns=(mtime_ns, mtime_ns))
                finally:
                    os.close(fd)
            out = io.BytesIO()
            pack([Change(b"", "modify"), *added(top, b"")], top, out)
            return out.getvalue()
        finally:
            os.close(top)
    finally:
        remove_tree(stage.path)
        stage.close()
