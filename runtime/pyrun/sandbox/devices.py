"""/dev: a tmpfs with the nodes every container has. On the path of `run`.

The engine makes the nodes and gives them to the container's root: a device node that belongs to host root
would be EACCES in the container's user namespace. A rootless engine can't make nodes, so the container's
first process binds the host's.
"""

from __future__ import annotations

import os
import stat

from ..errors import ContainerError
from ..kernel import mount as m
from . import rootfs

# OCI runtime spec, config-linux, "Default Devices".
NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
    "ptmx": "pts/ptmx",
}


def make(options: dict[str, str | None], attributes: int, owner: tuple[int, int], *, nodes: bool) -> int:
    """A detached tmpfs for /dev, owned by ``owner``; empty files in place of nodes where not ``nodes``."""
    fd = m.new_mount("tmpfs", options, attributes=attributes, source="tmpfs")
    try:
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        previous = os.umask(0)
        try:
            for name, (major, minor) in NODES.items():
                if nodes:
                    os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=directory)
                else:
                    os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=directory))
                os.chown(name, *owner, dir_fd=directory)
            for name, target in LINKS.items():
                os.symlink(target, name, dir_fd=directory)
                os.chown(name, *owner, dir_fd=directory, follow_symlinks=False)
            for name in ("pts", "shm", "mqueue"):
                os.mkdir(name, 0o755, dir_fd=directory)
                os.chown(name, *owner, dir_fd=directory)
            os.chown(directory, *owner)
        finally:
            os.umask(previous)
            os.close(directory)
        return fd
    except BaseException:
        os.close(fd)
        raise


def bind_host_nodes(root: int) -> None:
    """Bind the host's device nodes onto the empty files of `make`. Runs before pivot_root."""
    for name, (major, minor) in NODES.items():
        node = os.open(f"/dev/{name}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.stat(node)
            if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(major, minor):
                raise ContainerError(f"the host's /dev/{name} is not the character device {major}:{minor}")
            clone = m.open_tree(node, "")
            rootfs.attach(root, clone, f"/dev/{name}")
            os.close(clone)
        finally:
            os.close(node)
