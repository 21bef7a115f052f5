"""The EROFS on-disk format, as much of it as an index over a tar needs.

Source: the kernel's fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst. Blocks have 512 bytes, as a
tar's have, so that a file's content can be found where it stands in the tar (Linux 6.4 and later with pages of
4 KiB). Inodes are the extended ones of 64 bytes.
"""

from __future__ import annotations

import stat
import struct

from ..errors import LayerError
from .names import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

BLOCK = 512
BLOCK_BITS = 9

# Block addresses have 32 bits. The index itself takes those below, the tar those from here on.
TAR_AT = 1 << 28
TAR_LIMIT = ((1 << 32) - TAR_AT - 1) * BLOCK
FIRST_BLOCK = 3  # after the superblock (at byte 1024) and the one device slot

# i_format: bit 0 says "extended", the bits from 1 the layout of the data.
PLAIN = 1 | 0 << 1
INLINE = 1 | 2 << 1
CHUNKS = 1 | 4 << 1

# i_format i_xattr_icount i_mode i_reserved i_size i_u i_ino i_uid i_gid i_mtime i_mtime_nsec i_nlink
INODE = struct.Struct("<HHHHQIIIIqII16x")
INODE_SIZE = 64
NID = 32  # bytes of the slots that inodes are numbered by
HOLE = b"\xff\xff\xff\xff"

_DIRENT = struct.Struct("<QHBx")
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFLNK: 7,
}
DIRECTORY = 2
# By the uppermost four bits of a mode.
TYPE_OF = [_TYPES.get(kind << 12, 0) for kind in range(16)]

_SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_MAGIC = 0xE0F5E1E2
_MTIME = 2  # feature_compat: inodes have mtime, not ctime
_CHUNKED_FILE = 4
_DEVICE_TABLE = 8
_DEVICE = struct.Struct("<64sII56x")

_XATTR = struct.Struct("<BBH")
_XATTR_HEADER = bytes(12)
_XATTR_LIMIT = 12 + 4 * 65534
_PREFIXES = ((b"user.", 1), (b"trusted.", 4), (b"security.", 6))
_WHOLE = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}


def superblock(identity: bytes, root: int, inodes: int, meta: int, blocks: int, tar_size: int) -> bytes:
    """The first blocks: superblock and device slot.

    identity  what the file system's UUID is made of and the slot's tag shows: the tar's digest
    root      number of the root inode, below 65536
    meta      first block of the inodes; ``blocks`` of the whole index
    """
    head = _SUPER.pack(
        _MAGIC,
        0,
        _MTIME,
        BLOCK_BITS,
        0,
        root,
        inodes,
        0,
        0,
        blocks,
        meta,
        0,
        identity[:16].ljust(16, b"\0"),
        b"",
        _CHUNKED_FILE | _DEVICE_TABLE,
        0,
        1,
        (1024 + _SUPER.size) // _DEVICE.size,
        0,
        0,
        0,
        0,
        0,
    )
    slot = _DEVICE.pack(identity.hex().encode()[:64], -(-tar_size // BLOCK), TAR_AT)
    return (bytes(1024) + head + slot).ljust(FIRST_BLOCK * BLOCK, b"\0")


def xattr(name: bytes, value: bytes) -> bytes:
    """One extended attribute as it stands behind an inode: of user, trusted or security, or an ACL.

    Raises `LayerError` for a value of more than 65,535 bytes.
    """
    number, rest = _WHOLE.get(name), b""
    if number is None:
        number, prefix = next((n, p) for p, n in _PREFIXES if name.startswith(p))
        rest = name[len(prefix) :]
    if len(value) > 0xFFFF:
        raise LayerError(
            f"layer: the extended attribute {shown(name)} has {len(value)} bytes, more than 65535"
        )
    record = _XATTR.pack(len(rest), number, len(value)) + rest + value
    return record + bytes(-len(record) % 4)


def xattr_body(records: bytes) -> tuple[bytes, int]:
    """What stands between an inode and its data, from `xattr` records put together, and its i_xattr_icount."""
    if not records:
        return b"", 0
    body = _XATTR_HEADER + records
    if len(body) > _XATTR_LIMIT:
        raise LayerError(
            f"layer: extended attributes of {len(body)} bytes; EROFS holds {_XATTR_LIMIT} a file"
        )
    return body, (len(body) - len(_XATTR_HEADER)) // 4 + 1


def directory_blocks(entries: Iterable[tuple[bytes, int, int]]) -> Iterator[bytes]:
    """The blocks of a directory of (name, inode number, type) ``entries``, which are sorted by name: the kernel
    searches by halves, among the blocks by their first names and then in one. All but the last are whole."""
    pack = _DIRENT.pack
    rows: list[tuple[bytes, int, int]] = []
    room = BLOCK
    pending = b""
    for entry in entries:
        need = 12 + len(entry[0])
        if need > room:
            if pending:
                yield pending
            pending = _directory_block(rows, pack).ljust(BLOCK, b"\0")
            rows, room = [], BLOCK
        rows.append(entry)
        room -= need
    if pending:
        yield pending
    yield _directory_block(rows, pack)


def _directory_block(rows: list[tuple[bytes, int, int]], pack: object) -> bytes:
    at = 12 * len(rows)
    heads = []
    for name, number, kind in rows:
        heads.append(pack(number, at, kind))  # type: ignore[operator]
        at += len(name)
    return b"".join(heads) + b"".join([row[0] for row in rows])
