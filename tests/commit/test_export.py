"""``pyrun export``: the files of a container as a tar."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from pyrun.engine import Engine
from support.pyrun import Pyrun, terminal, wait_for
from support.registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_a_tar_on_standard_output_and_in_a_file_are_the_same(pyrun: Pyrun, tmp_path: Path) -> None:
    pyrun.ok("run", "--name", "files", "busybox", "sh", "-c", "echo hello >/new; mkfifo /fifo")
    printed = pyrun.ok("export", "files", text=False)
    assert pyrun.ok("container", "export", "--output", str(tmp_path / "a.tar"), "files") == ""
    assert (tmp_path / "a.tar").read_bytes() == printed
    with tarfile.open(tmp_path / "a.tar") as tar:
        content = tar.extractfile("./new" if "./new" in tar.getnames() else "new")
        assert content is not None
        assert content.read() == b"hello\n"
        assert tar.getmember("fifo").isfifo()
        assert tar.getmember("bin/busybox").mode == 0o755
    assert sorted(os.listdir(tmp_path)) == ["a.tar"]


def test_of_what_is_mounted_there_are_empty_places(pyrun: Pyrun, tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host/secret").write_text("the host's")
    pyrun.ok(
        "run", "--name", "mounts", "-v", f"{tmp_path}/host:/bound", "-v", "/volume", "--tmpfs", "/memory",
        "busybox", "sh", "-c", "touch /volume/x /memory/x",
    )  # fmt: skip
    pyrun.ok("export", "-o", str(tmp_path / "a.tar"), "mounts")
    found = names(tmp_path / "a.tar")
    assert {"bound", "volume", "memory", "proc", "dev", "sys", "etc/hosts"} <= set(found)
    assert not [
        name for name in found if name.startswith(("bound/", "volume/", "memory/", "proc/", "dev/", "sys/"))
    ]
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getmember("etc/hosts").size == 0


def test_names_that_would_mean_something_in_a_layer_mean_themselves(pyrun: Pyrun, tmp_path: Path) -> None:
    pyrun.ok("run", "--name", "odd", "busybox", "sh", "-c", "echo >/.wh.passwd; echo >/etc/.wh..wh..opq")
    pyrun.ok("export", "-o", str(tmp_path / "a.tar"), "odd")
    assert {".wh.passwd", "etc/.wh..wh..opq"} <= set(names(tmp_path / "a.tar"))
    done = pyrun("commit", "odd")
    assert done.returncode == 1
    assert ".wh." in done.stderr


def test_no_tar_is_written_to_a_terminal(pyrun: Pyrun) -> None:
    pyrun.ok("run", "--name", "files", "busybox", "true")
    with terminal(pyrun, "export", "files") as window:
        assert window.wait() == 125
        assert b"not written to a terminal" in window.output
        assert b"Name a file with -o" in window.output


def test_a_file_is_replaced_by_a_whole_one_or_not_at_all(pyrun: Pyrun, tmp_path: Path) -> None:
    target = tmp_path / "a.tar"
    target.write_text("before")
    done = pyrun("export", "-o", str(target), "missing")
    assert done.returncode == 1
    assert "no such container: missing" in done.stderr
    pyrun.ok("run", "--name", "files", "busybox", "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=40")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(disk)], check=True)
    try:
        (disk / "a.tar").write_text("before")
        done = pyrun("export", "-o", str(disk / "a.tar"), "files")
        assert (done.returncode, done.stdout) == (1, "")
        assert "no space left for" in done.stderr
        assert os.listdir(disk) == ["a.tar"]
        assert (disk / "a.tar").read_text() == "before"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert target.read_text() == "before"
    pyrun.ok("export", "-o", str(target), "files")
    assert "big" in names(target)
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "disk"]
    done = pyrun("export", "-o", str(disk), "files")
    assert done.returncode == 125
    assert "is a directory" in done.stderr


def test_a_new_file_is_for_its_owner_alone(pyrun: Pyrun, tmp_path: Path) -> None:
    pyrun.ok("run", "--name", "secret", "busybox", "sh", "-c", "umask 077; echo root:x >/etc/shadow")
    pyrun.ok("export", "-o", str(tmp_path / "a.tar"), "secret")
    assert (tmp_path / "a.tar").stat().st_mode & 0o777 == 0o600


def test_what_is_no_regular_file_is_written_as_it_is(pyrun: Pyrun, tmp_path: Path) -> None:
    pyrun.ok("run", "--name", "files", "busybox", "true")
    pyrun.ok("export", "-o", "/dev/null", "files")
    assert os.stat("/dev/null").st_rdev == os.makedev(1, 3)
    os.symlink("real.tar", tmp_path / "link.tar")
    pyrun.ok("export", "-o", str(tmp_path / "link.tar"), "files")
    assert os.path.islink(tmp_path / "link.tar")
    assert "bin" in names(tmp_path / "real.tar")


def test_it_ends_quietly_when_nobody_reads(pyrun: Pyrun) -> None:
    pyrun.ok("run", "--name", "files", "busybox", "true")
    process = pyrun.start("export", "files", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == b""


def test_files_that_change_meanwhile_leave_a_well_formed_tar(pyrun: Pyrun, tmp_path: Path) -> None:
    script = """
        mkdir -p /d; i=0; echo up
        while :; do
            i=$((i+1)); mkdir -p /d/$i; echo $i >/d/$i/f; dd if=/dev/zero of=/grows bs=64k count=$((i % 7)) 2>/dev/null
            rm -rf /d/$((i-3)); mv /d/$((i-1)) /d/moved$i 2>/dev/null; rm -rf /d/moved$((i-2)); ln -sf $i /link
        done
    """
    process = pyrun.start("run", "--name", "busy", "busybox", "sh", "-c", script, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    try:
        for _ in range(5):
            pyrun.ok("export", "-o", str(tmp_path / "a.tar"), "busy")
            assert {"bin/busybox", "etc/passwd"} <= set(names(tmp_path / "a.tar"))
            subprocess.run(["tar", "-tf", str(tmp_path / "a.tar")], check=True, stdout=subprocess.DEVNULL)
    finally:
        pyrun.ok("rm", "-f", "busy")
        process.wait(timeout=30)


def test_a_container_that_is_removed_meanwhile_is_an_error(pyrun: Pyrun, tmp_path: Path) -> None:
    """One of --rm goes when it ends, and files go missing from under who reads."""
    process = pyrun.start("run", "--rm", "--name", "goes", "busybox", "sh", "-c", "dd if=/dev/zero of=/big bs=1M "
                          "count=60 2>/dev/null; echo up; sleep 60", stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    export = pyrun.start("export", "-o", str(pipe), "goes", stderr=subprocess.PIPE)
    assert export.stderr
    with open(pipe, "rb") as reader:
        reader.read(4096)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_for(lambda: "goes" not in pyrun.ok("ps", "-a", "--format", "{{.Names}}").split(), "it is gone")
        while reader.read(1 << 20):
            pass
    assert export.wait(timeout=30) == 1
    assert b"was removed while its files were read" in export.stderr.read()


def test_readers_wait_for_each_other_and_keep_the_container(pyrun: Pyrun, tmp_path: Path) -> None:
    pyrun.ok("run", "--name", "held", "busybox", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=20")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    export = pyrun.start("export", "-o", str(pipe), "held")
    with open(pipe, "rb") as reader:
        reader.read(4096)
        done = pyrun("rm", "held")
        assert done.returncode == 1
        assert "the container held is in use" in done.stderr
        second = pyrun.start("export", "-o", str(tmp_path / "b.tar"), "held")
        time.sleep(0.5)
        assert second.poll() is None
        whole = reader.read()
        while more := reader.read(1 << 20):
            whole += more
    assert export.wait(timeout=30) == 0
    assert second.wait(timeout=30) == 0
    pyrun.ok("rm", "held")


def test_ids_that_a_user_namespace_lacks_are_told_only_of_a_stopped_container(
    fresh: Pyrun, registry: Registry, tmp_path: Path
) -> None:
    from pyrun.testing.tars import Dir, File, Link, tar

    program = fresh.ok("run", "--rm", "busybox", "cat", "/bin/busybox", text=False)
    layer = tar(Dir("bin"), File("bin/busybox", program, 0o755), Link("bin/sh", "bin/busybox"),
                File("far", b"", 0o644, uid=1_000_600_000, gid=70_000))  # fmt: skip
    registry.push_image("far", "1", [layer], {"Cmd": ["sh"]})
    image = f"{registry.host}/far:1"
    process = fresh.start("run", "-i", "--name", "far", image, "sh", "-c", "echo >/new; echo up; read x",
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    fresh_out, fresh_in = process.stdout, process.stdin
    assert fresh_out
    assert fresh_in
    assert fresh_out.readline() == b"up\n"
    assert fresh.ok("diff", "far") == "A /new\n"
    done = fresh("export", "-o", str(tmp_path / "a.tar"), "far")
    assert done.returncode == 1
    assert "Stop it first" in done.stderr
    assert os.listdir(tmp_path) == []
    fresh_in.close()
    process.wait()
    fresh_out.close()
    fresh.ok("export", "-o", str(tmp_path / "a.tar"), "far")
    with tarfile.open(tmp_path / "a.tar") as tar_file:
        assert (tar_file.getmember("far").uid, tar_file.getmember("far").gid) == (1_000_600_000, 70_000)


def test_the_api_writes_to_a_file_or_a_descriptor(pyrun: Pyrun, tmp_path: Path) -> None:
    pyrun.ok("run", "--name", "files", "busybox", "true")
    engine = Engine(str(pyrun.root), str(pyrun.state))
    size = engine.export("files", str(tmp_path / "a.tar"))
    with open(tmp_path / "b.tar", "wb", buffering=0) as file:
        assert engine.export("files", file.fileno()) == size
    assert size == os.path.getsize(tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert "bin/busybox" in names(tmp_path / "a.tar")
