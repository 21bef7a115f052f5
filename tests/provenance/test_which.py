"""`pyrun which`: the layer that supplied a file, what it hides and what deleted it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyrun.engine import Engine
from pyrun.errors import NotFound, PyrunError, UsageError
from pyrun.testing.tars import Dir, File, Link, Whiteout, tar
from support.account import command_of
from support.pyrun import Pyrun, copy_store, terminal, wait_for
from support.registry import Registry

from .conftest import HISTORY, RAW, SPARSE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: drivers of all kinds, an account")


def told(pyrun: Pyrun, *args: str) -> dict[str, Any]:
    """The JSON document, whatever the exit code."""
    done = pyrun("which", *args, "--format", "json")
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == found["Found"]
    return found


def versions(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(v["Layer"], v["Type"], v["State"], v.get("By", 0)) for v in found["Versions"]]


def test_the_layer_and_the_build_line_of_a_file_are_told_with_what_it_replaced(study: Pyrun) -> None:
    lines = study.ok("which", "study", "/etc/passwd").splitlines()
    assert lines[0] == "/etc/passwd is from layer 2 of 4"
    assert lines[1] == "  RUN \\x1b[31mapp --install\\x07 # \\u202emoc.live"
    assert lines[3].split() == ["LAYER", "STATE", "MODE", "OWNER", "SIZE", "MODIFIED", "CREATED", "BY"]
    assert lines[4].split()[:7] == ["2", "visible", "-rw-------", "5:6", "21B", "2023-11-14", "22:13:20"]
    assert lines[5].startswith("1         replaced by layer 2   -rw-r--r--   0:0       110B ")
    assert lines[5].endswith("/bin/sh -c #(nop) ADD file:base in /")
    assert len(lines) == 6


def test_json_has_the_history_line_that_made_the_layer_as_it_is(study: Pyrun) -> None:
    found = told(study, "study", "etc/passwd")
    assert (found["Layer"], found["Layers"], found["Size"], found["Type"]) == (2, 4, 21, "file")
    assert found["CreatedBy"] == HISTORY[2]["created_by"]
    assert [v["CreatedBy"] for v in found["Versions"]] == [HISTORY[2]["created_by"], HISTORY[0]["created_by"]]
    assert found["Versions"][0]["Created"] == HISTORY[2]["created"]
    assert (found["Versions"][0]["Mode"], found["Versions"][0]["ModifiedNs"]) == (
        "-rw-------",
        1_700_000_000 * 10**9,
    )
    inspected = json.loads(study.ok("inspect", "study"))[0]
    assert found["DiffID"] == inspected["RootFS"]["Layers"][1]


def test_a_template_gets_the_fields_of_the_version_that_shows(study: Pyrun) -> None:
    assert (
        study.ok("which", "study", "/opt/new", "--format", "{{.Layer}} {{.Size}} {{len .Versions}}")
        == "3 3 1\n"
    )


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/etc/passwd", "/etc/passwd"),
        ("etc/passwd", "/etc/passwd"),
        ("//etc/./passwd", "/etc/passwd"),
        ("../../etc/../etc/passwd", "/etc/passwd"),
        ("/bin/../../etc/passwd", None),  # as the kernel does: /bin is /usr/bin, and .. its parent
        ("/bin/../bin/dash", "/usr/bin/dash"),
        ("/etc/", "/etc"),
        (".", "/"),
        ("/", "/"),
    ],
)
def test_a_path_leads_where_the_container_would_be_led(study: Pyrun, path: str, name: str | None) -> None:
    found = told(study, "study", path)
    assert found["Path"] == (name or "/etc/passwd")
    assert found["Asked"] == path


def test_symbolic_links_are_followed_in_the_image_and_the_steps_shown(study: Pyrun) -> None:
    lines = study.ok("which", "study", "/bin/sh").splitlines()
    assert lines[:3] == [
        "/bin -> usr/bin   (symbolic link of layer 1)",
        "/usr/bin/sh -> dash   (symbolic link of layer 1)",
        "/usr/bin/dash is from layer 1 of 4",
    ]


def test_without_following_the_last_link_itself_is_told_of(study: Pyrun) -> None:
    found = told(study, "study", "/bin/sh", "--no-follow")
    assert (found["Path"], found["Type"], found["Versions"][0]["Target"]) == (
        "/usr/bin/sh",
        "symlink",
        "dash",
    )
    assert [link["Path"] for link in found["Links"]] == ["/bin"]
    # A slash behind it asks for what it leads to.
    assert told(study, "study", "/bin/", "--no-follow")["Path"] == "/usr/bin"
    done = study("which", "study", "/bin/sh/", "--no-follow")
    assert done.returncode == 1
    assert "'/usr/bin/dash' is not a directory" in done.stderr


def test_links_that_lead_round_end(study: Pyrun) -> None:
    done = study("which", "study", "/bin/round")
    assert done.returncode == 1
    assert "goes through too many symbolic links" in done.stderr


def test_a_deleted_file_is_told_with_the_layer_that_deleted_it_and_exit_code_1(study: Pyrun) -> None:
    done = study("which", "study", "/etc/motd")
    assert done.returncode == 1
    assert done.stderr.startswith("pyrun: study has no '/etc/motd': layer 2 deleted it\n")
    assert "--cat @1" in done.stderr
    assert versions(told(study, "study", "/etc/motd")) == [
        (2, "whiteout", "hides", 0),
        (1, "file", "deleted", 2),
    ]


def test_the_deletion_of_a_directory_above_is_told(study: Pyrun) -> None:
    done = study("which", "study", "/var/cache/p3")
    assert done.returncode == 1
    assert "layer 3 deleted '/var/cache'" in done.stderr
    assert "deletes /var/cache" in done.stdout
    assert versions(told(study, "study", "/var/cache/p3")) == [
        (3, "whiteout", "hides", 0),
        (1, "file", "deleted", 3),
    ]


def test_an_opaque_directory_hides_what_was_in_it(study: Pyrun) -> None:
    done = study("which", "study", "/opt/old")
    assert done.returncode == 1
    assert "layer 3 emptied '/opt'" in done.stderr
    assert versions(told(study, "study", "/opt/old")) == [
        (3, "opaque", "hides", 0),
        (1, "file", "deleted", 3),
    ]
    assert versions(told(study, "study", "/opt"))[0] == (3, "dir", "visible", 0)


def test_a_directory_replaced_by_a_link_hides_what_was_in_it_and_the_link_is_followed(study: Pyrun) -> None:
    found = told(study, "study", "/turned/into")
    assert (found["Path"], found["Problem"]) == ("/srv/into", "missing")
    assert versions(told(study, "study", "/turned", "--no-follow")) == [
        (4, "symlink", "visible", 0),
        (1, "dir", "replaced", 4),
    ]
    assert told(study, "study", "/turned/app")["Layer"] == 4


def test_a_path_that_never_was_is_an_error_in_words(study: Pyrun) -> None:
    done = study("which", "study", "/nope/x")
    assert (done.returncode, done.stdout) == (1, "")
    assert "none of its layers ever had it" in done.stderr
    assert study("which", "study", "/etc/passwd/x").returncode == 1
    assert study("which", "nothere", "/x").returncode == 1
    assert study("which", "study", "").returncode == 125


def test_of_a_directory_the_layers_that_have_part_in_it_are_told(study: Pyrun) -> None:
    found = told(study, "study", "/srv")
    assert versions(found) == [(4, "dir", "merged", 0), (2, "dir", "visible", 0)]
    assert found["Shares"] == [{"Layer": 4, "Names": 1}, {"Layer": 2, "Names": 4}]
    shares = {share["Layer"]: share["Names"] for share in told(study, "study", "/")["Shares"]}
    report = json.loads(study.ok("layers", "study", "--format", "json"))
    assert sum(shares.values()) == report["Names"] - 1


def test_hard_links_and_repeated_names_are_pointed_out(study: Pyrun) -> None:
    assert "a hard link: the same file as /etc/motd of that layer" in study.ok("which", "study", "/etc/issue")
    found = told(study, "study", "/srv/app")
    assert [(v["Layer"], v["Copies"]) for v in found["Versions"]] == [(4, 1), (2, 2)]
    assert "layer 2: its tar has this name 2 times" in study.ok("which", "study", "/srv/app")


def test_cat_prints_the_version_that_shows_or_the_one_that_is_named(study: Pyrun) -> None:
    def cat(*args: str) -> bytes:
        return bytes(study.ok("which", *args, text=False))

    assert cat("study", "/srv/app", "--cat") == b"third"
    assert cat("study", "/srv/app", "--cat", "@2") == b"second!"
    assert cat("--cat", "@2", "study", "/srv/app") == b"second!"
    assert cat("study", "/srv/app", "--cat=@2") == b"second!"
    assert cat("study", "/etc/motd", "--cat", "@1") == b"one\n"
    assert cat("study", "/var/cache/p3", "--cat", "@1") == b"c" * 3000
    assert cat("study", "/etc/issue", "--cat") == b"one\n"
    digest = told(study, "study", "/srv/app")["Versions"][1]["DiffID"].removeprefix("sha256:")
    assert cat("study", "/srv/app", "--cat", f"@{digest[:12]}") == b"second!"
    assert cat("study", "/srv/app", "--cat", f"@sha256:{digest}") == b"second!"
    whole = bytearray(1 << 20)
    for offset, part in SPARSE.items():
        whole[offset : offset + len(part)] = part
    assert cat("study", "/srv/sparse", "--cat") == bytes(whole)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("/srv/app", "--cat", "@9"), 1, "has no layer @9"),
        (("/srv/app", "--cat", "@fff"), 1, "has no layer @fff"),
        (("/srv/app", "--cat", "@1"), 1, "layer 1 of study has no '/srv/app'"),
        (("/srv/app", "--cat", "@container"), 1, "has no layer @container"),
        (("/etc/motd", "--cat"), 1, "layer 2 deleted it"),
        (("/etc", "--cat"), 125, "is a directory in layer 1"),
        (("/pipe", "--cat"), 125, "is a fifo"),
        (("/bin/sh", "--no-follow", "--cat"), 125, "a symbolic link to 'dash'"),
        (("/srv/app", "@2"), 125, "--cat @2"),
        (("/srv/app", "--cat", "two"), 125, "unexpected argument 'two'"),
        (("/srv/app", "--cat", "--format", "json"), 125, "Leave one out"),
    ],
)
def test_what_cat_can_not_print_is_told_in_words(
    study: Pyrun, args: tuple[str, ...], code: int, words: str
) -> None:
    done = study("which", "study", *args)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_names_that_are_no_text_are_found_and_shown_without_harm(study: Pyrun) -> None:
    path = os.fsdecode(b"/srv/" + RAW)
    out = study.ok("which", "study", path)
    assert out.startswith("/srv/caf\\xe9-\\x1b[31mred is from layer 2 of 4\n")
    found = told(study, "study", path)
    assert os.fsencode(found["Path"]) == b"/srv/" + RAW
    assert study.ok("which", "study", path, "--cat") == "raw bytes\n"


def test_nothing_from_the_image_acts_on_a_terminal(study: Pyrun) -> None:
    for args in (
        ("study", "/etc/passwd"),
        ("study", os.fsdecode(b"/srv/" + RAW)),
        ("study", "/etc/passwd", "--format", "{{.CreatedBy}}"),
    ):
        with terminal(study, "which", *args, size=(24, 200)) as window:
            assert window.wait() == 0
            assert b"\x1b" not in window.output
            assert b"\x07" not in window.output
            assert "\u202e" not in window.output.decode(errors="replace")


def test_every_file_of_a_real_image_has_the_content_that_a_container_sees(pulled: Pyrun) -> None:
    names = pulled.sh(
        "cd / && find usr/bin etc var -xdev -type f | sort | awk 'NR % 23 == 1' | head -40", image="redis"
    ).split()
    sums = pulled.sh("cd / && sha256sum " + " ".join(names), image="redis").split()[::2]
    assert len(names) == 40
    engine = Engine(str(pulled.root), str(pulled.state))
    for name, expected in zip(names[::4], sums[::4], strict=True):
        with engine.content("redis", name) as pieces:
            assert hashlib.sha256(b"".join(pieces)).hexdigest() == expected, name
    deleted = engine.which("redis", "/etc/redis/redis.conf")
    assert deleted.problem == "missing"
    assert [(one.layer.number, one.kind, one.state) for one in deleted.versions] == [
        (3, "whiteout", "hides"),
        (2, "file", "deleted"),
    ]
    found = engine.which("redis", "/usr/bin/redis-server")
    assert found.visible is not None
    assert "redis-server" in found.visible.layer.created_by
    with pytest.raises(NotFound):
        engine.which("nope", "/x")
    with pytest.raises(UsageError), engine.content("redis", "/etc"):
        pass


def test_a_shell_completes_paths_of_the_image(study: Pyrun) -> None:
    study.ok("which", "study", "/")

    def completed(*words: str) -> list[str]:
        lines = study.ok(
            "__complete", "zsh", "--root", str(study.root), "--state", str(study.state), *words
        ).splitlines()
        return [line.split("\t")[1] for line in lines]

    assert completed("which", "study", "/u") == ["/usr/"]
    assert completed("which", "study", "/usr/bin/d") == ["/usr/bin/dash"]
    assert completed("which", "study", "bin/m") == ["bin/more"]
    assert completed("which", "study", "/opt/") == ["/opt/new"]
    assert "study:latest" in completed("which", "st")
    assert "study:latest" in completed("layers", "st")
    assert completed("which", "nothere", "/u") == []


# --- containers


@pytest.fixture(params=["overlay", "erofs", "vfs"])
def driven(request: pytest.FixtureRequest, base: Path, mirror: Path, registry: Registry) -> Pyrun:
    """A store of its own with busybox, on each kind of driver: trees, indexes of tars, chained copies."""
    root = base / f"which-{request.param}"
    env = {"CONTAINERS_REGISTRIES_CONF": str(mirror), "TZ": "UTC"}
    pyrun = Pyrun(root, base / f"which-{request.param}-state", env=env)
    pyrun.ok("pull", "-q", "--storage", request.param, "busybox")  # the store keeps to it
    return pyrun


SCRIPT = (
    "echo written > /etc/new && echo changed > /etc/passwd && rm -r /home && ln -s new /etc/link"
    " && mkdir -p /data/deep && chown 12:34 /etc/new && chmod 4711 /etc/new && rm /etc/shadow"
)


def check_container(pyrun: Pyrun, name: str) -> None:
    found = told(pyrun, name, "/etc/passwd")
    number = found["Layers"]
    assert found["Container"]
    assert versions(found) == [(number, "file", "visible", 0), (number - 1, "file", "replaced", number)]
    new = told(pyrun, name, "/etc/link")
    assert (new["Path"], new["Size"], new["CreatedBy"]) == ("/etc/new", 8, "")
    assert (new["Versions"][0]["Mode"], new["Versions"][0]["UID"], new["Versions"][0]["GID"]) == (
        "-rws--x--x",
        12,
        34,
    )
    gone = pyrun("which", name, "/etc/shadow")
    assert gone.returncode == 1
    assert "the container deleted it" in gone.stderr
    assert [line.split()[:2] for line in gone.stdout.splitlines()[1:]] == [
        ["container", "deletes"],
        [str(number - 1), "deleted"],
    ]
    assert "deleted by the container" in gone.stdout
    assert pyrun.ok("which", name, "/etc/passwd", "--cat", "@container") == "changed\n"
    assert pyrun.ok("which", name, "/etc/passwd", "--cat", f"@{number - 1}").startswith("root:")
    assert {share["Layer"] for share in told(pyrun, name, "/")["Shares"]} == {number, number - 1}
    # What is mounted there hides what was found.
    assert "something else mounted on it" in pyrun("which", name, "/var/www").stdout


def test_a_stopped_container_s_own_layer_is_on_top(driven: Pyrun) -> None:
    driven.ok("run", "--name", "one", "--tmpfs", "/var/www", "busybox", "sh", "-c", SCRIPT)
    try:
        check_container(driven, "one")
    finally:
        driven.ok("rm", "-f", "one")


def test_a_running_container_s_own_layer_is_on_top(driven: Pyrun) -> None:
    process = driven.start(
        "run",
        "--rm",
        "--name",
        "two",
        "--tmpfs",
        "/var/www",
        "busybox",
        "sh",
        "-c",
        f"{SCRIPT} && exec sleep 100",
        stderr=subprocess.DEVNULL,
    )
    try:
        driven.pid_of("two")
        wait_for(lambda: driven("which", "two", "/etc/shadow").returncode == 1, "the script is done")
        check_container(driven, "two")
    finally:
        driven("rm", "-f", "two")
        process.wait(20)


def test_a_hard_link_to_a_lower_layer_s_file_has_that_file_s_content(
    base: Path, mirror: Path, registry: Registry
) -> None:
    """Drivers that unpack layers side by side refuse such a layer; a chained one can make it."""
    low = tar(Dir("a"), File("a/file", b"from below"))
    high = tar(Link("b", "a/file"), Whiteout("a/file"))
    registry.push_image("library/crossing", "latest", [low, high])
    pyrun = Pyrun(base / "crossing", base / "crossing-state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
    done = pyrun("pull", "-q", "--storage", "vfs", "crossing")
    if done.returncode:
        assert "hard link" in done.stderr
        pytest.skip("the driver does not claim links across layers")
    found = told(pyrun, "crossing", "/b")
    assert versions(found) == [(2, "link", "visible", 0)]
    assert found["Versions"][0]["Target"] == "/a/file"
    assert pyrun.ok("which", "crossing", "/b", "--cat") == "from below"


# --- the store


def test_tables_are_kept_and_answer_without_the_blobs_being_read(fresh: Pyrun) -> None:
    first = fresh.ok("which", "busybox", "/bin/sh")
    tables = {name.replace("-", ":") for name in os.listdir(fresh.root / "tables")}
    assert tables == set(json.loads(fresh.ok("inspect", "busybox"))[0]["RootFS"]["Layers"])
    for blob in blobs(fresh):
        blob.write_bytes(b"\0" * blob.stat().st_size)
    assert fresh.ok("which", "busybox", "/bin/sh") == first
    # The content is another matter.
    done = fresh("which", "busybox", "/bin/sh", "--cat")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def blobs(pyrun: Pyrun) -> list[Path]:
    """The layers' blobs of busybox."""
    record = json.loads(next((pyrun.root / "images").glob("*busybox*.json")).read_text())
    return [pyrun.root / "content/blobs" / layer["digest"].replace(":", "/") for layer in record["layers"]]


def test_a_blob_that_was_tampered_with_is_refused_and_leaves_no_table(fresh: Pyrun) -> None:
    path = blobs(fresh)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    done = fresh("which", "busybox", "/bin/sh")
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (fresh.root / "tables").exists() or not os.listdir(fresh.root / "tables")


def test_a_damaged_table_is_made_anew_and_told_by_system_check(fresh: Pyrun) -> None:
    first = fresh.ok("which", "busybox", "/bin/sh")
    name = os.listdir(fresh.root / "tables")[0]
    path = fresh.root / "tables" / name
    for damage in (b"", b"pyrun layer table 1\nrubbish", path.read_bytes()[:-20], os.urandom(200)):
        path.write_bytes(damage)
        done = fresh("system", "check")
        assert "table-damaged" in done.stdout
        assert done.returncode == 0, "it does no harm"
        assert fresh.ok("which", "busybox", "/bin/sh") == first
    path.write_bytes(b"")
    fresh.ok("system", "check", "--repair")
    assert not path.exists()
    (fresh.root / "tables" / f"sha256-{'0' * 64}").write_bytes(b"")
    assert "table-orphan" in fresh.ok("system", "check")
    assert "Layer tables" in fresh.ok("system", "df")


def test_tables_go_with_their_image(fresh: Pyrun) -> None:
    fresh.ok("which", "busybox", "/bin/sh")
    assert os.listdir(fresh.root / "tables")
    (fresh.root / "tables/.tmp-99999999-sha256-0").write_text("left by one that was killed")
    fresh.ok("rmi", "busybox")
    assert os.listdir(fresh.root / "tables") == []


def test_a_store_that_can_not_be_written_to_answers_all_the_same(fresh: Pyrun) -> None:
    (fresh.root / "tables").write_text("in the way")
    assert "is from layer" in fresh.ok("which", "busybox", "/bin/busybox")
    fresh("system", "check")
    assert fresh("system", "df").returncode == 0


def test_layers_whose_blobs_are_gone_are_told_from_what_the_driver_shows(
    study: Pyrun, base: Path, mirror: Path
) -> None:
    with_blobs = [told(study, "study", path, "--no-follow") for path in PATHS_WITHOUT_BLOBS]
    root = base / "no-blobs"
    copy_store(study.root, root)
    pyrun = Pyrun(root, base / "no-blobs-state", env=study.env)
    record = json.loads(next((root / "images").glob("*study*.json")).read_text())
    for layer in record["layers"]:
        (root / "content/blobs" / layer["digest"].replace(":", "/")).unlink()
    shutil.rmtree(root / "tables", ignore_errors=True)
    for path, expected in zip(PATHS_WITHOUT_BLOBS, with_blobs, strict=True):
        found = told(pyrun, "study", path, "--no-follow")
        assert found["Notes"]
        assert "not in the store" in found["Notes"][0]
        assert [(v[0], v[2], v[3]) for v in versions(found) if v[1] not in ("whiteout", "opaque")] == [
            (v[0], v[2], v[3]) for v in versions(expected) if v[1] not in ("whiteout", "opaque")
        ], path
    assert pyrun.ok("which", "study", "/srv/app", "--cat", "@2") == "second!"
    assert pyrun.ok("which", "study", "/etc/motd", "--cat", "@1") == "one\n"
    for name in os.listdir(root / "layers"):
        shutil.rmtree(root / "layers" / name)
    done = pyrun("which", "study", "/srv/app")
    assert done.returncode == 1
    assert "Pull the image again" in done.stderr


PATHS_WITHOUT_BLOBS = [
    "/etc/passwd",
    "/etc/motd",
    "/var/cache/p3",
    "/opt/old",
    "/srv/app",
    "/bin",
    "/usr/bin/more",
]


def test_an_ordinary_user_gets_the_same_answers(
    account: str, installation: Path, mirror: Path, registry: Registry, study: Pyrun, tmp_path: Path
) -> None:
    with command_of(account, installation, mirror) as pyrun:
        pyrun.env["TZ"] = "UTC"
        pyrun.ok("pull", "-q", "study")
        pyrun.ok("pull", "-q", "busybox")
        assert told(pyrun, "study", "/etc/passwd") == told(study, "study", "/etc/passwd")
        assert pyrun.ok("layers", "study") == study.ok("layers", "study")
        pyrun.ok("run", "--name", "three", "busybox", "sh", "-c", "echo mine > /etc/mine; rm /etc/passwd")
        assert told(pyrun, "three", "/etc/mine")["Versions"][0]["UID"] == 0
        assert pyrun.ok("which", "three", "/etc/mine", "--cat") == "mine\n"
        assert pyrun("which", "three", "/etc/passwd").returncode == 1
        pyrun.ok("rm", "three")


def test_the_python_interface_tells_the_same(study: Pyrun) -> None:
    engine = Engine(str(study.root), str(study.state))
    found = engine.which("study", "/bin/sh")
    assert [link.target for link in found.links] == ["usr/bin", "dash"]
    assert found.visible is not None
    assert (found.visible.layer.number, found.visible.size, found.visible.mode) == (1, 100_000, 0o755)
    assert engine.which("study", "/etc/motd").deletion is not None
    with engine.content("study", "/srv/app", "@2") as pieces:
        assert b"".join(pieces) == b"second!"
    with pytest.raises(PyrunError), engine.content("study", "/srv/app", "@77"):
        pass
