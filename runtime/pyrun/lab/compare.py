"""The same command on two storage drivers, side by side: ``pyrun storage compare``.

Each driver gets a store of its own in a directory that is removed afterwards, with the caller's images behind it:
nothing of the caller's store is changed. The command runs by ``pyrun run`` in a container that is kept, whose root
is then mounted and read whole.

Times of files that the command wrote differ between any two runs, so they count only where asked for.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..containers.store import Containers
from ..engine import Engine
from ..errors import NotFound, StorageError
from ..layers.names import shown
from ..layers.remove import remove_tree
from ..storage.contract import Layer
from ..testing.trees import Node, Tree, snapshot
from .place import clear_up_on_sigterm

_ENGINE_FAILED = 125
_SHOWN = 1 << 20  # bytes of output that are compared line by line
_NAME = "compare"  # of the container, and of its host: a program may print it


class Side:
    """What one driver made of it.

    code, stdout, stderr  how the container ended, and what it said
    seconds               from the start of `pyrun run` to its end, unpacking not counted
    changes               (name, "add", "modify" or "delete"), as the driver tells them
    tree                  the whole root afterwards
    """

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.code = 0
        self.stdout = b""
        self.stderr = b""
        self.seconds = 0.0
        self.changes: dict[bytes, str] = {}
        self.tree: Tree = {}


class Difference:
    """Something that is not the same.

    what    "exit code", "stdout", "stderr", "tree" (a name is there on one side only), "type", "mode", "owner",
            "content", "target", "device", "links", "xattrs", "mtime" or "change"
    path    root-relative, for those that are about a file
    values  as text, one a side; "" for one that has none
    lines   a unified diff, for stdout and stderr where they are text
    """

    def __init__(
        self, what: str, path: bytes | None, values: tuple[str, str], lines: Sequence[str] = ()
    ) -> None:
        self.what = what
        self.path = path
        self.values = values
        self.lines = lines


class Comparison:
    def __init__(self, sides: tuple[Side, Side], differences: Sequence[Difference]) -> None:
        self.sides = sides
        self.differences = differences

    def as_dict(self) -> dict[str, Any]:
        return {
            "Same": not self.differences,
            "Sides": [
                {
                    "Driver": side.driver,
                    "ExitCode": side.code,
                    "Seconds": round(side.seconds, 6),
                    "Names": len(side.tree),
                    "Changes": [
                        {"Path": "/" + os.fsdecode(path), "Kind": kind} for path, kind in side.changes.items()
                    ],
                }
                for side in self.sides
            ],
            "Differences": [
                {
                    "What": found.what,
                    "Path": None if found.path is None else "/" + os.fsdecode(found.path),
                    "Values": list(found.values),
                }
                for found in self.differences
            ],
        }


def compare(
    engine: Engine,
    drivers: tuple[str, str],
    words: Sequence[str],
    *,
    storage_opts: Sequence[str] = (),
    times: bool = False,
    ignore: Sequence[str] = (),
) -> Comparison:
    """Run ``words`` (of `pyrun run`: options, image, command) with each of ``drivers``; how they differ.

    engine        whose local images are used
    storage_opts  for either driver
    times         compare the times of files that the command wrote, too
    ignore        patterns of root-relative names (fnmatch, "*" crosses "/") that don't count

    Raises `StorageError` where a driver can't be used, or the container can't be made.
    """
    clear_up_on_sigterm()
    env = engine._enter()
    engine._make_root()
    place = tempfile.mkdtemp(prefix=".compare-", dir=env.root)
    try:
        sides = []
        for number, driver in enumerate(drivers):
            one = _One(engine, f"{place}/{number}", driver, storage_opts)
            try:
                sides.append(one.run(words))
            finally:
                one.remove()
        first, second = sides
        return Comparison((first, second), list(_differences(first, second, times, ignore)))
    finally:
        remove_tree(place)


class _One:
    """One driver in a store of its own."""

    def __init__(self, engine: Engine, place: str, driver: str, storage_opts: Sequence[str]) -> None:
        os.mkdir(place, 0o700)
        root = f"{place}/store"
        os.mkdir(root, 0o700)
        for name in ("images", "content"):
            os.symlink(f"{engine.root}/{name}", f"{root}/{name}")
        self.options = [option for option in storage_opts if option.partition(".")[0] == driver]
        self.config = engine.config.path
        self.driver = driver
        self.root = root
        self.state = f"{place}/state"
        self.engine = Engine(
            root, self.state, self.config or os.devnull, storage=driver, storage_opts=self.options
        )

    def run(self, words: Sequence[str]) -> Side:
        side = Side(self.driver)
        self.engine._open()  # a driver that can't be used says so in its own words
        argv = [sys.executable, "-P", "-m", "pyrun.cli.main", "--root", self.root, "--state", self.state]
        argv += ["--config", self.config or os.devnull, "run", "--storage", self.driver]
        argv += [word for option in self.options for word in ("--storage-opt", option)]
        argv += ["--name", _NAME, "--hostname", _NAME, "--pull", "never", *words]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            began = time.monotonic()
            side.code = subprocess.call(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            side.seconds = time.monotonic() - began
            side.stdout, side.stderr = _content(out), _content(err)
        containers = Containers(self.root, self.state)
        try:
            id = containers.find(_NAME)
            began_at_all = side.code != _ENGINE_FAILED or containers.load(id).started > 0
        except NotFound:
            began_at_all = False
        if not began_at_all:
            said = side.stderr.decode(errors="replace").strip().removeprefix("pyrun: ")
            raise StorageError(f"with {self.driver} there was no container: {said}")
        self._look(containers, id, side)
        return side

    def _look(self, containers: Containers, id: str, side: Side) -> None:
        store = self.engine._open()
        layers = [Layer(key, store.layers.path(key)) for key in containers.load(id).layers]
        rw = f"{containers.directory}/{id}/rw"
        view = store.driver.mount(layers, rw)
        try:
            side.changes = {c.path: c.kind for c in store.driver.changes(layers, rw, view)}
            side.tree = snapshot(f"/proc/self/fd/{view}")
        finally:
            os.close(view)

    def remove(self) -> None:
        try:
            store = self.engine._open()
        except StorageError:
            return  # nothing was made
        for id in Containers(self.root, self.state).ids():
            self.engine.remove_container(id, force=True)
        for key in list(store.layers.keys()):
            store.layers.remove(key)


def _content(file: Any) -> bytes:
    file.seek(0)
    content: bytes = file.read()
    return content


def _differences(one: Side, two: Side, times: bool, ignore: Sequence[str]) -> Iterator[Difference]:
    if one.code != two.code:
        yield Difference("exit code", None, (str(one.code), str(two.code)))
    for what in ("stdout", "stderr"):
        left, right = getattr(one, what), getattr(two, what)
        if left != right:
            sizes = (f"{len(left)} bytes", f"{len(right)} bytes")
            yield Difference(what, None, sizes, _text_diff(left, right, (one.driver, two.driver)))
    for path in sorted(one.tree.keys() | two.tree.keys()):
        if _ignored(path, ignore):
            continue
        left, right = one.tree.get(path), two.tree.get(path)
        if left is None or right is None:
            yield Difference("tree", path, (left.kind if left else "", right.kind if right else ""))
            continue
        written = path in one.changes or path in two.changes
        for what, values in _node_differences(left, right, times or not written):
            yield Difference(what, path, values)
    for path in sorted(one.changes.keys() | two.changes.keys()):
        values = (one.changes.get(path, ""), two.changes.get(path, ""))
        if values[0] != values[1] and not _ignored(path, ignore):
            yield Difference("change", path, values)


def _ignored(path: bytes, patterns: Sequence[str]) -> bool:
    name = os.fsdecode(path)
    return any(fnmatch.fnmatchcase(name, pattern.lstrip("/")) for pattern in patterns)


def _node_differences(one: Node, two: Node, times: bool) -> Iterator[tuple[str, tuple[str, str]]]:
    if one.kind != two.kind:
        yield "type", (one.kind, two.kind)
        return
    if one.permissions != two.permissions:
        yield "mode", (f"{one.permissions:04o}", f"{two.permissions:04o}")
    if (one.uid, one.gid) != (two.uid, two.gid):
        yield "owner", (f"{one.uid}:{one.gid}", f"{two.uid}:{two.gid}")
    if one.what != two.what:
        yield _what(one), (_shown(one), _shown(two))
    if one.same != two.same:
        yield "links", tuple(f"/{shown(n.same)}" if n.same else "" for n in (one, two))  # type: ignore[misc]
    if one.xattrs != two.xattrs:
        yield "xattrs", (_xattrs(one, two), _xattrs(two, one))
    if times and one.mtime != two.mtime:
        yield "mtime", (_time(one.mtime), _time(two.mtime))


def _what(node: Node) -> str:
    return {"file": "content", "symlink": "target"}.get(node.kind, "device")


def _shown(node: Node) -> str:
    if stat.S_ISREG(int(node.mode, 8)):
        return f"{node.what[0]} bytes, sha256:{node.what[1][:12]}"
    if isinstance(node.what, bytes):
        return shown(node.what)
    return f"{os.major(node.what)}:{os.minor(node.what)}"


def _xattrs(own: Node, other: Node) -> str:
    """Those of ``own`` that the other has not, or otherwise."""
    return ", ".join(
        f"{name}={value!r:.60}" for name, value in own.xattrs if (name, value) not in other.xattrs
    )


def _time(ns: int) -> str:
    return f"{ns // 10**9}.{ns % 10**9:09}"


def _text_diff(one: bytes, two: bytes, names: tuple[str, str]) -> list[str]:
    """A unified diff; empty where either is too long, or no text."""
    if len(one) > _SHOWN or len(two) > _SHOWN or b"\0" in one or b"\0" in two:
        return []
    left, right = (text.decode("utf-8", "replace").splitlines() for text in (one, two))
    return list(difflib.unified_diff(left, right, *names, lineterm=""))


def summary(comparison: Comparison) -> list[Mapping[str, str]]:
    """A row of facts a side, for a table."""
    return [
        {
            "Driver": side.driver,
            "Exit": str(side.code),
            "Seconds": f"{side.seconds:.2f}",
            "Stdout": f"{len(side.stdout)} bytes",
            "Stderr": f"{len(side.stderr)} bytes",
            "Changes": str(len(side.changes)),
            "Names": str(len(side.tree)),
        }
        for side in comparison.sides
    ]
