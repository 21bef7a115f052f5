"""overlay: the kernel's overlayfs. The default driver, and on the path of `run`.

A layer is the extracted tree in ``fs``, whiteouts in overlay's own form. A writable layer is ``upper`` and
``work``. The mount is made detached by the route that the probe found to work on this kernel.
"""

from __future__ import annotations

import errno
import os

from pyrun.errors import TooManyLayers, Unsupported
from pyrun.kernel import overlay, userns
from pyrun.layers.remove import remove_tree
from pyrun.storage.contract import Caps, Driver, Verdict
from pyrun.storage.locks import Staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, ClassVar

    from pyrun.layers.unpack import Unpacked
    from pyrun.storage.contract import Blob, Env, Layer

# An id that no host gives to anybody, for the trial of idmapped layers only.
_TRIAL_MAP = [userns.IdMap(0, 0x7FFD0000, 65536)]


class OverlayDriver(Driver):
    """``volatile``: skip all syncs of the writable layer; a crash of the host may lose it."""

    name = "overlay"
    Options: ClassVar[Mapping[str, bool | int | str]] = {"volatile": False}

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        forced = os.environ.get("PYRUN_OVERLAY_ROUTE", "")
        routes = [int(forced)] if forced in ("1", "2", "3") else list(overlay.ROUTES)
        reasons = []
        for route in routes:
            try:
                plain = _trial(env, options, route, None)
            except OSError as error:
                reasons.append(f"route {route}: {error.strerror}")
                if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES):
                    return Verdict(
                        False, f"can't write below {env.root}: {error.strerror}", _fix(error.errno)
                    )
                continue
            if plain:
                reasons.append(f"route {route}: {plain}")
                continue
            for number in range(2):
                _empty(env, number)
            idmapped = "not needed" if env.userns else _idmap_trial(env, options, route)
            caps = Caps(
                idmap=idmapped in ("", "not needed"), rename_dir=False, hardlinks=False, max_layers=500
            )
            details = [f"route {route}", "500 layers"]
            if env.userns:
                details.insert(0, "userxattr")
            if not caps.idmap:
                details.append(f"no idmapped layers ({idmapped})")
            return Verdict(True, "; ".join(details), "", caps, {"route": route})
        return Verdict(
            False,
            f"a trial mount below {env.root} failed: " + "; ".join(reasons),
            "Put the store on ext4, xfs, btrfs or tmpfs (--root), not on overlayfs, NFS or FUSE.",
        )

    @classmethod
    def version(cls) -> str:
        return "1" + os.environ.get("PYRUN_OVERLAY_ROUTE", "")

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> Unpacked:
        os.mkdir(f"{dest}/fs", 0o755)
        fd = os.open(f"{dest}/fs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return blob.unpack(fd, "userxattr" if self.env.userns else "overlay")
        finally:
            os.close(fd)

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        previous = os.umask(0)
        try:
            for name in ("upper", "work"):
                os.mkdir(f"{dest}/{name}", 0o755)
        finally:
            os.umask(previous)
        if layers:
            # The merged root shows the upper's own mode and owner: take them from the topmost layer.
            top = os.stat(f"{layers[-1].path}/fs")
            os.chown(f"{dest}/upper", top.st_uid, top.st_gid)
            os.chmod(f"{dest}/upper", top.st_mode & 0o7777)

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if len(layers) > overlay.MAX_LAYERS:
            raise TooManyLayers(
                f"the image has {len(layers)} layers; overlayfs stacks at most {overlay.MAX_LAYERS}",
                hint="Use an image with fewer layers, or another storage driver.",
            )
        # A layer that an image lists twice can't be stacked on itself. The upper one shadows the lower wholly.
        lowers = list(dict.fromkeys(self._below(f"{layer.path}/fs") for layer in reversed(layers)))
        options = _flavour(self.env)
        upper = work = None
        if rw is None:
            # Overlayfs wants two lower layers where there is no upper; and a single layer mounted as it is
            # would show its whiteouts as devices.
            lowers += [_empty(self.env, number) for number in range(2 - len(lowers))]
        if rw is not None:
            upper, work = self._below(f"{rw}/upper"), self._below(f"{rw}/work")
            lowers = lowers or [_empty(self.env)]
            if self.options["volatile"]:
                options["volatile"] = None
                # The kernel leaves this marker behind even after a clean end, and refuses to mount over it.
                _remove_if_there(f"{rw}/work/work/incompat/volatile")
        stack = overlay.Stack(self.env.root, lowers, upper, work, options)
        return overlay.mount_overlay(stack, self.verdict.found["route"], idmap)

    def _below(self, path: str) -> str:
        return path.removeprefix(self.env.root + "/")


def _empty(env: Env, number: int = 0) -> str:
    """A directory in which there is never anything; ``number``, as one can't be stacked on itself."""
    below = f"layers/overlay/.empty{number}"
    os.makedirs(f"{env.root}/{below}", mode=0o755, exist_ok=True)
    return below


def _flavour(env: Env) -> dict[str, str | None]:
    return {"userxattr": None} if env.userns else {}


def _remove_if_there(path: str) -> None:
    try:
        os.rmdir(path)
    except NotADirectoryError:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _fix(number: int) -> str:
    return {errno.ENOSPC: "Free some space.", errno.EDQUOT: "Free some of the quota."}.get(
        number, "Choose another store with --root."
    )


def _trial(env: Env, options: Mapping[str, Any], route: int, idmap: int | None) -> str:
    """Mount, delete a directory of the lower layer, make it again, look: "" if right, else what is wrong.

    Mounting alone proves nothing: without userxattr a user namespace can mount, and gets EIO here.
    """
    stage = Staging(f"{env.root}/staging").new("overlay")
    place = stage.path
    try:
        os.makedirs(f"{place}/lower/d")
        with open(f"{place}/lower/d/file", "w") as file:
            file.write("x")
        os.mkdir(f"{place}/upper")
        os.mkdir(f"{place}/work")
        base = place.removeprefix(env.root + "/")
        flags = _flavour(env)
        if options.get("volatile"):
            flags["volatile"] = None
        stack = overlay.Stack(env.root, [f"{base}/lower"], f"{base}/upper", f"{base}/work", flags)
        fd = overlay.mount_overlay(stack, route, idmap)
        try:
            if idmap is not None:
                seen = os.stat("d/file", dir_fd=fd).st_uid
                return "" if seen == _TRIAL_MAP[0].outside else f"a file of root appears as {seen}"
            root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            try:
                os.unlink("d/file", dir_fd=root)
                os.rmdir("d", dir_fd=root)
                os.mkdir("d", dir_fd=root)
                inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
                try:
                    return "a deleted file reappears" if os.listdir(inner) else ""
                finally:
                    os.close(inner)
            finally:
                os.close(root)
        finally:
            os.close(fd)
    finally:
        remove_tree(place)
        stage.close()


def _idmap_trial(env: Env, options: Mapping[str, Any], route: int) -> str:
    """ "" where idmapped layers work by ``route``; else why not."""
    try:
        namespace = userns.hold(_TRIAL_MAP, _TRIAL_MAP)
    except OSError as error:
        return f"user namespaces: {error.strerror}"
    try:
        return _trial(env, options, route, namespace)
    except (OSError, Unsupported) as error:
        return str(error.strerror if isinstance(error, OSError) else error)
    finally:
        os.close(namespace)
