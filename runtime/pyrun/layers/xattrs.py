"""What Linux makes of extended attributes when they are set, for a tree that no kernel sees being made.

An index that is written from a tar has to refuse, drop and change what setxattr(2) on a disk's file system would:
so a layer means the same, however it is kept. Source: fs/xattr.c, fs/posix_acl.c and security/commoncap.c.
"""

from __future__ import annotations

import struct

from ..errors import LayerError
from .names import shown

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"
CAPABILITY = b"security.capability"

_KNOWN = (b"user.", b"trusted.", b"security.")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_ENTRY = struct.Struct("<HHI")


def settle(
    xattrs: dict[bytes, bytes], kind: str, mode: int, dropped: set[bytes]
) -> tuple[dict[bytes, bytes], int]:
    """The attributes that an entry of type ``kind`` keeps of ``xattrs``, sorted, and its mode, which an access ACL
    changes. Names of what is left out are added to ``dropped``, at most 100.

    Raises `LayerError` for a value that the kernel takes for malformed.
    """
    kept = {}
    for name, value in sorted(xattrs.items()):
        if name in (ACCESS, DEFAULT):
            if kind == "symlink" or value[:4] not in (b"", b"\2\0\0\0"):
                _drop(name, dropped)
                continue
            entries = _acl(name, value)
            if not entries:
                continue
            if name == DEFAULT and kind != "dir":
                raise LayerError(f"layer: a {shown(name)} for what is no directory")
            if name == ACCESS:
                mode, plain = _mode(entries, mode)
                if plain:
                    continue
        elif not name.startswith(_KNOWN) or (name.startswith(b"user.") and kind not in ("file", "dir")):
            _drop(name, dropped)
            continue
        elif name in _KNOWN:
            raise LayerError(f"layer: an extended attribute called {shown(name)}")
        elif name == CAPABILITY and not _is_capability(value):
            raise LayerError(f"layer: a malformed {shown(name)}")
        kept[name] = value
    return kept, mode


def _drop(name: bytes, dropped: set[bytes]) -> None:
    if len(dropped) < 100:
        dropped.add(name)


def _is_capability(value: bytes) -> bool:
    """vfs_cap_data of revision 2, or 3 with a root id (linux/capability.h)."""
    return (len(value), value[3:4]) in ((20, b"\2"), (24, b"\3"))


def _acl(name: bytes, value: bytes) -> list[tuple[int, int, int]]:
    """(tag, permissions, id) of an ACL that posix_acl_valid() accepts; empty for one without entries."""
    if len(value) < 4 or (len(value) - 4) % _ENTRY.size:
        raise LayerError(f"layer: a malformed {shown(name)}")
    entries = list(_ENTRY.iter_unpack(value[4:]))
    named = False
    allowed: tuple[int, ...] = (_USER_OBJ,)
    for tag, permissions, id in entries:
        if tag not in allowed or permissions > 7 or (tag in (_USER, _GROUP) and id == 0xFFFFFFFF):
            raise LayerError(f"layer: a malformed {shown(name)}")
        if tag in (_USER_OBJ, _USER):
            allowed = (_USER, _GROUP_OBJ)
        elif tag in (_GROUP_OBJ, _GROUP):
            allowed = (_GROUP, _MASK, _OTHER)
        else:
            allowed = (_OTHER,) if tag == _MASK else ()
        named = named or tag in (_USER, _GROUP)
    if entries and (entries[-1][0] != _OTHER or (named and entries[-2][0] != _MASK)):
        raise LayerError(f"layer: a malformed {shown(name)}")
    return entries


def _mode(entries: list[tuple[int, int, int]], mode: int) -> tuple[int, bool]:
    """The mode of a file with this access ACL, and whether the mode says as much as the ACL."""
    by_tag = {tag: permissions for tag, permissions, _ in entries}
    group = by_tag.get(_MASK, by_tag[_GROUP_OBJ])
    bits = by_tag[_USER_OBJ] << 6 | group << 3 | by_tag[_OTHER]
    return mode & ~0o777 | bits, len(entries) == 3
