"""The driver erofs' probe: does this kernel mount an index over a tar, how, and does overlayfs stand on it?"""

from __future__ import annotations

import errno
import io
import os

from pyrun.errors import PyrunError
from pyrun.kernel import overlay
from pyrun.layers.pack import pack
from pyrun.layers.remove import remove_tree
from pyrun.storage.changes import added
from pyrun.storage.contract import Change, Verdict
from pyrun.storage.locks import Staging

from . import erofs_mounts
from .erofs_mounts import FILE, LOOP
from .overlay import make_trial_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pyrun.storage.contract import Env

# Content that begins on a block of 512 bytes which is none of 4096, and takes several of those.
_CONTENT = b"".join(b"%07d\n" % number for number in range(2500))
_XATTR = "trusted.pyrun"


def probe(over: Callable[[Env, Mapping[str, Any]], Verdict], env: Env, options: Mapping[str, Any]) -> Verdict:
    """The verdict; ``over`` is the overlay driver's probe, which tries its routes and features over `lowers`."""
    if env.userns:
        return Verdict(
            False,
            "mounting EROFS in a user namespace: EPERM",
            "Run pyrun as root, or use the storage driver overlay.",
        )
    try:
        stage = Staging(f"{env.root}/staging").new("erofs")
        try:
            verdict = _probe(stage.path, over, env, options)
        finally:
            remove_tree(stage.path)
            stage.close()
    except OSError as error:
        return Verdict(False, f"a trial below {env.root} failed: {error.strerror or error}", _fix(error))
    except PyrunError as error:
        return Verdict(False, f"a trial below {env.root} failed: {error}", error.hint or "Use overlay.")
    return verdict


def _probe(
    place: str, over: Callable[[Env, Mapping[str, Any]], Verdict], env: Env, options: Mapping[str, Any]
) -> Verdict:
    make_layer(f"{place}/base")
    make_layer(f"{place}/top", [Change(b"", "modify"), Change(b"whited", "delete")])
    found = _backing(f"{place}/base", options)
    if isinstance(found, Verdict):
        return found
    verdict = over(env, {**options, "backing": found["backing"], "place": place})
    if verdict.ok:
        verdict.found.update(found)
        verdict.why = f"{_told(found)}; {verdict.why}"
    return verdict


def lowers(options: Mapping[str, Any]) -> list[overlay.Lower]:
    """What `pyrun_drivers.overlay` tries its features on: layers of this driver, by the ``options`` of `_probe`."""
    place, backing, directio = options["place"], options["backing"], options["directio"]

    def mounted(path: str) -> Callable[[], int]:
        return lambda: erofs_mounts.mount(path, backing, directio=directio)

    return [mounted(f"{place}/{name}") for name in ("top", "base")]


def hidden(env: Env, options: Mapping[str, Any], route: int) -> str:
    """Whether a whiteout hides a lower layer's file, and nothing else: "", or what is wrong."""
    view = overlay.mount_overlay(overlay.Stack(env.root, lowers(options)), route)
    try:
        found = sorted(os.listdir(f"/proc/self/fd/{view}"))
    finally:
        os.close(view)
    return "" if found == ["d", "moved", "one", "two"] else "a deleted file shows, or others don't"


def make_layer(path: str, changes: list[Change] | None = None) -> None:
    """A layer in the new directory ``path``: of ``changes`` alone, or of the files that a trial uses."""
    from pyrun.layers.erofs import index

    from .erofs import make

    os.mkdir(path, 0o700)
    tree = f"{path}/tree"
    make_trial_tree(tree)
    with open(f"{tree}/whited", "wb") as file:
        file.write(_CONTENT)
    os.setxattr(f"{tree}/whited", _XATTR, b"kept")
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tar = io.BytesIO()
        pack(changes or [Change(b"", "modify"), *added(fd, b"")], fd, tar)
    finally:
        os.close(fd)
    tar.seek(0)
    # Of two file systems with one UUID, overlayfs would not index files.
    dest = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        make(index, tar, dest, os.path.basename(path).encode())
    finally:
        os.close(dest)


def _backing(layer: str, options: Mapping[str, Any]) -> dict[str, Any] | Verdict:
    """How EROFS is mounted here: "backing", "directio" and "clones"; or why it is not."""
    reasons = []
    usable: dict[str, Any] | None = None
    for backing in (FILE, LOOP) if options["backing"] == "auto" else (options["backing"],):
        try:
            clones, problem = _mounted(layer, backing)
        except OSError as error:
            clones, problem = False, error.strerror or str(error)
        if problem:
            reasons.append(f"{_BACKINGS[backing]}: {problem}")
            continue
        if usable is None or backing == LOOP:
            usable = {"backing": backing, "directio": False, "clones": clones and backing == FILE}
        if clones:
            break
    if usable is None:
        return Verdict(False, "; ".join(reasons), _OLD)
    if options["directio"]:
        problem = "loop devices have none"
        if usable["backing"] == FILE:
            try:
                _, problem = _mounted(layer, FILE, directio=True)
            except OSError as error:
                problem = error.strerror or str(error)
        if problem:
            return Verdict(
                False, f"the option directio does not work here: {problem}", "Leave erofs.directio off."
            )
        usable["directio"] = True
    return usable


def _mounted(layer: str, backing: str, *, directio: bool = False) -> tuple[bool, str]:
    """Mount ``layer`` and read it: whether the mount can be cloned, and what is wrong, or ""."""
    mount = erofs_mounts.mount(layer, backing, directio=directio)
    try:
        where = f"/proc/self/fd/{mount}"
        with open(f"{where}/whited", "rb") as file:
            if file.read() != _CONTENT:
                return False, "a file has other content than its tar"
        if os.getxattr(f"{where}/whited", _XATTR) != b"kept":
            return False, "an extended attribute has another value than in its tar"
        if sorted(os.listdir(where)) != ["d", "moved", "one", "two", "whited"]:
            return False, "a directory lists other names than its tar"
        return erofs_mounts.can_clone(mount), ""
    finally:
        os.close(mount)


_BACKINGS = {FILE: "from files", LOOP: "from loop devices"}
_OLD = (
    "EROFS with blocks of 512 bytes needs Linux 6.4 (CONFIG_EROFS_FS) and loop devices, or 6.12 "
    "(CONFIG_EROFS_FS_BACKED_BY_FILE). Use the storage driver overlay."
)


def _told(found: Mapping[str, Any]) -> str:
    if found["backing"] == LOOP:
        return "read from loop devices"
    return (
        "read from files"
        + (", directio" if found["directio"] else "")
        + (", mounts shared" if found["clones"] else "")
    )


def _fix(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space."
    return "Choose another store with --root, or use the storage driver overlay."
