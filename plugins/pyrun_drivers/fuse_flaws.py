"""What fuse-overlayfs is known to get wrong, each tried on a mount: `Verdict.found["flaws"]`.

One function a flaw. It gets the root of a mount over the layer that `furnish` made, and the upper directory on disk,
and says whether the flaw shows: those of ``_LIVE`` on the first mount, those of ``_LATER`` on the next one. None of
these can be mended from outside: they lie in how the server copies files up and keeps names.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyrun.storage.contract import Env

_HOLE = 4 << 20
_LONG_AGO = 1_000_000_000_000_000_000  # ns


def furnish(root: str, env: Env) -> None:
    """Fill a layer's root with what the flaws show on."""
    for name in ("set-id", "counted", "deleted", "deleted-too", "opened", "unlinked", "linked"):
        with open(f"{root}/{name}", "wb") as file:
            file.write(b"lower")
    if not env.single_uid:
        os.chown(f"{root}/set-id", 3, 3)
    os.chmod(f"{root}/set-id", 0o4755)
    os.mkdir(f"{root}/merged")
    os.mkdir(f"{root}/again")
    _write(f"{root}/again/inside", b"lower")
    os.mkdir(f"{root}/set-gid")
    os.chmod(f"{root}/set-gid", 0o2755)
    os.mkdir(f"{root}/set-gid/below")
    os.link(f"{root}/counted", f"{root}/set-gid/counted")
    os.symlink("nowhere", f"{root}/link")
    os.utime(f"{root}/link", ns=(_LONG_AGO, _LONG_AGO), follow_symlinks=False)
    os.mkfifo(f"{root}/fifo")
    with open(f"{root}/sparse", "wb") as file:
        file.truncate(_HOLE)


def live(root: str, upper: str) -> list[Flaw]:
    """The flaws that show on a first mount. Leaves behind what `later` looks at."""
    found = [flaw for flaw in _LIVE if flaw[0](root, upper)]
    os.link(f"{root}/linked", f"{root}/merged/link")
    # A socket is bound by a path of at most 107 bytes.
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{root}/merged/socket")
    return found


def later(root: str, upper: str) -> list[Flaw]:
    """As `live`, on the mount that comes next."""
    return [flaw for flaw in _LATER if flaw[0](root, upper)]


def by_case(flaws: list[Flaw], env: Env) -> dict[str, str]:
    """The flaws in words, by each case that shows them in ``env``."""
    # With one id, these give nothing away to other owners, which is what goes wrong.
    untried = ("22a", "45", "55[group of a symlink]") if env.single_uid else ()
    return {case: words for _, cases, words in flaws for case in cases if case not in untried}


def summary(flaws: list[Flaw]) -> str:
    """All flaws in one sentence for the user; "" where there are none."""
    return "; ".join(dict.fromkeys(words for _, _, words in flaws))


def _mode(path: str) -> int:
    return os.lstat(path).st_mode & 0o7777


def _loses_set_id(root: str, upper: str) -> bool:
    os.utime(f"{root}/set-id", ns=(5, 5))
    return _loses_set_gid(root, upper) or _mode(f"{upper}/set-id") != 0o4755


def _loses_set_gid(root: str, upper: str) -> bool:
    os.chmod(f"{root}/set-gid/below", 0o700)
    # The kernel's cache still says what it was.
    return _mode(f"{upper}/set-gid") != 0o2755


def _loses_the_time_of_links(root: str, upper: str) -> bool:
    os.rename(f"{root}/link", f"{root}/renamed-link")
    return os.lstat(f"{root}/renamed-link").st_mtime_ns != _LONG_AGO


def _cannot_change_special_files(root: str, upper: str) -> bool:
    try:
        os.chmod(f"{root}/fifo", 0o600)
    except OSError:
        return True
    return False


def _fills_holes(root: str, upper: str) -> bool:
    before = os.stat(f"{root}/sparse").st_blocks
    with open(f"{root}/sparse", "r+b") as file:
        file.write(b"x")
        os.fsync(file.fileno())
    return os.stat(f"{root}/sparse").st_blocks - before >= _HOLE // 512 // 2


def _shows_deleted_names_again(root: str, upper: str) -> bool:
    os.unlink(f"{root}/deleted")
    _write(f"{root}/new", b"new")
    os.rename(f"{root}/new", f"{root}/deleted")
    os.rename(f"{root}/deleted", f"{root}/away")
    return os.path.lexists(f"{root}/deleted")


def _shows_deleted_names_again_after_directories(root: str, upper: str) -> bool:
    os.unlink(f"{root}/deleted-too")
    os.mkdir(f"{root}/new-directory")
    os.rename(f"{root}/new-directory", f"{root}/deleted-too")
    os.rename(f"{root}/deleted-too", f"{root}/away-too")
    return os.path.lexists(f"{root}/deleted-too")


def _shows_old_content_on_open_descriptors(root: str, upper: str) -> bool:
    fd = os.open(f"{root}/opened", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.pread(fd, 10, 0)
        with open(f"{root}/opened", "r+b") as file:
            file.write(b"LOWER")
            file.truncate(4)
        return os.pread(fd, 10, 0) != b"LOWE"
    finally:
        os.close(fd)


def _miscounts_links(root: str, upper: str) -> bool:
    return os.stat(f"{root}/counted").st_nlink != 2


def _counts_links_of_deleted_files(root: str, upper: str) -> bool:
    fd = os.open(f"{root}/unlinked", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.unlink(f"{root}/unlinked")
        return os.fstat(fd).st_nlink != 0
    finally:
        os.close(fd)


def _finds_what_was_in_deleted_directories(root: str, upper: str) -> bool:
    shutil.rmtree(f"{root}/again")
    os.mkdir(f"{root}/again")
    listed = os.open(f"{root}/again", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.listdir(listed)
        os.listdir(root)
    finally:
        os.close(listed)
    os.listdir(f"{root}/again")
    return os.path.lexists(f"{root}/again/inside")


def _counts_known_names_only(root: str, upper: str) -> bool:
    return os.stat(f"{root}/linked").st_nlink != 2


def _overlooks_sockets(root: str, upper: str) -> bool:
    return not os.path.lexists(f"{root}/merged/socket")


def _refuses_long_names(root: str, upper: str) -> bool:
    try:
        _write(f"{root}/{'n' * 255}", b"")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return True
    return False


def _write(path: str, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)


_COUNTS = "counts of links are wrong, of names not seen yet and of deleted files that are open"
_DELETED = "a deleted name shows a layer's file again when what took its place is renamed away"
_SET_ID = "set-id bits of a layer's files and directories are lost when they change"
Flaw = tuple["Callable[[str, str], bool]", tuple[str, ...], str]
_LIVE: tuple[Flaw, ...] = (
    # First: the counts depend on what was looked up before.
    (_miscounts_links, ("25",), _COUNTS),
    (_counts_links_of_deleted_files, ("50",), _COUNTS),
    (_loses_set_gid, ("23",), _SET_ID),
    (_loses_set_id, ("34",), _SET_ID),
    (
        _loses_the_time_of_links,
        ("40d", "41", "45", "55[group of a symlink]"),
        "a layer's symbolic links lose their times when they change",
    ),
    (
        _cannot_change_special_files,
        ("22a", "33a", "76"),
        "a layer's fifos, sockets and devices can't be changed",
    ),
    (_fills_holes, ("32",), "a layer's sparse files lose their holes when they change"),
    (_shows_deleted_names_again, ("40b", "59"), _DELETED),
    (_shows_deleted_names_again_after_directories, ("40",), _DELETED),
    (
        _shows_old_content_on_open_descriptors,
        ("47",),
        "a descriptor opened before a layer's file was first written may show its old content",
    ),
    (
        _finds_what_was_in_deleted_directories,
        (),
        "what was in a directory that was deleted and made again can be found by name until the next start",
    ),
    (_refuses_long_names, ("35", "57", "58"), "names longer than 251 bytes can't be made"),
)
_LATER: tuple[Flaw, ...] = (
    (_counts_known_names_only, ("55[a further name]",), _COUNTS),
    (_overlooks_sockets, ("52",), "sockets are not found until somebody lists their directory"),
)
