"""What containers do in the cases of section D, and the changes that it amounts to, written out name by name."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable

from .tars import MTIME, Dir, Fifo, File, Link, Symlink, Whiteout, tar

LOWER = tar(
    Dir("d"),
    File("d/one", b"1"),
    File("d/two", b"2"),
    Dir("d/sub"),
    File("d/sub/deep", b"deep"),
    Dir("e", 0o700),
    File("f", b"content", xattrs={"user.note": b"kept"}),
    File("g", b"other"),
    Link("g-link", "g"),
    Symlink("link", "f"),
    Symlink("to-d", "d"),
    Fifo("fifo"),
)
MERGED = tar(Dir("d"), File("d/four", b"4"), Whiteout("d/one"))

# A capability as the kernel keeps it: revision 2, cap_net_bind_service, effective.
_CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def stamped(path: str, ns: int = MTIME * 10**9) -> None:
    os.utime(path, ns=(ns, ns), follow_symlinks=False)


def _same_size_same_mtime(path: str) -> None:
    write(f"{path}/f", b"CONTENT")
    stamped(f"{path}/f")


def _opaque(path: str) -> None:
    shutil.rmtree(f"{path}/d")
    os.mkdir(f"{path}/d", 0o755)
    os.chmod(f"{path}/d", 0o755)
    write(f"{path}/d/new", b"n")


def _replace(path: str, name: str, make: Callable[[str], object]) -> None:
    _remove(f"{path}/{name}")
    make(f"{path}/{name}")


def _remove(path: str) -> None:
    if stat.S_ISDIR(os.lstat(path).st_mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _new_tree(path: str) -> None:
    os.makedirs(f"{path}/new/inner")
    write(f"{path}/new/inner/file", b"x")
    os.symlink("nowhere", f"{path}/new/link")
    os.mkfifo(f"{path}/new.fifo")


def _file_to_directory(path: str) -> None:
    _replace(path, "f", os.mkdir)
    write(f"{path}/f/x", b"x")


def _all_of_it(path: str) -> None:
    for name in os.listdir(path):
        _remove(f"{path}/{name}")


# What is done in a container over LOWER and MERGED, and the changes of it: "A" added, "M" modified, "D" deleted.
OPERATIONS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "nothing": (lambda p: None, []),
    "new file": (lambda p: write(f"{p}/new", b""), ["A new"]),
    "new tree": (_new_tree, ["A new", "A new.fifo", "A new/inner", "A new/inner/file", "A new/link"]),
    "new in a directory": (lambda p: write(f"{p}/d/sub/new", b""), ["A d/sub/new"]),
    "written": (lambda p: write(f"{p}/f", b"longer content"), ["M f"]),
    "written, same size and time": (_same_size_same_mtime, ["M f"]),
    "time": (lambda p: stamped(f"{p}/f", MTIME * 10**9 + 1), ["M f"]),
    "mode": (lambda p: os.chmod(f"{p}/f", 0o4755), ["M f"]),
    "mode of a directory": (lambda p: os.chmod(f"{p}/d", 0o1777), ["M d"]),
    "mode of the root": (lambda p: os.chmod(f"{p}/.", 0o711), ["M "]),
    "attribute": (lambda p: os.setxattr(f"{p}/f", "user.more", b"1"), ["M f"]),
    "attribute's value": (lambda p: os.setxattr(f"{p}/f", "user.note", b"Kept"), ["M f"]),
    "attribute removed": (lambda p: os.removexattr(f"{p}/f", "user.note"), ["M f"]),
    "attribute of a directory": (lambda p: os.setxattr(f"{p}/d", "user.more", b"1"), ["M d"]),
    "deleted": (lambda p: os.unlink(f"{p}/f"), ["D f"]),
    "tree deleted": (lambda p: shutil.rmtree(f"{p}/d"), ["D d"]),
    "deleted in a directory": (lambda p: os.unlink(f"{p}/d/four"), ["D d/four"]),
    "everything deleted": (
        _all_of_it,
        ["D d", "D e", "D f", "D fifo", "D g", "D g-link", "D link", "D to-d"],
    ),
    "directory made again": (_opaque, ["D d/four", "A d/new", "D d/sub", "D d/two"]),
    "file to directory": (_file_to_directory, ["M f", "A f/x"]),
    "directory to file": (lambda p: _replace(p, "d", lambda d: write(d, b"")), ["M d"]),
    "symlink to directory": (lambda p: _replace(p, "to-d", os.mkdir), ["M to-d"]),
    "directory to symlink": (lambda p: _replace(p, "d", lambda d: os.symlink("e", d)), ["M d"]),
    "file to symlink": (lambda p: _replace(p, "f", lambda f: os.symlink("g", f)), ["M f"]),
    "file to fifo": (lambda p: _replace(p, "f", os.mkfifo), ["M f"]),
    "symlink's target": (lambda p: _replace(p, "link", lambda n: os.symlink("g", n)), ["M link"]),
    "file renamed": (lambda p: os.rename(f"{p}/f", f"{p}/d/sub/f"), ["A d/sub/f", "D f"]),
    "file renamed over another": (lambda p: os.rename(f"{p}/d/two", f"{p}/f"), ["D d/two", "M f"]),
    "through a symlink": (lambda p: write(f"{p}/to-d/new", b""), ["A d/new"]),
    "a further name": (lambda p: os.link(f"{p}/f", f"{p}/e/name"), ["A e/name", "M f"]),
    "a name less": (lambda p: os.unlink(f"{p}/g-link"), ["D g-link"]),
}
OWNERS: dict[str, tuple[Callable[[str], object], list[str]]] = {
    "owner": (lambda p: os.chown(f"{p}/f", 1, 0), ["M f"]),
    "group of a symlink": (lambda p: os.chown(f"{p}/link", 0, 1, follow_symlinks=False), ["M link"]),
    "owner of a directory": (lambda p: os.chown(f"{p}/d", 5, 5), ["M d"]),
}
DIRECTORY_RENAMED = (
    lambda p: os.rename(f"{p}/d", f"{p}/moved"),
    ["D d", "A moved", "A moved/four", "A moved/sub", "A moved/sub/deep", "A moved/two"],
)


def _touch_and_revert(path: str) -> None:
    os.chmod(f"{path}/f", 0o600)
    os.chmod(f"{path}/f", 0o644)
    write(f"{path}/f", b"content")
    stamped(f"{path}/f")


def _recreate(path: str) -> None:
    os.unlink(f"{path}/d/two")
    write(f"{path}/d/two", b"2")
    os.chmod(f"{path}/d/two", 0o644)
    stamped(f"{path}/d/two")


def _recreate_tree(path: str) -> None:
    shutil.rmtree(f"{path}/d/sub")
    os.mkdir(f"{path}/d/sub")
    os.chmod(f"{path}/d/sub", 0o755)
    write(f"{path}/d/sub/deep", b"deep")
    os.chmod(f"{path}/d/sub/deep", 0o644)
    stamped(f"{path}/d/sub/deep")


def _back_and_forth(path: str) -> None:
    os.rename(f"{path}/f", f"{path}/away")
    os.rename(f"{path}/away", f"{path}/f")
    os.setxattr(f"{path}/d", "user.x", b"")
    os.removexattr(f"{path}/d", "user.x")


def _come_and_go(path: str) -> None:
    os.makedirs(f"{path}/new/inner")
    write(f"{path}/d/new", b"x")
    os.unlink(f"{path}/d/new")
    shutil.rmtree(f"{path}/new")
    os.link(f"{path}/d/two", f"{path}/name")
    os.unlink(f"{path}/name")
    with open(f"{path}/d/four", "r+b"):
        pass  # overlayfs copies up


REVERTED = {
    "touched": _touch_and_revert,
    "file made again": _recreate,
    "tree made again": _recreate_tree,
    "renamed back": _back_and_forth,
    "made and removed": _come_and_go,
}


def much(path: str, devices: bool, owners: bool) -> None:
    """A container's work: one of everything, over LOWER and MERGED."""
    os.makedirs(f"{path}/new/a/b")
    write(f"{path}/new/a/file", b"x" * 100_000)
    os.link(f"{path}/new/a/file", f"{path}/new/a/b/same")
    os.link(f"{path}/g", f"{path}/new/g")  # a further name for a file of a layer
    os.chmod(f"{path}/new/a", 0o2750)
    write(f"{path}/new/setuid", b"#!/bin/sh\n")
    if owners:
        os.chown(f"{path}/new/setuid", 12, 3_000_000 if devices else 13)
        os.chown(f"{path}/e", 5, 6)
    os.chmod(f"{path}/new/setuid", 0o6755)
    os.setxattr(f"{path}/new/setuid", "security.capability", _CAPABILITY)
    os.setxattr(f"{path}/new", "user.bytes", bytes(range(256)))
    os.symlink("t/" * 120, f"{path}/new/long-target")
    os.mkfifo(f"{path}/new/fifo", 0o620)
    if devices:
        os.mknod(f"{path}/new/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(f"{path}/new/block", stat.S_IFBLK | 0o660, os.makedev(259, 200_000))
    with open(f"{path}/new/sparse", "wb") as file:
        for at in (0, 1 << 20, 5 << 20):
            file.seek(at)
            file.write(b"data" * 1024)
        file.truncate(7 << 20)
    with open(f"{path}/new/hole", "wb") as file:
        file.truncate(1 << 20)
    raw = os.fsencode(path)
    os.makedirs(raw + b"/new/" + b"n" * 255 + b"/" + b"m" * 200)
    with open(raw + b"/new/" + b"n" * 255 + b"/\xff\xfe\n\x01", "wb") as odd:
        odd.write(b"not UTF-8")
    os.unlink(f"{path}/d/four")
    shutil.rmtree(f"{path}/d/sub")
    os.mkdir(f"{path}/d/sub", 0o711)
    write(f"{path}/d/sub/fresh", b"")
    _file_to_directory(path)
    _replace(path, "to-d", lambda name: write(name, b"was a link"))
    os.unlink(f"{path}/link")
    os.symlink("new", f"{path}/link")
    for name, ns in (("new/setuid", -1_500_000_000), ("new/fifo", 1), ("d/two", 5_000_000_000_123_456_789)):
        stamped(f"{path}/{name}", ns)
    stamped(f"{path}/link", 999_999_999)


def owned(path: str) -> None:
    """Work in which owners count, in files, ACLs and capabilities."""
    os.chown(f"{path}/d/own", 1000, 1001)
    os.chown(f"{path}/d/own", 3, 5)
    os.chown(f"{path}/f", 65535, 65535)
    os.chmod(f"{path}/f", 0o4711)
    write(f"{path}/f2", b"of root")
    os.setxattr(f"{path}/f2", "security.capability", _CAPABILITY)
    write(f"{path}/d/private", b"p")
    # user::rw-, user:7:r--, group::r--, group:9:rw-, mask::rw-, other::---
    acl = bytes.fromhex(
        "02000000" "01000600ffffffff" "0200040007000000" "04000400ffffffff" "0800060009000000"
        "10000600ffffffff" "20000000ffffffff"
    )  # fmt: skip
    os.setxattr(f"{path}/d/private", "system.posix_acl_access", acl)
    os.setxattr(f"{path}/d", "system.posix_acl_default", acl)
    os.symlink("x", f"{path}/e/link")
    os.chown(f"{path}/e/link", 12, 13, follow_symlinks=False)
    write(f"{path}/e/new", b"n")
    os.link(f"{path}/e/new", f"{path}/e/gone")
    os.unlink(f"{path}/e/gone")
    stamp_all(path)


def stamp_all(path: str) -> None:
    """One time for everything, and another for nothing."""
    for directory, directories, files in os.walk(os.fsencode(path), topdown=False):
        for name in directories + files:
            os.utime(directory + b"/" + name, ns=(MTIME * 10**9,) * 2, follow_symlinks=False)
    os.utime(f"{path}/.", ns=(MTIME * 10**9,) * 2)
