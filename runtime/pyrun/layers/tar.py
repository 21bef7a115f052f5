"""The tar stream of a layer, read once, forwards, without trusting a byte of it.

Formats: POSIX.1-2017 ustar and pax, GNU tar's (long names, base-256 numbers, sparse files), star's and v7.
Where readers in the field disagree on what an archive holds, it is refused rather than guessed at
(CVE-2025-62518 was such a difference). What is read: OCI image spec, layer.md.
"""

from __future__ import annotations

import struct
from os import write
from zlib import adler32

from ..errors import LayerError
from . import pax, sparse
from .entry import Entry
from .limits import Limits
from .names import WHITEOUT, WHITEOUT_META, WHITEOUT_OPAQUE, root_relative, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Stream(Protocol):
        """``read(n)`` returns at most n bytes, as any bytes-like object, and an empty one at the end. The
        object may be reused by the next call."""

        def read(self, n: int, /) -> bytes | bytearray | memoryview: ...


CHUNK = 1 << 20
BLOCK = 512
_ZERO = bytes(BLOCK)
_HUGE = 1 << 62

# name mode uid gid size mtime chksum typeflag linkname magic (version uname gname) devmajor devminor prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s66x8s8s155s12x")
_unpack = _HEADER.unpack

_TYPES = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "link",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "dir",
    b"6": "fifo",
}


class TarReader:
    """Iterates over the `Entry` objects of ``stream``. When it ends, the stream has been read to EOF.

    Between two steps the entry's stored content can be taken with `copy` or `read`; what is not taken is
    skipped. Every step raises `LayerError` for a malformed, hostile or truncated stream; what the stream's
    own ``read`` raises passes through and is kept in ``failure``.
    """

    def __init__(self, stream: Stream, limits: Limits | None = None) -> None:
        self.entries = 0
        self.failure: BaseException | None = None
        self._stream = stream
        self._limits = limits or Limits()
        self._budget = _HUGE if self._limits.bytes is None else self._limits.bytes
        self._buf = memoryview(b"")
        self._base = 0  # stream offset of _buf[0]
        self._end = 0  # len(_buf)
        self._at = 0  # stream offset of the next byte of content
        self._left = 0  # content bytes not yet taken
        self._next = 0  # stream offset of the next header
        self._dirs: dict[bytes, bytes] = {}
        self._numbers: dict[bytes, int] = {}
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> TarReader:
        return self

    # --- the stream

    @property
    def offset(self) -> int:
        """Bytes of the stream read so far."""
        return self._base + self._end

    def _load(self) -> bool:
        """Take the next piece of the stream in place of the current one. False at EOF."""
        try:
            piece = memoryview(self._stream.read(CHUNK))
        except BaseException as failure:
            self.failure = failure
            raise
        self._base += self._end
        self._buf = piece
        self._end = len(piece)
        return self._end > 0

    def _take(self, at: int, size: int) -> bytes:
        """``size`` bytes from stream offset ``at``, which is not before the current piece."""
        i = at - self._base
        if i + size <= self._end:
            return bytes(self._buf[i : i + size])
        parts = []
        while size:
            i = at - self._base
            if i >= self._end:
                if not self._load():
                    raise LayerError(f"layer: the tar stream is cut off at byte {self.offset}")
                continue
            part = bytes(self._buf[i : i + size])
            parts.append(part)
            at += len(part)
            size -= len(part)
        return b"".join(parts)

    def copy(self, fd: int, size: int) -> None:
        """Write the next ``size`` bytes of the entry's content to ``fd``."""
        if size > self._left:
            raise ValueError("more than the entry has left")
        self._left -= size
        i = self._at - self._base
        self._at += size
        while size:
            room = self._end - i
            if room <= 0:
                if not self._load():
                    raise LayerError(f"layer: the tar stream is cut off at byte {self.offset}")
                i = -room
                continue
            taken = write(fd, self._buf[i : i + size])
            i += taken
            size -= taken

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes of the entry's content; empty after the last."""
        size = min(size, self._left)
        data = self._take(self._at, size)
        self._at += size
        self._left -= size
        return data

    def _content_block(self) -> bytes:
        if self._left < BLOCK:
            raise LayerError("layer: a sparse map is cut off")
        return self.read(BLOCK)

    def _extension(self) -> bytes:
        block = self._take(self._next, BLOCK)
        self._next += BLOCK
        return block

    # --- headers

    def __next__(self) -> Entry:
        local: dict[bytes, bytes] | None = None
        long_name: bytes | None = None
        long_link: bytes | None = None
        while True:
            at = self._next
            i = at - self._base
            block = self._buf[i : i + BLOCK] if i + BLOCK <= self._end else self._take(at, BLOCK)
            fields = _unpack(block)
            chksum = fields[6]
            # adler32's low half is 1 plus the sum of the bytes, modulo 65521: far faster than sum().
            low = (adler32(block) & 0xFFFF) - (adler32(chksum) & 0xFFFF) + 256
            if chksum[0] == 0 and bytes(block) == _ZERO:
                self._trailer(at, bool(local is not None or long_name is not None or long_link is not None))
                raise StopIteration
            if (low - _number(chksum)) % 65521:
                self._check_signed(bytes(block), at)
            self._next = at + BLOCK
            kind = fields[7]
            if kind not in _EXTENDED:
                entry = self._entry(fields, block, local, long_name, long_link)
                if entry is not None:
                    return entry
                local = long_name = long_link = None
                continue

            size = _number(fields[4])
            if not 0 <= size <= self._limits.header:
                raise LayerError(
                    f"layer: an extended header of {size} bytes, more than the limit of {self._limits.header}"
                )
            data = self._take(self._next, size)
            self._next += size + -size % BLOCK
            if kind == b"g":
                records = pax.parse(data)
                pax.check_global(records)
                self._global.update(records)
                if len(self._global) > 64:  # they are merged into every entry's own
                    raise LayerError("layer: more than 64 global pax records")
            elif kind == b"x" and local is None:
                local = pax.parse(data)
            elif kind == b"L" and long_name is None:
                long_name = data.partition(b"\0")[0]
            elif kind == b"K" and long_link is None:
                long_link = data.partition(b"\0")[0]
            else:
                raise LayerError(f"layer: two extended headers of type {kind.decode()!r} for one entry")

    def _trailer(self, at: int, dangling: bool) -> None:
        """The archive ends with two zero blocks; what follows them is read, for its bytes are hashed too,
        and ignored."""
        if dangling:
            raise LayerError("layer: the tar stream ends after an extended header")
        if self._take(at + BLOCK, BLOCK) != _ZERO:
            raise LayerError("layer: a lone zero block in the tar stream")
        while self._load():
            pass

    def _check_signed(self, block: bytes, at: int) -> None:
        """Some old writers summed signed bytes; every reader accepts that."""
        field = block[148:156]
        total = sum(block) - sum(field) + 256
        high = sum(1 for i, byte in enumerate(block) if byte > 127 and not 148 <= i < 156)
        if _number(field) != total - 256 * high:
            raise LayerError(f"layer: the tar header at byte {at} has a bad checksum")

    def _known(self, field: bytes) -> int:
        """`_number`, remembered: modes, owners and times are the same again and again."""
        value = self._numbers.get(field)
        if value is None:
            if len(self._numbers) >= 4096:
                self._numbers.clear()
            value = self._numbers[field] = _number(field)
        return value

    def _split(self, name: bytes) -> tuple[bytes, bytes]:
        """Root-relative (dir, base) of a member's name, by way of the directories seen lately."""
        directory, slash, base = name.rstrip(b"/").rpartition(b"/")
        if base not in _DOTS and len(base) <= self._limits.component and b"\0" not in base:
            clean = b"" if not slash else self._dirs.get(directory)
            if clean is None:
                clean = root_relative(directory, self._limits)
                if len(self._dirs) >= 1024:
                    self._dirs.clear()
                self._dirs[directory] = clean
            if clean.count(b"/") + 2 > self._limits.depth:
                raise LayerError(f"layer entry {shown(name)}: deeper than {self._limits.depth} directories")
            return clean, base
        directory, _, base = root_relative(name, self._limits).rpartition(b"/")
        return directory, base

    def _entry(
        self,
        fields: tuple[bytes, ...],
        block: bytes | memoryview,
        local: dict[bytes, bytes] | None,
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry | None:
        """The entry of a header and of what its extended headers say; None for aufs' metadata."""
        number = self._known
        name, mode, uid, gid, size, mtime, _, kind, link, magic, major, minor, prefix = fields
        name = name.partition(b"\0")[0]
        if magic == b"ustar\0" and prefix[0]:
            if block[508:512] == b"tar\0":  # star keeps two times at the end of the prefix
                prefix = prefix[:131]
            name = prefix.partition(b"\0")[0] + b"/" + name
        if long_name is not None:
            name = long_name
        link = long_link if long_link is not None else link.partition(b"\0")[0]
        records = {**self._global, **(local or {})} if self._global else local
        if records:
            # Writers use either; of the two readers hold to different ones.
            if (long_name is not None and b"path" in records) or (
                long_link is not None and b"linkpath" in records
            ):
                raise LayerError(f"layer entry {shown(name)}: named by both a GNU and a pax header")
            name = records.get(b"GNU.sparse.name") or records.get(b"path") or name
            link = records.get(b"linkpath") or link

        self.entries += 1
        if self.entries > self._limits.entries:
            raise LayerError(f"layer: more than {self._limits.entries} entries")
        kind_name = _TYPES.get(kind)
        if kind_name is None:
            raise LayerError(f"layer entry {shown(name)}: a member of unknown type {shown(kind)}")
        if kind == b"\0" and name[-1:] == b"/":  # v7 had no type for directories
            kind_name = "dir"
        directory, base = self._split(name)
        entry = Entry(
            directory,
            base,
            kind_name,
            number(mode) & 0o7777,
            number(uid),
            number(gid),
            number(mtime) * 1_000_000_000,
        )
        stored = _number(size)
        holes = False
        if records:
            stored, holes = self._apply_records(entry, records, stored)
            if holes and (kind_name != "file" or kind == b"S"):
                raise LayerError(f"layer entry {shown(name)}: a sparse map for what can't have one")
        if not (0 <= entry.uid < 0xFFFFFFFF and 0 <= entry.gid < 0xFFFFFFFF):
            raise LayerError(f"layer entry {shown(name)}: the owner is not a user or group ID")
        if not -_HUGE * 2 * 1_000_000_000 <= entry.mtime_ns < _HUGE * 2 * 1_000_000_000:
            raise LayerError(f"layer entry {shown(name)}: the modification time is out of range")
        if not 0 <= stored < _HUGE:
            raise LayerError(f"layer entry {shown(name)}: a size of {stored} bytes")

        # Only files have content, whatever the size of another type says: so Go's reader and GNU tar's.
        if kind_name == "file":
            entry.size = entry.stored = stored
            runs = None
            if kind == b"S":
                runs, entry.size = sparse.old_gnu(bytes(block), self._extension, _number, self._limits.header)
            self._at = self._next
            self._left = stored
            self._next += stored + -stored % BLOCK
            if holes and records:
                runs, entry.size, entry.stored = self._pax_sparse(records, stored)
            if runs is not None:
                entry.sparse = sparse.checked(runs, entry.size, entry.stored, self._limits.sparse)
            entry.offset = self._at
            self._budget -= stored
            if self._budget < 0:
                raise LayerError(
                    f"layer entry {shown(name)}: more than {self._limits.bytes} bytes of files in the layer"
                )
        else:
            self._left = 0
            if kind_name == "symlink":
                if b"\0" in link:
                    raise LayerError(f"layer entry {shown(name)}: the link's target contains a NUL byte")
                entry.linkname = link
            elif kind_name == "link":
                entry.linkname = root_relative(link, self._limits, "hard link to")
                if not entry.linkname:
                    raise LayerError(f"layer entry {shown(name)}: a hard link to the root directory")
            elif kind_name == "char" or kind_name == "block":
                entry.devmajor, entry.devminor = number(major), number(minor)
                if not (0 <= entry.devmajor < 1 << 12 and 0 <= entry.devminor < 1 << 20):
                    raise LayerError(f"layer entry {shown(name)}: the device number is out of range")

        # `.wh.` in a directory's name as much as in the last component's.
        if base[:4] == WHITEOUT or (directory and WHITEOUT in directory):
            made = self._whiteout(entry)
            if made is not entry or entry.type in ("whiteout", "opaque"):
                return made
        if kind_name == "char" and entry.devmajor == entry.devminor == 0:
            raise LayerError(f"layer entry {shown(name)}: a character device 0/0 is a whiteout to overlayfs")
        if not base and kind_name != "dir":
            raise LayerError(f"layer: the root entry is a {kind_name}, not a directory")
        return entry

    def _apply_records(self, entry: Entry, records: dict[bytes, bytes], stored: int) -> tuple[int, bool]:
        """Set what pax records say of ``entry``; an empty value leaves the header's (POSIX pax). Returns the
        stored size, and whether there is a sparse map."""
        holes = False
        for key, value in records.items():
            if key.startswith(pax.XATTR):
                name = pax.xattr_name(key)
                if name is not None:
                    entry.xattrs[name] = value
            elif not value:
                continue
            elif key == b"mtime":
                entry.mtime_ns = pax.nanoseconds(value)
            elif key == b"size":
                stored = pax.decimal(value, "a size")
            elif key == b"uid":
                entry.uid = pax.decimal(value, "a user ID")
            elif key == b"gid":
                entry.gid = pax.decimal(value, "a group ID")
            elif key.startswith(b"GNU.sparse."):
                holes = True
        return stored, holes

    def _pax_sparse(self, records: dict[bytes, bytes], stored: int) -> tuple[sparse.Map, int, int]:
        """Map, size and stored bytes of a sparse member in one of the pax formats."""
        size = pax.decimal(
            records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size", b""), "a size"
        )
        runs = sparse.from_pax(records)
        if runs is not None:
            return runs, size, stored
        runs, taken = sparse.leading(self._content_block, self._limits.header)
        return runs, size, stored - taken

    def _whiteout(self, entry: Entry) -> Entry | None:
        """``entry`` as the whiteout that its name makes of it; None for aufs' metadata."""
        name = entry.name
        parts = name.split(b"/")
        base = entry.base
        for part in parts:
            if part.startswith(WHITEOUT_META) and not (part == WHITEOUT_OPAQUE and part is parts[-1]):
                return None
        if any(part.startswith(WHITEOUT) for part in parts[:-1]):
            raise LayerError(f"layer entry {shown(name)}: a directory named as a whiteout")
        if not base.startswith(WHITEOUT):
            return entry
        if base == WHITEOUT_OPAQUE:
            entry.type = "opaque"
            entry.dir, _, entry.base = entry.dir.rpartition(b"/")
            return entry
        entry.type = "whiteout"
        entry.base = base[len(WHITEOUT) :]
        if entry.base in _DOTS:
            raise LayerError(f"layer entry {shown(name)}: a whiteout of {shown(entry.base)}")
        return entry


_EXTENDED = frozenset((b"x", b"g", b"L", b"K"))
_DOTS = frozenset((b"", b".", b".."))


def _number(field: bytes) -> int:
    """An octal or base-256 (GNU) number; empty is 0."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if field[0] & 0x40 else value
    digits = field.strip(b" \0")
    if not digits.isdigit():
        digits = digits.partition(b"\0")[0].strip(b" ")
        if not digits:
            return 0
        # int() would take a sign, a prefix or an underscore too.
        if not digits.isdigit():
            raise LayerError("layer: a number in a tar header is not octal")
    try:
        return int(digits, 8)
    except ValueError:
        raise LayerError("layer: a number in a tar header is not octal") from None
