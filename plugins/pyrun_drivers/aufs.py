"""aufs: the union file system that overlayfs replaced, for kernels that have it.

A layer is the extracted tree in ``fs``, with the tar's own ``.wh.`` names, which are aufs's. A container's
writable branch is ``upper``. No name in a container may start with ``.wh.``: aufs refuses to make one.

Aufs merges directories of one name across a layer that has something else there, unless one of them is opaque.
A layer that puts a directory in the place of a lower layer's file should therefore say that it deletes the
file, as those made on aufs do.
"""

from __future__ import annotations

import os
from errno import EDQUOT, EINVAL, ENODEV, ENOSPC

from pyrun.errors import PyrunError, TooManyLayers, Unsupported
from pyrun.kernel import aufs
from pyrun.kernel import mount as m
from pyrun.layers.remove import remove_tree
from pyrun.storage.contract import Caps, Driver, Verdict
from pyrun.storage.locks import Staging

from . import trees

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pyrun.layers.unpack import Unpacked
    from pyrun.storage.contract import Blob, Env, Layer

# Of AUFS_BRANCH_MAX's four values (fs/aufs/Kconfig), 127 is the default and what distributions built; the
# writable branch is one of them. moby stopped in the same place.
MAX_LAYERS = 126

# On these aufs fails, at once or in use (fs/aufs/branch.c; moby refused the first three).
_UNFIT = {0x61756673: "aufs", 0x9123683E: "btrfs", 0xF15F: "ecryptfs", 0x794C7630: "overlayfs"}


class AufsDriver(Driver):
    """`Verdict.found`: ``dirperm1``, whether this aufs knows that option."""

    name = "aufs"

    @classmethod
    def probe(cls, env: Env, options: Mapping[str, Any]) -> Verdict:
        try:
            reasons, fixes = _refusals(env)
            if reasons:
                return Verdict(False, "; ".join(reasons), " ".join(fixes), Caps(idmap=False))
            # Without dirperm1, a lower directory's permissions count as well as the topmost one's.
            try:
                wrong, dirperm1 = _trial(env, dirperm1=True), True
            except OSError as error:
                if error.errno != EINVAL:
                    raise
                wrong, dirperm1 = _trial(env, dirperm1=False), False
        except (OSError, PyrunError) as error:
            wrong = str(error.strerror if isinstance(error, OSError) else error)
            fix = "Put the store on ext4 or xfs (--root), or use overlay."
            if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
                fix = "Free some space."
            return Verdict(False, f"a trial mount below {env.root} failed: {wrong}", fix)
        if wrong:
            return Verdict(False, f"a trial below {env.root} went wrong: {wrong}", "Use overlay.")
        why = f"{MAX_LAYERS} layers; no idmapped mounts; directory rename=EXDEV"
        caps = Caps(idmap=False, rename_dir=False, hardlinks=False, max_layers=MAX_LAYERS)
        return Verdict(True, why, "", caps, {"dirperm1": dirperm1})

    def ingest(self, blob: Blob, dest: str, parent: Layer | None) -> Unpacked:
        os.mkdir(f"{dest}/fs", 0o755)
        fd = os.open(f"{dest}/fs", trees.O_DIRECTORY)
        try:
            return blob.unpack(fd, "aufs")
        finally:
            os.close(fd)

    def prepare(self, layers: Sequence[Layer], dest: str, size: int | None = None) -> None:
        os.mkdir(f"{dest}/upper", 0o755)
        trees.own_root(f"{dest}/upper")
        if layers:
            # The merged root shows the topmost branch's own mode and owner.
            top = os.stat(f"{layers[-1].path}/fs")
            os.chown(f"{dest}/upper", top.st_uid, top.st_gid)
            os.chmod(f"{dest}/upper", top.st_mode & 0o7777)

    def mount(self, layers: Sequence[Layer], rw: str | None, idmap: int | None = None) -> int:
        if idmap is not None:
            raise Unsupported(
                "aufs can't show files through a user namespace",
                hint="Run the container with --userns=host, or use the driver overlay.",
            )
        if len(layers) > MAX_LAYERS:
            raise TooManyLayers(
                f"the image has {len(layers)} layers; aufs stacks at most {MAX_LAYERS}",
                hint="Use an image with fewer layers, or another storage driver.",
            )
        # A branch can't be there twice. The upper one shadows the lower wholly.
        below = [layer.path for layer in reversed(layers)]
        readonly = [self._below(f"{path}/fs") for path in dict.fromkeys(below)]
        if rw is None and not readonly:
            readonly = [self._below(trees.empty(self.env, self.name))]
        writable = None if rw is None else self._below(f"{rw}/upper")
        dirperm1 = bool(self.verdict.found.get("dirperm1"))
        try:
            return aufs.mount_aufs(aufs.Branches(self.env.root, readonly, writable, dirperm1=dirperm1))
        except OSError as error:
            if error.errno != ENODEV:
                raise
            raise Unsupported(
                "this kernel has no aufs, with which the store was made",
                hint="Boot a kernel that has it, or use another store with --root DIR.",
            ) from error

    def _below(self, path: str) -> str:
        return path.removeprefix(self.env.root + "/")


def _refusals(env: Env) -> tuple[list[str], list[str]]:
    """Why aufs can't be tried here, and what to do; all reasons at once, for each alone would mislead."""
    reasons, fixes = [], []
    with open("/proc/filesystems") as file:
        if not any(line.split()[-1:] == ["aufs"] for line in file):
            reasons.append("this kernel has no aufs")
            fixes.append(
                "Use overlay. (Ubuntu's kernels had aufs up to 5.15; a module has to be loaded first.)"
            )
    if env.userns:
        reasons.append("aufs can't be mounted in a user namespace")
        fixes.append("Run pyrun as root.")
    fd = os.open(env.root, trees.O_DIRECTORY)
    try:
        magic = m.fstatfs_type(fd)
    finally:
        os.close(fd)
    if magic in _UNFIT:
        reasons.append(f"aufs doesn't work on {_UNFIT[magic]}, where {env.root} is")
        fixes.append("Put the store on ext4 or xfs with --root DIR.")
    return reasons, fixes


def _trial(env: Env, *, dirperm1: bool) -> str:
    """Mount, delete a directory of the lower branch, make it again, look: "" if right, else what is wrong."""
    stage = Staging(f"{env.root}/staging").new("aufs")
    try:
        place = stage.path
        os.makedirs(f"{place}/lower/d")
        os.mkdir(f"{place}/upper")
        for name in ("d/file", ".wh.gone"):
            with open(f"{place}/lower/{name}", "w") as file:
                file.write("")
        base = place.removeprefix(env.root + "/")
        branches = aufs.Branches(env.root, [f"{base}/lower"], f"{base}/upper", dirperm1=dirperm1)
        fd = aufs.mount_aufs(branches)
        try:
            root = os.open(".", trees.O_DIRECTORY, dir_fd=fd)
            try:
                if os.listdir(root) != ["d"]:
                    return "its whiteouts show"
                os.unlink("d/file", dir_fd=root)
                os.rmdir("d", dir_fd=root)
                os.mkdir("d", dir_fd=root)
                inner = os.open("d", trees.O_DIRECTORY, dir_fd=root)
                try:
                    return "a deleted file reappears" if os.listdir(inner) else ""
                finally:
                    os.close(inner)
            finally:
                os.close(root)
        finally:
            os.close(fd)
    finally:
        remove_tree(stage.path)
        stage.close()
