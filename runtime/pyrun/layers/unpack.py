"""Unpack a layer's tar stream into a directory: OCI image spec, layer.md, "Applying Changesets".

Four forms of what a layer deletes. "overlay" and "userxattr" leave it to the file system: a deleted name
becomes a character device 0/0 and an opaque directory is marked (kernel Documentation/filesystems/
overlayfs.rst, "whiteouts and opaque directories"). So does "aufs", by files with the tar's own ``.wh.`` names.
"apply" deletes in the tree itself.

In all four a layer means the same: its entries in the order they come, of a name given twice the last;
whiteouts hide what lower layers have and never what the layer itself adds, whichever stands first.
"""

from __future__ import annotations

import os
import stat
from errno import EDQUOT, EINVAL, ELOOP, ENOENT, ENOSPC, ENOTDIR, EOPNOTSUPP, EPERM

from ..errors import LayerError
from .dirs import Directories
from .entry import Entry
from .limits import Limits
from .names import shown
from .remove import remove_at
from .tar import TarReader
from .whiteouts import AppliedForm, AufsForm, OverlayForm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from .tar import Stream

    Whiteouts = Literal["overlay", "userxattr", "aufs", "apply"]
    # mode, uid, gid, mtime in ns, xattrs
    Attributes = tuple[int, int, int, int, dict[bytes, bytes]]

_O_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# What a directory gets that the layer goes through and never lists.
IMPLIED: Attributes = (0o755, 0, 0, 0, {})

# Of the types that mknod(2) makes.
NODES = {"char": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}

# What is left free of the file system, for others; and after how many bytes it is looked at again.
RESERVE = 256 << 20
LOOK_AGAIN = 64 << 20


class Unpacked:
    """What `unpack` did.

    entries      members of the tar, whiteouts included
    bytes        length of the tar stream
    implied      directories that the layer uses and doesn't list, sorted; the empty name is the root. They
                 have mode 0755, owner 0:0 and mtime 0: over lower layers the attributes should be theirs
    opaque_root  the layer hides everything below it. Overlay file systems ignore the mark on a layer's root,
                 so whoever stacks layers has to leave the lower ones out
    dropped      names of extended attributes that the file system, or the lack of privilege, refused
    """

    __slots__ = ("bytes", "dropped", "entries", "implied", "opaque_root")

    def __init__(
        self, entries: int, bytes: int, implied: list[bytes], opaque_root: bool, dropped: list[bytes]
    ) -> None:
        self.entries = entries
        self.bytes = bytes
        self.implied = implied
        self.opaque_root = opaque_root
        self.dropped = dropped


def unpack(
    stream: Stream,
    dirfd: int,
    whiteouts: Whiteouts,
    *,
    devices: bool = True,
    single_uid: bool = False,
    limits: Limits | None = None,
) -> Unpacked:
    """Extract the tar ``stream`` into ``dirfd``, reading it to EOF.

    ``dirfd`` is an open directory: empty, or for "apply" a copy of the layers below. Nobody else writes there
    meanwhile. ``devices`` False says that the caller, in a user namespace, can't make device nodes: a layer
    that has some is refused in those words. ``single_uid`` says that the namespace has one ID, and files of
    others are to keep it.

    The process's umask is 0 for the duration, and its working directory may be another: call it from a worker
    process, or where no other thread creates files.

    Raises `LayerError`, naming the entry, for a malformed, hostile or oversized layer and where the file
    system refuses; what ``stream.read`` raises passes through. Not atomic: after an error the caller throws
    the tree away. Source of the refusals: CVE-2018-15664, CVE-2019-14271, CVE-2021-41091, CVE-2024-0406 and
    their like.
    """
    limits = limits or Limits()
    reader = TarReader(stream, limits)
    unpacker = _Unpacker(reader, dirfd, whiteouts, devices, single_uid, limits)
    umask = os.umask(0)
    try:
        return unpacker.run()
    except OSError as error:
        if error is reader.failure:
            raise
        raise unpacker.failed(error) from error
    finally:
        os.umask(umask)
        unpacker.close()


class _Unpacker:
    def __init__(
        self,
        reader: TarReader,
        root: int,
        whiteouts: Whiteouts,
        devices: bool,
        single_uid: bool,
        limits: Limits,
    ) -> None:
        self.reader = reader
        self.root = root
        self.devices = devices
        self.single_uid = single_uid
        self.limits = limits
        self.attributes: dict[bytes, Attributes] = {}  # of directories, set when the stream has ended
        self.dropped: set[bytes] = set()
        self.entry: Entry | None = None
        self.memory = limits.memory
        self.used = 0  # bytes of files and directories so far
        self.look_at = 0  # value of `used` at which to look at the free space again
        self.here = -1  # the working directory that the process had, once it has another
        st = os.fstat(root)
        # New files belong to whoever creates them, but for a setgid directory and the bsdgroups mount option.
        self.owner = (os.geteuid(), os.getegid())
        if whiteouts == "apply" or st.st_gid != self.owner[1] or st.st_mode & stat.S_ISGID:
            self.owner = (-1, -1)
        self.form: OverlayForm | AufsForm | AppliedForm
        self.dirs = Directories(root, limits.depth, self.imply)
        if whiteouts == "apply":
            self.form = AppliedForm(root, self.dirs, self.attributes, self.remember)
            self.dirs.seen = self.form.seen
            return
        if whiteouts == "aufs":
            self.form = AufsForm(self.dirs, self.remember)
        else:
            self.form = OverlayForm(self.dirs, "user" if whiteouts == "userxattr" else "trusted")
        self.attributes[b""] = IMPLIED

    def run(self) -> Unpacked:
        fds = self.dirs.fds
        adds = self.form.adds
        for entry in self.reader:
            self.entry = entry
            parent = entry.dir
            dirfd = fds.get(parent)
            if dirfd is None:
                parent = self.dirs.find(parent)
                dirfd = fds[parent]
            self.used += entry.stored + 4096
            if self.used >= self.look_at:
                self.look_at_space(entry)
            kind = entry.type
            if adds is not None:
                adds(parent, entry)
            if kind == "file":
                self.file(entry, parent, dirfd)
            elif kind == "dir":
                self.directory(entry, parent, dirfd)
            elif kind == "symlink":
                self.symlink(entry, parent, dirfd)
            elif kind == "link":
                self.link(entry, parent)
            elif kind == "whiteout":
                self.form.whiteout(parent, dirfd, entry.base)
            elif kind == "opaque":
                self.form.opaque(self.dirs.find(entry.name))
            else:
                self.node(entry, parent, dirfd)
        self.entry = None
        self.form.settle()
        return Unpacked(
            self.reader.entries,
            self.reader.offset,
            self.finish_directories(),
            self.form.opaque_root,
            sorted(self.dropped),
        )

    # --- one entry

    def file(self, entry: Entry, parent: bytes, dirfd: int) -> None:
        base, mode = entry.base, entry.mode
        try:
            fd = os.open(base, _O_NEW, mode & 0o777, dir_fd=dirfd)
        except FileExistsError:
            self.clear(parent, dirfd, base)
            fd = os.open(base, _O_NEW, mode & 0o777, dir_fd=dirfd)
        try:
            if entry.sparse is not None:
                for offset, length in entry.sparse:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self.reader.copy(fd, length)
                os.ftruncate(fd, entry.size)
            elif entry.size:
                self.reader.copy(fd, entry.size)
            # After the content: a write takes setuid, setgid and security.capability away; so does chown.
            if (entry.uid, entry.gid) != self.owner:
                self.chown(fd, entry.uid, entry.gid)
            if mode & 0o7000:
                os.fchmod(fd, mode)
            if entry.xattrs:
                self.set_xattrs(fd, entry.xattrs)
            mtime = entry.mtime_ns
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)

    def directory(self, entry: Entry, parent: bytes, dirfd: int) -> None:
        """Made 0700 until the end: without setgid, default ACL and final mode nothing below is affected."""
        base = entry.base
        name = parent + b"/" + base if parent else base
        if base:
            try:
                os.mkdir(base, 0o700, dir_fd=dirfd)
            except FileExistsError:
                if not stat.S_ISDIR(os.lstat(base, dir_fd=dirfd).st_mode):
                    os.unlink(base, dir_fd=dirfd)
                    os.mkdir(base, 0o700, dir_fd=dirfd)
                    self.form.replaced(name)
        self.remember(len(name) + sum(len(k) + len(v) + 100 for k, v in entry.xattrs.items()))
        self.attributes[name] = (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.xattrs)

    def symlink(self, entry: Entry, parent: bytes, dirfd: int) -> None:
        try:
            os.symlink(entry.linkname, entry.base, dir_fd=dirfd)
        except FileExistsError:
            self.clear(parent, dirfd, entry.base)
            os.symlink(entry.linkname, entry.base, dir_fd=dirfd)
        self.finish(entry, dirfd)

    def link(self, entry: Entry, parent: bytes) -> None:
        dirs = self.dirs
        where, _, source = entry.linkname.rpartition(b"/")
        dirs.pin = parent
        where = dirs.find(where)
        dirs.pin = b""
        from_fd, to_fd = dirs.fds[where], dirs.fds[parent]
        try:
            found = os.lstat(source, dir_fd=from_fd)
        except FileNotFoundError:
            found = None
        if found is None or (stat.S_ISCHR(found.st_mode) and found.st_rdev == 0):
            raise LayerError(
                f"layer entry {shown(entry.name)}: a hard link to {shown(entry.linkname)}, "
                "which the layer lacks"
            )
        if stat.S_ISDIR(found.st_mode):
            raise LayerError(
                f"layer entry {shown(entry.name)}: a hard link to the directory {shown(entry.linkname)}"
            )
        name = parent + b"/" + entry.base if parent else entry.base
        if (where + b"/" + source if where else source) == name or (where + b"/").startswith(name + b"/"):
            raise LayerError(
                f"layer entry {shown(entry.name)}: a hard link that takes the place of its target"
            )
        try:
            os.link(source, entry.base, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)
        except FileExistsError:
            self.clear(parent, to_fd, entry.base)
            os.link(source, entry.base, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)

    def node(self, entry: Entry, parent: bytes, dirfd: int) -> None:
        mode = entry.mode | NODES[entry.type]
        device = os.makedev(entry.devmajor, entry.devminor)
        try:
            try:
                os.mknod(entry.base, mode, device, dir_fd=dirfd)
            except FileExistsError:
                self.clear(parent, dirfd, entry.base)
                os.mknod(entry.base, mode, device, dir_fd=dirfd)
        except PermissionError as error:
            if entry.type == "fifo":
                raise
            why = "this needs CAP_MKNOD" if self.devices else "rootless can't make device nodes"
            raise LayerError(
                f"layer entry {shown(entry.name)}: a {entry.type} device, and {why}",
                hint="Run pyrun as root.",
            ) from error
        self.finish(entry, dirfd)
        if entry.mode & 0o7000:
            os.chmod(entry.base, entry.mode, dir_fd=dirfd)

    def finish(self, entry: Entry, dirfd: int) -> None:
        """Owner, attributes and time of what can't be opened."""
        if (entry.uid, entry.gid) != self.owner:
            self.chown(entry.base, entry.uid, entry.gid, dirfd)
        if entry.xattrs:
            # There is no fsetxattr for an O_PATH fd, setxattrat(2) is of Linux 6.13, and a confined process has no
            # /proc. The name is one component, and not followed.
            self.work_in(dirfd)
            self.set_xattrs(entry.base, entry.xattrs)
        os.utime(entry.base, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=dirfd, follow_symlinks=False)

    # --- parts

    def work_in(self, dirfd: int) -> None:
        if self.here < 0:
            self.here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        os.fchdir(dirfd)

    def close(self) -> None:
        self.dirs.close()
        if self.here >= 0:
            os.fchdir(self.here)
            os.close(self.here)

    def clear(self, parent: bytes, dirfd: int, base: bytes) -> None:
        """Remove what is called ``base``, directory or not, for a later entry takes its name."""
        try:
            os.unlink(base, dir_fd=dirfd)
        except IsADirectoryError:
            self.dirs.forget(parent + b"/" + base if parent else base)
            remove_at(dirfd, base)

    def chown(self, target: int | bytes, uid: int, gid: int, dirfd: int | None = None) -> None:
        try:
            if dirfd is None:
                os.chown(target, uid, gid)
            else:
                os.chown(target, uid, gid, dir_fd=dirfd, follow_symlinks=False)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            if not self.single_uid:
                raise self.unmapped(f"owner {uid}:{gid}") from error

    def unmapped(self, what: str) -> LayerError:
        name = shown(self.entry.name if self.entry else b"")
        return LayerError(
            f"layer entry {name}: {what} is not mapped in this user namespace",
            hint="Give the user more subordinate IDs in /etc/subuid and /etc/subgid.",
        )

    def set_xattrs(self, target: int | bytes, xattrs: dict[bytes, bytes]) -> None:
        for name, value in xattrs.items():
            try:
                os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
            except OSError as error:
                capability = name == b"security.capability"
                if error.errno == EINVAL and not self.devices:
                    # What speaks of IDs that a user namespace has none of its own for (man user_namespaces). Where
                    # it has but one, access lists go the way of owners.
                    if capability:
                        raise self.unmapped("the root user that a capability is for") from error
                    if not name.startswith(b"system.posix_acl_"):
                        raise
                    if not self.single_uid:
                        raise self.unmapped("an ID in its access list") from error
                # A program without its capabilities doesn't work; the rest is for those who can keep it.
                elif error.errno not in (EOPNOTSUPP, EPERM) or capability:
                    raise
                if len(self.dropped) < 100:
                    self.dropped.add(name)

    def imply(self, name: bytes, after_whiteout: bool) -> None:
        """A directory had to be made that the layer has not listed so far."""
        self.remember(len(name))
        self.attributes[name] = IMPLIED
        if after_whiteout:
            self.form.replaced(name)

    def remember(self, size: int) -> None:
        self.memory -= size + 300
        if self.memory < 0:
            raise LayerError(
                f"layer: names and attributes take more than {self.limits.memory} bytes of memory"
            )

    def look_at_space(self, entry: Entry) -> None:
        fs = os.fstatvfs(self.root)
        if self.limits.bytes is not None or fs.f_blocks == 0:
            self.look_at = 1 << 80
            return
        free = fs.f_bavail * fs.f_frsize - min(RESERVE, fs.f_blocks * fs.f_frsize // 20)
        if entry.stored > free:
            raise LayerError(
                f"layer entry {shown(entry.name)}: {entry.stored} bytes, and the store's file system "
                f"has {max(free, 0)} left (beside a reserve)",
                hint="Free some space, or keep the store elsewhere (--root).",
            )
        self.look_at = self.used + min(LOOK_AGAIN, free)

    def finish_directories(self) -> list[bytes]:
        """Attributes of directories, the deepest first; returns the implied ones."""
        implied = []
        for name in sorted(self.attributes, reverse=True):
            try:
                fd = self.dirs.open(name)
            except OSError as error:
                if error.errno in (ENOENT, ENOTDIR, ELOOP):
                    continue  # a later entry took its place
                raise
            what = self.attributes[name]
            mode, uid, gid, mtime, xattrs = what
            self.entry = _directory_entry(name)
            if what is IMPLIED:
                implied.append(name)
            if (uid, gid) != self.owner:
                self.chown(fd, uid, gid)
            os.fchmod(fd, mode)
            self.form.clean(fd)
            if xattrs:
                self.set_xattrs(fd, xattrs)
            os.utime(fd, ns=(mtime, mtime))
        self.form.finish()
        implied.reverse()
        return implied

    def failed(self, error: OSError) -> LayerError:
        where = f"layer entry {shown(self.entry.name)}" if self.entry else "layer"
        hint = ""
        if error.errno in (ENOSPC, EDQUOT):
            hint = "Free some space, or keep the store elsewhere (--root)."
        return LayerError(f"{where}: {error.strerror or error}", hint=hint)


def _directory_entry(name: bytes) -> Entry:
    directory, _, base = name.rpartition(b"/")
    return Entry(directory, base, "dir", 0, 0, 0, 0)
