"""What a container can see and do, by default: as docker's, and with root that is not the host's root."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from support.pyrun import Pyrun
from support.registry import Registry, tar

DEFAULT_CAPABILITIES = 0x00000000A80425FB  # what `docker run` gives


def test_the_capability_sets_are_dockers(pyrun: Pyrun) -> None:
    out = pyrun.sh("grep ^Cap /proc/self/status")
    sets = {line.split()[0]: int(line.split()[1], 16) for line in out.splitlines()}
    assert sets["CapBnd:"] == sets["CapPrm:"] == sets["CapEff:"] == DEFAULT_CAPABILITIES
    assert sets["CapInh:"] == sets["CapAmb:"] == 0  # CVE-2022-24769


def test_an_ordinary_user_in_the_container_has_no_capabilities(pyrun: Pyrun) -> None:
    out = pyrun.sh("grep ^Cap /proc/self/status", "-u", "1000")
    sets = {line.split()[0]: int(line.split()[1], 16) for line in out.splitlines()}
    assert sets["CapPrm:"] == sets["CapEff:"] == sets["CapInh:"] == 0


def test_every_namespace_is_the_containers_own(pyrun: Pyrun) -> None:
    out = pyrun.sh("for n in user mnt pid uts ipc net cgroup; do echo $n $(readlink /proc/self/ns/$n); done")
    for line in out.splitlines():
        name, link = line.split()
        assert link != os.readlink(f"/proc/self/ns/{name}")


def test_userns_host_keeps_the_hosts_ids_and_isolates_the_rest(pyrun: Pyrun) -> None:
    out = pyrun.sh(
        "readlink /proc/self/ns/user; readlink /proc/self/ns/mnt; touch /x; stat -c %u /x", "--userns", "host"
    )
    user, mnt, owner = out.split()
    assert user == os.readlink("/proc/self/ns/user")
    assert mnt != os.readlink("/proc/self/ns/mnt")
    assert owner == "0"


def test_the_configuration_may_set_userns_host_and_the_option_overrides_it(
    pyrun: Pyrun, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[run]\nuserns = "host"\n')
    host = os.readlink("/proc/self/ns/user")
    read = ["busybox", "readlink", "/proc/self/ns/user"]
    assert pyrun.ok("--config", str(config), "run", "--rm", *read).strip() == host
    assert pyrun.ok("--config", str(config), "run", "--rm", "--userns", "auto", *read).strip() != host


def test_container_root_is_a_host_id_that_no_account_or_subid_range_has(pyrun: Pyrun) -> None:
    process = pyrun.start("run", "--rm", "--name", "ids", "busybox", "sleep", "100")
    try:
        pid = pyrun.pid_of("ids")
        uid = os.stat(f"/proc/{pid}").st_uid
        assert 0x70000000 <= uid < 0x7FFE0000
        for path in ("/etc/subuid", "/etc/subgid"):
            for line in Path(path).read_text().splitlines() if os.path.exists(path) else ():
                _, first, count = line.split(":")
                assert uid + 65536 <= int(first) or int(first) + int(count) <= uid
    finally:
        pyrun("rm", "-f", "ids")
        process.wait(20)


def test_host_network_shows_the_hosts_interfaces_and_a_read_only_sys(pyrun: Pyrun) -> None:
    out = pyrun.sh("ls /sys/class/net; touch /sys/x 2>&1 || true", "--network", "host")
    for name in os.listdir("/sys/class/net"):
        if os.path.islink(f"/sys/class/net/{name}"):
            assert name in out.split()
    assert "Read-only" in out


def test_without_a_network_there_is_loopback_only(pyrun: Pyrun) -> None:
    assert {line.split(":")[0].strip() for line in pyrun.sh("tail -n +3 /proc/net/dev").splitlines()} <= {
        "lo", "sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0",
        "ifb0", "ifb1",
    }  # fmt: skip


def test_sensitive_files_are_masked_and_settings_read_only(pyrun: Pyrun) -> None:
    script = """
        for f in /proc/kcore /proc/keys /proc/timer_list; do test -e $f && wc -c <$f; done
        ls -A /sys/firmware /proc/acpi 2>/dev/null
        for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/kernel/hostname; do
            (echo x >$f) 2>/dev/null && echo WROTE $f
        done
        echo checked
    """
    out = pyrun.sh(script)
    assert "WROTE" not in out
    assert set(out.split()) <= {"0", "/sys/firmware:", "/proc/acpi:", "checked"}


def test_masked_paths_are_masked_for_root_of_the_host_too(pyrun: Pyrun) -> None:
    out = pyrun.sh(
        "wc -c </proc/keys; (echo x >/proc/sys/kernel/core_pattern) 2>&1; true", "--userns", "host"
    )
    assert out.split()[0] == "0"
    assert "Read-only" in out


def test_dev_has_the_default_nodes_and_links_and_nothing_else(pyrun: Pyrun) -> None:
    assert set(pyrun.sh("ls /dev").split()) == {
        "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    }  # fmt: skip
    out = pyrun.sh(
        "head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo x >/dev/null; stat -c %u /dev/null"
    )
    assert out.split() == ["4", "4", "0"]


def test_root_in_the_container_cannot_make_host_devices_usable(pyrun: Pyrun) -> None:
    done = pyrun("run", "--rm", "busybox", "sh", "-c", "mknod /sda b 8 0 && cat /sda")
    assert done.returncode != 0


def test_only_the_standard_fds_reach_the_program(pyrun: Pyrun, tmp_path: Path) -> None:
    secret = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(secret, True)
    try:
        # ls opens the directory itself: one fd beside 0, 1 and 2.
        out = pyrun.sh("ls /proc/self/fd | wc -l", pass_fds=[secret])
    finally:
        os.close(secret)
    assert out.strip() == "4"


@pytest.mark.parametrize("number", range(5, 12))
def test_a_workdir_in_proc_self_fd_leads_nowhere_outside(pyrun: Pyrun, number: int) -> None:
    """CVE-2024-21626."""
    done = pyrun(
        "run", "--rm", "-w", f"/proc/self/fd/{number}", "busybox", "sh", "-c", "cat ../../../etc/shadow; pwd"
    )
    assert done.returncode == 125 or done.stdout.strip() == f"/proc/self/fd/{number}"
    assert "root:" not in done.stdout


def test_the_first_process_is_pid_1_of_its_own_session(pyrun: Pyrun) -> None:
    assert pyrun.sh("cut -d' ' -f1,6 /proc/self/stat; echo $$").split()[-1] == "1"


def test_umask_is_0022_whatever_the_callers_is(pyrun: Pyrun) -> None:
    done = pyrun("run", "--rm", "busybox", "sh", "-c", "umask", preexec_fn=lambda: os.umask(0o077))
    assert done.stdout.strip() == "0022"


def test_no_mount_of_a_running_container_shows_on_the_host(pyrun: Pyrun) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    process = pyrun.start("run", "--rm", "--name", "quiet", "-v", "/tmp:/mnt", "busybox", "sleep", "100")
    try:
        pyrun.pid_of("quiet")
        assert Path("/proc/self/mountinfo").read_text() == before
    finally:
        pyrun("rm", "-f", "quiet")
        process.wait(20)


# --- images that lay traps


def test_an_image_whose_proc_is_a_symlink_does_not_redirect_the_mounts(
    fresh: Pyrun, registry: Registry
) -> None:
    """CVE-2019-19921, CVE-2023-27561."""
    busybox = _busybox(fresh)
    layer = _with_modes(
        {"bin": None, "bin/sh": busybox, "proc": "/elsewhere", "elsewhere": None}, {"bin/sh": 0o755}
    )
    registry.push_image("traps/proc", "latest", [layer], {"Cmd": ["sh", "-c", "echo started"]})
    done = fresh("run", "--rm", "traps/proc")
    assert done.returncode == 125
    assert "started" not in done.stdout
    assert fresh.records() == []


def test_mount_targets_behind_symlinks_stay_inside_the_root(
    fresh: Pyrun, registry: Registry, tmp_path: Path
) -> None:
    """CVE-2021-30465, CVE-2024-45310."""
    outside = tmp_path / "outside"
    outside.mkdir()
    busybox = _busybox(fresh)
    entries = {
        "bin": None,
        "bin/sh": busybox,
        "bin/mount": "sh",
        "out": str(outside),
        "up": "../../../../.." + str(outside),
    }
    registry.push_image("traps/links", "latest", [_with_modes(entries, {"bin/sh": 0o755})])
    done = fresh("run", "--rm", "-v", "/var/empty-not-there:/x", "traps/links", "sh", "-c", "true")
    assert done.returncode == 125
    source = tmp_path / "source"
    source.mkdir()
    for link in ("out", "up"):
        done = fresh("run", "--rm", "-v", f"{source}:/{link}/sub", "traps/links", "sh", "-c", "mount")
        assert done.returncode == 0, done.stderr
        assert f"{outside}/sub" in done.stdout
    assert list(outside.iterdir()) == []


def test_a_fifo_as_passwd_does_not_stop_the_engine(fresh: Pyrun, registry: Registry) -> None:
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("bin", "etc"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
        shell = tarfile.TarInfo("bin/sh")
        shell.mode, shell.size = 0o755, len(_busybox(fresh))
        archive.addfile(shell, io.BytesIO(_busybox(fresh)))
        fifo = tarfile.TarInfo("etc/passwd")
        fifo.type = tarfile.FIFOTYPE
        archive.addfile(fifo)
    registry.push_image("traps/fifo", "latest", [out.getvalue()])
    assert fresh("run", "--rm", "traps/fifo", "sh", "-c", "exit 6", timeout=30).returncode == 6
    assert (
        fresh("run", "--rm", "-u", "someone", "traps/fifo", "sh", "-c", "true", timeout=30).returncode == 125
    )


def test_an_entrypoint_that_is_the_engines_interpreter_cannot_write_to_it(
    fresh: Pyrun, registry: Registry
) -> None:
    """CVE-2019-5736: /proc/self/exe of the container's first process is the host's python until execve."""
    interpreter = os.path.realpath(sys.executable)
    before = (os.stat(interpreter).st_mtime_ns, os.stat(interpreter).st_size)
    script = b"#!/proc/self/exe\nimport os\nprint(open('/proc/self/exe', 'r+b'))\n"
    layer = _with_modes({"entry": script, "proc": None}, {"entry": 0o755})
    registry.push_image("traps/exe", "latest", [layer], {"Entrypoint": ["/entry"]})
    done = fresh("run", "--rm", "traps/exe")
    assert done.returncode != 0
    assert (os.stat(interpreter).st_mtime_ns, os.stat(interpreter).st_size) == before


def _busybox(pyrun: Pyrun) -> bytes:
    """The static busybox of the image."""
    found: Path = next(pyrun.root.glob("layers/overlay/*/fs/bin/busybox"))
    return found.read_bytes()


def _with_modes(entries: dict[str, bytes | str | None], modes: dict[str, int]) -> bytes:
    """`tar`, with modes of their own for some files."""
    import io
    import tarfile

    source = io.BytesIO(tar(entries))
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=source) as old,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in old:
            member.mode = modes.get(member.name, member.mode)
            new.addfile(member, old.extractfile(member) if member.isreg() else None)
    return out.getvalue()
