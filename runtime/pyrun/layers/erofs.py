"""An EROFS index over a layer's tar: the layer as a file system, without extracting it.

The tar is kept as it came. Beside it lies the index: directories, attributes and links, and for the content of
files the place where it stands in the tar, which is mounted as the index's second device. Both are written in
one pass over the stream. A layer means here what it means to `pyrun.layers.unpack`, in the form "overlay": the
same entries are refused, and whiteouts are character devices 0/0. The kernel parses what is written here, never
what a registry sent.

The same tar always gives the same index. One thing differs from an extracted file: what a memory mapping shows
behind the end of a file in its last block is the tar's padding, which is zeros unless the layer's maker wanted
otherwise.
"""

from __future__ import annotations

import os
from errno import EDQUOT, ENOSPC

from ..errors import LayerError
from ..kernel.files import write_all
from . import erofs_format as fmt
from .erofs_tree import Tree
from .erofs_writer import Writer
from .limits import Limits
from .names import shown
from .tar import TarReader
from .unpack import LOOK_AGAIN, RESERVE, Unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .entry import Entry
    from .tar import Stream

_SPACE = "Free some space, or keep the store elsewhere (--root)."


def index(stream: Stream, tar: int, out: int, identity: bytes, limits: Limits | None = None) -> Unpacked:
    """Keep the tar ``stream`` in the file ``tar`` and write the index over it to ``out``; both are fds of empty
    files, open for reading and writing.

    ``identity`` is the digest of the tar (its bytes): the file system's UUID comes from it. The result is that
    of `unpack`; ``dropped`` names the attributes that no Linux file system would take.

    Raises `LayerError`, as `unpack` does, and for a tar beyond what 32-bit block addresses reach; what
    ``stream.read`` raises passes through. Not atomic: after an error the caller throws both files away.
    """
    limits = limits or Limits()
    space = _Space(tar, limits)
    tee = _Tee(stream, tar, space)
    reader = TarReader(tee, limits)
    tree = Tree(limits)
    try:
        for entry in reader:
            tree.entry = entry
            space.entry(entry)
            tree.add(entry)
        tree.entry = None
        Writer(tree, tar, out, space.take).write(identity, tee.size)
    except LayerError:
        raise
    except OSError as error:
        if error is tee.failure:
            raise
        where = f"layer entry {shown(tree.entry.name)}" if tree.entry else "layer"
        hint = _SPACE if error.errno in (ENOSPC, EDQUOT) else ""
        raise LayerError(f"{where}: {error.strerror or error}", hint=hint) from error
    implied = sorted(directory.path() for directory in tree.directories() if not directory.listed)
    return Unpacked(reader.entries, reader.offset, implied, tree.opaque_root, sorted(tree.dropped))


class _Space:
    """Looks, every so often, whether the file system of ``fd`` has room left beside its reserve, as `unpack`
    does: several layers come in at the same time."""

    def __init__(self, fd: int, limits: Limits) -> None:
        self._fd = fd
        self._endless = limits.bytes is not None
        self._unseen = 0  # bytes that may be written before looking again

    def left(self) -> int:
        fs = os.fstatvfs(self._fd)
        if self._endless or fs.f_blocks == 0:
            return 1 << 80
        return max(fs.f_bavail * fs.f_frsize - min(RESERVE, fs.f_blocks * fs.f_frsize // 20), 0)

    def take(self, size: int) -> None:
        """Raises `LayerError` where ``size`` more bytes won't fit."""
        self._unseen -= size
        if self._unseen < 0:
            left = self.left()
            if left < size:
                raise LayerError(
                    f"layer: the store's file system has {left} bytes left (beside a reserve)", hint=_SPACE
                )
            self._unseen = min(LOOK_AGAIN, left - size)

    def entry(self, entry: Entry) -> None:
        """Refuse ``entry`` at once where its content won't fit."""
        if entry.stored >= LOOK_AGAIN and entry.stored > (left := self.left()):
            raise LayerError(
                f"layer entry {shown(entry.name)}: {entry.stored} bytes, and the store's file system "
                f"has {left} left (beside a reserve)",
                hint=_SPACE,
            )


class _Tee:
    """Reads through, and keeps what it reads in the file ``fd``. ``failure``: what the stream itself raised."""

    def __init__(self, stream: Stream, fd: int, space: _Space) -> None:
        self.size = 0
        self.failure: BaseException | None = None
        self._stream = stream
        self._fd = fd
        self._space = space

    def read(self, n: int, /) -> bytes | bytearray | memoryview:
        try:
            piece = self._stream.read(n)
        except BaseException as failure:
            self.failure = failure
            raise
        self.size += len(piece)
        self._space.take(len(piece))
        if self.size > fmt.TAR_LIMIT:
            raise LayerError(
                f"layer: a tar of more than {fmt.TAR_LIMIT} bytes, which EROFS can't address",
                hint="Use another storage driver.",
            )
        write_all(self._fd, piece)
        return piece
