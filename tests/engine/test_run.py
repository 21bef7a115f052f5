"""`pyrun run`, seen from outside: what the program gets, what comes back, what stays."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from pathlib import Path

import pytest

from support.pyrun import Pyrun, tree_digest, wait_for

# --- exit codes


@pytest.mark.parametrize("code", [0, 1, 7, 125, 255])
def test_the_programs_exit_code_is_pyruns(pyrun: Pyrun, code: int) -> None:
    assert pyrun("run", "--rm", "busybox", "sh", "-c", f"exit {code}").returncode == code


def test_a_program_killed_by_a_signal_gives_128_plus_its_number(pyrun: Pyrun) -> None:
    # A first process ignores what it has no handler for, so its child kills itself, and exec passes it on.
    done = pyrun(
        "run",
        "--rm",
        "--name",
        "killed",
        "busybox",
        "sh",
        "-c",
        "trap 'exit 143' TERM; kill -TERM $$; sleep 5",
    )
    assert done.returncode == 143
    process = pyrun.start("run", "--rm", "--name", "killed9", "busybox", "sleep", "100")
    os.kill(pyrun.pid_of("killed9"), 9)
    assert process.wait(20) == 137


def test_a_command_that_is_not_there_gives_127_and_names_it(pyrun: Pyrun) -> None:
    done = pyrun("run", "--rm", "busybox", "no-such-program")
    assert done.returncode == 127
    assert "no-such-program" in done.stderr
    assert "Traceback" not in done.stderr
    assert pyrun("run", "--rm", "busybox", "/no/such").returncode == 127


def test_a_command_that_cannot_be_executed_gives_126(pyrun: Pyrun) -> None:
    assert pyrun("run", "--rm", "busybox", "/etc/passwd").returncode == 126
    assert pyrun("run", "--rm", "busybox", "/etc").returncode == 126


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-flag", "busybox"],
        ["--network", "bridge0", "busybox"],
        ["--userns", "nonsense", "busybox"],
        ["-v", "/nowhere/at/all:/mnt", "busybox"],
        ["-v", "data:/mnt", "busybox"],
        ["-v", "/tmp:relative", "busybox"],
        ["-v", "/tmp:/mnt:nonsense", "busybox"],
        ["--tmpfs", "relative", "busybox"],
        ["--tmpfs", "/x:nonsense=1", "busybox"],
        ["--name", "../../x", "busybox"],
        ["--hostname", "-bad-", "busybox"],
        ["-w", "relative", "busybox"],
        ["--pull", "sometimes", "busybox"],
        ["--env-file", "/nowhere", "busybox"],
        ["--storage-opt", "overlay.nonsense=1", "busybox"],
        ["--storage-opt", "nonsense", "busybox"],
        ["--storage", "zfs", "busybox"],
        ["-u", "nobody-of-this-name", "busybox"],
        ["Busy Box"],
        ["--pull", "never", "never-pulled"],
    ],
)
def test_what_pyrun_itself_refuses_gives_125_with_a_reason_and_leaves_nothing(
    pyrun: Pyrun, arguments: list[str]
) -> None:
    done = pyrun("run", "--rm", *arguments, "true")
    assert done.returncode == 125, done.stderr
    assert done.stderr.startswith("pyrun: ")
    assert "Run 'pyrun run --help' for more information" in done.stderr
    assert "Traceback" not in done.stderr
    assert pyrun.records() == []


# --- standard streams


def test_stdout_and_stderr_stay_apart(pyrun: Pyrun) -> None:
    done = pyrun("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_stdin_is_empty_without_i(pyrun: Pyrun) -> None:
    assert pyrun("run", "--rm", "busybox", "cat", input="secret").stdout == ""


def test_100_megabytes_pass_through_unharmed(pyrun: Pyrun, tmp_path: Path) -> None:
    block = os.urandom(1 << 20)
    wanted = hashlib.sha256(block * 100).hexdigest()
    process = pyrun.start(
        "run", "-i", "--rm", "busybox", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout

    def feed() -> None:
        assert process.stdin
        for _ in range(100):
            process.stdin.write(block)
        process.stdin.close()

    writer = threading.Thread(target=feed)
    writer.start()
    seen = hashlib.sha256()
    while chunk := process.stdout.read(1 << 20):
        seen.update(chunk)
    writer.join()
    assert process.wait(20) == 0
    assert seen.hexdigest() == wanted


@pytest.mark.parametrize("mode", ["wb", "ab"])
def test_output_goes_to_a_file_appended_or_not(pyrun: Pyrun, tmp_path: Path, mode: str) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"before\n")
    with open(target, mode) as file:
        pyrun.ok("run", "--rm", "busybox", "seq", "100000", stdout=file)
    numbers = "".join(f"{n}\n" for n in range(1, 100001)).encode()
    assert target.read_bytes() == (b"before\n" if mode == "ab" else b"") + numbers


def test_input_comes_from_a_file(pyrun: Pyrun, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(os.urandom(3_000_000))
    with open(source, "rb") as file:
        done = pyrun("run", "-i", "--rm", "busybox", "sha256sum", stdin=file)
    assert done.stdout.split()[0] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_a_reader_that_goes_away_ends_the_writer(pyrun: Pyrun) -> None:
    process = pyrun.start("run", "--rm", "busybox", "yes", stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.read(4) == b"y\ny\n"
    process.stdout.close()
    assert process.wait(20) in (1, 141)


def test_the_program_may_open_dev_stdout_as_any_user(pyrun: Pyrun) -> None:
    done = pyrun(
        "run", "--rm", "-u", "1000:1000", "busybox", "sh", "-c", "echo a >/dev/stdout; echo b >/dev/stderr"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "b\n")


def test_a_program_that_closes_its_output_early_does_not_end_the_container(pyrun: Pyrun) -> None:
    assert pyrun("run", "--rm", "busybox", "sh", "-c", "exec >&- 2>&-; sleep 0.3; exit 4").returncode == 4


def test_output_of_background_children_written_before_the_end_arrives(pyrun: Pyrun) -> None:
    assert "late" in pyrun.sh("(sleep 0.2; echo late) & wait")


def test_closed_standard_streams_of_the_caller_do_no_harm(pyrun: Pyrun) -> None:
    script = 'exec 0<&- 1>&- 2>&-; exec "$@"'
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", *pyrun.argv("run", "--rm", "busybox", "sh", "-c", "echo x; exit 3")],
        timeout=60,
        env=pyrun.env,
    )
    assert done.returncode == 3


# --- identity and environment


def test_the_environment_is_the_images_then_the_files_then_e(pyrun: Pyrun, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=file\nB=file\nPYRUN_FROM_CALLER\n")
    done = pyrun(
        "run", "--rm", "--env-file", str(file), "-e", "B=option", "-e", "PYRUN_UNSET", "-e", "EMPTY=", "busybox", "env",
        env={**pyrun.env, "PYRUN_FROM_CALLER": "yes"},
    )  # fmt: skip
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert variables["A"] == "file"
    assert variables["B"] == "option"
    assert variables["PYRUN_FROM_CALLER"] == "yes"
    assert variables["EMPTY"] == ""
    assert "PYRUN_UNSET" not in variables
    assert variables["HOME"] == "/root"
    assert variables["PATH"].endswith("/bin")
    assert set(variables) <= {"A", "B", "PYRUN_FROM_CALLER", "EMPTY", "HOME", "PATH", "HOSTNAME"}


def test_users_are_looked_up_in_the_container(pyrun: Pyrun) -> None:
    assert pyrun.sh("id -u; id -g", "-u", "1234:77").split() == ["1234", "77"]
    assert pyrun.ok("run", "--rm", "--entrypoint", "id", "-u", "redis", "redis", "-un").strip() == "redis"
    assert pyrun.ok("run", "--rm", "--entrypoint", "id", "-u", "0:redis", "redis", "-gn").strip() == "redis"


def test_workdir_is_made_where_it_is_missing(pyrun: Pyrun) -> None:
    assert pyrun.sh("pwd", "-w", "/not/there/yet").strip() == "/not/there/yet"


def test_a_workdir_that_is_a_file_is_refused(pyrun: Pyrun) -> None:
    done = pyrun("run", "--rm", "-w", "/etc/passwd", "busybox", "true")
    assert done.returncode == 125
    assert "/etc/passwd" in done.stderr


def test_entrypoint_replaces_the_images_and_drops_its_command(pyrun: Pyrun) -> None:
    assert pyrun.ok("run", "--rm", "--entrypoint", "/bin/echo", "redis", "a", "b").strip() == "a b"
    done = pyrun("run", "--rm", "--entrypoint", "", "redis")
    assert done.returncode == 125
    assert "no command" in done.stderr


def test_hostname_is_the_short_id_or_as_asked(pyrun: Pyrun) -> None:
    assert len(pyrun.sh("hostname").strip()) == 12
    assert pyrun.sh("hostname; cat /etc/hostname", "-h", "box.example").split() == [
        "box.example",
        "box.example",
    ]


def test_options_end_at_the_image(pyrun: Pyrun) -> None:
    assert pyrun.ok("run", "--rm", "busybox", "echo", "--rm", "-it", "--help").strip() == "--rm -it --help"


# --- the file system


def test_what_one_container_writes_no_other_sees_and_the_layers_stay_as_they_are(pyrun: Pyrun) -> None:
    layers = pyrun.root / "layers/overlay"
    before = tree_digest(layers)
    script = "echo changed >/etc/passwd; rm -rf /bin/vi /tmp; mkdir /tmp; chmod 700 /etc; chown 5:5 /bin/ls; touch /new"
    pyrun.sh(script)
    assert pyrun.sh("test ! -e /new && grep -c root /etc/passwd && ls -d /bin/vi").split() == ["1", "/bin/vi"]
    pyrun.ok("run", "--name", "kept", "busybox", "sh", "-c", script)
    pyrun.ok("rm", "kept")
    assert tree_digest(layers) == before


def test_a_stopped_container_keeps_its_writable_layer_until_it_is_removed(pyrun: Pyrun) -> None:
    pyrun.ok("run", "--name", "keeper", "busybox", "sh", "-c", "echo precious >/kept")
    rows = pyrun.ok("ps", "-a", "--format", "{{.Names}} {{.Status}}")
    assert rows.startswith("keeper Exited (0)")
    kept = list(pyrun.root.glob("containers/*/rw/upper/kept"))
    assert [path.read_text() for path in kept] == ["precious\n"]
    assert os.stat(kept[0]).st_uid == 0
    assert pyrun.ok("rm", "keeper") == "keeper\n"
    assert pyrun.records() == []


def test_read_only_makes_the_root_read_only_but_not_its_volumes(pyrun: Pyrun) -> None:
    script = "touch /x 2>&1; touch /v/x && touch /tmp/x && touch /dev/shm/x && echo fine"
    out = pyrun.sh(script, "--read-only", "-v", "/v", "--tmpfs", "/tmp")
    assert "Read-only file system" in out
    assert "fine" in out


def test_tmpfs_takes_size_and_mode(pyrun: Pyrun) -> None:
    out = pyrun.sh(
        "mount | grep ' /scratch '; stat -c %a /scratch", "--tmpfs", "/scratch:size=1m,mode=700,exec"
    )
    assert "tmpfs" in out
    assert "size=1024k" in out
    assert "noexec" not in out
    assert "nosuid" in out
    assert out.split()[-1] == "700"


def test_a_bind_mount_shows_sensible_owners_on_both_sides(pyrun: Pyrun, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("data")
    os.chown(tmp_path / "theirs", 1000, 1000)
    out = pyrun.sh(
        "stat -c %u /mnt/theirs; echo new >/mnt/ours; chown 33 /mnt/ours", "-v", f"{tmp_path}:/mnt"
    )
    assert out.strip() == "1000"
    assert (tmp_path / "ours").read_text() == "new\n"
    assert os.stat(tmp_path / "ours").st_uid == 33


def test_a_read_only_bind_mount_cannot_be_written(pyrun: Pyrun, tmp_path: Path) -> None:
    done = pyrun("run", "--rm", "-v", f"{tmp_path}:/mnt:ro", "busybox", "touch", "/mnt/x")
    assert done.returncode == 1
    assert "Read-only" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_single_file_can_be_bind_mounted(pyrun: Pyrun, tmp_path: Path) -> None:
    (tmp_path / "conf").write_text("hello")
    assert pyrun.sh("cat /etc/deep/conf", "-v", f"{tmp_path}/conf:/etc/deep/conf:ro") == "hello"


def test_paths_with_odd_characters_are_mounted(pyrun: Pyrun, tmp_path: Path) -> None:
    odd = tmp_path / "a, b\\c\nd"
    odd.mkdir()
    (odd / "f").write_text("x")
    assert pyrun.sh("cat '/m o,unt/f'", "-v", f"{odd}:/m o,unt") == "x"


def test_an_image_volume_starts_with_the_images_content_and_goes_with_the_container(pyrun: Pyrun) -> None:
    out = pyrun.ok(
        "run", "--name", "vol", "--entrypoint", "sh", "redis", "-c", "stat -c '%U %a' /data; touch /data/x"
    )
    assert out.split()[0] == "redis"
    assert len(list(pyrun.root.glob("containers/*/volumes/0/x"))) == 1
    assert list(pyrun.root.glob("containers/*/rw/upper/data/x")) == []
    pyrun.ok("rm", "vol")
    assert list(pyrun.root.glob("containers/*")) == []


def test_an_anonymous_volume_is_seeded_from_the_image(pyrun: Pyrun) -> None:
    plain = pyrun.sh("ls -ln /etc").splitlines()
    seeded = pyrun.sh("ls -ln /etc", "-v", "/etc").splitlines()
    assert [line.split()[0:4] + line.split()[8:] for line in plain if "passwd" in line] == [
        line.split()[0:4] + line.split()[8:] for line in seeded if "passwd" in line
    ]


# --- names


def test_a_name_in_use_is_refused_and_free_again_afterwards(pyrun: Pyrun) -> None:
    pyrun.ok("run", "--name", "mine", "busybox", "true")
    done = pyrun("run", "--name", "mine", "busybox", "true")
    assert done.returncode == 125
    assert "in use" in done.stderr
    pyrun.ok("rm", "mine")
    pyrun.ok("run", "--rm", "--name", "mine", "busybox", "true")


def test_a_random_name_has_two_parts(pyrun: Pyrun) -> None:
    pyrun.ok("run", "busybox", "true")
    name = pyrun.ok("ps", "-a", "--format", "{{.Names}}").strip()
    assert len(name.split("_")) == 2
    pyrun.ok("rm", name)


def test_two_at_once_of_one_name_give_exactly_one_container(pyrun: Pyrun) -> None:
    both = [
        pyrun.start("run", "--name", "race", "busybox", "true", stderr=subprocess.DEVNULL) for _ in range(4)
    ]
    codes = sorted(process.wait(30) for process in both)
    assert codes == [0, 125, 125, 125]
    pyrun.ok("rm", "race")


# --- lists and removal


def test_a_running_container_is_listed_and_only_removed_by_force(pyrun: Pyrun) -> None:
    process = pyrun.start("run", "--name", "up", "busybox", "sleep", "100")
    pyrun.pid_of("up")
    assert (
        pyrun.ok("ps", "--format", "{{.Names}} {{.Image}} {{.Command}}").strip() == 'up busybox "sleep 100"'
    )
    assert pyrun.ok("ps", "--format", "{{.Status}}").startswith("Up ")
    refused = pyrun("rm", "up")
    assert refused.returncode == 1
    assert "running" in refused.stderr
    assert pyrun.ok("rm", "-f", "up") == "up\n"
    assert process.wait(20) == 137
    wait_for(lambda: pyrun.records() == [], "nothing is left of the container")


def test_rm_goes_on_after_an_error(pyrun: Pyrun) -> None:
    pyrun.ok("run", "--name", "one", "busybox", "true")
    done = pyrun("rm", "missing", "one")
    assert done.returncode == 1
    assert done.stdout == "one\n"
    assert "missing" in done.stderr
    assert pyrun("rm", "-f", "missing").returncode == 0


def test_a_container_that_could_not_start_is_listed_as_created_with_its_exit_code(pyrun: Pyrun) -> None:
    pyrun("run", "--name", "broken", "busybox", "no-such-program")
    assert pyrun.ok("ps", "-a", "--format", "{{.Status}}").strip() == "Created"
    assert pyrun.ok("inspect", "--format", "{{.State.ExitCode}}", "broken").strip() == "127"
    pyrun.ok("rm", "broken")


def test_the_runtime_spec_of_a_container_can_be_printed(pyrun: Pyrun) -> None:
    import json

    pyrun.ok("run", "--name", "specced", "-e", "A=1", "-w", "/tmp", "busybox", "true")
    spec = json.loads(pyrun.ok("inspect", "--spec", "specced"))
    spec = spec[0] if isinstance(spec, list) else spec
    assert spec["process"]["args"] == ["true"]
    assert "A=1" in spec["process"]["env"]
    assert spec["process"]["cwd"] == "/tmp"
    assert spec["linux"]["uidMappings"][0]["hostID"] >= 0x70000000
    pyrun.ok("rm", "specced")


def test_many_containers_at_once_all_work(pyrun: Pyrun) -> None:
    processes = [
        pyrun.start(
            "run", "--rm", "busybox", "sh", "-c", f"echo {n}; cat /proc/self/uid_map", stdout=subprocess.PIPE
        )
        for n in range(12)
    ]
    maps = set()
    for n, process in enumerate(processes):
        out, _ = process.communicate(timeout=60)
        lines = out.decode().split("\n")
        assert process.returncode == 0
        assert lines[0] == str(n)
        maps.add(lines[1].split()[1])
    # Those alive at the same time never share ids; two that did not overlap may.
    assert len(maps) > 1
