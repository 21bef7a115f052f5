"""What an image archive holds: members by name, read in place; nothing is ever extracted.

The archive is a stranger's. A tar is read by `pyrun.layers.tar`, which refuses what readers disagree on; a directory is
read through its descriptor, and nothing outside of it.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Generator, Iterator
from typing import Protocol

from ...errors import ImageError, LayerError
from ...kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2
from ...layers.limits import Limits
from ...layers.tar import TarReader
from ..printable import printable

MAX_MEMBERS = 100_000
MAX_NAMES = 32 << 20  # bytes of all names and links together, which are kept in memory
MAX_HOPS = 10  # links from one member to the next
_CHUNK = 256 << 10
_LIMITS = Limits(entries=MAX_MEMBERS, depth=64, header=64 << 10)


class Member:
    """A file of an archive: ``size`` bytes, from ``offset`` of the open file ``fd``."""

    def __init__(self, name: str, fd: int, offset: int, size: int) -> None:
        self.name = name
        self.size = size
        self._fd = fd
        self._offset = offset

    def read(self, limit: int) -> bytes:
        """All of a small member. Raises `ImageError` where it has more than ``limit`` bytes."""
        if self.size > limit:
            raise ImageError(
                f"{printable(self.name, 200)} in the archive has {self.size} bytes; {limit} are accepted"
            )
        return b"".join(bytes(chunk) for chunk in self.chunks())

    def chunks(self) -> Generator[memoryview, None, None]:
        """The member's bytes; each piece is overwritten once the next is asked for. Raises `ImageError` where they
        went meanwhile."""
        buffer = memoryview(bytearray(min(_CHUNK, self.size) or 1))
        seen = 0
        while seen < self.size:
            count = os.preadv(self._fd, [buffer[: self.size - seen]], self._offset + seen)
            if not count:
                raise ImageError(f"the archive was cut off while it was read, in {printable(self.name, 200)}")
            seen += count
            yield buffer[:count]


class Archive(Protocol):
    """``what`` names the archive in messages."""

    what: str

    def find(self, name: str) -> Member | None:
        """The file ``name``, links within the archive followed; None where there is none. Raises `ImageError` for
        what is no file, and for names and links that lead out of the archive."""


def required(archive: Archive, name: str) -> Member:
    """`Archive.find` of a member without which the archive is of no use."""
    found = archive.find(name)
    if found is None:
        raise ImageError(f"{archive.what} has no {printable(name, 200)}, which it needs", hint=_INCOMPLETE)
    return found


_INCOMPLETE = "The archive is incomplete: save it again."


class TarArchive:
    """A tar of ``size`` bytes from ``offset`` of the open file ``fd``. Raises `ImageError` for one that is damaged,
    cut off, or ambiguous: a name that stands in it twice means different things to different programs."""

    def __init__(self, fd: int, offset: int, size: int, what: str) -> None:
        self.what = what
        self._fd = fd
        self._members: dict[str, tuple[str, int, int]] = {}  # type, offset, size
        self._links: dict[str, str] = {}
        try:
            self._index(TarReader(_Stream(fd, offset, size), _LIMITS), offset)
        except LayerError as error:
            raise ImageError(
                f"{what} is not a sound tar archive: {error.message.removeprefix('layer: ')}",
                hint=error.hint or "It is damaged, incomplete, or no image archive.",
            ) from None

    def _index(self, reader: TarReader, offset: int) -> None:
        names = 0
        for entry in reader:
            if entry.type == "dir":
                continue
            names += len(entry.name) + len(entry.linkname)
            if names > MAX_NAMES:
                raise LayerError(f"the names in it take more than {MAX_NAMES >> 20} MiB")
            try:
                name = entry.name.decode()
            except UnicodeDecodeError:
                continue  # nothing that an image is made of has such a name
            if name in self._members:
                raise LayerError(f"{printable(name, 200)!r} stands in it twice")
            kind = "sparse" if entry.sparse is not None else entry.type
            self._members[name] = (kind, offset + entry.offset, entry.size)
            if kind == "symlink":
                target = os.fsdecode(entry.linkname)
                self._links[name] = (
                    target if target.startswith("/") else posixpath.join(posixpath.dirname(name), target)
                )
            elif kind == "link":
                self._links[name] = os.fsdecode(entry.linkname)

    def find(self, name: str) -> Member | None:
        at = _inside(name, self.what)
        for _ in range(MAX_HOPS):
            found = self._members.get(at)
            if found is None:
                return None
            kind, offset, size = found
            if kind == "file":
                return Member(name, self._fd, offset, size)
            if kind not in ("symlink", "link"):
                raise ImageError(f"{printable(name, 200)} in {self.what} is no plain file but: {kind}")
            at = _inside(self._links[at], self.what)
        raise ImageError(f"{printable(name, 200)} in {self.what} is a link that leads nowhere")


class DirectoryArchive:
    """The files below a directory, which ``fd`` has open."""

    def __init__(self, fd: int, what: str) -> None:
        self.what = what
        self._fd = fd

    def find(self, name: str) -> Member | None:
        path = _inside(name, self.what)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = openat2(self._fd, path, flags, resolve=RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ImageError(
                f"{printable(path, 200)} in {self.what} can't be read: {error.strerror}"
            ) from error
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise ImageError(f"{printable(path, 200)} in {self.what} is no plain file")
        return _Owned(path, fd, 0, found.st_size)


class _Owned(Member):
    """A member with a descriptor of its own."""

    def __del__(self) -> None:
        os.close(self._fd)


class _Stream:
    """The archive's bytes for `TarReader`."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._at = offset
        self._end = offset + size

    def read(self, count: int, /) -> bytes:
        data = os.pread(self._fd, min(count, self._end - self._at), self._at)
        self._at += len(data)
        return data


def _inside(name: str, what: str) -> str:
    """``name`` without "." and doubled slashes. Raises `ImageError` for one that leads out of the archive."""
    path = posixpath.normpath(name) if name else ""
    strange = "\0" in path or any(
        "\ud800" <= char <= "\udfff" for char in path
    )  # half a character, from JSON
    if not path or strange or path.startswith(("/", "../")) or path == "..":
        raise ImageError(
            f"{what} names the member {printable(name, 200)!r}, which leads out of it",
            hint="No tool writes such archives: don't trust it.",
        )
    return path


def pieces(fd: int) -> Iterator[bytes]:
    """What is left to read of ``fd``."""
    while data := os.read(fd, _CHUNK):
        yield data
