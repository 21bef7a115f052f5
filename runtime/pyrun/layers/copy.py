"""Copy a directory tree with all that files are: for VOLUME directories and for drivers that copy.

On the path of `run` where an image has volumes: the standard library's os only. Both trees are walked by fd
and no symbolic link is followed, so a hostile source can't lead the copy outside either tree.
"""

from __future__ import annotations

import fcntl
import os
import stat
from errno import EINVAL, ENOSYS, ENOTTY, ENXIO, EOPNOTSUPP, EPERM, EXDEV

from ..errors import KernelError
from .dirs import Directories
from .names import PRIVATE_XATTRS, shown

_FICLONE = 0x40049409  # linux/fs.h
_COUNT = 1 << 30
_UNSUPPORTED = (EOPNOTSUPP, EXDEV, EINVAL, ENOTTY, ENOSYS)


def copy_tree(src_dirfd: int, dst_dirfd: int) -> None:
    """Copy the content of directory ``src_dirfd``, and its own attributes, to the empty ``dst_dirfd``.

    Kept: types, modes, owners, times in ns, holes, hard links within the tree, device numbers, extended
    attributes and ACLs (not overlayfs' own, nor SELinux labels; those that the target's file system or the
    caller's privileges don't allow are left out, but never a file capability). Blocks are shared where the
    file system can (FICLONE), else copied in the kernel. Sockets are left out: they mean nothing without
    the process that listens. The source should not change meanwhile; where it does, the copy may mix states.

    Raises `KernelError` naming the path. Not atomic: after an error the caller throws the copy away.
    """
    copy = _Copy(src_dirfd, dst_dirfd)
    try:
        copy.run()
    except OSError as error:
        raise KernelError(
            f"can't copy {shown(copy.path)}: {error.strerror or error}",
            errno=error.errno or 0,
            path=os.fsdecode(copy.path),
        ) from error
    finally:
        copy.src.close()
        copy.dst.close()


class _Copy:
    def __init__(self, src: int, dst: int) -> None:
        self.src = Directories(src)
        self.dst = Directories(dst)
        self.path = b""
        self.clone = True  # until the file system says no
        self.links: dict[tuple[int, int], bytes] = {}

    def run(self) -> None:
        todo = [b""]
        done = []
        while todo:
            where = todo.pop()
            done.append(where)
            self.path = where
            names = os.listdir(self.src.open(where))
            for text in names:
                base = os.fsencode(text)
                self.path = where + b"/" + base if where else base
                # Looked up again each time: making a hard link may have closed them.
                src, dst = self.src.open(where), self.dst.open(where)
                if self.entry(base, src, dst):
                    todo.append(self.path)
        # Attributes once nothing more is made below, the deepest first.
        for where in reversed(done):
            self.path = where
            src, dst = self.src.open(where), self.dst.open(where)
            self.attributes(src, dst, os.fstat(src))

    def entry(self, base: bytes, src: int, dst: int) -> bool:
        """Copy one name; True for a directory, of which only the name is made yet."""
        st = os.lstat(base, dir_fd=src)
        mode = st.st_mode
        if stat.S_ISDIR(mode):
            os.mkdir(base, 0o700, dir_fd=dst)
            return True
        if stat.S_ISSOCK(mode):
            return False
        if st.st_nlink > 1:
            first = self.links.setdefault((st.st_dev, st.st_ino), self.path)
            if first is not self.path:
                where, _, name = first.rpartition(b"/")
                self.dst.pin = self.path.rpartition(b"/")[0]
                from_fd = self.dst.open(where)
                os.link(name, base, src_dir_fd=from_fd, dst_dir_fd=dst, follow_symlinks=False)
                self.dst.pin = b""
                return False
        if stat.S_ISREG(mode):
            self.file(base, src, dst)
            return False
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(base, dir_fd=src), base, dir_fd=dst)
        else:
            os.mknod(base, stat.S_IFMT(mode) | 0o600, st.st_rdev, dir_fd=dst)
        os.chown(base, st.st_uid, st.st_gid, dir_fd=dst, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            os.chmod(base, stat.S_IMODE(mode), dir_fd=dst)
        # These can't be opened without side effects, and an O_PATH fd has no fgetxattr.
        _copy_xattrs(b"/proc/self/fd/%d/%s" % (src, base), b"/proc/self/fd/%d/%s" % (dst, base))
        os.utime(base, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=dst, follow_symlinks=False)
        return False

    def file(self, base: bytes, src: int, dst: int) -> None:
        # O_NONBLOCK: should a fifo have taken the name since, this doesn't wait for a writer.
        source = os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=src)
        try:
            st = os.fstat(source)
            if not stat.S_ISREG(st.st_mode):
                raise OSError(EINVAL, "changed while it was copied")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(base, flags, 0o600, dir_fd=dst)
            try:
                if st.st_size:
                    self.content(source, target, st)
                self.attributes(source, target, st)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def content(self, source: int, target: int, st: os.stat_result) -> None:
        if self.clone:
            try:
                fcntl.ioctl(target, _FICLONE, source)
                return
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self.clone = False
        if st.st_blocks * 512 >= st.st_size:
            _copy_range(source, target, 0, st.st_size)
            return
        at = 0
        while at < st.st_size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != ENXIO:
                    raise
                break  # a hole up to the end
            end = os.lseek(source, at, os.SEEK_HOLE)
            _copy_range(source, target, at, end)
            at = end
        os.ftruncate(target, st.st_size)

    def attributes(self, source: int, target: int, st: os.stat_result) -> None:
        """After the content, and in this order: chown takes setuid and capabilities away."""
        os.fchown(target, st.st_uid, st.st_gid)
        os.fchmod(target, stat.S_IMODE(st.st_mode))
        _copy_xattrs(source, target)
        os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))


def _copy_range(source: int, target: int, at: int, end: int) -> None:
    in_kernel = True
    while at < end:
        count = min(end - at, _COUNT)
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, count, at, at)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                in_kernel = False
                continue
        else:
            os.lseek(target, at, os.SEEK_SET)
            copied = os.sendfile(target, source, at, count)
        if not copied:
            if in_kernel:  # some file systems say so where they mean that they can't
                in_kernel = False
                continue
            break
        at += copied


def _copy_xattrs(source: int | bytes, target: int | bytes) -> None:
    follow = isinstance(source, int)
    try:
        names = os.listxattr(source, follow_symlinks=follow)
    except OSError as error:
        if error.errno != EOPNOTSUPP:
            raise
        return
    for name in names:
        if name.startswith(PRIVATE_XATTRS):
            continue
        value = os.getxattr(source, name, follow_symlinks=follow)
        try:
            os.setxattr(target, name, value, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in (EOPNOTSUPP, EPERM) or name == "security.capability":
                raise
