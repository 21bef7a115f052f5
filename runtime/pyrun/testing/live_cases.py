"""Cases of section C: POSIX behaviour of a running container's root.

What a program finds there is what it finds in a plain directory on the same file system, before and after a file
of a layer is written for the first time (copied up), after a remount, and in an image made of it. The exceptions
are those that `Caps` names.
"""

from __future__ import annotations

import os
import shutil
import stat
from errno import EXDEV
from typing import Any

import pytest

from ..kernel.directory import RENAME_EXCHANGE, RENAME_NOREPLACE, entries, rename
from .live_files import FileCases
from .rig import Rig
from .tars import Dir, File, Link, Symlink, tar
from .twins import outcome, twins

_ATTRIBUTES: dict[str, Any] = {"uid": 7, "gid": 8, "mode": 0o640, "xattrs": {"user.note": b"kept"}}

LOWER = tar(
    Dir("d"),
    File("d/one", b"1"),
    File("d/two", b"2", **_ATTRIBUTES),
    Dir("d/sub", 0o1777),
    File("d/sub/deep", b"deep"),
    Dir("other", 0o700),
    File("other/three", b"3"),
    Dir("empty"),
    File("f", b"lower"),
    File("g", b"also lower", **_ATTRIBUTES),
    Symlink("to-f", "f"),
    Symlink("to-d", "d"),
)
# A layer that merges with it and hides some of it.
MERGED = tar(
    Dir("d"), File("d/two", b"second"), File("d/four", b"4"), Dir("d/sub"), File("d/sub/late", b"late")
)


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write(path: str, content: bytes, flags: int = os.O_WRONLY | os.O_CREAT | os.O_TRUNC) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


_COMBINATIONS = (
    "",
    "O_CREAT",
    "O_CREAT O_EXCL",
    "O_CREAT O_EXCL O_NOFOLLOW",
    "O_CREAT O_NOFOLLOW",
    "O_CREAT O_TRUNC",
    "O_CREAT O_APPEND",
    "O_CREAT O_DIRECTORY",
    "O_TRUNC",
    "O_TRUNC O_APPEND",
    "O_TRUNC O_NOFOLLOW",
    "O_APPEND",
    "O_NOFOLLOW",
    "O_DIRECTORY",
    "O_DIRECTORY O_NOFOLLOW",
    "O_NONBLOCK O_NOCTTY",
    "O_PATH",
    "O_PATH O_NOFOLLOW",
    "O_PATH O_DIRECTORY",
    "O_PATH O_NOFOLLOW O_DIRECTORY",
)
_ACCESS = ("O_RDONLY", "O_WRONLY", "O_RDWR")
_TARGETS = ("absent", "file", "link", "dangling", "dir", "dir-link", "absent/", "file/", "file/below")


def _all_opens(path: str) -> dict[str, Any]:
    """Every combination of flags on every kind of target: what opening, writing and reading there came to."""
    found = {}
    for number, flags in enumerate(_COMBINATIONS):
        for access in ("O_RDONLY",) if "O_PATH" in flags else _ACCESS:
            for target in _TARGETS:
                name = f"{path}/{number}-{access}/{target}"
                found[f"{access} {flags} on {target}"] = _one_open(name, f"{access} {flags}")
    return found


def _one_open(name: str, flags: str) -> Any:
    number = os.O_CLOEXEC
    for flag in flags.split():
        number |= getattr(os, flag)
    before = os.umask(0o022)
    try:
        fd = outcome(os.open, name, number, 0o666)
    finally:
        os.umask(before)
    if not isinstance(fd, int):
        return fd
    try:
        st = os.fstat(fd)
        size = st.st_size if stat.S_ISREG(st.st_mode) else None
        wrote = outcome(os.write, fd, b"new")
        at = outcome(os.lseek, fd, 0, os.SEEK_CUR)
        got = outcome(os.pread, fd, 100, 0)
        return oct(st.st_mode), size, wrote, at if stat.S_ISREG(st.st_mode) else None, got
    finally:
        os.close(fd)


class LiveCases(FileCases):
    """Cases that need the fixture ``rig``."""

    def test_38_open_flags_do_what_they_do_on_a_plain_file_system(self, rig: Rig) -> None:
        members = []
        for number, _ in enumerate(_COMBINATIONS):
            for access in _ACCESS:
                top = f"{number}-{access}"
                members += [
                    Dir(top),
                    File(f"{top}/file", b"lower"),
                    File(f"{top}/target", b"target"),
                    Symlink(f"{top}/link", "target"),
                    Symlink(f"{top}/dangling", "nowhere"),
                    Dir(f"{top}/dir"),
                    Symlink(f"{top}/dir-link", "dir"),
                ]
        with twins(rig, tar(*members)) as pair:
            pair.both(_all_opens)
            pair.same()
            # Once more: now the files are of the upper layer.
            pair.both(_all_opens)

    def test_39_renaming_a_directory_of_a_layer_works_or_is_exdev_as_declared(self, rig: Rig) -> None:
        with twins(rig, LOWER, MERGED) as pair:
            if rig.caps.rename_dir:
                pair.both(lambda p: os.rename(f"{p}/d", f"{p}/moved"))
                pair.both(lambda p: write(f"{p}/moved/sub/new", b"n"))
                pair.both(lambda p: os.unlink(f"{p}/moved/one"))
                pair.both(lambda p: os.rename(f"{p}/moved/sub", f"{p}/other/sub"))
                # The old name is free, and what is made there does not merge with what was.
                pair.both(lambda p: os.mkdir(f"{p}/d"))
                pair.both(lambda p: os.listdir(f"{p}/d"))
                pair.both(lambda p: os.rename(f"{p}/other", f"{p}/empty"))
                pair.both(lambda p: _rename(f"{p}/moved", f"{p}/empty"))  # it is not
                pair.both(lambda p: sorted(os.listdir(f"{p}/empty")))
            else:
                for old, new in (("d", "moved"), ("d/sub", "other/sub"), ("other", "empty")):
                    with pytest.raises(OSError) as caught:
                        os.rename(f"{pair.path}/{old}", f"{pair.path}/{new}")
                    assert caught.value.errno == EXDEV
                    pair.same(when=f"after {old} was not renamed")
                # As mv does it then: copy and delete.
                pair.both(lambda p: shutil.copytree(f"{p}/d", f"{p}/moved", symlinks=True) and None)
                pair.both(lambda p: shutil.rmtree(f"{p}/d"))

    def test_39b_a_new_directory_can_be_renamed(self, rig: Rig) -> None:
        def operations(path: str) -> Any:
            os.makedirs(f"{path}/new/inner")
            write(f"{path}/new/inner/file", b"x")
            os.rename(f"{path}/new", f"{path}/renamed")
            os.rename(f"{path}/renamed/inner", f"{path}/d/inner")
            return (
                _rename(f"{path}/renamed", f"{path}/d"),
                outcome(os.rename, f"{path}/renamed", f"{path}/empty"),
                outcome(os.rename, f"{path}/empty", f"{path}/f"),  # no directory
                outcome(os.rename, f"{path}/f", f"{path}/empty"),
                outcome(os.rename, f"{path}/d", f"{path}/d/inner/below-itself"),
            )

        with twins(rig, LOWER) as pair:
            results = pair.both(operations)
            assert results == ("not empty", None, "ENOTDIR", "EISDIR", "EINVAL")

    def test_40_rename_to_the_name_of_something_deleted(self, rig: Rig) -> None:
        def operations(path: str) -> None:
            os.unlink(f"{path}/f")
            write(f"{path}/new", b"new")
            os.rename(f"{path}/new", f"{path}/f")
            shutil.rmtree(f"{path}/d")
            os.mkdir(f"{path}/fresh")
            write(f"{path}/fresh/only", b"o")
            os.rename(f"{path}/fresh", f"{path}/d")
            os.unlink(f"{path}/g")
            os.mkdir(f"{path}/dir")
            os.rename(f"{path}/dir", f"{path}/g")
            os.rename(f"{path}/g", f"{path}/away")

        with twins(rig, LOWER, MERGED) as pair:
            pair.both(operations)
            assert os.listdir(f"{pair.path}/d") == ["only"]
            assert not os.path.lexists(f"{pair.path}/g")

    def test_40b_hundreds_of_renames(self, rig: Rig) -> None:
        count = 200
        lower = tar(Dir("all"), *(File(f"all/{n}", b"%d" % n) for n in range(0, count, 2)))

        def operations(path: str) -> None:
            for n in range(1, count, 2):
                write(f"{path}/all/{n}", b"%d" % n)
            os.rename(f"{path}/all/0", f"{path}/all/spare")
            for n in range(1, count):
                os.rename(f"{path}/all/{n}", f"{path}/all/{n - 1}")
            os.rename(f"{path}/all/spare", f"{path}/all/{count - 1}")
            for n in range(0, count, 3):
                os.rename(f"{path}/all/{n}", f"{path}/all/{(n + 1) % count}")

        with twins(rig, lower) as pair:
            pair.both(operations)

    def test_40c_rename_without_replacing(self, rig: Rig) -> None:
        def operations(path: str) -> Any:
            write(f"{path}/new", b"new")
            os.unlink(f"{path}/g")
            return (
                outcome(rename, f"{path}/new", f"{path}/f", RENAME_NOREPLACE),
                outcome(rename, f"{path}/f", f"{path}/d", RENAME_NOREPLACE),
                outcome(rename, f"{path}/f", f"{path}/g", RENAME_NOREPLACE),
                outcome(rename, f"{path}/new", f"{path}/free", RENAME_NOREPLACE),
                outcome(rename, f"{path}/gone", f"{path}/free2", RENAME_NOREPLACE),
            )

        with twins(rig, LOWER) as pair:
            assert pair.both(operations) == ("EEXIST", "EEXIST", None, None, "ENOENT")

    def test_40d_two_names_are_exchanged_or_nothing_happens(self, rig: Rig) -> None:
        """RENAME_EXCHANGE may fail with EINVAL where a file system lacks it (man renameat2), and with EXDEV for a
        directory that comes from a layer where those can't be renamed."""
        with twins(rig, LOWER) as pair:
            pair.both(lambda p: write(f"{p}/new", b"new"))
            pair.both(lambda p: os.mkdir(f"{p}/fresh"))
            for one, two, directory in (
                ("f", "g", False),
                ("f", "new", False),
                ("to-f", "d/one", False),
                ("fresh", "new", False),
                ("d/sub", "other/three", True),
            ):
                got = outcome(rename, f"{pair.path}/{one}", f"{pair.path}/{two}", RENAME_EXCHANGE)
                refused = {"EINVAL", "EXDEV"} if directory and not rig.caps.rename_dir else {"EINVAL"}
                if got not in refused:
                    assert got is None
                    rename(f"{pair.plain}/{one}", f"{pair.plain}/{two}", RENAME_EXCHANGE)
                pair.same(when=f"exchanged {one} and {two}: {got}")

    def test_41_a_file_of_a_layer_can_be_renamed(self, rig: Rig) -> None:
        def operations(path: str) -> None:
            os.rename(f"{path}/d/two", f"{path}/d/renamed")
            os.rename(f"{path}/d/sub/deep", f"{path}/deep")
            os.rename(f"{path}/f", f"{path}/g")
            os.rename(f"{path}/to-f", f"{path}/d/sub/to-f")
            os.rename(f"{path}/to-d", f"{path}/other/three")

        with twins(rig, LOWER, MERGED) as pair:
            pair.both(operations)
            assert read(f"{pair.path}/d/renamed") == b"second"
            assert read(f"{pair.path}/g") == b"lower"
            assert not os.path.lexists(f"{pair.path}/f")

    def test_41b_renaming_one_name_of_a_file_to_another_does_nothing(self, rig: Rig) -> None:
        """POSIX rename(): "If the old argument and the new argument resolve to either the same existing directory
        entry or different directory entries for the same existing file, rename() shall return successfully and
        perform no other action." Where the names of a layer's file part when written (no `Caps.hardlinks`), they
        need not count as one file."""
        with twins(rig, tar(File("a", b"x"), Link("b", "a")), settle=rig.caps.hardlinks) as pair:
            pair.both(lambda p: write(f"{p}/c", b"y"))
            pair.both(lambda p: os.link(f"{p}/c", f"{p}/e"))
            pair.both(lambda p: os.rename(f"{p}/c", f"{p}/e"))
            assert os.path.samefile(f"{pair.path}/c", f"{pair.path}/e")
            if rig.caps.hardlinks:
                pair.both(lambda p: os.rename(f"{p}/a", f"{p}/b"))
                assert os.path.samefile(f"{pair.path}/a", f"{pair.path}/b")

    def test_42_unlink_and_rmdir(self, rig: Rig) -> None:
        def operations(path: str) -> Any:
            os.mkdir(f"{path}/new")
            write(f"{path}/new/file", b"x")
            write(f"{path}/d/new", b"x")
            results = [
                outcome(os.unlink, f"{path}/{name}")
                for name in (
                    "f",
                    "f",
                    "g",
                    "to-f",
                    "d/one",
                    "d/new",
                    "d",
                    "new",
                    "to-d/two",
                    "missing",
                    "other/",
                )
            ]
            results += [
                outcome(os.rmdir, f"{path}/{name}")
                for name in ("empty", "empty", "d", "new", "other", "to-d", "d/two", "d/four", "d/sub", "d/.")
            ]
            return results

        with twins(rig, LOWER, MERGED) as pair:
            pair.both(operations)

    @pytest.mark.parametrize("again", [False, True], ids=["gone", "made-again"])
    def test_42b_whole_trees_are_removed(self, rig: Rig, again: bool) -> None:
        def operations(path: str) -> None:
            os.makedirs(f"{path}/new/a/b")
            write(f"{path}/new/a/b/file", b"x")
            write(f"{path}/d/sub/newest", b"x")
            for name in ("new", "d", "other", "empty"):  # new, merged, of one layer, empty
                shutil.rmtree(f"{path}/{name}")
                if again:
                    os.mkdir(f"{path}/{name}")
            for name in ("f", "g", "to-f", "to-d"):
                os.unlink(f"{path}/{name}")

        with twins(rig, LOWER, MERGED) as pair:
            pair.both(operations)
            assert sorted(os.listdir(pair.path)) == (["d", "empty", "new", "other"] if again else [])
            for name in os.listdir(pair.path):
                assert os.listdir(f"{pair.path}/{name}") == []

    def test_42c_a_directory_whose_entries_were_all_deleted_is_empty(self, rig: Rig) -> None:
        def operations(path: str) -> Any:
            for name in ("one", "two", "four", "sub/deep", "sub/late"):
                os.unlink(f"{path}/d/{name}")
            os.rmdir(f"{path}/d/sub")
            seen = os.listdir(f"{path}/d")
            os.rmdir(f"{path}/d")
            os.mkdir(f"{path}/d")
            return seen, os.listdir(f"{path}/d"), outcome(os.stat, f"{path}/d/sub")

        with twins(rig, LOWER, MERGED) as pair:
            assert pair.both(operations) == ([], [], "ENOENT")

    def test_44_readdir_while_entries_are_removed_skips_none(self, rig: Rig) -> None:
        lower = [f"lower-{n:04}-{'x' * 200}" for n in range(300)]
        upper = [f"upper-{n:04}-{'x' * 200}" for n in range(150)]
        with twins(rig, tar(Dir("all"), Dir("half"), *_files("all", lower), *_files("half", lower))) as pair:
            for path in (pair.path, pair.plain):
                for name in upper:
                    write(f"{path}/all/{name}", b"")
                    write(f"{path}/half/{name}", b"")
                # Each one as it is seen, as rm -r does: every name comes exactly once.
                seen = []
                with os.scandir(f"{path}/all") as found:
                    for entry in found:
                        seen.append(entry.name)
                        os.unlink(entry.path)
                assert sorted(seen) == sorted(lower + upper)
                assert os.listdir(f"{path}/all") == []
                os.rmdir(f"{path}/all")
                # Others than the one seen: those that stay come exactly once; the removed ones may come.
                keep = set(lower[::2] + upper[::2])
                rest = sorted(set(lower + upper) - keep)
                seen = []
                with os.scandir(f"{path}/half") as found:
                    for entry in found:
                        seen.append(entry.name)
                        for _ in range(2):
                            if rest:
                                os.unlink(f"{path}/half/{rest.pop()}")
                assert rest == []
                assert sorted(name for name in seen if name in keep) == sorted(keep)
                assert sorted(os.listdir(f"{path}/half")) == sorted(keep)

    def test_44b_a_directory_can_be_read_again_from_any_position(self, rig: Rig) -> None:
        names = [f"{n:03}-{'y' * 30}" for n in range(200)]
        with twins(rig, tar(Dir("all"), *_files("all", names[::2])), settle=False) as pair:
            for name in names[1::2]:
                write(f"{pair.path}/all/{name}", b"")
            fd = os.open(f"{pair.path}/all", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                everything = []
                while found := entries(fd, 1024):
                    everything += found
                assert sorted(e.name.decode() for e in everything) == [".", "..", *names]
                for at in (0, 1, 7, 100, len(everything) - 2):
                    os.lseek(fd, everything[at].after, os.SEEK_SET)
                    assert entries(fd, 1024)[0].name == everything[at + 1].name
                # rewinddir(): "shall also cause the directory stream to refer to the current state"
                os.unlink(f"{pair.path}/all/{names[0]}")
                os.unlink(f"{pair.path}/all/{names[1]}")
                write(f"{pair.path}/all/fresh", b"")
                os.lseek(fd, 0, os.SEEK_SET)
                again = []
                while found := entries(fd, 1024):
                    again += found
                assert sorted(e.name.decode() for e in again) == [".", "..", *names[2:], "fresh"]
            finally:
                os.close(fd)

    def test_45_a_file_keeps_its_identity_when_it_is_copied_up(self, rig: Rig) -> None:
        """A file serial number belongs to the file for its life (POSIX, "File Serial Number"); tar, cp and rsync
        tell files apart by it and by the device."""
        with twins(rig, LOWER) as pair:
            for name, change in (
                ("f", lambda path: write(path, b"more", os.O_WRONLY | os.O_APPEND)),
                ("g", lambda path: os.chmod(path, 0o600)),
                ("d/one", lambda path: os.link(path, path + "-link")),
                ("d/two", lambda path: os.truncate(path, 0)),
                ("to-f", lambda path: os.chown(path, 3, 3, follow_symlinks=False)),
            ):
                if rig.env.single_uid and name == "to-f":
                    continue
                before = os.lstat(f"{pair.path}/{name}")
                pair.both(lambda p, name=name, change=change: change(f"{p}/{name}"))
                after = os.lstat(f"{pair.path}/{name}")
                assert (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino), name
            listed = {entry.name: entry.inode() for entry in os.scandir(pair.path)}
            assert listed == {name: os.lstat(f"{pair.path}/{name}").st_ino for name in listed}

    def test_46_a_directory_keeps_its_identity_when_it_is_written(self, rig: Rig) -> None:
        with twins(rig, LOWER, MERGED) as pair:
            for name in ("d", "d/sub", "other"):
                before = os.stat(f"{pair.path}/{name}")
                opened = os.open(f"{pair.path}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    pair.both(lambda p, name=name: write(f"{p}/{name}/new", b"x"))
                    pair.both(lambda p, name=name: os.chmod(f"{p}/{name}", 0o751))
                    after = os.stat(f"{pair.path}/{name}")
                    assert (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino), name
                    # One that was open all the time is the same directory. (Without rewinding, POSIX leaves it
                    # open whether readdir returns what was added since; on btrfs it does not.)
                    os.lseek(opened, 0, os.SEEK_SET)
                    assert "new" in os.listdir(opened)
                    assert os.fstat(opened).st_mode == after.st_mode
                    assert os.path.samestat(os.stat("new", dir_fd=opened), os.stat(f"{pair.path}/{name}/new"))
                finally:
                    os.close(opened)


def _rename(old: str, new: str) -> Any:
    """The outcome; that a directory is not empty has two names (POSIX rename(): [EEXIST] or [ENOTEMPTY])."""
    found = outcome(os.rename, old, new)
    return "not empty" if found in ("EEXIST", "ENOTEMPTY") else found


def _files(directory: str, names: list[str]) -> list[Any]:
    return [File(f"{directory}/{name}") for name in names]
