"""Run by the host's Python inside a container: `make` files of every kind, and `look` at all there is.

    python inside.py [make] look [wait]

Standard library only, and nothing of the test's: the container has no more.
"""

import hashlib
import json
import os
import socket
import stat
import struct
import sys

MTIME = 1_650_000_000_123_456_789
ACL_USER, ACL_GROUP = 2, 8


def acl(*entries):
    """POSIX_ACL_XATTR_VERSION 2 with (tag, permissions, id) entries."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def capability():
    """VFS_CAP_REVISION_2: cap_net_bind_service, permitted and effective."""
    return struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def make():
    os.umask(0)
    os.makedirs("/tree/dir/sub")
    for number, name in enumerate(("root", "other", "nobody")):
        with open(f"/tree/{name}", "w") as file:
            file.write(name * 1000)
        os.chown(f"/tree/{name}", *((0, 0), (1000, 2000), (65534, 65534))[number])
    with open("/tree/setuid", "wb") as file:
        file.write(b"#!/bin/true\n")
    os.chown("/tree/setuid", 33, 33)
    os.chmod("/tree/setuid", 0o6755)
    with open("/tree/acl", "w") as file:
        file.write("acl")
    entries = (
        (1, 6, 0xFFFFFFFF),
        (ACL_USER, 6, 1234),
        (4, 4, 0xFFFFFFFF),
        (ACL_GROUP, 5, 4321),
        (16, 7, 0xFFFFFFFF),
    )
    os.setxattr("/tree/acl", "system.posix_acl_access", acl(*entries, (32, 4, 0xFFFFFFFF)))
    os.setxattr("/tree/dir", "system.posix_acl_default", acl(*entries, (32, 0, 0xFFFFFFFF)))
    with open("/tree/capable", "wb") as file:
        file.write(b"\x7fELF")
    os.chown("/tree/capable", 10, 10)
    os.setxattr("/tree/capable", "security.capability", capability())
    os.setxattr("/tree/other", "user.note", b"\0\xff")
    with open("/tree/sparse", "wb") as file:
        file.seek(64 << 20)
        file.write(b"end")
    os.link("/tree/other", "/tree/dir/hard")
    os.symlink("../root", "/tree/dir/link")
    os.lchown("/tree/dir/link", 7, 8)
    os.mkfifo("/tree/fifo", 0o640)
    os.mkdir("/tree/sticky", 0o1777)
    os.mkdir("/tree/closed", 0o000)
    os.chown("/tree/closed", 12, 13)
    with open(b"/tree/\xff \n\x1b[31m", "w") as file:
        file.write("a name that is not text")
    with open("/tree/" + "l" * 200, "w") as file:
        file.write("a long name")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("/tree/socket")
    # In place of what the image has, and of what it is.
    os.unlink("/etc/passwd")
    os.unlink("/etc/group")
    os.mkdir("/etc/group")
    os.chown("/etc/shells" if os.path.exists("/etc/shells") else "/etc/group", 44, 45)
    os.chown("/root", 100, 101)
    for directory, names, files in os.walk(b"/tree", topdown=False):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            os.utime(path, ns=(MTIME, MTIME), follow_symlinks=False)
    for path in ("/tree", "/etc/group", "/etc", "/root", "/"):
        os.utime(path, ns=(MTIME, MTIME))


def mounted():
    with open("/proc/self/mountinfo", "rb") as file:
        return {line.split()[4].decode("unicode_escape").encode("latin-1") for line in file} - {b"/"}


def look():
    found = {}
    points = mounted()
    inodes = {}
    todo = [b"/"]
    while todo:
        path = todo.pop()
        st = os.lstat(path)
        if stat.S_ISSOCK(st.st_mode):
            continue
        text = ""
        if stat.S_ISLNK(st.st_mode):
            text = os.fsdecode(os.readlink(path))
        elif stat.S_ISREG(st.st_mode) and path not in points:
            with open(path, "rb") as file:
                text = hashlib.sha256(file.read()).hexdigest()
        elif stat.S_ISDIR(st.st_mode) and path not in points:
            todo += [os.path.join(path, name) for name in os.listdir(path)]
        if path in points:
            continue
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False).hex()
            for name in os.listxattr(path, follow_symlinks=False)
            if name != "security.selinux"
        }
        same = ""
        if not stat.S_ISDIR(st.st_mode):
            same = inodes.setdefault((st.st_dev, st.st_ino), [])
            same.append(os.fsdecode(path))
        size = 0 if stat.S_ISDIR(st.st_mode) else st.st_size
        times = st.st_mtime_ns if path.startswith(b"/tree") or not stat.S_ISDIR(st.st_mode) else 0
        found[os.fsdecode(path)] = [
            stat.S_IFMT(st.st_mode) | stat.S_IMODE(st.st_mode),
            st.st_uid,
            st.st_gid,
            size,
            times,
            text,
            xattrs,
            same,
        ]
    for node in found.values():
        node[-1] = min(node[-1]) if len(node[-1]) > 1 else ""
    return found


if __name__ == "__main__":
    if "make" in sys.argv:
        make()
    if "look" in sys.argv:
        print(json.dumps(look()), flush=True)
    if "wait" in sys.argv:
        sys.stdin.read()
