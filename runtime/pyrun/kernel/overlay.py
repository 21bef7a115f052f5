"""Overlay mounts as detached fds, by three routes. On the path of `run`.

Kernels differ in what they take for a layer, so the route is found by trial (the driver's probe), never by
version:

FDS      layers, upper and work as O_PATH fds, opened below a detached (idmapped) clone: about 6.15 and later
STRINGS  ``lowerdir+`` strings, over a clone attached in a private mount namespace: about 6.7 and later
MOUNT2   mount(2) there, then open_tree(OPEN_TREE_CLONE): 5.12 and later (mount_setattr)

The last two work in a short-lived child, whose mount namespace goes with it; only the fd comes back. There
the working directory is /proc/self/fd, so a layer's path is the few digits of an fd: 500 of them fit the
one page that mount(2) takes, whatever the store's path looks like (colons, commas, 4,000 characters).
"""

from __future__ import annotations

import os

from . import mount as m
from .apart import mounted_apart
from .process import capget, capset, setfsids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Lower = str | Callable[[], int]

FDS = 1
STRINGS = 2
MOUNT2 = 3
ROUTES = (FDS, STRINGS, MOUNT2)

MAX_LAYERS = 500  # OVL_MAX_STACK in fs/overlayfs

_O_DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Stack:
    """What to mount. Paths are relative to ``root``, one directory on one mount.

    lowers   top to bottom, as overlayfs orders them. One may be a function instead: it makes a detached mount
             whose root is the layer, a new one each time, and returns its fd, which is closed here
    upper, work  both or neither
    options  further overlay options, e.g. {"userxattr": None, "volatile": None}; None makes a flag
    """

    __slots__ = ("lowers", "options", "root", "upper", "work")

    def __init__(
        self,
        root: str,
        lowers: Sequence[Lower],
        upper: str | None = None,
        work: str | None = None,
        options: dict[str, str | None] | None = None,
    ) -> None:
        self.root = root
        self.lowers = lowers
        self.upper = upper
        self.work = work
        self.options = options or {}


def mount_overlay(stack: Stack, route: int, idmap: int | None = None) -> int:
    """A detached overlay mount of ``stack``, shown through the user namespace ``idmap`` if given.

    Raises OSError. A mount that was asked to be writable and is not (the kernel falls back to read-only
    when it can't write to ``work``, with a word in dmesg only) raises EROFS.
    """
    mounts: list[int] = []
    try:
        for lower in stack.lowers:
            if not isinstance(lower, str):
                mounts.append(lower())
                if idmap is not None:
                    m.idmap(mounts[-1], idmap)
        if route == FDS:
            tree = _tree(stack.root, idmap)
            try:
                fd = _fsmount(stack, tree, mounts, by_fd=True, idmapped=idmap is not None)
            finally:
                os.close(tree)
        else:
            fd = _in_child(stack, route, idmap, mounts)
    finally:
        for mount in mounts:
            os.close(mount)
    if stack.upper is not None and os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        os.close(fd)
        raise OSError(
            30, "overlay: the kernel made the mount read-only (it can't write to the work directory)"
        )
    return fd


def _tree(root: str, idmap: int | None) -> int:
    """The directory that layers are opened below: ``root`` itself, or an idmapped clone of its mount."""
    if idmap is None:
        return os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    tree = m.open_tree(m.AT_FDCWD, root)
    try:
        m.idmap(tree, idmap)
    except OSError:
        os.close(tree)
        raise
    return tree


class _Opened:
    """O_PATH fds of a stack's directories, opened below one directory fd; closed together. ``mounts`` are
    those of the lowers that are no strings, in their order; they stay the caller's."""

    __slots__ = ("_given", "lowers", "upper", "work")

    def __init__(self, stack: Stack, tree: int, mounts: Sequence[int]) -> None:
        self.lowers: list[int] = []
        self._given = mounts
        left = iter(mounts)
        self.upper = self.work = -1
        try:
            for lower in stack.lowers:
                if isinstance(lower, str):
                    self.lowers.append(os.open(lower, _O_DIR, dir_fd=tree))
                else:
                    self.lowers.append(next(left))
            if stack.upper is not None and stack.work is not None:
                self.upper = os.open(stack.upper, _O_DIR, dir_fd=tree)
                self.work = os.open(stack.work, _O_DIR, dir_fd=tree)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        for fd in (*self.lowers, self.upper, self.work):
            if fd >= 0 and fd not in self._given:
                os.close(fd)


class _AsOwnerOf:
    """While entered: file-system ids of the owner of ``fd``, all effective capabilities kept.

    Overlayfs creates files in upper and work with the credentials of whoever made the mount. Through an
    idmapped clone, host root is nobody: unless the mounter's fsuid and fsgid are the mapped root, making
    the work directory fails with EOVERFLOW and the kernel quietly mounts read-only. Changing fsuid from 0
    clears the capabilities about files (man capabilities), hence the capset.
    """

    __slots__ = ("caps", "fd", "ids", "needed")

    def __init__(self, fd: int, needed: bool) -> None:
        self.fd = fd
        self.needed = needed

    def __enter__(self) -> None:
        if self.needed:
            owner = os.stat(self.fd)
            self.caps = capget()
            self.ids = setfsids(owner.st_uid, owner.st_gid)
            capset(*self.caps)

    def __exit__(self, *exc: object) -> None:
        if self.needed:
            setfsids(*self.ids)
            capset(*self.caps)


def _fsmount(stack: Stack, tree: int, mounts: Sequence[int], *, by_fd: bool, idmapped: bool) -> int:
    opened = _Opened(stack, tree, mounts)
    context = None
    try:
        context = m.FsContext("overlay")
        context.string("source", "pyrun")
        for key, fds in (
            ("lowerdir+", opened.lowers),
            ("upperdir", [opened.upper]),
            ("workdir", [opened.work]),
        ):
            for fd in fds:
                if fd >= 0 and by_fd:
                    context.file(key, fd)
                elif fd >= 0:
                    context.string(key, str(fd))
        for name, value in stack.options.items():
            if value is None:
                context.flag(name)
            else:
                context.string(name, value)
        with _AsOwnerOf(opened.work, idmapped and opened.work >= 0):
            context.create()
        return context.mount()
    finally:
        if context:
            context.close()
        opened.close()


def _mount2(stack: Stack, tree: int, mounts: Sequence[int], idmapped: bool) -> int:
    opened = _Opened(stack, tree, mounts)
    try:
        data = "lowerdir=" + ":".join(map(str, opened.lowers))
        if opened.upper >= 0:
            data += f",upperdir={opened.upper},workdir={opened.work}"
        for name, value in stack.options.items():
            data += f",{name}" if value is None else f",{name}={value}"
        if len(data) >= os.sysconf("SC_PAGE_SIZE"):
            raise OSError(7, f"mount: {len(data)} bytes of overlay options; the kernel takes one page")
        with _AsOwnerOf(opened.work, idmapped and opened.work >= 0):
            m.mount(b"pyrun", os.fsencode(stack.root), b"overlay", 0, data.encode())
        return m.open_tree(m.AT_FDCWD, stack.root)
    finally:
        opened.close()


def _in_child(stack: Stack, route: int, idmap: int | None, mounts: Sequence[int]) -> int:
    """Run ``route`` in a child with a mount namespace of its own."""

    def make() -> int:
        if idmap is not None:
            tree = _tree(stack.root, idmap)
            m.move_mount(tree, m.AT_FDCWD, stack.root)
        tree = os.open(stack.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for mount in mounts:
            # Of layers by name the kernel wants the mounts attached. Where is all one: each covers the one
            # before, and all go with this namespace.
            m.move_mount(mount, m.AT_FDCWD, stack.root)
        os.chdir("/proc/self/fd")
        if route == STRINGS:
            return _fsmount(stack, tree, mounts, by_fd=False, idmapped=idmap is not None)
        return _mount2(stack, tree, mounts, idmap is not None)

    return mounted_apart(make, "the child that mounts the overlay")
