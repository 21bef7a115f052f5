"""Who the process runs as: USER of an image or --user, looked up in the *container's* passwd and group.

On the path of `run`. The files are parsed here: the host's name service would load libraries by what the
container says (CVE-2019-14271).
"""

from __future__ import annotations

import os
import stat

from ..errors import ContainerError
from ..kernel.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2

_MAX = 4 << 20
_MAX_ID = 2**32 - 2


class User:
    """Numeric identity, the supplementary groups, and the home directory."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def resolve(root: int, text: str) -> User:
    """``text`` is "", or "user[:group]" by name or number, as docker reads it; ``root`` a directory fd.

    A number needs no entry in passwd; a name does. Without ":group" the supplementary groups are those that
    list the user. Raises `ContainerError`.
    """
    user_text, colon, group_text = text.partition(":")
    user_text = user_text or "0"
    number = _number(user_text)
    uid, gid, home, name = number, 0, "/", ""
    for fields in _entries(root, "/etc/passwd"):
        if len(fields) >= 6 and (fields[0] == user_text or (number is not None and fields[2] == str(number))):
            entry_uid, entry_gid = _number(fields[2]), _number(fields[3])
            if entry_uid is None or entry_gid is None:
                continue
            uid, gid, home, name = entry_uid, entry_gid, fields[5] or "/", fields[0]
            break
    if uid is None:
        raise ContainerError(
            f"there is no user {user_text!r} in the container's /etc/passwd", hint="Give the number instead."
        )
    if home == "/" and uid == 0 and not name:
        home = "/root"
    groups: list[int] = []
    if colon and group_text:
        wanted = _number(group_text)
        for fields in _entries(root, "/etc/group"):
            if wanted is None and len(fields) >= 3 and fields[0] == group_text:
                wanted = _number(fields[2])
        if wanted is None:
            raise ContainerError(
                f"there is no group {group_text!r} in the container's /etc/group",
                hint="Give the number instead.",
            )
        gid = wanted
    elif name:
        for fields in _entries(root, "/etc/group"):
            if len(fields) >= 4 and name in fields[3].split(","):
                member_of = _number(fields[2])
                if member_of is not None and member_of not in groups:
                    groups.append(member_of)
    return User(uid, gid, groups, home)


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) > _MAX_ID:
        return None
    return int(text)


def _entries(root: int, path: str) -> list[list[str]]:
    """The lines of a passwd-like file of the container, split; a missing or odd file is empty."""
    try:
        # O_PATH first: opening a device or a fifo of that name would do something, as the host's root.
        found = openat2(root, path, os.O_PATH, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.stat(found).st_mode):
            return []
        fd = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    finally:
        os.close(found)
    try:
        content = os.read(fd, _MAX)
    except OSError:
        return []
    finally:
        os.close(fd)
    return [line.split(":") for line in content.decode("utf-8", "surrogateescape").split("\n")]
