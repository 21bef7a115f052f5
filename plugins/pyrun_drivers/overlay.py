"""overlay: the kernel's overlayfs. The default driver, and on the path of `run`.

A layer is the extracted tree in ``fs``, whiteouts in overlay's own form. A writable layer is ``upper`` and
``work``. The mount is made detached by the route that the probe found to work on this kernel, with those of
overlayfs' features that passed a trial here:

redirect_dir  a directory that comes from a layer can be renamed; without it rename(2) says EXDEV
index         a file with several names stays one file when it is written; without it the names part
metacopy      chmod and chown copy no content up

Each is an option: "auto" (on where its trial passed), "on" (the driver is refused where it did not) or "off".
In a user namespace the kernel refuses redirect_dir and metacopy (Documentation/filesystems/overlayfs.rst,
"User xattr").
"""

from __future__ import annotations

import errno
import os
import stat
import time

from pyrun.errors import TooManyLayers, Unsupported
from pyrun.kernel import overlay, userns
from pyrun.layers.names import PRIVATE_XATTRS
from pyrun.layers.remove import remove_tree
from pyrun.storage.contract import Caps, Driver, Verdict
from pyrun.storage.locks import Staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, ClassVar

    from pyrun.layers.unpack import Unpacked
    from pyrun.storage.contract import Blob, Env, Layer, Option

# An id that no host gives to anybody, for the trial of idmapped layers only.
_TRIAL_MAP = [userns.IdMap(0, 0x7FFD0000, 65536)]
FEATURES = ("redirect_dir", "index", "metacopy")
_SWITCH = ("auto", "on", "off")
# How long the mount of a process that was just killed may take to go away.
_BUSY_SECONDS = 5


class OverlayDriver(Driver):
    """``volatile``: skip all syncs of the writable layer; a crash of the host may lose it. The others: see above."""

    name = "overlay"
    Options: ClassVar[Mapping[str, Option]] = {
        "volatile": False,
        "redirect_dir": _SWITCH,
        "index": _SWITCH,
        "metacopy": _SWITCH,
    }
    # What drivers with other lower layers tell overlayfs besides.
    mount_options: ClassVar[Mapping[str, str | None]] = {}

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        forced = os.environ.get("PYRUN_OVERLAY_ROUTE", "")
        routes = [int(forced)] if forced in ("1", "2", "3") else list(overlay.ROUTES)
        reasons = []
        for route in routes:
            try:
                problem = cls._trial(env, options, route)
            except OSError as error:
                problem = error.strerror or str(error)
                if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES):
                    return Verdict(False, f"can't write below {env.root}: {problem}", _fix(error.errno))
            if not problem:
                return cls._verdict(env, options, route)
            reasons.append(f"route {route}: {problem}")
        return Verdict(
            False,
            f"a trial mount below {env.root} failed: " + "; ".join(reasons),
            "Put the store on ext4, xfs, btrfs or tmpfs (--root), not on overlayfs, NFS or FUSE.",
        )

    @classmethod
    def _verdict(cls, env: Env, options: Mapping[str, Any], route: int) -> Verdict:
        """What works by ``route``, which passed the first trial."""
        for number in range(2):
            _empty(env, number)
        idmap = "not needed" if env.userns else cls._idmap_trial(env, options, route, ())
        features: list[str] = []
        refused = []
        for name in FEATURES:
            if options[name] == "off":
                continue
            wanted = (*features, name)
            try:
                problem = cls._trial(env, options, route, wanted)
            except OSError as error:
                problem = error.strerror or str(error)
            if not problem and not idmap:
                # Containers in user namespaces come first: what idmapped layers can't have, none gets.
                problem = cls._idmap_trial(env, options, route, wanted)
            if not problem:
                features.append(name)
            elif options[name] == "on":
                return Verdict(
                    False,
                    f"the option {name}=on does not work here: {problem}",
                    f"Leave it to the trial: {cls.name}.{name}=auto.",
                )
            else:
                refused.append(name)
        caps = Caps(
            idmap=idmap in ("", "not needed"),
            rename_dir="redirect_dir" in features,
            hardlinks="index" in features,
            max_layers=overlay.MAX_LAYERS,
        )
        details = [f"route {route}", f"{overlay.MAX_LAYERS} layers", *(f"{name}=on" for name in features)]
        if env.userns:
            details.insert(0, "userxattr")
        if "redirect_dir" in refused:
            details.append("directory rename=EXDEV")
        if "index" in refused:
            details.append("hard links part when written")
        if not caps.idmap:
            details.append(f"no idmapped layers ({idmap})")
        return Verdict(True, "; ".join(details), "", caps, {"route": route, "features": features})

    @classmethod
    def _trial(
        cls,
        env: Env,
        options: Mapping[str, Any],
        route: int,
        features: Sequence[str] = (),
        idmap: int | None = None,
    ) -> str:
        """Mount over a small lower layer and use what ``features`` promise: "" if right, else what is wrong.

        Mounting alone proves nothing: without userxattr a user namespace can mount, and gets EIO when it makes a
        deleted directory again.
        """
        stage = Staging(f"{env.root}/staging").new("overlay")
        place = stage.path
        try:
            lowers = cls._trial_lowers(env, options, place)
            os.mkdir(f"{place}/upper")
            os.mkdir(f"{place}/work")
            base = place.removeprefix(env.root + "/")
            flags = {**_flavour(env, features), **cls.mount_options}
            if options.get("volatile"):
                flags["volatile"] = None
            stack = overlay.Stack(env.root, lowers, f"{base}/upper", f"{base}/work", flags)
            problem = _used(stack, route, features, idmap)
            if not problem and features:
                _remove_if_there(f"{place}/work/work/incompat/volatile")
                problem = _kept(stack, route, features, idmap)
            return problem
        finally:
            remove_tree(place)
            stage.close()

    @classmethod
    def _trial_lowers(cls, env: Env, options: Mapping[str, Any], place: str) -> list[overlay.Lower]:
        """The layers of a trial, made in the staging directory ``place``: `make_trial_tree`'s files."""
        make_trial_tree(f"{place}/lower")
        return [f"{place}/lower".removeprefix(env.root + "/")]

    @classmethod
    def _idmap_trial(cls, env: Env, options: Mapping[str, Any], route: int, features: Sequence[str]) -> str:
        """ "" where idmapped layers work by ``route`` with ``features``; else why not."""
        try:
            namespace = userns.hold(_TRIAL_MAP, _TRIAL_MAP)
        except OSError as error:
            return f"user namespaces: {error.strerror}"
        try:
            return cls._trial(env, options, route, features, namespace)
        except (OSError, Unsupported) as error:
            return str(error.strerror if isinstance(error, OSError) else error)
        finally:
            os.close(namespace)

    @classmethod
    def version(cls) -> str:
        return "2" + os.environ.get("PYRUN_OVERLAY_ROUTE", "")

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
            copy_attributes(f"{layers[-1].path}/fs", f"{dest}/upper")

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if len(layers) > overlay.MAX_LAYERS:
            raise TooManyLayers(
                f"the image has {len(layers)} layers; overlayfs stacks at most {overlay.MAX_LAYERS}",
                hint="Use an image with fewer layers, or another storage driver.",
            )
        lowers = self._lowers(layers)
        options = {**_flavour(self.env, self.verdict.found["features"]), **self.mount_options}
        upper = work = None
        if rw is None:
            # Overlayfs wants two lower layers where there is no upper; and a single layer mounted as it is
            # would show its whiteouts as devices.
            lowers += [_empty(self.env, number) for number in range(2 - len(lowers))]
            options.pop("index", None)  # it wants an upper layer
        if rw is not None:
            upper, work = self._below(f"{rw}/upper"), self._below(f"{rw}/work")
            lowers = lowers or [_empty(self.env)]
            if self.options["volatile"]:
                options["volatile"] = None
                # The kernel leaves this marker behind even after a clean end, and refuses to mount over it.
                _remove_if_there(f"{rw}/work/work/incompat/volatile")
        stack = overlay.Stack(self.env.root, lowers, upper, work, options)
        return self._mount(stack, rw, idmap)

    def _mount(self, stack: overlay.Stack, rw: str | None, idmap: int | None) -> int:
        began, reset = time.monotonic(), False
        while True:
            try:
                return overlay.mount_overlay(stack, self.verdict.found["route"], idmap)
            except OSError as error:
                if error.errno == errno.EBUSY and rw and time.monotonic() < began + _BUSY_SECONDS:
                    # With index=on an upper layer can be mounted once, and the kernel takes its time to let
                    # go of the mount of a process that has just been killed.
                    time.sleep(0.005)
                elif error.errno == errno.ESTALE and rw and not reset:
                    # The lower layers are not the files that they were when the index was made: made again
                    # from their blobs, or moved with the store. What is in the upper layer is whole all the
                    # same; only names that shared a file with a lower one part.
                    _forget_origin(rw)
                    reset = True
                else:
                    raise

    def _lowers(self, layers: Sequence[Layer]) -> list[overlay.Lower]:
        """What overlayfs stacks, top to bottom. A layer that an image lists twice can't be stacked on itself; the
        upper one shadows the lower wholly."""
        return list(dict.fromkeys(self._below(f"{layer.path}/fs") for layer in reversed(layers)))

    def _below(self, path: str) -> str:
        return path.removeprefix(self.env.root + "/")


def copy_attributes(root: str, upper: str, private: tuple[str, ...] = PRIVATE_XATTRS) -> None:
    """Give the directory ``upper`` the attributes of ``root``, the topmost layer's: a union shows those of the
    upper's own root. Extended attributes with a prefix of ``private`` are left out."""
    top = os.stat(root)
    os.chown(upper, top.st_uid, top.st_gid)
    os.chmod(upper, top.st_mode & 0o7777)
    for name in os.listxattr(root):
        if not name.startswith(private):
            os.setxattr(upper, name, os.getxattr(root, name))


def _empty(env: Env, number: int = 0) -> str:
    """A directory in which there is never anything; ``number``, as one can't be stacked on itself."""
    below = f"layers/overlay/.empty{number}"
    os.makedirs(f"{env.root}/{below}", mode=0o755, exist_ok=True)
    return below


def _flavour(env: Env, features: Sequence[str]) -> dict[str, str | None]:
    """Overlay's mount options: every feature said outright, for the kernel's defaults can be set otherwise."""
    options: dict[str, str | None] = {}
    if env.userns:
        options["userxattr"] = None
        if "index" in features:
            options["index"] = "on"
        return options
    for name in FEATURES:
        options[name] = "on" if name in features else "off"
    return options


def _forget_origin(rw: str) -> None:
    """Take the identity of the layers below off a writable layer: the index, and the origins that its root and its
    files have. A file of which only the attributes were copied up is refused where its origin is still there and is
    not what lies below now, as when a store was copied (ovl_lookup in fs/overlayfs/namei.c)."""
    from pyrun.layers.dirs import Directories

    top = os.open(f"{rw}/upper", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    tree = Directories(top)
    try:
        _remove_origin(f"/proc/self/fd/{top}/.")
        todo = [b""]
        while todo:
            where = todo.pop()
            for text in os.listdir(tree.open(where)):
                name, fd = os.fsencode(text), tree.open(where)
                kind = os.lstat(name, dir_fd=fd).st_mode
                if stat.S_ISDIR(kind):
                    todo.append(where + b"/" + name if where else name)
                elif stat.S_ISREG(kind):
                    _remove_origin(b"/proc/self/fd/%d/%s" % (fd, name))
    finally:
        tree.close()
        os.close(top)
    remove_tree(f"{rw}/work/index")


def _remove_origin(path: str | bytes) -> None:
    for name in ("trusted.overlay.origin", "user.overlay.origin"):
        try:
            os.removexattr(path, name, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EPERM, errno.EOPNOTSUPP):
                raise


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


def make_trial_tree(path: str) -> None:
    """A layer with what a trial uses, in the new directory ``path``."""
    os.makedirs(f"{path}/d")
    os.mkdir(f"{path}/moved")
    for name in ("d/file", "one", "moved/file"):
        with open(f"{path}/{name}", "w") as file:
            file.write("x")
    os.link(f"{path}/one", f"{path}/two")


def _used(stack: overlay.Stack, route: int, features: Sequence[str], idmap: int | None) -> str:
    fd = overlay.mount_overlay(stack, route, idmap)
    try:
        if idmap is not None and (seen := os.stat("d/file", dir_fd=fd).st_uid) != _TRIAL_MAP[0].outside:
            return f"a file of root appears as {seen}"
        root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    finally:
        os.close(fd)
    try:
        if idmap is None:
            os.unlink("d/file", dir_fd=root)
            os.rmdir("d", dir_fd=root)
            os.mkdir("d", dir_fd=root)
            inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
            try:
                if os.listdir(inner):
                    return "a deleted file reappears"
            finally:
                os.close(inner)
        if "redirect_dir" in features:
            os.rename("moved", "renamed", src_dir_fd=root, dst_dir_fd=root)
        if "metacopy" in features:
            os.chmod("one", 0o600, dir_fd=root)
        if "index" in features:
            _write(root, "one", b"written")
            if _read(root, "two") != b"written":
                return "two names of one file part when it is written"
    finally:
        os.close(root)
    return ""


def _kept(stack: overlay.Stack, route: int, features: Sequence[str], idmap: int | None) -> str:
    """Whether the next mount shows what `_used` did. The kernel may need a moment to let go of the first."""
    began = time.monotonic()
    while True:
        try:
            fd = overlay.mount_overlay(stack, route, idmap)
            break
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > began + _BUSY_SECONDS:
                raise
            time.sleep(0.001)
    try:
        if "redirect_dir" in features and _read(fd, "renamed/file") != b"x":
            return "a renamed directory lost its content"
        if "metacopy" in features:
            content = b"written" if "index" in features else b"x"
            if os.stat("one", dir_fd=fd).st_mode & 0o7777 != 0o600 or _read(fd, "one") != content:
                return "a file whose mode was changed lost it, or its content"
        if "index" in features and _read(fd, "two") != b"written":
            return "a written file is lost under its second name"
    finally:
        os.close(fd)
    return ""


def _read(dirfd: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        return os.read(fd, 64)
    finally:
        os.close(fd)


def _write(dirfd: int, name: str, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, dir_fd=dirfd)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
