"""What goes wrong around a run or a pull: one clear error that names the thing, and nothing half-made."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from pathlib import Path

from support.pyrun import COMMAND, Pyrun
from support.registry import Registry, tar

LAYERS = [tar({"a": os.urandom(50_000)}), tar({"b": b"second"})]


def _refused(pyrun: Pyrun, image: str, *words: str) -> None:
    """Both `pull` and `run` of ``image`` fail with all of ``words``, and leave nothing."""
    for arguments, code in ((["pull", image], 1), (["run", "--rm", image, "true"], 125)):
        done = pyrun(*arguments)
        assert done.returncode == code, done.stderr
        for word in words:
            assert word in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith(("pyrun: ", "Unable to find image"))
        assert pyrun.records() == []
        # What was downloaded of the other layer is kept for the next pull.
        left = {name.removesuffix(".part").replace("-", ":", 1) for name in os.listdir(pyrun.root / "ingest")}
        assert not left & set(words)
    assert pyrun("inspect", "--type", "image", image).returncode == 1


def test_a_tampered_blob_is_refused(fresh: Pyrun, registry: Registry) -> None:
    pushed = registry.push_image("bad/tampered", "latest", LAYERS)
    registry.flip_byte(pushed.layer_digests[0])
    _refused(fresh, "bad/tampered", pushed.layer_digests[0])


def test_a_blob_of_another_size_is_refused(fresh: Pyrun, registry: Registry) -> None:
    pushed = registry.push_image("bad/size", "latest", [tar({"s": os.urandom(9_000)})], compression=["plain"])
    registry.append(pushed.layer_digests[0], b"more")
    _refused(fresh, "bad/size", pushed.layer_digests[0])


def test_a_wrong_diff_id_is_refused(fresh: Pyrun, registry: Registry) -> None:
    wrong = ["sha256:" + "1" * 64]
    registry.push_image("bad/diffid", "latest", [tar({"d": b"x"})], diff_ids=wrong)
    _refused(fresh, "bad/diffid", wrong[0])


def test_a_platform_that_the_index_lacks_is_refused_and_what_there_is_listed(
    fresh: Pyrun, registry: Registry
) -> None:
    registry.push_image("bad/platform", "latest", LAYERS)
    done = fresh("pull", "--platform", "linux/riscv64", "bad/platform")
    assert done.returncode == 1
    assert "linux/riscv64" in done.stderr
    assert "s390x" in done.stderr or "amd64" in done.stderr
    done = fresh("run", "--rm", "--platform", "linux/riscv64", "bad/platform", "true")
    assert done.returncode == 125


def test_a_missing_tag_and_a_missing_repository_are_named(fresh: Pyrun) -> None:
    _refused(fresh, "busybox:no-such-tag", "busybox:no-such-tag")
    _refused(fresh, "no/such", "no/such")


def test_an_unreachable_registry_is_named(fresh: Pyrun) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        done = fresh("pull", f"{host}/some/image")
    assert done.returncode == 1
    assert host in done.stderr
    assert "refused" in done.stderr.lower()


def test_a_registry_that_hangs_up_is_an_error_too(fresh: Pyrun) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        done = fresh("pull", f"{host}/some/image")
        server.shutdown(socket.SHUT_RDWR)  # which closing it is not enough for
        thread.join(10)
    assert done.returncode == 1
    assert host in done.stderr
    assert "Traceback" not in done.stderr


def test_a_root_that_cannot_be_used_is_named() -> None:
    for root in ("/proc/nothing/here", "/dev/null/store"):
        done = subprocess.run(
            [COMMAND, "--root", root, "run", "--rm", "busybox", "true"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 125
        assert root in done.stderr
        assert "--root" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_read_only_root_is_named(fresh: Pyrun) -> None:
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(fresh.root), *fresh.argv("run", "--rm", "busybox", "true")],
        capture_output=True, text=True, env=fresh.env, timeout=60,
    )  # fmt: skip
    assert done.returncode == 125
    assert str(fresh.root) in done.stderr
    assert "Read-only" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_during_a_pull_is_said_and_nothing_half_made_is_left(empty: Pyrun) -> None:
    script = """
        mkdir "$1" && mount -t tmpfs -o size=20m tmpfs "$1" || exit 99
        "$2" --root "$1" --state "$1-state" pull redis >/dev/null; echo "code $?"
        find "$1/ingest" "$1/staging" "$1/images" "$1/layers" -mindepth 2
        "$2" --root "$1" --state "$1-state" images -q
    """
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(empty.root), COMMAND],
        capture_output=True, text=True, env=empty.env, timeout=60,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[0] == "code 1", done.stderr
    assert "space" in done.stderr
    assert "Traceback" not in done.stderr
    # Layers that were whole before the disk was full may stay, for the next pull.
    assert [line for line in lines[1:] if f"{empty.root}/layers/" not in line] == []


def test_a_full_disk_at_the_start_of_a_container_leaves_nothing(small: Pyrun, base: Path) -> None:
    script = """
        mount -t tmpfs -o size=12m tmpfs "$1" || exit 99
        cp -a "$2"/. "$1"
        dd if=/dev/zero of="$1/filler" 2>/dev/null
        "$3" --root "$1" --state "$1-state" run --name full busybox true; echo "code $?"
        rm "$1/filler"
        "$3" --root "$1" --state "$1-state" ps -aq
        ls -A "$1/staging" "$1/containers" "$1/names"
        "$3" --root "$1" --state "$1-state" run --rm --name full busybox echo again
    """
    root = base / "full"
    root.mkdir()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(root), str(small.root), COMMAND],
        capture_output=True, text=True, env=small.env, timeout=60,
    )  # fmt: skip
    lines = done.stdout.split("\n")
    assert lines[0] == "code 125", done.stderr
    assert "space" in done.stderr
    assert "Traceback" not in done.stderr
    assert lines[-2] == "again"
    assert [line for line in lines[1:-2] if line and not line.endswith(":")] == []


def test_a_state_directory_of_somebody_else_is_refused(fresh: Pyrun, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 12345, 12345)
    done = subprocess.run(
        [COMMAND, "--root", str(fresh.root), "--state", str(state), "run", "--rm", "busybox", "true"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 125
    assert "belongs to another user" in done.stderr


def test_debug_shows_the_traceback(fresh: Pyrun) -> None:
    done = fresh("--debug", "run", "--rm", "--pull", "never", "nothing-here", "true")
    assert done.returncode == 125
    assert "Traceback" in done.stderr


def test_where_user_namespaces_are_off_the_error_names_userns_host(empty: Pyrun) -> None:
    """A user namespace whose own limit is then set to 0 stands for a kernel without them."""
    pull = '"$1" --root "$2" --state "$3" pull -q busybox >/dev/null || exit 99'
    off = "echo 0 >/proc/sys/user/max_user_namespaces"
    run = '"$1" --root "$2" --state "$3" run --rm busybox true'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f"{pull}; {off}; {run}", "sh", COMMAND,
         str(empty.root), str(empty.state)],
        capture_output=True, text=True, env=empty.env, timeout=60,
    )  # fmt: skip
    assert done.returncode == 125, done.stderr
    assert "--userns=host" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_layers_cannot_be_idmapped_the_error_names_the_lack_and_userns_host(
    fresh: Pyrun, tmp_path: Path
) -> None:
    """A driver that says so stands for such a kernel; it does the same as overlay otherwise."""
    (tmp_path / "plain.py").write_text(
        "from pyrun_drivers.overlay import OverlayDriver\n"
        "from pyrun.storage.hookspecs import hookimpl\n"
        "class Plain(OverlayDriver):\n"
        "    name = 'plain'\n"
        "    @classmethod\n"
        "    def probe(cls, env, options):\n"
        "        verdict = super().probe(env, options)\n"
        "        verdict.caps.idmap = False\n"
        "        verdict.why = 'no idmapped mounts in this kernel'\n"
        "        return verdict\n"
        "@hookimpl\n"
        "def pyrun_storage_drivers(): return [Plain]\n"
    )
    info = tmp_path / "plain-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pyrun]\nplain = plain\n")
    fresh.env["PYTHONPATH"] = str(tmp_path)
    done = fresh("run", "--rm", "--storage", "plain", "busybox", "true")
    assert done.returncode == 125
    assert "no idmapped mounts in this kernel" in done.stderr
    assert "--userns=host" in done.stderr
    assert fresh.records() == []
    assert fresh.sh("id -u", "--storage", "plain", "--userns", "host").strip() == "0"


def test_an_image_record_that_is_damaged_is_named_and_the_others_work(fresh: Pyrun) -> None:
    fresh.ok("tag", "busybox", "other:1")
    record = next(p for p in (fresh.root / "images").iterdir() if "other" in p.name)
    record.write_text("{")
    done = fresh("run", "--rm", "other:1", "true")
    assert done.returncode == 125
    assert "other" in done.stderr
    assert "busybox" in fresh.ok("images")
    assert fresh.sh("echo fine") == "fine\n"
