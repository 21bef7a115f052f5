"""The mounts of an OCI spec, in two halves. On the path of `run`.

`prepare` runs in the engine: it opens what only the engine may open (bind sources, idmapped through the
container's user namespace; device nodes; the host's sysfs) as detached mounts. `realise` runs in the
container's first process: it makes what must belong to the container's namespaces (proc, sysfs, devpts, ...)
and attaches everything in the order of the spec.
"""

from __future__ import annotations

import errno
import os

from ..errors import ContainerError, Unsupported
from ..kernel import mount as m
from . import devices, rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Options that are attributes of the mount (set, clear); what is not here is data for the file system.
_ATTRIBUTES = {
    "ro": (m.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, m.MOUNT_ATTR_RDONLY),
    "nosuid": (m.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, m.MOUNT_ATTR_NOSUID),
    "nodev": (m.MOUNT_ATTR_NODEV, 0),
    "dev": (0, m.MOUNT_ATTR_NODEV),
    "noexec": (m.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, m.MOUNT_ATTR_NOEXEC),
    "nosymfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, m.MOUNT_ATTR_NOSYMFOLLOW),
    "noatime": (m.MOUNT_ATTR_NOATIME, m.MOUNT_ATTR__ATIME),
    "relatime": (0, m.MOUNT_ATTR__ATIME),
    "strictatime": (m.MOUNT_ATTR_STRICTATIME, m.MOUNT_ATTR__ATIME),
    "nodiratime": (m.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, m.MOUNT_ATTR_NODIRATIME),
}
_BIND = ("bind", "rbind")
_IDMAP = ("idmap", "ridmap")
_PROPAGATION = {"rprivate": m.MS_PRIVATE, "private": m.MS_PRIVATE, "rslave": m.MS_SLAVE, "slave": m.MS_SLAVE}


class Options:
    """A spec mount's options, sorted: attribute bits, file-system data, propagation, bind, idmap."""

    __slots__ = ("bind", "clear", "data", "idmap", "propagation", "recursive", "set")

    def __init__(self, options: list[str]) -> None:
        self.set = self.clear = self.propagation = 0
        self.bind = self.idmap = self.recursive = False
        self.data: dict[str, str | None] = {}
        for option in options:
            if option in _ATTRIBUTES:
                on, off = _ATTRIBUTES[option]
                self.set = self.set & ~off | on
                self.clear = self.clear & ~on | off
            elif option in _BIND:
                self.bind = True
                self.recursive = option == "rbind"
            elif option in _IDMAP:
                self.idmap = True
            elif option in _PROPAGATION:
                self.propagation = _PROPAGATION[option]
            elif option in ("shared", "rshared", "unbindable", "runbindable"):
                raise Unsupported(
                    f"mount propagation {option!r} is not supported", hint="Use rprivate or rslave."
                )
            else:
                key, equals, value = option.partition("=")
                self.data[key] = value if equals else None


def prepare(spec: dict[str, Any], userns: int, owner: tuple[int, int], *, nodes: bool) -> dict[int, int]:
    """Detached mounts for the entries of ``spec["mounts"]`` that the engine must open, by index.

    ``userns`` is the fd of the container's user namespace, for entries with the option idmap or ridmap;
    ``owner`` is its root, in the engine's ids; ``nodes``: device nodes can be made. The caller closes the
    fds.
    """
    made: dict[int, int] = {}
    try:
        for index, entry in enumerate(spec.get("mounts", ())):
            options = Options(entry.get("options", []))
            if options.bind or entry.get("type") == "bind":
                made[index] = _bind(entry, options, userns)
            elif entry["destination"] == "/dev" and entry.get("type") == "tmpfs":
                made[index] = devices.make(options.data, options.set, owner, nodes=nodes)
        return made
    except BaseException:
        for fd in made.values():
            os.close(fd)
        raise


def _bind(entry: dict[str, Any], options: Options, userns: int) -> int:
    source = entry["source"]
    try:
        tree = m.open_tree(m.AT_FDCWD, source, recursive=options.recursive)
    except OSError as error:
        raise ContainerError(f"can't mount {source}: {error.strerror}", hint="Is the path right?") from error
    try:
        if options.idmap:
            try:
                m.idmap(tree, userns, recursive=options.recursive)
            except OSError as error:
                raise Unsupported(
                    f"can't mount {source} into the container's user namespace: its file system, or one "
                    f"mounted below it, has no idmapped mounts ({errno.errorcode.get(error.errno or 0, '?')})",
                    hint="Mount a directory of another file system, or run with --userns=host.",
                ) from error
        if options.set or options.clear:
            m.mount_setattr(tree, set=options.set, clear=options.clear, recursive=options.recursive)
        m.mount_setattr(tree, propagation=options.propagation or m.MS_PRIVATE, recursive=True)
        return tree
    except BaseException:
        os.close(tree)
        raise


def realise(root: int, spec: dict[str, Any], prepared: dict[int, int], *, nodes: bool) -> None:
    """Attach every mount of the spec below ``root``, in order, in the container's own namespaces."""
    for index, entry in enumerate(spec.get("mounts", ())):
        destination = entry["destination"]
        kind = entry.get("type", "")
        fd = prepared.get(index)
        if fd is None:
            fd = _new(kind, entry, Options(entry.get("options", [])))
        try:
            # A symlink at /proc or /sys would put them where the masked paths are not (CVE-2019-19921).
            rootfs.attach(root, fd, destination, symlinks=kind not in ("proc", "sysfs"))
        except OSError as error:
            raise ContainerError(
                f"can't attach the {kind} mount at {destination}: {error.strerror}"
            ) from error
        os.close(fd)
        if destination == "/dev" and index in prepared and not nodes:
            devices.bind_host_nodes(root)


def _new(kind: str, entry: dict[str, Any], options: Options) -> int:
    try:
        if kind == "cgroup":
            return _cgroup(options)
        return m.new_mount(kind, options.data, attributes=options.set, source=entry.get("source", kind))
    except OSError as error:
        hint = ""
        if kind in ("proc", "sysfs") and error.errno == errno.EPERM:
            hint = (
                f"The kernel mounts {kind} in a user namespace only where the host's own is fully visible: "
                "inside another container, masked paths forbid it."
            )
        raise ContainerError(f"can't mount {kind} for {entry['destination']}: {error}", hint=hint) from error


def _cgroup(options: Options) -> int:
    """The cgroup2 hierarchy as the container's cgroup namespace shows it."""
    return m.new_mount("cgroup2", attributes=options.set, source="cgroup")
