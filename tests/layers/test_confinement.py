"""Code that runs where layers are unpacked can't reach the host: tried by code that runs there."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rawtar import END, directory, file, header

from pyrun.errors import DigestMismatch, LayerError, StorageError
from pyrun.kernel import landlock, process, seccomp
from pyrun.kernel.mount import mount, open_tree
from pyrun.kernel.process import CLONE_NEWNS
from pyrun.kernel.syscall import libc
from pyrun.layers import confined, confinement
from pyrun.storage.tarblob import TarBlob
from pyrun.testing import children
from support.pyrun import COMMAND
from support.rootless import as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0: every namespace, and device nodes")

Transform = confined.Transform


def plain(chunks: Iterator[Any]) -> Iterator[bytes]:
    for chunk in chunks:
        yield bytes(chunk)


def inside(
    work: Callable[[Any, int], Any], where: Path, *, keep: tuple[str, ...] = confinement.UNPACKING_AS_ROOT
) -> Any:
    """What ``work(stream, root)`` returns in a child confined to the directory ``where``, with all the power that
    unpacking ever has. The stream has five bytes."""
    where.mkdir(exist_ok=True)
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    before = set(os.listdir("/proc/self/fd"))
    try:
        return confined.run([b"bytes"], plain, work, dirfd=fd, keep=keep)
    finally:
        assert set(os.listdir("/proc/self/fd")) == before
        os.close(fd)


def refusal(what: Callable[..., object], *args: object) -> str:
    """The error that ``what`` fails with, by its name; or what it did."""
    try:
        return f"done: {what(*args)!r}"
    except OSError as error:
        return type(error).__name__ + f" {error.errno}"


# --- what it gets


def test_work_gets_the_stream_and_the_directory(tmp_path: Path) -> None:
    def work(stream: Any, root: int) -> Any:
        fd = os.open("made", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=root)
        os.write(fd, stream.read(100))
        os.chown("made", 7, 8, dir_fd=root)
        return [os.getcwd(), os.listdir("/"), os.stat("/made").st_uid]

    assert inside(work, tmp_path / "d") == ["/", ["made"], 7]
    assert (tmp_path / "d/made").read_text() == "bytes"


def test_the_parent_is_told_what_the_child_raised(tmp_path: Path) -> None:
    def refused(stream: Any, root: int) -> None:
        raise LayerError("layer entry 'x': no", hint="Do this.")

    def broken(stream: Any, root: int) -> None:
        raise ValueError("a mistake")

    with pytest.raises(LayerError, match="'x': no") as caught:
        inside(refused, tmp_path / "d")
    assert caught.value.hint == "Do this."
    with pytest.raises(StorageError, match="ValueError: a mistake") as crashed:
        inside(broken, tmp_path / "d")
    assert "in broken" in crashed.value.__notes__[0]


def test_what_the_feed_raises_comes_first(tmp_path: Path) -> None:
    def feed() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1 << 20)
        raise DigestMismatch("the download was damaged")

    def refused(stream: Any, root: int) -> None:
        raise LayerError("a bad layer")

    with pytest.raises(DigestMismatch, match="the download"):
        confined.run(feed(), plain, refused)


def test_the_feed_ends_the_child_where_it_raises_early() -> None:
    def feed() -> Iterator[bytes]:
        yield b"x"
        raise KeyboardInterrupt

    others = children_of(os.getpid())
    with pytest.raises(KeyboardInterrupt):
        confined.run(feed(), plain, lambda stream, root: stream.drain())
    assert children_of(os.getpid()) == others


def test_a_child_that_is_killed_is_told_in_words(tmp_path: Path) -> None:
    def bomb(stream: Any, root: int) -> None:
        stream.drain()
        os.abort()

    with pytest.raises(LayerError, match="ended by SIG"):
        inside(bomb, tmp_path / "d")


def test_a_process_with_threads_confines_too(tmp_path: Path) -> None:
    done = threading.Event()
    waiting = threading.Thread(target=done.wait)
    waiting.start()
    missing: list[str] = []
    try:
        found = confined.run([b"x"], plain, lambda stream, root: os.listdir("/"), missing=missing)
    finally:
        done.set()
        waiting.join()
    assert (found, missing) == ([], [])


# --- what it tries


def test_the_hosts_files_have_no_name(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host")
    place = str(secret)

    def work(stream: Any, root: int) -> Any:
        up = "../" * 40
        os.symlink(place, "link")
        os.symlink(f"{up}{place}", "far")
        return [
            refusal(os.open, name, os.O_RDONLY)
            for name in (
                "/etc/passwd",
                place,
                f"{up}{place.lstrip('/')}",
                f"{up}etc/passwd",
                "/proc/self/root/etc/passwd",
                f"/proc/self/fd/{root}/../etc/passwd",
                "link",
                "far",
                "/dev/null",
            )
        ] + [
            refusal(lambda: os.open("../" * 40 + "etc/passwd", os.O_RDONLY, dir_fd=root)),
            os.stat("/..").st_ino == os.stat("/").st_ino,
            os.stat("..", dir_fd=root).st_ino == os.fstat(root).st_ino,
        ]

    assert inside(work, tmp_path / "d") == ["FileNotFoundError 2"] * 10 + [True, True]


def test_other_directories_of_the_store_have_no_name(tmp_path: Path) -> None:
    for name in ("layers", "content", "staging"):
        (tmp_path / name).mkdir()
    (tmp_path / "content/blob").write_text("whole")

    def work(stream: Any, root: int) -> Any:
        return [
            refusal(lambda: os.open("../../content/blob", os.O_RDWR, dir_fd=root)),
            refusal(lambda: os.mkdir("../../layers/evil", dir_fd=root)),
            refusal(lambda: os.rename("/x", f"{tmp_path}/layers/x")),
        ]

    assert set(inside(work, tmp_path / "staging/one")) == {"FileNotFoundError 2"}
    assert os.listdir(tmp_path / "layers") == []
    assert (tmp_path / "content/blob").read_text() == "whole"


def test_a_device_that_it_makes_does_not_open(tmp_path: Path) -> None:
    disk = os.stat("/").st_dev

    def work(stream: Any, root: int) -> Any:
        os.mknod("disk", stat.S_IFBLK | 0o600, disk)
        os.mknod("mem", stat.S_IFCHR | 0o600, os.makedev(1, 1))
        os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        return [refusal(os.open, name, os.O_RDWR) for name in ("disk", "mem", "null")]

    assert inside(work, tmp_path / "d") == ["PermissionError 13"] * 3


def test_no_descriptor_of_the_parent_is_left(tmp_path: Path) -> None:
    held = [os.open("/", os.O_RDONLY), os.open("/etc/passwd", os.O_RDONLY)]
    for fd in held:
        os.set_inheritable(fd, True)

    def work(stream: Any, root: int) -> Any:
        found = {}
        for fd in range(1024):
            try:
                found[fd] = stat.S_IFMT(os.fstat(fd).st_mode)
            except OSError:
                pass
        return found

    try:
        found = {int(fd): kind for fd, kind in inside(work, tmp_path / "d").items()}
    finally:
        for fd in held:
            os.close(fd)
    # /dev/null at every place that is not used, the two pipes, and the directory.
    assert sorted(found.values()) == sorted([stat.S_IFCHR] * 5 + [stat.S_IFIFO] * 2 + [stat.S_IFDIR])


def test_no_other_process_can_be_signalled(tmp_path: Path) -> None:
    parent = os.getpid()

    def work(stream: Any, root: int) -> Any:
        return [
            os.getpid(),
            refusal(lambda: os.kill(parent, signal.SIGTERM)),
            refusal(lambda: os.kill(-1, signal.SIGKILL)),
            refusal(lambda: os.kill(os.getppid() or 1, 0)),
        ]

    assert inside(work, tmp_path / "d") == [1] + ["PermissionError 1"] * 3


def test_the_kernel_signals_nobody_for_it(tmp_path: Path) -> None:
    """F_SETOWN and F_SETSIG would have it send SIGKILL to whom the child names once bytes come through a pipe: where a
    process with threads makes the child, it has no pid namespace of its own."""
    done = threading.Event()
    waiting = threading.Thread(target=done.wait)
    waiting.start()
    victim = subprocess.Popen(["sleep", "60"])

    def feed() -> Iterator[bytes]:
        for _ in range(10):
            time.sleep(0.02)
            yield b"x"

    def work(stream: Any, root: int) -> Any:
        data = 3
        found = [
            refusal(fcntl.fcntl, data, fcntl.F_SETSIG, signal.SIGKILL),
            refusal(fcntl.fcntl, data, fcntl.F_SETOWN, victim.pid),
            refusal(fcntl.fcntl, data, fcntl.F_SETFL, os.O_ASYNC),
        ]
        stream.drain()
        return found

    try:
        assert confined.run(feed(), plain, work) == ["PermissionError 1"] * 3
        assert victim.poll() is None
    finally:
        done.set()
        waiting.join()
        victim.kill()
        victim.wait()


def test_no_process_and_no_thread_can_be_made(tmp_path: Path) -> None:
    def work(stream: Any, root: int) -> Any:
        found = [refusal(os.fork) for _ in range(50)]
        try:
            threading.Thread(target=print).start()
        except RuntimeError as error:
            found.append(str(error))
        return sorted(set(found))

    assert inside(work, tmp_path / "d") == ["PermissionError 1", "can't start new thread"]


def test_no_socket_can_be_made(tmp_path: Path) -> None:
    def work(stream: Any, root: int) -> Any:
        return [
            refusal(socket.socket, family, socket.SOCK_STREAM)
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK)
        ]

    assert inside(work, tmp_path / "d") == ["PermissionError 1"] * 4


def call(name: str, *args: Any) -> Callable[[], int]:
    """A raw system call, by its number: no library in between."""
    number = seccomp.numbers(seccomp.native())[name]

    def made() -> int:
        result = libc.syscall(
            ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args)
        )
        if result < 0:
            raise OSError(ctypes.get_errno(), name)
        return int(result)

    return made


@pytest.mark.parametrize(
    ("what", "attack"),
    [
        ("execve", lambda: os.execv("/made", ["made"])),
        ("mount", lambda: mount(b"none", b"/", b"tmpfs", 0)),
        ("open_tree", lambda: open_tree(-100, "/")),
        ("umount", call("umount2", ctypes.c_char_p(b"/"), 2)),
        ("unshare", lambda: process.unshare(CLONE_NEWNS)),
        ("setns", lambda: process.setns(0)),
        ("chroot", lambda: os.chroot(".")),
        ("pivot_root", call("pivot_root", ctypes.c_char_p(b"."), ctypes.c_char_p(b"."))),
        ("ptrace", call("ptrace", 0, 0, 0, 0)),
        ("process_vm_readv", call("process_vm_readv", 1, 0, 0, 0, 0, 0)),
        ("open_by_handle_at", call("open_by_handle_at", 3, 0, 0)),
        ("pidfd_open", call("pidfd_open", 1, 0)),
        ("bpf", call("bpf", 0, 0, 0)),
        ("io_uring_setup", call("io_uring_setup", 1, 0)),
        ("userfaultfd", call("userfaultfd", 0)),
        ("setuid", lambda: os.setuid(1)),
        ("capset", lambda: process.capset(1, 1, 1)),
        ("init_module", call("init_module", 0, 0, 0)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_system_call_that_no_unpacking_makes_ends_the_child(
    tmp_path: Path, what: str, attack: Callable[[], object]
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/made").write_text("#!/bin/true\n")
    (tmp_path / "d/made").chmod(0o755)
    with pytest.raises(LayerError, match="system call that no unpacking makes"):
        inside(lambda stream, root: refusal(attack), tmp_path / "d")


@pytest.mark.parametrize(
    "attack",
    [
        call("clone3", 0, 0),
        call("prctl", 4, 1, 0, 0, 0),
        call("seccomp", 1, 0, 0),
        call("prlimit64", 0, 7, 0, 0),
        call("ioctl", 0, 0x5412, 0),
        call("memfd_create", ctypes.c_char_p(b"x"), 0),
        call("setsid"),
        call("kill", 1, 9),
        call("mprotect", 0, 4096, 4),
    ],
    ids=[
        "clone3",
        "prctl",
        "seccomp",
        "prlimit",
        "TIOCSTI",
        "memfd",
        "setsid",
        "kill",
        "exec-memory",
    ],
)
def test_every_other_system_call_is_refused(tmp_path: Path, attack: Callable[[], object]) -> None:
    assert inside(lambda stream, root: refusal(attack), tmp_path / "d") == "PermissionError 1"


def test_calls_of_later_kernels_are_unknown_to_it(tmp_path: Path) -> None:
    number = max(seccomp.numbers(seccomp.native()).values()) + 7

    def work(stream: Any, root: int) -> Any:
        libc.syscall(ctypes.c_long(number))
        return ctypes.get_errno()

    assert inside(work, tmp_path / "d") == 38


def test_chroot_and_fchdir_lead_nowhere_even_without_the_filter(tmp_path: Path) -> None:
    """The classic way out of a chroot, by a child that has no filter and still CAP_SYS_CHROOT: there is nothing
    above its root."""

    def escape() -> Any:
        (tmp_path / "d").mkdir()
        tree = open_tree(-100, str(tmp_path / "d"))
        process.unshare(CLONE_NEWNS)
        confine = confinement.Confinement(namespaces=True, detached=True, memory=0)
        root = confine.enter(tree)
        os.mkdir("/sub")
        os.chroot("/sub")
        os.fchdir(root)
        for _ in range(50):
            os.chdir("..")
        os.chroot(".")
        return [confine.missing, sorted(os.listdir("."))]

    assert children.run(escape, seconds=60).result() == [[], ["sub"]]


def test_memory_has_a_limit(tmp_path: Path) -> None:
    def work(stream: Any, root: int) -> Any:
        held = []
        while True:
            held.append(bytearray(64 << 20))

    with pytest.raises(LayerError, match=r"more than 2048 MiB of memory"):
        inside(work, tmp_path / "d")


def test_descriptors_files_and_cores_have_a_limit(tmp_path: Path) -> None:
    def work(stream: Any, root: int) -> Any:
        held = []
        error = ""
        try:
            while True:
                held.append(os.dup(root))
        except OSError as caught:
            error = os.strerror(caught.errno or 0)
        for fd in held:
            os.close(fd)
        big = os.open("big", os.O_WRONLY | os.O_CREAT, 0o600)
        return [error, len(held) < 512, refusal(lambda: os.ftruncate(big, (2 << 40) + 1))]

    assert inside(work, tmp_path / "d") == ["Too many open files", True, "OSError 27"]


def test_an_answer_beyond_all_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=f"more than {confined.ANSWER} bytes"):
        inside(lambda stream, root: "x" * (confined.ANSWER + 1), tmp_path / "d")


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"entries": -1, "bytes": 0, "implied": [], "opaque_root": False, "dropped": []},
        {"entries": 0, "bytes": 0, "implied": ["../etc"], "opaque_root": False, "dropped": []},
        {"entries": 0, "bytes": 0, "implied": ["/etc"], "opaque_root": False, "dropped": []},
        {"entries": 0, "bytes": 0, "implied": ["a\u2028"], "opaque_root": False, "dropped": []},
        {"entries": 0, "bytes": 0, "implied": "abc/", "opaque_root": False, "dropped": []},
        {"entries": 0, "bytes": 0, "implied": [], "opaque_root": 1, "dropped": []},
        {"entries": True, "bytes": 0, "implied": [], "opaque_root": False, "dropped": []},
        {"entries": 0, "bytes": 0, "implied": [], "opaque_root": False, "dropped": ["x"] * 101},
    ],
)
def test_a_senseless_answer_is_refused(answer: Any) -> None:
    from pyrun.layers.answer import checked

    with pytest.raises(LayerError, match="senseless"):
        checked(answer)


def test_control_bytes_of_an_answer_are_escaped(tmp_path: Path) -> None:
    def work(stream: Any, root: int) -> Any:
        raise LayerError("\x1b]0;owned\x07" * 5000, hint="\x1b[2J")

    with pytest.raises(LayerError) as caught:
        inside(work, tmp_path / "d")
    assert str(caught.value).replace("\n", "").isprintable()
    assert len(str(caught.value)) < 40_000


# --- what the kernel says of it


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def child_of(pid: int) -> int:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for found in children_of(pid):
            if status_of(found).get("Seccomp") == "2":
                return found
        time.sleep(0.01)
    raise AssertionError("no confined child appeared")


def bits(names: tuple[str, ...]) -> int:
    return sum(1 << confinement.CAPABILITIES[name] for name in names)


def watched(work: Callable[[Any, int], Any], keep: tuple[str, ...], where: Path) -> dict[str, Any]:
    """What /proc tells of a child, and of its thread, while it waits for more."""
    seen: dict[str, Any] = {}
    where.mkdir(exist_ok=True)

    def feed() -> Iterator[bytes]:
        yield b"x"
        pid = child_of(os.getpid())
        seen["status"] = status_of(pid)
        seen["threads"] = [
            status_of(int(task))["CapEff"] + status_of(int(task))["Seccomp"]
            for task in os.listdir(f"/proc/{pid}/task")
        ]
        seen["mounts"] = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        seen["fds"] = sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        seen["namespaces"] = {
            name
            for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup")
            if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")
        }
        seen["limits"] = Path(f"/proc/{pid}/limits").read_text()
        seen["net"] = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]

    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        confined.run(feed(), plain, work, dirfd=fd, keep=keep)
    finally:
        os.close(fd)
    return seen


@pytest.mark.parametrize("keep", [(), confinement.UNPACKING, confinement.UNPACKING_AS_ROOT])
def test_the_kernel_tells_what_was_given_up(tmp_path: Path, keep: tuple[str, ...]) -> None:
    seen = watched(lambda stream, root: stream.drain(), keep, tmp_path / "d")
    status = seen["status"]
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == bits(keep)
    assert [status[name].strip("0") for name in ("CapInh", "CapAmb", "CapBnd")] == ["", "", ""]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert len(seen["threads"]) == 2
    assert len(set(seen["threads"])) == 1
    assert len(seen["mounts"]) == 1
    options = seen["mounts"][0].split()[5].split(",")
    assert {"nosuid", "nodev", "noexec"} <= set(options)
    assert seen["namespaces"] == {"mnt", "pid", "net", "ipc", "uts", "cgroup"}
    assert [line.split(":")[0].strip() for line in seen["net"]] == ["lo"]
    assert "Max core file size        0                    0" in seen["limits"]
    assert [fd for fd in seen["fds"] if not fd.startswith("pipe:")] == [
        "/",
        *["/null"] * 5,
    ]  # of a /dev that is no more


def test_the_root_of_a_child_without_a_directory_is_empty_and_read_only() -> None:
    def work(stream: Any, root: int) -> Any:
        return [os.listdir("/"), refusal(lambda: os.mkdir("/x"))]

    assert confined.run([b"x"], plain, work) == [[], "OSError 30"]


def test_nothing_is_missing_here() -> None:
    assert confined.probe() == []


def test_an_ordinary_users_child_is_confined_as_well(tmp_path: Path) -> None:
    os.chmod(tmp_path, 0o755)
    confined.probe()

    def as_them() -> Any:
        work = lambda stream, root: [  # noqa: E731
            os.listdir("/"),
            refusal(lambda: os.open("/etc/passwd", os.O_RDONLY)),
            refusal(os.fork),
        ]
        missing: list[str] = []
        return [confined.run([b"x"], plain, work, keep=confinement.UNPACKING, missing=missing), missing]

    assert as_user(as_them) == [[[], "FileNotFoundError 2", "PermissionError 1"], []]


def test_where_nothing_may_be_mounted_the_rest_is_done_and_the_lack_told(tmp_path: Path) -> None:
    """As in a container that has neither CAP_SYS_ADMIN nor user namespaces: a chroot, Landlock, and all the rest."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d/mine").write_text("mine")
    confined.probe()

    def without() -> Any:
        fd = os.open(tmp_path / "d", os.O_RDONLY | os.O_DIRECTORY)
        effective, permitted, _ = process.capget()
        admin = 1 << confinement.CAPABILITIES["SYS_ADMIN"]
        process.capset(effective & ~admin, permitted & ~admin, 0)
        missing: list[str] = []

        def work(stream: Any, root: int) -> Any:
            return [
                os.listdir("/"),
                refusal(lambda: os.open("/etc/passwd", os.O_RDONLY)),
                refusal(lambda: os.listdir("/..")),
                os.open("mine", os.O_RDONLY, dir_fd=root) > 0,
                refusal(os.fork),
            ]

        return [
            confined.run([b"x"], plain, work, dirfd=fd, keep=confinement.UNPACKING, missing=missing),
            missing,
        ]

    found, missing = children.run(without, seconds=60).result()
    assert found == [["mine"], "FileNotFoundError 2", "done: ['mine']", True, "PermissionError 1"]
    assert {f"{name} namespace: Operation not permitted" for name in confinement.NAMESPACES} < set(missing)
    assert any(word.startswith("root of its own") for word in missing)
    assert not any(word.startswith(("seccomp", "chroot")) for word in missing)


def landlocked() -> str:
    """ "" where the kernel has Landlock as it is needed here; else why not."""

    def inside() -> str:
        process.set_no_new_privs()
        fd = os.open("/var/tmp", os.O_RDONLY | os.O_DIRECTORY)
        try:
            landlock.confine_to(fd)
        except OSError as error:
            return os.strerror(error.errno or 0)
        return ""

    return str(children.run(inside, seconds=60).result())


def test_where_not_even_chroot_is_allowed_landlock_keeps_it_from_others_files(tmp_path: Path) -> None:
    """As an ordinary process without any privilege."""
    if lacking := landlocked():
        pytest.skip(f"the kernel has no Landlock that can link between directories: {lacking}")
    tmp_path.chmod(0o755)
    (tmp_path / "d").mkdir()
    (tmp_path / "secret").write_text("host")
    (tmp_path / "d").chmod(0o777)
    confined.probe()

    def without() -> Any:
        fd = os.open(tmp_path / "d", os.O_RDONLY | os.O_DIRECTORY)
        os.setresuid(65534, 65534, 65534)
        missing: list[str] = []

        def work(stream: Any, root: int) -> Any:
            os.mkdir("a", dir_fd=root)
            os.mkdir("b", dir_fd=root)
            os.close(os.open("a/x", os.O_WRONLY | os.O_CREAT, dir_fd=root))
            os.link("a/x", "b/y", src_dir_fd=root, dst_dir_fd=root)
            return [
                refusal(os.open, "/etc/passwd", os.O_RDONLY),
                refusal(lambda: os.open("../secret", os.O_RDONLY, dir_fd=root)),
                refusal(os.mkdir, "/tmp/never-made-by-a-test"),
                refusal(os.fork),
            ]

        return [confined.run([b"x"], plain, work, dirfd=fd, missing=missing), missing]

    found, missing = children.run(without, seconds=60).result()
    assert found == ["PermissionError 13"] * 3 + ["PermissionError 1"]
    assert "chroot: Operation not permitted" in missing
    assert not any(word.startswith(("landlock", "seccomp")) for word in missing)
    assert (tmp_path / "d/b/y").exists()


# --- through the blob


def test_unpacking_happens_in_the_child(tmp_path: Path) -> None:
    tar = (
        directory(b"d", uid=3)
        + file(b"d/f", b"x" * 600, mode=0o4755, uid=4)
        + header(b"n", b"3", major=1, minor=3)
        + END
    )
    (tmp_path / "d").mkdir()
    umask = os.umask(0o77)
    fd = os.open(tmp_path / "d", os.O_RDONLY | os.O_DIRECTORY)
    try:
        done = TarBlob(tar).unpack(fd, "overlay")
    finally:
        os.close(fd)
        assert os.umask(umask) == 0o77
    assert done.entries == 3
    found = (tmp_path / "d/d/f").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o4755, 4)
    assert (tmp_path / "d/n").stat().st_rdev == os.makedev(1, 3)


def test_a_driver_of_its_own_form_works_in_the_child(tmp_path: Path) -> None:
    tar = file(b"f", b"x") + END
    (tmp_path / "d").mkdir()
    fd = os.open(tmp_path / "d", os.O_RDONLY | os.O_DIRECTORY)
    from pyrun.layers.unpack import Unpacked

    def work(stream: Any, root: int) -> Unpacked:
        out = os.open("layer.tar", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=root)
        while piece := stream.read(100):
            os.write(out, piece)
        return Unpacked(1, len(tar), [b"a\xff/b"], True, [b"user.x"])

    done = TarBlob(tar).confined(fd, work)
    os.close(fd)
    assert (tmp_path / "d/layer.tar").read_bytes() == tar
    assert (done.implied, done.opaque_root, done.dropped) == ([b"a\xff/b"], True, [b"user.x"])


def test_a_stream_for_work_outside_is_made_in_a_child(tmp_path: Path) -> None:
    state = {"settled": None}

    def told() -> Any:
        return [os.getpid(), os.listdir("/")]

    reader = confined.Reader(
        iter([b"a" * 3_000_000, b"b"]), plain, told, lambda what: state.update(settled=what)
    )
    with reader:
        assert reader.read() == b"a" * 3_000_000 + b"b"
        assert reader.read(10) == b""
    assert state["settled"] == [1, []]


def test_a_stream_that_is_closed_early_ends_its_child_and_its_feed() -> None:
    closed = []

    def feed() -> Iterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            closed.append(True)

    before = set(os.listdir("/proc/self/fd"))
    others = children_of(os.getpid())
    reader = confined.Reader(feed(), plain, lambda: None, lambda what: None)
    assert len(reader.read(100)) == 100
    reader.close()
    assert closed == [True]
    assert set(os.listdir("/proc/self/fd")) == before
    assert children_of(os.getpid()) == others


def test_a_stream_ends_in_what_its_feed_raised() -> None:
    def feed() -> Iterator[bytes]:
        yield b"some"
        raise DigestMismatch("damaged")

    with (
        confined.Reader(feed(), plain, lambda: None, lambda what: None) as reader,
        pytest.raises(DigestMismatch),
    ):
        reader.readall()


def test_a_stream_ends_in_what_its_child_raised() -> None:
    def transform(chunks: Iterator[Any]) -> Iterator[bytes]:
        yield b"some"
        raise LayerError("a bad stream")

    with (
        confined.Reader(iter([b"x"]), transform, lambda: None, lambda what: None) as reader,
        pytest.raises(LayerError, match="a bad stream"),
    ):
        reader.readall()


def test_info_tells_of_the_confinement(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "--root", str(tmp_path / "r"), "--state", str(tmp_path / "s"), "info"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "unpacking: confined\n" in done.stdout
