"""``pyrun commit``: an image of a container's files and settings."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from pyrun.engine import Engine
from pyrun.images.record import Image
from support.pyrun import Pyrun, terminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

FIXED = "find /made -exec touch -h -d @1600000000 {} +; touch -d @1600000000 / /etc"


def blob(pyrun: Pyrun, digest: str) -> bytes:
    return (pyrun.root / "content/blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()


def record(pyrun: Pyrun, name: str) -> Image:
    return Engine(str(pyrun.root), str(pyrun.state)).image(name)


def manifest(pyrun: Pyrun, image: str) -> dict[str, Any]:
    return dict(json.loads(blob(pyrun, record(pyrun, image).manifest)))


def config(pyrun: Pyrun, image: str) -> dict[str, Any]:
    return dict(json.loads(blob(pyrun, record(pyrun, image).id)))


def layer(pyrun: Pyrun, image: str) -> list[str]:
    """The names in the topmost layer."""
    with tarfile.open(fileobj=io.BytesIO(blob(pyrun, manifest(pyrun, image)["layers"][-1]["digest"]))) as t:
        return t.getnames()


def made(pyrun: Pyrun, script: str, *options: str, name: str = "made", image: str = "busybox") -> None:
    pyrun.ok("run", "--name", name, *options, image, "sh", "-c", script)


def test_the_image_has_what_the_container_changed(fresh: Pyrun) -> None:
    made(fresh, "echo new >/etc/new; rm /etc/passwd; rm -r /home; mkdir /home; chown 5:6 /root")
    done = fresh("commit", "made", "app:1")
    assert done.returncode == 0
    assert done.stderr == ""
    id = done.stdout.strip()
    assert id == json.loads(fresh.ok("inspect", "app:1"))[0]["Id"]
    assert (
        fresh.sh("cat /etc/new; ls /etc/passwd 2>/dev/null; stat -c %u:%g /root", image="app:1")
        == "new\n5:6\n"
    )
    assert layer(fresh, "app:1") == ["etc", "etc/.wh.passwd", "etc/new", "root"] or "etc/.wh.passwd" in layer(
        fresh, "app:1"
    )
    base, on_top = manifest(fresh, "busybox"), manifest(fresh, "app:1")
    assert [d["digest"] for d in on_top["layers"][:-1]] == [d["digest"] for d in base["layers"]]
    assert config(fresh, "app:1")["rootfs"]["diff_ids"][:-1] == config(fresh, "busybox")["rootfs"]["diff_ids"]
    assert fresh("system", "check").returncode == 0


def test_what_is_mounted_and_where_is_no_part_of_it(fresh: Pyrun) -> None:
    made(fresh, "touch /volume/deep/x /tmpfs/x; echo >/new", "-v", "/volume/deep", "--tmpfs", "/tmpfs")
    fresh.ok("commit", "made", "app")
    assert layer(fresh, "app") == ["", "new"] or layer(fresh, "app") == [".", "new"]


def test_a_further_name_of_a_file_of_the_image_is_one_file_with_the_others(fresh: Pyrun) -> None:
    made(fresh, "ln /bin/busybox /linked; ln /etc/shadow /etc/second")
    fresh.ok("commit", "made", "app")
    inodes = fresh.sh(
        "stat -c %i /bin/busybox /bin/sh /linked; stat -c %i /etc/shadow /etc/second", image="app"
    ).split()
    assert len(set(inodes[:3])) == 1
    assert len(set(inodes[3:])) == 1
    assert "bin/sh" in layer(fresh, "app")  # a layer tells what is one file only of what it holds


def test_the_settings_of_the_container_become_the_images(fresh: Pyrun) -> None:
    fresh.ok(
        "run", "--name", "set",
        "-e", "A=1", "-e", "B=two words", "-w", "/work", "-u", "33:33", "-v", "/data",
        "-v", "/etc:/bound:ro", "--hostname", "never", "--entrypoint", "/bin/sh",
        "busybox", "-c", "echo $A-$B; id -u; pwd",
    )  # fmt: skip
    fresh.ok("commit", "set", "app")
    found = config(fresh, "app")["config"]
    assert found == {
        **config(fresh, "busybox")["config"],
        "Entrypoint": ["/bin/sh"],
        "Cmd": ["-c", "echo $A-$B; id -u; pwd"],
        "Env": [*config(fresh, "busybox")["config"].get("Env", []), "A=1", "B=two words"],
        "WorkingDir": "/work",
        "User": "33:33",
        "Volumes": {"/data": {}},
    }
    assert fresh.ok("run", "--rm", "app") == "1-two words\n33\n/work\n"
    fresh.ok("run", "--name", "again", "-e", "A=3", "app")
    fresh.ok("commit", "again", "again")
    assert config(fresh, "again")["config"] == {
        **found,
        "Env": [v.replace("A=1", "A=3") for v in found["Env"]],
    }


def test_changes_of_settings_history_author_and_message(fresh: Pyrun) -> None:
    made(fresh, "echo >/new")
    fresh.ok(
        "commit", "-a", "Ann <ann@example.org>", "-m", "why\tnot", "-c", 'CMD ["echo", "hi"]', "-c", "ENV X=1 Y=2",
        "--change", "LABEL a=b", "-c", "EXPOSE 80", "made", "app",
    )  # fmt: skip
    found = config(fresh, "app")
    assert found["author"] == "Ann <ann@example.org>"
    assert found["config"]["Cmd"] == ["echo", "hi"]
    assert found["config"]["Labels"] == {"a": "b"}
    assert found["config"]["ExposedPorts"] == {"80/tcp": {}}
    assert found["config"]["Env"][-2:] == ["X=1", "Y=2"]
    last = found["history"][-1]
    assert (last["author"], last["comment"]) == ("Ann <ann@example.org>", "why\tnot")
    assert last["created_by"] == "sh -c echo >/new"
    assert last["created"] == found["created"]
    assert found["history"][:-1] == config(fresh, "busybox")["history"]
    assert fresh.ok("run", "--rm", "app") == "hi\n"
    before = os.listdir(fresh.root / "content/blobs/sha256")
    done = fresh("commit", "-c", "RUN make", "made", "other")
    assert done.returncode == 125
    assert "RUN make" in done.stderr
    assert os.listdir(fresh.root / "content/blobs/sha256") == before


def test_without_a_change_of_files_there_is_no_new_layer(fresh: Pyrun) -> None:
    made(fresh, ":")
    fresh.ok("commit", "-c", "ENV NEW=1", "made", "app")
    assert config(fresh, "app")["rootfs"] == config(fresh, "busybox")["rootfs"]
    assert config(fresh, "app")["history"][-1]["empty_layer"] is True
    assert fresh.sh("echo $NEW", image="app") == "1\n"


def test_an_unchanged_container_gives_the_same_image_again(fresh: Pyrun) -> None:
    made(fresh, "echo x >/new; ln /new /etc/linked")
    first = fresh.ok("commit", "made", "one")
    digest = record(fresh, "one").manifest
    time.sleep(1.1)
    assert fresh.ok("commit", "made", "two") == first
    assert record(fresh, "two").manifest == digest
    fresh.ok("rmi", "-f", "one", "two")
    assert fresh.ok("commit", "made") == first


def test_the_same_work_gives_the_same_image_with_every_driver(
    fresh: Pyrun, mirror: Path, base: Path, tmp_path: Path
) -> None:
    from .conftest import DRIVERS, store_of

    script = f"mkdir -p /made/d; echo x >/made/d/f; ln /made/d/f /made/l; chown 5:6 /made/l; rm /etc/passwd; {FIXED}"
    found = {}
    for driver in DRIVERS:
        directory = base / f"same-{driver}"
        directory.mkdir()
        try:
            with store_of(driver, mirror, str(directory)) as pyrun:
                pyrun.env = {**pyrun.env, "SOURCE_DATE_EPOCH": "1700000000"}
                made(pyrun, script)
                pyrun.ok("commit", "made", "app")
                found[driver] = record(pyrun, "app").manifest
                assert pyrun.sh("ls -ln /made/l", image="app").split()[2:4] == ["5", "6"]
        finally:
            shutil.rmtree(directory)
    assert len(found) == len(DRIVERS)
    assert len(set(found.values())) == 1, found


def test_its_time_is_given_or_that_of_the_newest_change(fresh: Pyrun) -> None:
    made(fresh, "mkdir /made; echo >/made/old; echo >/made/future; " + FIXED + "; touch -d @4000000000 /made/future;"
         "touch -d @1600000000 /made")  # fmt: skip
    fresh.ok("commit", "made", "newest")
    assert config(fresh, "newest")["created"] == "2020-09-13T12:26:40Z"
    fresh.ok("commit", "--timestamp", "0", "made", "given")
    assert config(fresh, "given")["created"] == "1970-01-01T00:00:00Z"
    fresh.env = {**fresh.env, "SOURCE_DATE_EPOCH": "1700000000"}
    fresh.ok("commit", "made", "epoch")
    assert config(fresh, "epoch")["created"] == "2023-11-14T22:13:20Z"
    fresh.ok("commit", "--timestamp", "86400", "made", "both")
    assert config(fresh, "both")["created"] == "1970-01-02T00:00:00Z"
    for wrong in ("soon", "-1", "1.5"):
        fresh.env = {**fresh.env, "SOURCE_DATE_EPOCH": wrong}
        done = fresh("commit", "made", "wrong")
        assert done.returncode == 125
        assert "SOURCE_DATE_EPOCH" in done.stderr
    assert fresh("commit", "--timestamp", "now", "made").returncode == 125


def test_one_layer_of_all_files(fresh: Pyrun) -> None:
    made(fresh, "echo >/new; rm /etc/passwd", "-v", "/volume")
    fresh.ok("commit", "made", "app")
    fresh.ok("commit", "-s", "made", "flat")
    assert len(manifest(fresh, "flat")["layers"]) == 1
    assert [entry.get("empty_layer", False) for entry in config(fresh, "flat")["history"]] == [False]
    names = layer(fresh, "flat")
    assert "volume" not in names
    assert not [name for name in names if ".wh." in name]
    assert fresh.ok("diff", "flat", "app") == ""
    assert fresh.ok("run", "--rm", "flat", "ls", "/new") == "/new\n"


def test_it_needs_the_image_of_the_container_or_takes_all_files(fresh: Pyrun) -> None:
    made(fresh, "echo >/new")
    fresh.ok("rmi", "-f", "busybox")
    done = fresh("commit", "made", "app")
    assert done.returncode == 1
    assert "--squash" in done.stderr
    fresh.ok("commit", "--squash", "made", "app")
    assert fresh.ok("run", "--rm", "app", "ls", "/new") == "/new\n"


def test_formats_are_read_by_another_program(fresh: Pyrun, tmp_path: Path) -> None:
    made(fresh, "echo >/new")
    for format, kind in (("oci", "oci.image.manifest"), ("docker", "docker.distribution.manifest")):
        fresh.ok("commit", "-f", format, "-m", "why", "made", f"app:{format}")
        document = manifest(fresh, f"app:{format}")
        assert kind in document["mediaType"]
        assert all(("docker" in entry["mediaType"]) == (format == "docker") for entry in document["layers"])
        assert json.loads(fresh.ok("inspect", f"app:{format}"))[0]["Comment"] == "why"
        if shutil.which("skopeo"):
            source = f"oci:{fresh.root}/content:docker.io/library/app:{format}"
            if format == "oci":
                subprocess.run(["skopeo", "copy", "-q", source, f"dir:{tmp_path}/{format}"], check=True)
        assert fresh.ok("run", "--rm", f"app:{format}", "ls", "/new") == "/new\n"
    done = fresh("commit", "-f", "appliance", "made")
    assert done.returncode == 125
    assert "oci, docker" in done.stderr


def test_the_id_is_printed_and_written_to_a_file(fresh: Pyrun, tmp_path: Path) -> None:
    made(fresh, "echo >/new")
    id = fresh.ok("container", "commit", "-q", "--iidfile", str(tmp_path / "id"), "made").strip()
    assert (tmp_path / "id").read_text() == id
    assert fresh.ok("run", "--rm", id.removeprefix("sha256:")[:12], "ls", "/new") == "/new\n"
    (tmp_path / "id").write_text("before")
    assert fresh("commit", "--iidfile", str(tmp_path / "id"), "missing").returncode == 1
    assert (tmp_path / "id").read_text() == "before"
    with terminal(fresh, "commit", "made", "app") as window:
        assert window.wait() == 0
        assert b"Packing the changes of made" in window.output
    with terminal(fresh, "commit", "-q", "made", "app") as window:
        assert window.wait() == 0
        assert window.output.strip() == id.encode()


def test_names_that_can_not_be(fresh: Pyrun) -> None:
    made(fresh, "echo >/new")
    for name in ("UPPER", "app@sha256:" + "0" * 64, "a:b:c"):
        done = fresh("commit", "made", name)
        assert done.returncode == 1
        assert done.stdout == ""
    done = fresh("commit", "missing", "app")
    assert (done.returncode, done.stderr) == (
        1,
        "pyrun: no such container: missing\n`pyrun ps -a` lists them.\n",
    )


def test_a_name_that_was_another_images_moves(fresh: Pyrun) -> None:
    made(fresh, "echo 1 >/new")
    first = fresh.ok("commit", "made", "app").strip()
    made(fresh, "echo 2 >/new", name="later")
    second = fresh.ok("commit", "later", "app").strip()
    assert json.loads(fresh.ok("inspect", "app"))[0]["Id"] == second
    assert fresh.ok("run", "--rm", first.removeprefix("sha256:"), "cat", "/new") == "1\n"


def test_the_layer_is_gzip_without_time_or_name(fresh: Pyrun) -> None:
    made(fresh, "echo 1 >/new")
    fresh.ok("commit", "made", "app")
    data = blob(fresh, manifest(fresh, "app")["layers"][-1]["digest"])
    assert data[:4] == b"\x1f\x8b\x08\x00"
    assert data[4:8] == bytes(4)
    assert gzip.decompress(data)[257:262] == b"ustar"


def test_the_api(fresh: Pyrun) -> None:
    code = f"""
from pyrun.engine import Engine
engine = Engine({str(fresh.root)!r}, {str(fresh.state)!r})
lines = []
image = engine.commit("made", "app:api", author="me", changes=["ENV A=1"], say=lines.append)
assert image.reference == "docker.io/library/app:api"
assert image.id == engine.image("app:api").id
assert image.config["Env"][-1] == "A=1"
assert lines
unnamed = engine.commit("made")
assert engine.image(unnamed.id).id == unnamed.id
assert [d.kind + d.path for d in engine.diff("made")] == ["A/new"]
"""
    made(fresh, "echo >/new")
    subprocess.run([sys.executable, "-c", code], check=True, env=fresh.env)
