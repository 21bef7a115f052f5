"""Corners in which an earlier engine was wrong: each was found by somebody who tried."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from pyrun.engine import Engine
from pyrun.images import gc
from support.pyrun import COMMAND, Pyrun, terminal, wait_for
from support.registry import Registry, tar


def test_a_device_node_in_an_image_is_not_a_device(fresh: Pyrun) -> None:
    layer = next(fresh.root.glob("layers/overlay/*/fs/bin")).parent
    os.mknod(layer / "zero", 0o20666, os.makedev(1, 5))
    os.chmod(layer / "zero", 0o666)
    for userns in ("auto", "host"):
        done = fresh("run", "--rm", "--userns", userns, "busybox", "head", "-c", "1", "/zero")
        assert done.returncode != 0
        assert "Permission denied" in done.stderr


def test_a_device_as_passwd_is_not_opened_by_the_engine(fresh: Pyrun) -> None:
    layer = next(fresh.root.glob("layers/overlay/*/fs/bin")).parent
    (layer / "etc/passwd").unlink()
    os.mknod(layer / "etc/passwd", 0o20666, os.makedev(1, 5))  # endless zeros
    assert fresh("run", "--rm", "busybox", "sh", "-c", "exit 4", timeout=20).returncode == 4


def test_without_a_user_namespace_the_container_cannot_make_devices(pyrun: Pyrun) -> None:
    done = pyrun("run", "--rm", "--userns", "host", "busybox", "mknod", "/dev/z", "c", "1", "5")
    assert done.returncode == 1


def test_the_hosts_null_device_is_not_the_containers_stdin(pyrun: Pyrun) -> None:
    before = os.stat("/dev/null")
    pyrun("run", "--rm", "--userns", "host", "busybox", "chmod", "600", "/proc/self/fd/0")
    after = os.stat("/dev/null")
    assert (after.st_mode, after.st_ctime_ns) == (before.st_mode, before.st_ctime_ns)


def test_an_image_that_lists_one_layer_twice_runs(fresh: Pyrun, registry: Registry) -> None:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as writer:
        shell = tarfile.TarInfo("bin/sh")
        busybox = next(fresh.root.glob("layers/overlay/*/fs/bin/busybox"))
        shell.mode, shell.size = 0o755, busybox.stat().st_size
        writer.addfile(shell, io.BytesIO(busybox.read_bytes()))
        writer.addfile(tarfile.TarInfo("gone"))
    again = tar({".wh.gone": b""})
    registry.push_image("odd/twice", "latest", [archive.getvalue(), again, tar({"x": b""}), again, again])
    assert fresh.ok("run", "--rm", "odd/twice", "sh", "-c", "echo /x /gon*") == "/x /gon*\n"


def test_rmi_does_not_take_the_layers_of_a_container_that_began_meanwhile(
    fresh: Pyrun, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(str(fresh.root), str(fresh.state))
    real = gc.ImageStore.remove
    started = []

    def remove(self: object, *args: object, **kwargs: object) -> object:
        answer = real(self, *args, **kwargs)  # type: ignore[arg-type]
        if not started:
            record = fresh.root / "images" / "docker.io%2Flibrary%2Fbusybox%3Alatest.json"
            record.write_text(kept)  # the run read it before the name went
            started.append(fresh.start("run", "--rm", "--name", "victim", "busybox", "sleep", "100"))
            fresh.pid_of("victim")
            record.unlink()
        return answer

    kept = (fresh.root / "images" / "docker.io%2Flibrary%2Fbusybox%3Alatest.json").read_text()
    monkeypatch.setattr(gc.ImageStore, "remove", remove)
    engine.remove_image("busybox")
    pid = fresh.pid_of("victim")
    try:
        assert "busybox" in os.listdir(f"/proc/{pid}/root/bin")
    finally:
        fresh("rm", "-f", "victim")
        started[0].wait(20)


def test_a_container_that_fills_the_disk_keeps_its_exit_code_and_can_be_removed(
    small: Pyrun, base: Path
) -> None:
    script = """
        mount -t tmpfs -o size=14m tmpfs "$1" && cp -a "$2"/. "$1" || exit 99
        P="$3 --root $1 --state $1-state"
        $P run --name fill busybox sh -c 'dd if=/dev/zero of=/big bs=64k; exit 3'; echo "code $?"
        $P ps -a --format '{{.Names}} {{.Status}}'
        $P rm fill
        $P run --rm busybox echo again
    """
    root = base / "filled"
    root.mkdir()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(root), str(small.root), COMMAND],
        capture_output=True, text=True, env=small.env, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "code 3", done.stderr
    assert lines[1].startswith("fill Exited")
    assert lines[2:] == ["fill", "again"]
    assert "internal error" not in done.stderr


def test_a_reader_that_never_reads_does_not_keep_a_container_from_being_removed(pyrun: Pyrun) -> None:
    process = pyrun.start("run", "--rm", "--name", "stuck", "busybox", "yes", stdout=subprocess.PIPE)
    pyrun.pid_of("stuck")
    time.sleep(0.5)  # the pipes fill up
    assert pyrun("rm", "-f", "stuck", timeout=30).returncode == 0
    assert process.wait(20) != 0
    assert process.stdout
    process.stdout.close()


def test_a_signal_ends_the_wait_for_a_reader_of_a_finished_container(pyrun: Pyrun) -> None:
    process = pyrun.start(
        "run", "--rm", "--name", "late", "busybox", "sh", "-c", "yes | head -c 200000 & sleep 1; exit 6",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    pid = pyrun.pid_of("late")
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the container has ended")
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 6
    assert process.stdout
    process.stdout.close()


def test_t_without_i_can_be_interrupted(pyrun: Pyrun) -> None:
    script = "trap 'exit 9' INT; echo ready; while :; do sleep 0.05; done"
    with terminal(pyrun, "run", "--rm", "-t", "busybox", "sh", "-c", script) as window:
        window.read_until(rb"ready")
        window.send(b"\x03")
        assert window.wait() == 9


def test_a_terminal_lives_on_while_the_program_has_no_end_of_it_open(pyrun: Pyrun) -> None:
    script = "exec </dev/null >/dev/null 2>&1; sleep 0.5; echo HELLO >/dev/console"
    with terminal(pyrun, "run", "--rm", "-t", "busybox", "sh", "-c", script) as window:
        window.read_until(rb"HELLO")
        assert window.wait() == 0


def test_a_closed_window_reaches_the_program_as_a_hangup(pyrun: Pyrun) -> None:
    script = "trap 'exit 7' HUP; echo ready; while :; do sleep 0.05; done"
    with terminal(pyrun, "run", "-it", "--name", "window", "busybox", "sh", "-c", script) as window:
        window.read_until(rb"ready")
        os.close(window.fd)
        window.fd = os.open("/dev/null", os.O_RDWR)
        wait_for(lambda: "Exited" in pyrun.ok("ps", "-a"), "it ends")
    assert "Exited (7)" in pyrun.ok("ps", "-a", "--format", "{{.Status}}")


def test_an_environment_file_may_be_a_pipe(pyrun: Pyrun) -> None:
    done = pyrun(
        "run", "--rm", "--env-file", "/dev/stdin", "busybox", "env", input="FROM_PIPE=1\nODD=a\fb=c\n"
    )
    assert "FROM_PIPE=1" in done.stdout
    assert "ODD=a\fb=c\n" in done.stdout


def test_output_that_cannot_be_written_is_an_error(pyrun: Pyrun) -> None:
    with open("/dev/full", "w") as full:
        done = pyrun("run", "--rm", "busybox", "echo", "hi", stdout=full)
    assert done.returncode == 125
    assert "No space left on device" in done.stderr


def test_a_socket_as_stdout_that_nobody_reads_does_not_hold_up_stderr(pyrun: Pyrun) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = pyrun.start(
            "run", "--rm", "--name", "sock", "busybox", "sh", "-c", "yes & sleep 0.5; echo seen >&2; sleep 100",
            stdout=theirs, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr
        assert process.stderr.readline() == "seen\n"
        process.stderr.close()
        pyrun("rm", "-f", "sock")
        process.wait(20)


def test_ids_outside_the_container_are_refused_in_words(pyrun: Pyrun) -> None:
    for user in ("65536", "100000:1", "1:100000"):
        done = pyrun("run", "--rm", "-u", user, "busybox", "true")
        assert done.returncode == 125
        assert "outside the container's user namespace" in done.stderr


def test_the_callers_umask_does_not_close_a_volume(pyrun: Pyrun) -> None:
    done = pyrun(
        "run", "--rm", "-v", "/new", "busybox", "stat", "-c", "%a", "/new", preexec_fn=lambda: os.umask(0o077)
    )
    assert done.stdout.strip() == "755"


def test_two_stores_may_share_a_state_directory(pyrun: Pyrun, fresh: Pyrun) -> None:
    process = pyrun.start("run", "--rm", "--name", "shared", "busybox", "sleep", "100")
    pyrun.pid_of("shared")
    markers = os.listdir(pyrun.state / "running")
    Pyrun(fresh.root, pyrun.state, env=fresh.env).ok("ps", "-a")
    Pyrun(fresh.root, pyrun.state, env=fresh.env).sh("true")
    assert os.listdir(pyrun.state / "running") == markers
    pyrun.ok("rm", "-f", "shared")
    process.wait(20)


def test_a_container_whose_state_was_lost_is_listed_and_can_be_removed(pyrun: Pyrun) -> None:
    pyrun.ok("run", "--name", "lostate", "busybox", "true")
    (state,) = pyrun.root.glob("containers/*/state.json")
    state.write_text("")
    assert pyrun.ok("ps", "-a", "--format", "{{.Names}} {{.Status}}").startswith("lostate Exited (137)")
    assert "record" in json.loads(pyrun.ok("inspect", "lostate"))[0]["State"]["Error"]
    pyrun.ok("rm", "lostate")


def test_staging_that_cannot_be_removed_does_not_stop_every_command(fresh: Pyrun) -> None:
    entry = fresh.root / "staging/overlay.stuck"
    entry.mkdir()
    (entry / "file").touch()
    subprocess.run(["chattr", "+i", str(entry / "file")], check=True)
    try:
        done = fresh("run", "--rm", "busybox", "echo", "works")
        assert done.stdout == "works\n"
        assert "overlay.stuck" in done.stderr
    finally:
        subprocess.run(["chattr", "-i", str(entry / "file")], check=True)


def test_a_relative_volume_from_a_directory_that_is_gone_is_refused(pyrun: Pyrun, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    argv = pyrun.argv("run", "--rm", "-v", "./x:/y", "busybox", "true")
    done = subprocess.run(
        ["sh", "-c", script, "sh", str(gone), *argv], capture_output=True, text=True, env=pyrun.env
    )
    assert done.returncode == 125
    assert "internal error" not in done.stderr


def test_mount_points_are_made_canonical_and_used_once(pyrun: Pyrun, tmp_path: Path) -> None:
    done = pyrun("run", "--rm", "-v", f"{tmp_path}:/a", "--tmpfs", "/a/", "busybox", "true")
    assert done.returncode == 125
    assert "/a" in done.stderr
    assert pyrun("run", "--rm", "--tmpfs", "/", "busybox", "true").returncode == 125
    assert pyrun.sh("pwd", "-w", "/usr/../tmp").strip() == "/tmp"
