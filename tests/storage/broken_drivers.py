"""Drivers with one bug each, of the kinds that drivers really had: for the proof that the conformance suite finds
them. Everything else of them is a sound driver's."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyrun.errors import PyrunError
from pyrun.kernel import mount as m
from pyrun.layers.unpack import Unpacked
from pyrun.storage.contract import Caps, Change, Driver, Env, Layer, Usage, Verdict

if TYPE_CHECKING:
    from pyrun.storage.contract import Blob
from pyrun_drivers import trees
from pyrun_drivers.overlay import OverlayDriver
from pyrun_drivers.vfs import VfsDriver


def walk(top: str) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below ``top``, and ``top``."""
    yield top, os.lstat(top)
    for directory, directories, files in os.walk(top):
        for name in directories + files:
            path = os.path.join(directory, name)
            yield path, os.lstat(path)


def claiming(verdict: Verdict, **caps: Any) -> Verdict:
    """The verdict, with other capabilities."""
    return Verdict(
        verdict.ok, verdict.why, verdict.fix, Caps(**{**verdict.caps.as_dict(), **caps}), verdict.found
    )


# --- what becomes of layers


class ForgetsOpaque(OverlayDriver):
    """A directory that a layer deleted and made again shows its old content."""

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> Unpacked:
        made = super().ingest(blob, dest, parent)
        for path, found in walk(f"{dest}/fs"):
            if stat.S_ISDIR(found.st_mode) and "trusted.overlay.opaque" in os.listxattr(path):
                os.removexattr(path, "trusted.overlay.opaque")
        return made


class IgnoresWhiteouts(OverlayDriver):
    """What a layer deleted is still there."""

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> Unpacked:
        made = super().ingest(blob, dest, parent)
        for path, found in walk(f"{dest}/fs"):
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                os.unlink(path)
        return made


class ShowsWhiteouts(OverlayDriver):
    """A read-only view of one layer is that layer's directory: its whiteouts show as devices."""

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if rw is None and len(layers) == 1:
            return trees.detached(f"{layers[0].path}/fs", readonly=True, idmap=idmap)
        return super().mount(layers, rw, idmap)


class LosesAttributes(VfsDriver):
    """Extended attributes, file capabilities among them, are gone after ingest."""

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> None:
        super().ingest(blob, dest, parent)
        for path, _ in walk(f"{dest}/fs"):
            for name in os.listxattr(path, follow_symlinks=False):
                os.removexattr(path, name, follow_symlinks=False)


class DropsSetuid(VfsDriver):
    """As chmod before chown does."""

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> None:
        super().ingest(blob, dest, parent)
        for path, found in walk(f"{dest}/fs"):
            if stat.S_ISREG(found.st_mode):
                os.chmod(path, found.st_mode & 0o777)


class ResetsDirectories(VfsDriver):
    """Directories have the mode of the process that made them."""

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> None:
        super().ingest(blob, dest, parent)
        for path, found in walk(f"{dest}/fs"):
            if stat.S_ISDIR(found.st_mode):
                os.chmod(path, 0o755)


class CutsTimes(VfsDriver):
    """Times are whole seconds."""

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> None:
        super().ingest(blob, dest, parent)
        for path, found in walk(f"{dest}/fs"):
            seconds = found.st_mtime_ns // 10**9
            os.utime(path, ns=(seconds * 10**9,) * 2, follow_symlinks=False)


# --- what becomes of containers


class WritesIntoTheLayer(VfsDriver):
    """All containers of an image share one tree, the layer's."""

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if rw is not None and layers:
            return trees.detached(f"{layers[-1].path}/fs", readonly=False, idmap=idmap)
        return super().mount(layers, rw, idmap)


class LosesWrites(VfsDriver):
    """What one mount wrote, the next does not show: it is made from the layers again."""

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if rw is not None:
            self.remove(f"{rw}/fs")
            os.unlink(f"{rw}/made")
            self._copy(layers[-1] if layers else None, rw)
        return super().mount(layers, rw, idmap)


class PartsHardLinks(VfsDriver):
    """Claims hard links, and a container has a file for each name."""

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        super().prepare(layers, dest, size)
        for path, found in walk(f"{dest}/fs"):
            if stat.S_ISREG(found.st_mode) and os.lstat(path).st_nlink > 1:
                with open(path, "rb") as file:
                    content = file.read()
                os.unlink(path)
                with open(path, "xb") as file:
                    file.write(content)
                os.chown(path, found.st_uid, found.st_gid)
                os.chmod(path, stat.S_IMODE(found.st_mode))
                os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
        trees.mark(dest)


class WrongRootMode(OverlayDriver):
    """The root of a container is 0700: users in it can't even see /."""

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        super().prepare(layers, dest, size)
        os.chmod(f"{dest}/upper", 0o700)


class WritableView(VfsDriver):
    """A read-only view can be written, and with it the layer."""

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if rw is None and layers:
            return trees.detached(f"{layers[-1].path}/fs", readonly=False, idmap=idmap)
        return super().mount(layers, rw, idmap)


class IgnoresIdmap(VfsDriver):
    """Claims idmapped mounts, and shows the owners that are on disk."""

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        return super().mount(layers, rw)


class LeaksDescriptors(VfsDriver):
    """One a mount."""

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        os.open(rw or self.env.root, os.O_PATH | os.O_CLOEXEC)
        return super().mount(layers, rw, idmap)


class LeavesMounts(VfsDriver):
    """A mount on the host, as drivers have that hand out paths."""

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        fd = super().mount(layers, rw, idmap)
        m.move_mount(fd, m.AT_FDCWD, f"{rw}/fs" if rw else f"{self.env.root}/layers")
        return fd


# --- what is claimed, and told


class ClaimsRename(OverlayDriver):
    """Says that directories of a layer can be renamed, where overlayfs says EXDEV."""

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        return claiming(super().probe(env, {**options, "redirect_dir": "off"}), rename_dir=True)


class DeniesHardLinks(VfsDriver):
    """Says that names of one file part, and they don't."""

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        return claiming(super().probe(env, options), hardlinks=False)


class ClaimsMoreLayers(OverlayDriver):
    """Than the kernel stacks."""

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        return claiming(super().probe(env, options), max_layers=600)


class PhantomDeletions(OverlayDriver):
    """What was copied up and is as it was before is told as deleted."""

    def changes(
        self, layers: Sequence[Layer], rw: str, view: int, idmap: int | None = None
    ) -> Iterator[Change]:
        told = list(super().changes(layers, rw, view, idmap))
        seen = {change.path for change in told}
        for path, found in walk(f"{rw}/upper"):
            name = os.fsencode(os.path.relpath(path, f"{rw}/upper"))
            if stat.S_ISREG(found.st_mode) and name not in seen:
                told.append(Change(name, "delete"))
        yield from sorted(told, key=lambda change: change.path)


class TrustsSizeAndTime(VfsDriver):
    """A file of the same size and time is taken for unchanged."""

    def changes(
        self, layers: Sequence[Layer], rw: str, view: int, idmap: int | None = None
    ) -> Iterator[Change]:
        for change in super().changes(layers, rw, view, idmap):
            old = _lstat(f"{layers[-1].path}/fs", change.path) if layers else None
            new = _lstat(f"{rw}/fs", change.path)
            if old and new and stat.S_ISREG(new.st_mode) and _looks(old) == _looks(new):
                continue
            yield change


class CountsEveryName(VfsDriver):
    """A file with ten names takes ten times its space."""

    def usage(self, path: str) -> Usage:
        found = [st for _, st in walk(path)] if os.path.exists(path) else []
        return Usage(sum(st.st_blocks for st in found) * 512, len(found))


class RaisesFromProbe(VfsDriver):
    """On a file system that can't be written, instead of saying so."""

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        os.mkdir(f"{env.root}/staging/trial")
        os.rmdir(f"{env.root}/staging/trial")
        return super().probe(env, options)


class RemovesOnce(VfsDriver):
    """To remove what is gone is an error; so an interrupted removal is never finished."""

    def remove(self, path: str) -> None:
        os.stat(path)
        super().remove(path)


class TakesFullDisksForDone(VfsDriver):
    """A copy that failed is taken for a container."""

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        with contextlib.suppress(OSError, PyrunError):
            super().prepare(layers, dest, size)


class LeavesProcesses(VfsDriver):
    """Each mount has a process beside it that does not end with it."""

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                time.sleep(20)
            os._exit(0)
        os.waitpid(pid, 0)
        return super().mount(layers, rw, idmap)


def _lstat(top: str, name: bytes) -> os.stat_result | None:
    try:
        return os.lstat(os.fsencode(top) + b"/" + name)
    except OSError:
        return None


def _looks(st: os.stat_result) -> tuple[int, ...]:
    return st.st_mode, st.st_uid, st.st_gid, st.st_size, st.st_mtime_ns


# Each with the cases that say what is wrong with it. Others may fail, too.
PLANTED: dict[type[Driver], tuple[int, ...]] = {
    ForgetsOpaque: (16, 17),
    IgnoresWhiteouts: (15, 18),
    ShowsWhiteouts: (19,),
    LosesAttributes: (29,),
    DropsSetuid: (34,),
    ResetsDirectories: (23, 34),
    CutsTimes: (36,),
    WritesIntoTheLayer: (62,),
    LosesWrites: (26, 41),
    PartsHardLinks: (25, 26),
    WrongRootMode: (5,),
    WritableView: (7,),
    IgnoresIdmap: (61, 73),
    LeaksDescriptors: (4,),
    LeavesMounts: (4,),
    ClaimsRename: (39,),
    DeniesHardLinks: (26,),
    ClaimsMoreLayers: (12,),
    PhantomDeletions: (56,),
    TrustsSizeAndTime: (27, 55),
    CountsEveryName: (60,),
    RaisesFromProbe: (1, 2),
    RemovesOnce: (10,),
    TakesFullDisksForDone: (68,),
    LeavesProcesses: (66,),
}
