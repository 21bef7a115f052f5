"""Files of layers that have several names, whose names fuse-overlayfs parts.

When such a file is first written, the server copies it up under one of its names, and as long as it runs, it knows
the others for the same file. The next server does not: it takes the copy and the names that are left in the layer
for one inode, and shows the content of either. A write is lost, or half of it.

So before each mount of a writable directory `mend` gives the copy all the names that it should have. It works on
what is on disk, with no server about.
"""

from __future__ import annotations

import os
import stat

from .fuse_notes import ABSENT, O_DIRECTORY, PRIVATE, Tree, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def mend(rw: str, layers: Sequence[str]) -> None:
    """Make the names of each file of ``layers`` (layer directories, bottom to top) one file again in ``rw``,
    where it was copied up under some of them. Atomic name by name; may be repeated at any time."""
    if not os.listdir(f"{rw}/upper"):
        return
    for at, layer in enumerate(layers):
        for names in read(layer).links:
            with Tree(f"{rw}/upper", upper=True) as upper:
                written = _written(upper, names)
                if written:
                    _join(upper, rw, layers, at, names, written)


def _written(upper: Tree, names: Sequence[bytes]) -> list[bytes]:
    """Those of ``names`` that are copies of the file that all of them share."""
    known, found = set(names), []
    for name in names:
        st = upper.lstat(name)
        if st is not None and stat.S_ISREG(st.st_mode) and upper.origin(name) in known:
            found.append(name)
    return found


def _join(
    upper: Tree,
    rw: str,
    layers: Sequence[str],
    at: int,
    names: Sequence[bytes],
    written: Sequence[bytes],
) -> None:
    """Give the copy that was changed, the last of several, the names of ``layers[at]`` that show other content."""
    above = [Tree(f"{layer}/fs") for layer in layers[at:]]
    try:
        # What a higher layer has under one of the names is another file.
        shown = [name for name in names if all(tree.look(name) == ABSENT for tree in above[1:])]
        copies = {name: st for name in written if name in shown and (st := upper.lstat(name))}
        if not copies:
            return
        original = above[0].lstat(shown[0])
        source = max(copies, key=lambda name: (_differs(copies[name], original), copies[name].st_ctime_ns))
        missing = [name for name in shown if upper.look(name) == ABSENT]
        # To delete a name, too, makes a copy, under another: there may be several, of which one was written.
        missing += [name for name, st in copies.items() if st.st_ino != copies[source].st_ino]
        if not missing:
            return
        with _Workshop(rw) as workshop:
            for name in missing:
                parent, _, base = name.rpartition(b"/")
                _make_directories(upper, above, workshop, parent)
                workshop.link(upper, source, parent, base)
    finally:
        for tree in above:
            tree.close()


def _make_directories(upper: Tree, above: Sequence[Tree], workshop: _Workshop, name: bytes) -> None:
    """Copy up the directory ``name`` and what leads to it, with the attributes of the topmost layer's."""
    done = b""
    for part in filter(None, name.split(b"/")):
        path = done + b"/" + part if done else part
        if upper.lstat(path) is None:
            source = next(tree for tree in reversed(above) if tree.lstat(path) is not None)
            workshop.copy_directory(source, upper, path)
        done = path


def _differs(copy: os.stat_result, original: os.stat_result | None) -> bool:
    """Whether the copy was changed since it was made."""
    return original is None or any(
        getattr(copy, key) != getattr(original, key)
        for key in ("st_size", "st_mtime_ns", "st_mode", "st_uid", "st_gid")
    )


class _Workshop:
    """Where things are made that one rename puts in place. The server empties it when it starts."""

    def __init__(self, rw: str) -> None:
        os.makedirs(f"{rw}/work/work", mode=0o700, exist_ok=True)
        self._fd = os.open(f"{rw}/work/work", O_DIRECTORY)

    def __enter__(self) -> _Workshop:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)

    def link(self, tree: Tree, source: bytes, parent: bytes, base: bytes) -> None:
        """Give the file ``source`` of ``tree`` the further name ``base`` in the directory ``parent``."""
        name = b"link-" + os.urandom(8).hex().encode()
        fd, old = tree.parent(source)
        os.link(old, name, src_dir_fd=fd, dst_dir_fd=self._fd, follow_symlinks=False)
        target = tree.directories.open(parent)
        before = os.fstat(target)
        os.rename(name, base, src_dir_fd=self._fd, dst_dir_fd=target)
        os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))

    def copy_directory(self, source: Tree, target: Tree, name: bytes) -> None:
        made = b"dir-" + os.urandom(8).hex().encode()
        os.mkdir(made, 0o700, dir_fd=self._fd)
        old, new = source.directories.open(name), os.open(made, O_DIRECTORY, dir_fd=self._fd)
        try:
            st = os.fstat(old)
            os.fchown(new, st.st_uid, st.st_gid)
            os.fchmod(new, stat.S_IMODE(st.st_mode))
            for key in os.listxattr(old):
                if not key.startswith(PRIVATE):
                    os.setxattr(new, key, os.getxattr(old, key))
            os.utime(new, ns=(st.st_atime_ns, st.st_mtime_ns))
        finally:
            os.close(new)
        fd, base = target.parent(name)
        before = os.fstat(fd)
        os.rename(made, base, src_dir_fd=self._fd, dst_dir_fd=fd)
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
