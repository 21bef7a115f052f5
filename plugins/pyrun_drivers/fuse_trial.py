"""What the installed fuse-overlayfs can do, by trying it: the driver's probe."""

from __future__ import annotations

import errno
import os
import stat
import subprocess

from pyrun.errors import PyrunError
from pyrun.storage import trial
from pyrun.storage.contract import Caps, Layer, Verdict

from . import fuse_flaws, fuse_notes, fuse_overlayfs, fuse_server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pyrun.storage.contract import Env

    from .fuse_overlayfs import FuseOverlayfsDriver

_UNWRITABLE = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some of the quota.",
    errno.EROFS: "Choose another store with --root.",
    errno.EACCES: "Choose another store with --root.",
}
_ELSEWHERE = "Put the store on ext4, xfs, btrfs or tmpfs (--root)."


class _Wrong(Exception):
    """The trial showed something that no capability can excuse."""


def probe(cls: type[FuseOverlayfsDriver], env: Env, options: Mapping[str, Any]) -> Verdict:
    """The driver's verdict. Never raises."""
    program = fuse_overlayfs.find_program()
    if not program:
        return Verdict(False, f"{fuse_overlayfs.PROGRAM} is not installed", fuse_overlayfs.INSTALL)
    refused = _device()
    if refused:
        return refused
    driver = cls(env, options, Verdict(True, "being tried"))
    try:
        rename_dir, hardlinks = _plain(driver)
        flaws = _flaws(driver)
    except OSError as error:
        if error.errno in _UNWRITABLE:
            why = f"can't write below {env.root}: {error.strerror}"
            return Verdict(False, why, _UNWRITABLE[error.errno])
        return Verdict(False, f"a trial mount below {env.root} failed: {error}", _ELSEWHERE)
    except PyrunError as error:
        return Verdict(False, f"a trial mount below {env.root} failed: {error.message}", error.hint)
    except _Wrong as error:
        fix = f"Another version than {_version(program)} may do better. {_ELSEWHERE}"
        return Verdict(False, f"the trial below {env.root} went wrong: {error}", fix)
    idmap = _idmapped(driver)
    details = [f"version {_version(program)}", f"{fuse_overlayfs.MAX_LAYERS} layers"]
    if not rename_dir:
        details.append("directory rename=EXDEV")
    if not hardlinks:
        details.append("names of one file in a layer part when it is written")
    if flaws:
        details.append(f"known flaws: {fuse_flaws.summary(flaws)}")
    if idmap:
        details.append(f"no idmapped layers ({idmap})")
    caps = Caps(
        idmap=not idmap, rename_dir=rename_dir, hardlinks=hardlinks, max_layers=fuse_overlayfs.MAX_LAYERS
    )
    found: dict[str, Any] = {}
    if flaws:
        warning = (
            f"version {_version(program)} has flaws that programs may notice: {fuse_flaws.summary(flaws)}"
        )
        found = {"flaws": fuse_flaws.by_case(flaws, env), "warning": warning}
    return Verdict(True, "; ".join(details), "", caps, found)


def _device() -> Verdict | None:
    """A refusal where /dev/fuse can't be used."""
    path = fuse_server.DEVICE
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Verdict(False, f"{path} is missing", "As root: modprobe fuse")
    except PermissionError as error:
        found = os.stat(path)
        owner = "root" if found.st_uid == 0 else "another user"
        why = f"{path} is {stat.S_IMODE(found.st_mode):04o} and belongs to {owner}: {error.strerror}"
        return Verdict(False, why, f"As root: chmod 666 {path} (udev's default)")
    except OSError as error:
        return Verdict(False, f"{path}: {error.strerror}", "As root: modprobe fuse")
    return None


def _version(program: str) -> str:
    try:
        done = subprocess.run(
            [program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    for line in done.stdout.splitlines():
        key, _, value = line.partition(": version ")
        if key == fuse_overlayfs.PROGRAM and value:
            return value.strip()
    return "unknown"


def _layer(place: str) -> Layer:
    """A layer to try things on."""
    path = f"{place}/layer"
    os.makedirs(f"{path}/fs/deleted/in")
    os.mkdir(f"{path}/fs/moved")
    for name in ("deleted/in/it", "gone", "one", "moved/file"):
        _write(f"{path}/fs/{name}", b"lower")
    os.link(f"{path}/fs/one", f"{path}/fs/two")
    os.link(f"{path}/fs/one", f"{path}/fs/moved/three")
    fuse_notes.record(path)
    return Layer("sha256:0", path)


def _plain(driver: FuseOverlayfsDriver) -> tuple[bool, bool]:
    """Write, delete, make again, and look, now and on a second mount. Whether directories of a layer can be
    renamed, and whether names of one file stay one file. Raises `_Wrong`, OSError or `PyrunError`."""
    with trial.directory(driver.env, driver.name) as place:
        layers, rw = [_layer(place)], f"{place}/rw"
        os.mkdir(rw)
        driver.prepare(layers, rw)
        mount = driver.mount(layers, rw)
        try:
            root = f"/proc/self/fd/{mount}"
            os.unlink(f"{root}/gone")
            os.unlink(f"{root}/deleted/in/it")
            os.rmdir(f"{root}/deleted/in")
            os.rmdir(f"{root}/deleted")
            os.mkdir(f"{root}/deleted")
            os.setxattr(f"{root}/deleted", "user.pyrun", b"kept")
            renamed = _renamed(root)
            _write(f"{root}/two", b"upper written")
            linked = _agree(root, renamed)
            _check(root)
        finally:
            os.close(mount)
        mount = driver.mount(layers, rw)
        try:
            root = f"/proc/self/fd/{mount}"
            _check(root)
            renamed = (
                renamed and os.path.exists(f"{root}/renamed/file") and not os.path.exists(f"{root}/moved")
            )
            return renamed, linked and _agree(root, renamed)
        finally:
            os.close(mount)


def _flaws(driver: FuseOverlayfsDriver) -> list[fuse_flaws.Flaw]:
    with trial.directory(driver.env, driver.name) as place:
        layers, rw = [Layer("sha256:0", f"{place}/layer")], f"{place}/rw"
        os.makedirs(f"{place}/layer/fs")
        fuse_flaws.furnish(f"{place}/layer/fs", driver.env)
        os.mkdir(rw)
        driver.prepare(layers, rw)
        flaws: list[fuse_flaws.Flaw] = []
        for look in (fuse_flaws.live, fuse_flaws.later):
            mount = driver.mount(layers, rw)
            try:
                flaws += look(f"/proc/self/fd/{mount}", f"{rw}/upper")
            finally:
                os.close(mount)
        return flaws


def _renamed(root: str) -> bool:
    try:
        os.rename(f"{root}/moved", f"{root}/renamed")
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _agree(root: str, renamed: bool) -> bool:
    names = ("one", "two", "renamed/three" if renamed else "moved/three")
    return all(_read(f"{root}/{name}") == b"upper written" for name in names)


def _check(root: str) -> None:
    if os.path.lexists(f"{root}/gone"):
        raise _Wrong("a deleted file reappears")
    if os.listdir(f"{root}/deleted"):
        raise _Wrong("what was in a deleted directory reappears in a new one of that name")
    if os.getxattr(f"{root}/deleted", "user.pyrun") != b"kept":
        raise _Wrong("an extended attribute changes")


def _idmapped(driver: FuseOverlayfsDriver) -> str:
    """ "" where idmapped layers work, or aren't needed; else why not."""
    try:
        with trial.namespace(driver.env) as namespace, trial.directory(driver.env, driver.name) as place:
            if namespace is None:
                return ""
            layers, rw = [_layer(place)], f"{place}/rw"
            os.mkdir(rw)
            driver.prepare(layers, rw)
            base = fuse_server.maps_of(namespace)[0][0].outside
            mount = driver.mount(layers, rw, namespace)
            try:
                root = f"/proc/self/fd/{mount}"
                if (seen := os.stat(f"{root}/one").st_uid) != base:
                    return f"a file of root appears as {seen}"
                os.chown(f"{root}/moved/file", base + 7, base + 8)
                os.unlink(f"{root}/gone")
            finally:
                os.close(mount)
            kept = os.stat(f"{rw}/upper/moved/file")
            if (kept.st_uid, kept.st_gid) != (7, 8):
                return f"a file of 7:8 is stored as {kept.st_uid}:{kept.st_gid}"
    except OSError as error:
        return str(error)
    except PyrunError as error:
        return error.message
    return ""


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
