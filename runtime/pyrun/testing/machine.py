"""Random lives of a container, beside a plain directory to which the same is done: a state machine for Hypothesis.

Every step is tried on the driver's root first and then on the directory: both must take it, or both refuse it with
the same error, and afterwards the two trees are equal. `pyrun.testing.stateful` runs it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import ClassVar

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ..storage.contract import Layer
from .oracle import plain
from .rig import Rig, Rootfs
from .tars import Dir, Fifo, File, Link, Opaque, Symlink, Whiteout, tar
from .trees import difference, snapshot

_COMMITS = 3  # layers that one life may add

# Few names, so that steps meet each other; the layers have them, too.
_NAMES = "abcd"
BASE = (
    tar(
        Dir("a"),
        File("a/a", b"lower" * 1000),
        Dir("a/b"),
        File("a/b/c", b"deep", 0o4755),
        Symlink("a/d", "a"),
        File("b", b"b", xattrs={"user.x": b"1"}),
        Link("d", "b"),
        Dir("c", 0o1777),
        File("c/a", b"hidden"),
        File("c/b", b"deleted"),
    ),
    tar(
        Dir("a"),
        File("a/c", b"upper", uid=5, gid=6),
        Fifo("a/b/d"),
        Whiteout("c/b"),
        Dir("c", 0o1777),
        File("c/c", b"c"),
        Dir("c/d"),
        File("c/d/a", b""),
    ),
    tar(Dir("c/d"), Opaque("c/d"), File("c/d/b", b"after")),
)

# What is there at the moment, a name in a directory that is there, or anything.
paths = st.one_of(
    st.runner().flatmap(lambda life: st.sampled_from(life.names)),
    st.runner().flatmap(
        lambda life: st.tuples(st.sampled_from(life.directories), st.sampled_from(_NAMES)).map("".join)
    ),
    st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3).map("/".join),
)
contents = st.one_of(st.binary(max_size=8), st.sampled_from([b"\0" * 5000, b"long" * 3000]))
sizes = st.sampled_from([0, 1, 4096, 5000, 100_000])
modes = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2750, 0o1777, 0o000])
attributes = st.sampled_from(["user.x", "user.y"])


class Life(RuleBasedStateMachine):
    """A container over `BASE`, and whatever it commits. `of` makes the class for a rig."""

    rig: ClassVar[Rig]
    base: ClassVar[list[Layer]]

    @classmethod
    def of(cls, rig: Rig) -> type[Life]:
        """The machine for ``rig``, which must outlive it."""
        return type("Life", (cls,), {"rig": rig, "base": rig.stack(*BASE)})

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_600_000_000_000_000_000
        self.layers = list(self.base)
        self.tars = list(BASE)
        self.names = ["a"]
        self.directories = [""]
        self.begin()

    def begin(self) -> None:
        """A fresh container, and an oracle that is what its layers say."""
        self.resources = contextlib.ExitStack()
        self.oracle = self.resources.enter_context(plain(self.rig, self.tars))
        self.begin_container()

    def begin_container(self) -> None:
        self.rw = self.rig.prepare(self.layers)
        self.mount()
        # Names that share a file of a layer: a driver that declares it may part them when one is written.
        self.linked = set()
        for directory, _, names in os.walk(self.oracle):
            for name in names:
                found = os.lstat(os.path.join(directory, name))
                if found.st_nlink > 1:
                    self.linked.add(found.st_ino)

    def mount(self) -> None:
        self.mounted = contextlib.ExitStack()
        self.root: Rootfs = self.mounted.enter_context(self.rig.rootfs(self.layers, self.rw))

    def end_container(self) -> None:
        self.mounted.close()
        self.rig.discard(self.rw)

    def teardown(self) -> None:
        self.end_container()
        self.resources.close()
        for layer in reversed(self.layers):
            if layer not in self.base:
                self.rig.layers.remove(layer.id)

    # --- steps

    @rule(path=paths, content=contents, flags=st.sampled_from([0, os.O_CREAT, os.O_CREAT | os.O_EXCL]))
    def write(self, path: str, content: bytes, flags: int) -> None:
        self.both(lambda root: _write(f"{root}/{path}", flags | os.O_TRUNC, content, 0, self.now), path)

    @rule(path=paths, content=contents, at=sizes)
    def write_within(self, path: str, content: bytes, at: int) -> None:
        self.both(lambda root: _write(f"{root}/{path}", 0, content, at, self.now), path)

    @rule(path=paths, content=contents)
    def append(self, path: str, content: bytes) -> None:
        self.both(lambda root: _write(f"{root}/{path}", os.O_APPEND, content, None, self.now), path)

    @rule(path=paths, size=sizes)
    def truncate(self, path: str, size: int) -> None:
        def do(root: str) -> None:
            os.truncate(f"{root}/{path}", size)
            os.utime(f"{root}/{path}", ns=(self.now, self.now))

        self.both(do, path)

    @rule(path=paths)
    def mkdir(self, path: str) -> None:
        self.both(lambda root: os.mkdir(f"{root}/{path}"))

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        self.both(lambda root: os.rmdir(f"{root}/{path}"))

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.both(lambda root: os.unlink(f"{root}/{path}"))

    @rule(path=paths)
    def remove_with_all_below(self, path: str) -> None:
        def do(root: str) -> None:
            full = f"{root}/{path}"
            os.lstat(full)
            if os.path.isdir(full) and not os.path.islink(full):
                for directory, names, files in os.walk(full, topdown=False):
                    for name in [*names, *files]:
                        below = os.path.join(directory, name)
                        if os.path.isdir(below) and not os.path.islink(below):
                            os.rmdir(below)
                        else:
                            os.unlink(below)
                os.rmdir(full)
            else:
                os.unlink(full)

        self.both(do)

    @rule(old=paths, new=paths)
    def rename(self, old: str, new: str) -> None:
        full = f"{self.oracle}/{old}"
        is_directory = os.path.isdir(full) and not os.path.islink(full)
        self.both(
            lambda root: os.rename(f"{root}/{old}", f"{root}/{new}"),
            old,
            may_refuse=is_directory and not self.rig.caps.rename_dir,
        )

    @rule(old=paths, new=paths)
    def link(self, old: str, new: str) -> None:
        self.both(lambda root: os.link(f"{root}/{old}", f"{root}/{new}", follow_symlinks=False), old)

    @rule(points_to=paths, path=paths)
    def symlink(self, points_to: str, path: str) -> None:
        def do(root: str) -> None:
            os.symlink(points_to, f"{root}/{path}")
            os.utime(f"{root}/{path}", ns=(self.now, self.now), follow_symlinks=False)

        self.both(do)

    @rule(path=paths)
    def mkfifo(self, path: str) -> None:
        def do(root: str) -> None:
            os.mkfifo(f"{root}/{path}", 0o640)
            os.utime(f"{root}/{path}", ns=(self.now, self.now))

        self.both(do)

    @rule(path=paths, mode=modes)
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda root: os.chmod(f"{root}/{path}", mode), path)

    @precondition(lambda self: not self.rig.env.single_uid)
    @rule(path=paths, uid=st.sampled_from([0, 5, 1000]), gid=st.sampled_from([0, 6, 1000]))
    def chown(self, path: str, uid: int, gid: int) -> None:
        self.both(lambda root: os.lchown(f"{root}/{path}", uid, gid), path)

    @rule(path=paths, ns=st.sampled_from([0, 1, 1_234_567_891_234_567_891, 4_000_000_000_000_000_003]))
    def utime(self, path: str, ns: int) -> None:
        self.both(lambda root: os.utime(f"{root}/{path}", ns=(ns, ns), follow_symlinks=False), path)

    @rule(path=paths, name=attributes, value=st.binary(max_size=20))
    def setxattr(self, path: str, name: str, value: bytes) -> None:
        self.both(lambda root: os.setxattr(f"{root}/{path}", name, value), path)

    @rule(path=paths, name=attributes)
    def removexattr(self, path: str, name: str) -> None:
        self.both(lambda root: os.removexattr(f"{root}/{path}", name), path)

    @rule()
    def remount(self) -> None:
        self.mounted.close()
        self.mount()

    @precondition(lambda self: len(self.tars) < len(BASE) + _COMMITS and self.may_grow())
    @rule()
    def commit(self) -> None:
        """What was changed becomes a layer, and the container a fresh one over it."""
        made = self.root.commit()
        self.end_container()
        top = self.rig.ingest(made, self.layers[-1])
        if top not in self.layers:
            self.layers = self.rig.layers.mended([*self.layers, top])
        self.tars.append(made)
        self.begin_container()

    @rule()
    def discard(self) -> None:
        """The container goes with its changes; another one begins."""
        self.end_container()
        self.resources.close()
        self.begin()

    @invariant()
    def trees_are_equal(self) -> None:
        # Where names of one file may part, they needn't be told as one either.
        links = self.rig.caps.hardlinks
        expected = snapshot(self.oracle, links=links)
        found = difference(snapshot(self.root.path, links=links), expected, ("the driver", "the oracle"))
        assert not found, found
        self.names = sorted(os.fsdecode(name) for name in expected if name) or ["a"]
        self.directories = [
            os.fsdecode(name + b"/") if name else ""
            for name in sorted(expected)
            if expected[name].kind == "dir"
        ]

    # --- how

    def may_grow(self) -> bool:
        limit = self.rig.caps.max_layers
        return limit is None or len(self.layers) + 2 <= limit

    def both(self, step: Callable[[str], object], path: str = "", *, may_refuse: bool = False) -> None:
        """Take one step on both trees. ``path`` is what it changes, where hard links matter; ``may_refuse``: the
        driver may answer EXDEV, and then nothing happens."""
        self.now += 1_000_000_007
        if path and not self.rig.caps.hardlinks and self.is_linked(path):
            return
        mine = _errno(step, self.root.path)
        if may_refuse and mine == errno.EXDEV:
            return
        theirs = _errno(step, self.oracle)
        assert mine == theirs, f"the driver answers {_name(mine)}, the oracle {_name(theirs)}"

    def is_linked(self, path: str) -> bool:
        for look in (os.stat, os.lstat):
            with contextlib.suppress(OSError):
                if look(f"{self.oracle}/{path}").st_ino in self.linked:
                    return True
        return False


def _write(path: str, flags: int, content: bytes, at: int | None, now: int) -> None:
    """Write at ``at``, or wherever the kernel puts it. The time is set: the two trees are not written at once."""
    # A fifo that nobody reads is refused instead of waited for.
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o644)
    try:
        if at is None:
            os.write(fd, content)
        else:
            os.pwrite(fd, content, at)
        os.utime(fd, ns=(now, now))
    finally:
        os.close(fd)


def _errno(step: Callable[[str], object], root: str) -> int:
    """What ``step`` fails with; 0 for success. The two numbers for a directory that is not empty are one."""
    try:
        step(root)
    except OSError as error:
        number = error.errno or 0
        return errno.ENOTEMPTY if number == errno.EEXIST else number
    return 0


def _name(number: int) -> str:
    return errno.errorcode.get(number, str(number)) if number else "success"
