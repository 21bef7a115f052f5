"""erofs: layers that are never extracted. On the path of `run` where a store uses it.

A layer is its uncompressed tar, as it came, and an EROFS index over it (`pyrun.layers.erofs`): two files, made in
one pass, removed as two files. The index is mounted with the tar as its second device, and overlayfs stands on
top as it does over extracted layers; see `pyrun_drivers.overlay` for its options. Two more:

backing   "file": the kernel reads the two files itself (Linux 6.12); "loop": through loop devices (6.4).
          "auto" takes files where mounts of them can be cloned (6.15), else loop devices, else files
directio  the kernel reads the tar around the page cache, which then holds a file's content once, not twice
          (6.15). Off: a pulled image is in the page cache already, and reading ahead in the tar reads its
          neighbours. Of 70,000 files of 496 MiB, all were read in 2 s after a pull and 6 s from a cold disk;
          with directio in 15 s, and 500 MiB of page cache less
"""

from __future__ import annotations

import os

from pyrun.kernel import overlay

from . import erofs_mounts
from .erofs_mounts import FILE, INDEX, LOOP, TAR
from .overlay import OverlayDriver, copy_attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, BinaryIO, ClassVar

    from pyrun.layers.unpack import Unpacked
    from pyrun.storage.contract import Blob, Env, Layer, Option, Verdict


class ErofsDriver(OverlayDriver):
    """EROFS indexes over the layers' tars, overlayfs on top. Needs root: no user namespace may mount EROFS."""

    name = "erofs"
    Options: ClassVar[Mapping[str, Option]] = {
        **OverlayDriver.Options,
        "backing": ("auto", FILE, LOOP),
        "directio": False,
    }

    # Layers and what is written lie on different file systems: inode numbers stay with files, all the same.
    mount_options: ClassVar[Mapping[str, str | None]] = {"xino": "on"}

    def __init__(self, env: Env, options: Mapping[str, Any], verdict: Verdict) -> None:
        super().__init__(env, options, verdict)
        self._mounts: erofs_mounts.Mounts | None = None

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        from . import erofs_trial

        return erofs_trial.probe(super().probe, env, options)

    @classmethod
    def _trial(
        cls,
        env: Env,
        options: Mapping[str, Any],
        route: int,
        features: Sequence[str] = (),
        idmap: int | None = None,
    ) -> str:
        problem = super()._trial(env, options, route, features, idmap)
        if problem or features or idmap is not None:
            return problem
        from . import erofs_trial

        return erofs_trial.hidden(env, options, route)

    @classmethod
    def _trial_lowers(cls, env: Env, options: Mapping[str, Any], place: str) -> list[overlay.Lower]:
        from . import erofs_trial

        return erofs_trial.lowers(options)

    @classmethod
    def version(cls) -> str:
        return f"1,{super().version()}"

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> Unpacked:
        from pyrun.layers.erofs import index  # here: the confined child can import nothing

        identity = bytes.fromhex(blob.diff_id.partition(":")[2])
        fd = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return blob.confined(fd, lambda stream, inside: make(index, stream, inside, identity))
        finally:
            os.close(fd)

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        super().prepare((), dest, size)
        if layers:
            top = self._open(layers[-1].path)
            try:
                copy_attributes(f"/proc/self/fd/{top}", f"{dest}/upper")
            finally:
                os.close(top)

    def remove(self, path: str) -> None:
        super().remove(path)
        if self._mounts is not None:
            self._mounts.forget_removed()

    def _lowers(self, layers: Sequence[Layer]) -> list[overlay.Lower]:
        paths = dict.fromkeys(layer.path for layer in reversed(layers))
        return [self._lower(path) for path in paths]

    def _lower(self, path: str) -> Callable[[], int]:
        return lambda: self._open(path)

    def _open(self, path: str) -> int:
        """A detached mount of the layer ``path``, read-only; the caller owns the fd."""
        if self._mounts is None:
            found = self.verdict.found
            self._mounts = erofs_mounts.Mounts(f"{self.env.root}/layers/{self.name}/.mounts", found)
        return self._mounts.open(path)


def make(
    index: Callable[[BinaryIO, int, int, bytes], Unpacked], stream: BinaryIO, dest: int, identity: bytes
) -> Unpacked:
    """A layer's two files in the directory ``dest``, an fd, from its tar, by `pyrun.layers.erofs.index`."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    tar = os.open(TAR, flags, 0o600, dir_fd=dest)
    try:
        out = os.open(INDEX, flags, 0o600, dir_fd=dest)
        try:
            return index(stream, tar, out, identity)
        finally:
            os.close(out)
    finally:
        os.close(tar)
