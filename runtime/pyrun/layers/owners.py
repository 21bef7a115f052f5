"""User and group ids inside extended attributes: POSIX ACLs and file capabilities.

An idmapped mount shows them translated, as it shows the owners of files; what goes into a layer is translated
back. Formats: include/uapi/linux/posix_acl_xattr.h and include/uapi/linux/capability.h.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_ACL_VERSION = 2
_ACL_USER = 0x02
_ACL_GROUP = 0x08

_CAPABILITY = b"security.capability"
_REVISION = 0xFF000000
_REVISION_2 = 0x02000000
_REVISION_3 = 0x03000000


def translated(name: bytes, value: bytes, owner: Callable[[int, int], tuple[int, int]]) -> bytes:
    """The value of the extended attribute ``name`` with its ids translated by ``owner``, which takes and gives
    a user and a group id. A value that is not well-formed is returned as it is.

    A capability of revision 3 counts for the user namespace whose root user it names; one that names the
    layer's own root becomes one of revision 2, which is the same to every reader.
    """
    if name in _ACLS:
        return _acl(value, owner)
    if name == _CAPABILITY:
        return _capability(value, owner)
    return value


def _acl(value: bytes, owner: Callable[[int, int], tuple[int, int]]) -> bytes:
    if len(value) % 8 != 4 or struct.unpack_from("<I", value)[0] != _ACL_VERSION:
        return value
    parts = [value[:4]]
    for tag, permissions, id in struct.iter_unpack("<HHI", value[4:]):
        if tag == _ACL_USER:
            id = owner(id, id)[0]
        elif tag == _ACL_GROUP:
            id = owner(id, id)[1]
        parts.append(struct.pack("<HHI", tag, permissions, id))
    return b"".join(parts)


def _capability(value: bytes, owner: Callable[[int, int], tuple[int, int]]) -> bytes:
    if len(value) != 24:
        return value
    (magic,) = struct.unpack_from("<I", value)
    if magic & _REVISION != _REVISION_3:
        return value
    (root,) = struct.unpack_from("<I", value, 20)
    root = owner(root, root)[0]
    if root == 0:
        return struct.pack("<I", magic & ~_REVISION | _REVISION_2) + value[4:20]
    return value[:20] + struct.pack("<I", root)
