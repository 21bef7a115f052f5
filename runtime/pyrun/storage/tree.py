"""What drivers stand on whose layers and containers are plain directory trees. On the path of `run` with those.

All three work on the directory ``path``, which lies in what the engine gave the driver to write in.
"""

from __future__ import annotations

import os

from ..kernel import mount as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..layers.unpack import Unpacked
    from .contract import Blob, Whiteouts

_O_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy(source: str | None, path: str) -> None:
    """Make the directory ``path``: a copy of ``source`` with all that files are (`pyrun.layers.copy`), blocks
    shared where the file system can; where ``source`` is None, empty, 0755 and root's. Raises OSError or
    `KernelError`, and may then have made a part of it."""
    os.mkdir(path)
    new = os.open(path, _O_DIRECTORY)
    try:
        # Whatever umask, or setgid directory, it was made under.
        os.fchown(new, 0, 0)
        os.fchmod(new, 0o755)
        if source is not None:
            from ..layers.copy import copy_tree

            old = os.open(source, _O_DIRECTORY)
            try:
                copy_tree(old, new)
            finally:
                os.close(old)
    finally:
        os.close(new)


def unpack(blob: Blob, path: str, whiteouts: Whiteouts = "apply") -> Unpacked:
    """``blob.unpack`` into the directory ``path``; by default what the layer deletes is deleted there."""
    fd = os.open(path, _O_DIRECTORY)
    try:
        return blob.unpack(fd, whiteouts)
    finally:
        os.close(fd)


def mount(path: str | None, *, readonly: bool, idmap: int | None = None) -> int:
    """A detached mount of the directory ``path`` alone, as `Driver.mount` returns it; of an empty one for None.
    Raises OSError."""
    fd = _empty() if path is None else m.open_tree(m.AT_FDCWD, path, follow=False)
    attributes = m.MOUNT_ATTR_RDONLY if readonly else 0
    try:
        if idmap is not None:
            m.mount_setattr(fd, set=attributes | m.MOUNT_ATTR_IDMAP, userns=idmap)
        elif attributes:
            m.mount_setattr(fd, set=attributes)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _empty() -> int:
    return m.new_mount("tmpfs", {"mode": "0755"})
