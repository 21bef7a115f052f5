"""Cases of section C about open files: what a descriptor, a mapping, a lock or a running program sees when its file
is copied up, unlinked or replaced. Cases that may hang or crash run in a child process with a deadline."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EOPNOTSUPP, errorcode
from typing import Any

import pytest

from ..kernel import mount as m
from .apart import apart
from .rig import Rig
from .tars import Dir, File, tar
from .twins import Twins, outcome, twins

_BIG = 8 << 20

LOWER = tar(
    Dir("d"),
    File("d/one", b"one of the layer"),
    Dir("d/sub"),
    File("f", b"lower", 0o640, uid=7, gid=8, xattrs={"user.note": b"kept"}),
    File("g", b"x" * 10000),
    File("empty"),
)


@contextmanager
def opened(path: str, flags: int, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def append(path: str, content: bytes) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, content)


def in_child(pair: Twins, work: Callable[[str], Any], *, seconds: float = 20) -> None:
    """Run ``work(path)`` in a child for both trees, the rootfs attached at a directory of the child's own mount
    namespace: there it has a path that programs and getcwd(3) can use. Afterwards it is mounted anew."""
    place = f"{pair.rig.root}/attached"
    os.makedirs(place, exist_ok=True)

    def attached() -> None:
        work(pair.plain)
        m.move_mount(pair.root.fd, m.AT_FDCWD, place)
        work(place)

    try:
        apart(attached, seconds=seconds)
        pair.same(when="live")
        pair.remount()
    finally:
        os.rmdir(place)


class FileCases:
    """Cases that need the fixture ``rig``."""

    def test_43_truncating_a_file_of_a_layer(self, rig: Rig) -> None:
        def operations(path: str) -> Any:
            os.close(os.open(f"{path}/f", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC))
            os.truncate(f"{path}/g", 5000)
            os.truncate(f"{path}/d/one", 3)
            os.truncate(f"{path}/empty", 100_000)
            with opened(f"{path}/g", os.O_RDWR) as fd:
                os.ftruncate(fd, 10)
                os.ftruncate(fd, 20)  # zeros, not what was there
                seen = os.pread(fd, 100, 0)
            with opened(f"{path}/d/one", os.O_RDONLY) as fd:
                refused = outcome(os.ftruncate, fd, 1)
            return (
                seen,
                refused,
                outcome(os.truncate, f"{path}/d", 0),
                outcome(os.truncate, f"{path}/missing", 0),
            )

        with twins(rig, LOWER) as pair:
            assert pair.both(operations) == (b"x" * 10 + bytes(10), "EINVAL", "EISDIR", "ENOENT")
            kept = os.stat(f"{pair.path}/f")
            assert (kept.st_mode & 0o7777, kept.st_size) == (0o640, 0)
            assert os.getxattr(f"{pair.path}/f", "user.note") == b"kept"

    def test_43b_truncating_a_big_file_to_nothing_takes_no_space(self, rig: Rig) -> None:
        with twins(rig, tar(File("big", os.urandom(_BIG)))) as pair:
            before = pair.root.usage().bytes
            pair.both(lambda p: os.close(os.open(f"{p}/big", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)))
            assert pair.root.usage().bytes - before < 1 << 20

    def test_47_a_descriptor_opened_before_sees_what_is_written_later(self, rig: Rig) -> None:
        def operations(path: str) -> Any:
            with opened(f"{path}/f", os.O_RDONLY) as fd, opened(f"{path}/d", os.O_RDONLY) as directory:
                seen = [os.pread(fd, 100, 0)]
                append(f"{path}/f", b" and more")
                seen.append(os.pread(fd, 100, 0))
                with opened(f"{path}/f", os.O_RDWR) as second:
                    os.pwrite(second, b"LOW", 0)
                    seen.append(os.pread(fd, 100, 0))
                    os.ftruncate(second, 4)
                os.chmod(f"{path}/f", 0o604)
                seen.append(os.pread(fd, 100, 0))
                with opened(f"{path}/d/late", os.O_WRONLY | os.O_CREAT):
                    pass
                st = os.fstat(fd)
                return seen, st.st_size, oct(st.st_mode), sorted(os.listdir(directory))

        with twins(rig, LOWER) as pair:
            seen, *_ = pair.both(operations)
            assert seen == [b"lower", b"lower and more", b"LOWer and more", b"LOWe"]

    def test_48_a_shared_mapping_made_before_never_crashes(
        self, rig: Rig, record_property: Callable[[str, object], None]
    ) -> None:
        """POSIX leaves open whether a MAP_SHARED mapping made of a read-only descriptor sees later writes; overlayfs
        documents that it does not where the file was of a layer then. So this is recorded, as the property
        "coherent" of the test report, and not judged. One that was made of the written file does see them."""
        with twins(rig, LOWER) as pair:
            report = f"{rig.root}/coherent"

            def map_and_write() -> None:
                path = f"{pair.path}/g"
                with opened(path, os.O_RDONLY) as fd:
                    mapping = mmap.mmap(fd, 10000, mmap.MAP_SHARED, mmap.PROT_READ)
                    assert mapping[:2] == b"xx"
                    with opened(path, os.O_WRONLY) as writer:
                        os.pwrite(writer, b"new", 0)
                    seen = mapping[:3]
                    assert seen in (b"new", b"xxx")
                    assert mapping[9999:] == b"x"
                with opened(path, os.O_RDWR) as fd:
                    both = mmap.mmap(fd, 10000, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                    os.pwrite(fd, b"newer", 0)
                    assert both[:5] == b"newer"
                    both[5:6] = b"!"
                    both.flush()
                    assert os.pread(fd, 6, 0) == b"newer!"
                with open(report, "wb") as out:
                    out.write(seen)

            apart(map_and_write, mounts=False, seconds=20)
            with open(report, "rb") as file:
                record_property("coherent", file.read() == b"new")
            with opened(f"{pair.plain}/g", os.O_WRONLY) as fd:
                os.pwrite(fd, b"newer!", 0)

    def test_49_locks_survive_copy_up(self, rig: Rig) -> None:
        def shared_by_process(path: str) -> Any:
            """What a second process is told of locks that are held on what was a file of a layer."""
            with opened(f"{path}/f", os.O_RDONLY) as flocked, opened(f"{path}/g", os.O_RDONLY) as ranged:
                fcntl.flock(flocked, fcntl.LOCK_EX)
                fcntl.fcntl(ranged, fcntl.F_OFD_SETLK, _range(fcntl.F_RDLCK, 0, 10))
                append(f"{path}/f", b"up")
                append(f"{path}/g", b"up")
                told: dict[str, object] = {}
                read, write = os.pipe()
                pid = os.fork()
                if pid == 0:
                    try:
                        with opened(f"{path}/f", os.O_RDWR) as fd:
                            told["flock"] = outcome(fcntl.flock, fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                        with opened(f"{path}/g", os.O_RDWR) as fd:
                            for name, start in (("range", 5), ("free", 40)):
                                lock = _range(fcntl.F_WRLCK, start, 1)
                                got = outcome(fcntl.fcntl, fd, fcntl.F_OFD_SETLK, lock)
                                told[name] = got if isinstance(got, str) else "locked"
                        os.write(write, repr(sorted(told.items())).encode())
                    finally:
                        os._exit(0)
                os.close(write)
                with open(read, "rb") as file:
                    answer = file.read()
                os.waitpid(pid, 0)
                return answer

        with twins(rig, LOWER) as pair:
            answer = pair.both(shared_by_process).decode()
            expected = [("flock", "EAGAIN"), ("free", "locked"), ("range", "EAGAIN")]
            assert answer == repr(expected)

    def test_50_an_unlinked_open_file_is_usable(self, rig: Rig) -> None:
        """As far as its descriptor was opened for it. Of a layer's file that was opened for reading only, two
        things are not tried, as nothing depends on them: to change the mode, for union file systems can't copy up
        what has no name (overlayfs says EEXIST), and the count of links (overlayfs goes on to say 1)."""

        def operations(path: str) -> Any:
            results: list[Any] = []
            for name, flags in (("f", os.O_RDONLY), ("g", os.O_RDWR), ("new", os.O_RDWR | os.O_CREAT)):
                with opened(f"{path}/{name}", flags) as fd:
                    os.unlink(f"{path}/{name}")
                    results.append(os.listdir(path).count(name))
                    with opened(f"{path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fresh:
                        os.write(fresh, b"another file")
                    if flags != os.O_RDONLY:
                        results.append(os.pwrite(fd, b"still there", 0))
                        os.ftruncate(fd, 11)
                        os.fchmod(fd, 0o600)
                    st = os.fstat(fd)
                    results.append((os.pread(fd, 100, 0), oct(st.st_mode), st.st_size))
                    if flags != os.O_RDONLY:
                        results.append(st.st_nlink)
                    with opened(f"/proc/self/fd/{fd}", os.O_RDONLY) as again:
                        results.append(os.pread(again, 5, 0))
                with opened(f"{path}/{name}", os.O_RDONLY) as fd:
                    results.append(os.pread(fd, 100, 0))
            # A directory that is gone is empty, and nothing can be made in it.
            with opened(f"{path}/d/sub", os.O_RDONLY | os.O_DIRECTORY) as directory:
                os.rmdir(f"{path}/d/sub")
                made = outcome(os.open, "x", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=directory)
                results.append((os.listdir(directory), made))
            return sorted(os.listdir(path)), results

        with twins(rig, LOWER) as pair:
            pair.both(operations)

    def test_51_a_file_without_a_name_gets_one(self, rig: Rig) -> None:
        """O_TMPFILE, then linkat(2). A file system without it says EOPNOTSUPP (man 2 open); then programs make a
        file with a name."""

        def operations(path: str, directory: str) -> Any:
            with opened(f"{path}/{directory}", os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
                os.write(fd, b"complete")
                os.fchmod(fd, 0o604)
                before = sorted(os.listdir(f"{path}/{directory}")), os.fstat(fd).st_nlink
                source = f"/proc/self/fd/{fd}"
                taken = outcome(os.link, source, f"{path}/f", src_dir_fd=fd, follow_symlinks=True)
                os.link(source, f"{path}/{directory}/named", src_dir_fd=fd, follow_symlinks=True)
                os.link(source, f"{path}/{directory}/twice", src_dir_fd=fd, follow_symlinks=True)
                after = os.fstat(fd).st_nlink, os.pread(fd, 100, 0)
            with opened(f"{path}/{directory}", os.O_TMPFILE | os.O_RDWR | os.O_EXCL) as fd:
                nameless = outcome(
                    os.link, f"/proc/self/fd/{fd}", f"{path}/no", src_dir_fd=fd, follow_symlinks=True
                )
            return before, taken, after, nameless

        with twins(rig, LOWER) as pair:
            os.mkdir(f"{pair.path}/new")
            os.mkdir(f"{pair.plain}/new")
            for directory in ("d", "new", "."):
                nameless = outcome(_without_a_name, f"{pair.path}/{directory}")
                assert nameless in (None, errorcode[EOPNOTSUPP])
                if nameless is None:
                    pair.both(operations, directory)

    def test_52_unix_sockets_connect(self, rig: Rig) -> None:
        def operations(path: str) -> None:
            os.chdir(path)
            os.mkdir("new")
            for name in ("socket", "d/socket", "new/socket"):
                with socket.socket(socket.AF_UNIX) as server:
                    server.settimeout(10)
                    server.bind(name)
                    server.listen()
                    assert stat.S_ISSOCK(os.lstat(name).st_mode)
                    with socket.socket(socket.AF_UNIX) as second:
                        assert outcome(second.bind, name) == "EADDRINUSE"
                    os.chmod(name, 0o600)
                    os.rename(name, name + "-moved")
                    with socket.socket(socket.AF_UNIX) as client:
                        client.settimeout(10)
                        client.connect(
                            f"/proc/self/cwd/{name}-moved"
                        )  # absolute, and never too long for a socket
                        with server.accept()[0] as peer:
                            client.sendall(b"ping")
                            assert peer.recv(10) == b"ping"
                with socket.socket(socket.AF_UNIX) as client:
                    assert outcome(client.connect, name + "-moved") == "ECONNREFUSED"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.bind("d/datagrams")
                one.settimeout(10)
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as two:
                    two.sendto(b"hello", "d/datagrams")
                assert one.recv(10) == b"hello"
            os.unlink("socket-moved")

        with twins(rig, LOWER) as pair:
            in_child(pair, operations)
            # What is left is a name; the next mount has it, an image has not.
            assert stat.S_ISSOCK(os.lstat(f"{pair.path}/d/socket-moved").st_mode)
            with rig.view(pair.committed()) as view:
                assert sorted(os.listdir(f"{view.path}/d")) == ["one", "sub"]

    def test_52b_a_socket_in_a_file_s_place_hides_it_in_the_image(self, rig: Rig) -> None:
        def operations(path: str) -> None:
            os.chdir(path)
            os.unlink("f")
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("f")

        with twins(rig, LOWER) as pair:
            in_child(pair, operations)

    def test_53_the_working_directory_survives_copy_up(self, rig: Rig) -> None:
        def operations(path: str) -> None:
            os.chdir(f"{path}/d/sub")
            assert os.getcwd() == f"{path}/d/sub"
            before = os.stat(".")
            with opened("new", os.O_WRONLY | os.O_CREAT):
                pass
            os.chmod("..", 0o711)
            assert os.getcwd() == f"{path}/d/sub"
            assert os.path.samestat(before, os.stat(f"{path}/d/sub"))
            os.makedirs(f"{path}/fresh/inner")
            os.chdir(f"{path}/fresh/inner")
            os.rename(f"{path}/fresh", f"{path}/renamed")
            assert os.getcwd() == f"{path}/renamed/inner"
            os.rmdir(f"{path}/renamed/inner")
            assert outcome(os.getcwd) == "ENOENT"
            os.chdir("/")

        with twins(rig, LOWER) as pair:
            in_child(pair, operations)

    def test_54_programs_run_and_are_not_written_meanwhile(self, rig: Rig) -> None:
        """A running program's file can't be opened for writing (ETXTBSY; not from Linux 6.11 to 6.12, so the plain
        directory decides), but it can be replaced."""
        program = shutil.which("cat")
        if program is None:
            pytest.skip("needs the program cat")
        with open(program, "rb") as file:
            binary = file.read()
        told: list[Any] = []

        def operations(path: str) -> None:
            assert _ran(f"{path}/bin/script") == 7
            assert outcome(_ran, f"{path}/bin/data") == "EACCES"
            assert outcome(_ran, f"{path}/bin/garbage") == "ENOEXEC"
            shutil.copy(f"{path}/bin/cat", f"{path}/new-cat")
            for name in ("bin/cat", "new-cat"):
                running = subprocess.Popen(
                    [f"{path}/{name}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
                )
                assert running.stdin
                assert running.stdout
                try:
                    running.stdin.write(b"a\n")
                    assert running.stdout.read(2) == b"a\n"  # so it runs
                    told.append(outcome(append, f"{path}/{name}", b""))
                    told.append(outcome(os.truncate, f"{path}/{name}", 1 << 20))
                    os.rename(f"{path}/{name}", f"{path}/{name}.old")
                    shutil.copy(f"{path}/bin/script", f"{path}/{name}")
                    running.stdin.write(b"b\n")
                    assert running.stdout.read(2) == b"b\n"
                    assert _ran(f"{path}/{name}") == 7
                finally:
                    running.kill()
                    running.communicate()
            half = len(told) // 2
            assert path == pair.plain or told[half:] == told[:half]

        layer = tar(
            Dir("bin"),
            File("bin/cat", binary, 0o755),
            File("bin/script", b"#!/bin/sh\nexit 7\n", 0o755),
            File("bin/data", b"#!/bin/sh\nexit 7\n", 0o644),
            File("bin/garbage", b"\0garbage", 0o755),
        )
        with twins(rig, layer) as pair:
            in_child(pair, operations, seconds=60)


def _without_a_name(directory: str) -> None:
    with opened(directory, os.O_TMPFILE | os.O_RDWR):
        pass


def _ran(program: str) -> int:
    """The exit code of ``program``. Raises OSError where it can't be executed."""
    return subprocess.run([program], check=False, timeout=10).returncode


def _range(kind: int, start: int, length: int) -> bytes:
    """struct flock (man fcntl)."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
