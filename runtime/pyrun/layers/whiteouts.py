"""What a layer deletes, in the three forms a tree can hold it (OCI image spec, layer.md, "Whiteouts").

A whiteout hides a name of the lower layers, an opaque mark all names of theirs in a directory. Neither
touches what the same layer adds, before or after. A name that a layer both deletes and adds as a directory
is a new, empty directory in which only the layer's own entries are.
"""

from __future__ import annotations

import os
import stat
from errno import ELOOP, ENODATA, ENOENT, ENOTDIR, EOPNOTSUPP

from .names import WHITEOUT, WHITEOUT_OPAQUE
from .remove import remove_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .dirs import Directories
    from .entry import Entry
    from .unpack import Attributes

_DEFAULT_ACL = "system.posix_acl_default"
_OF_LAYERS = ("user.", "trusted.", "security.", "system.posix_acl_")
_OF_THE_HOST = ("security.selinux", "security.SMACK64", "security.apparmor", "security.ima", "security.evm")
_GONE = (ENOENT, ENOTDIR, ELOOP)


class OverlayForm:
    """Marks for overlayfs: a character device 0/0, and ``<namespace>.overlay.opaque`` on directories; those
    with whiteouts have an empty ``<namespace>.overlay.origin`` too."""

    adds: Callable[[bytes, Entry], None] | None = None

    def __init__(self, dirs: Directories, namespace: str) -> None:
        self.opaque_root = False
        self._dirs = dirs
        self._mark = namespace + ".overlay.opaque"
        self._origin = namespace + ".overlay.origin"

    def whiteout(self, parent: bytes, dirfd: int, base: bytes) -> None:
        try:
            os.mknod(base, stat.S_IFCHR, 0, dir_fd=dirfd)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(base, dir_fd=dirfd).st_mode):
                self.opaque(parent + b"/" + base if parent else base)
            return
        # In a directory that no other layer has, or an opaque one, the whiteout hides nothing, and overlayfs
        # lists its name unless the directory has an origin. Empty means an unknown one (ovl_check_origin).
        if parent:
            os.setxattr(dirfd, self._origin, b"")

    def opaque(self, name: bytes) -> None:
        if name:
            os.setxattr(self._dirs.open(name), self._mark, b"y")
        else:
            self.opaque_root = True

    # A directory that stands where the layer had something else, a whiteout or a file, hides the lower one.
    replaced = opaque

    def settle(self) -> None:
        pass

    def clean(self, fd: int) -> None:
        pass

    def finish(self) -> None:
        pass


class AufsForm:
    """The tar's own names, which are aufs's: a file ``.wh.NAME`` beside where NAME would be, and
    ``.wh..wh..opq`` in an opaque directory (aufs(5), "whiteout").

    Aufs looks for the whiteout first, so one hides the very name beside it in the same branch. Those that the
    layer contradicts itself are therefore taken away again at the end; a directory is then opaque instead.
    """

    adds: Callable[[bytes, Entry], None] | None = None

    def __init__(self, dirs: Directories, remember: Callable[[int], None]) -> None:
        self.opaque_root = False
        self._dirs = dirs
        self._remember = remember
        self._hidden: set[bytes] = set()

    def whiteout(self, parent: bytes, dirfd: int, base: bytes) -> None:
        name = parent + b"/" + base if parent else base
        self._remember(len(name))
        self._hidden.add(name)
        _mark(dirfd, WHITEOUT + base)

    def opaque(self, name: bytes) -> None:
        if name:
            _mark(self._dirs.open(name), WHITEOUT_OPAQUE)
        else:
            self.opaque_root = True

    # A directory that stands where the layer had a file hides the lower one.
    replaced = opaque

    def settle(self) -> None:
        """Before the directories get their times: let what the layer adds win over its own whiteouts."""
        for name in self._hidden:
            parent, _, base = name.rpartition(b"/")
            try:
                dirfd = self._dirs.open(parent)
                found = os.lstat(base, dir_fd=dirfd)
                os.unlink(WHITEOUT + base, dir_fd=dirfd)
            except OSError as error:
                if error.errno in _GONE:
                    continue  # as it should be; or a later entry took the place of the directory
                raise
            if stat.S_ISDIR(found.st_mode):
                self.opaque(name)

    def clean(self, fd: int) -> None:
        pass

    def finish(self) -> None:
        pass


def _mark(dirfd: int, name: bytes) -> None:
    """An empty file as aufs makes its whiteouts; there already is as good."""
    try:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444, dir_fd=dirfd))
    except FileExistsError:
        pass


class AppliedForm:
    """Deletes in the tree itself, sparing what this layer added.

    ``_own``: name → whether the layer made it; False for a directory from below that something of the layer's
    lies in. Names that a later entry removed may stay in it: nothing but the layer's own can come there.
    """

    opaque_root = False

    def __init__(
        self,
        root: int,
        dirs: Directories,
        attributes: dict[bytes, Attributes],
        remember: Callable[[int], None],
    ) -> None:
        self._dirs = dirs
        self._attributes = attributes
        self._remember = remember
        self._own: dict[bytes, bool] = {}
        self._purged: set[bytes] = set()
        self._kept: dict[bytes, tuple[int, bytes | None]] = {}
        self.seen(b"", root)

    def seen(self, name: bytes, fd: int) -> None:
        """Keep the mtime of a directory that only gets new content; take its default ACL off, or the entries
        made in it would inherit."""
        if name in self._kept:
            return
        acl = None
        try:
            acl = os.getxattr(fd, _DEFAULT_ACL)
            os.removexattr(fd, _DEFAULT_ACL)
        except OSError as error:
            if error.errno not in (ENODATA, EOPNOTSUPP):
                raise
        self._remember(len(name))
        self._kept[name] = (os.fstat(fd).st_mtime_ns, acl)

    def adds(self, parent: bytes, entry: Entry) -> None:
        if entry.type not in ("whiteout", "opaque"):
            name = parent + b"/" + entry.base if parent else entry.base
            self._remember(len(name))
            self._own[name] = True
        self._goes_through(parent)

    def _goes_through(self, name: bytes) -> None:
        while name and name not in self._own:
            self._remember(len(name))
            self._own[name] = name in self._attributes
            name = name.rpartition(b"/")[0]

    def replaced(self, name: bytes) -> None:
        pass

    def whiteout(self, parent: bytes, dirfd: int, base: bytes) -> None:
        name = parent + b"/" + base if parent else base
        if name not in self._own:
            self._delete(name, dirfd, base)
            return
        try:
            found = os.lstat(base, dir_fd=dirfd)
        except FileNotFoundError:
            return  # the layer added it, and then something else in place of a directory above
        if stat.S_ISDIR(found.st_mode):
            self._purge(name)
            self._renew(name)

    def opaque(self, name: bytes) -> None:
        self._goes_through(name)
        self._purge(name)

    def settle(self) -> None:
        pass

    def _delete(self, name: bytes, dirfd: int, base: bytes) -> None:
        try:
            os.unlink(base, dir_fd=dirfd)
        except IsADirectoryError:
            self._dirs.forget(name)
            remove_at(dirfd, base)
        except FileNotFoundError:
            pass

    def _renew(self, name: bytes) -> None:
        """A directory from below is hidden, yet the layer has something in it: it becomes an implied one."""
        if not self._own[name]:
            from .unpack import IMPLIED

            self._own[name] = True
            self._attributes[name] = IMPLIED

    def _purge(self, name: bytes) -> None:
        """Delete what the layer didn't add, all the way down. Done once, a directory needs it never again."""
        above = name
        while above:
            above = above.rpartition(b"/")[0]
            if above in self._purged:
                return
        todo = [name]
        while todo:
            name = todo.pop()
            if name in self._purged:
                continue
            self._remember(len(name))
            self._purged.add(name)
            fd = self._dirs.open(name)
            for found in os.listdir(fd):
                base = os.fsencode(found)
                path = name + b"/" + base if name else base
                if path not in self._own:
                    self._delete(path, fd, base)
                elif stat.S_ISDIR(os.lstat(base, dir_fd=fd).st_mode):
                    self._renew(path)
                    todo.append(path)

    def finish(self) -> None:
        """Directories that the layer doesn't list get back what `seen` took."""
        for name in sorted(self._kept, reverse=True):
            if name in self._attributes:
                continue
            mtime, acl = self._kept[name]
            try:
                fd = self._dirs.open(name)
            except OSError as error:
                if error.errno in _GONE:
                    continue
                raise
            if acl is not None:
                os.setxattr(fd, _DEFAULT_ACL, acl)
            os.utime(fd, ns=(mtime, mtime))

    def clean(self, fd: int) -> None:
        """A directory that the layer lists has the layer's attributes and no others."""
        for name in os.listxattr(fd):
            if name.startswith(_OF_LAYERS) and not name.startswith(_OF_THE_HOST):
                os.removexattr(fd, name)
