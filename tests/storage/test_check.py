"""`pyrun system check`: it finds exactly what is damaged, repairs it, and lets everybody work meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyrun.engine import Engine
from support import copied
from support.pyrun import Pyrun
from support.registry import Registry, tar


def check(pyrun: Pyrun, *options: str, code: int | None = None) -> list[dict[str, str]]:
    done = pyrun("system", "check", "-q", "--format", "json", *options)
    assert "Traceback" not in done.stderr, done.stderr
    if code is not None:
        assert done.returncode == code, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def kinds(problems: list[dict[str, str]]) -> list[str]:
    return sorted(problem["Kind"] for problem in problems)


def repaired(pyrun: Pyrun, *options: str) -> list[dict[str, str]]:
    """Repair, see that all of it worked and that nothing is left; what had been found."""
    found = check(pyrun, "--repair", *options, code=0)
    assert [problem["Outcome"] for problem in found] == ["repaired"] * len(found), found
    assert check(pyrun, *options, code=0) == []
    return found


def blob_of(pyrun: Pyrun, digest: str) -> Path:
    return pyrun.root / "content/blobs/sha256" / digest.partition(":")[2]


def layer_of(pyrun: Pyrun, key: str, driver: str = "overlay") -> Path:
    return pyrun.root / "layers" / driver / key.partition(":")[2]


def image_of(pyrun: Pyrun, name: str = "busybox") -> Any:
    return Engine(str(pyrun.root), str(pyrun.state)).image(name)


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# --- blobs


def test_a_sound_store_is_called_sound_and_left_as_it_is(fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "user", "busybox", "true")
    before = sorted(str(path) for path in fresh.root.rglob("*"))
    done = fresh("system", "check", "--deep")
    assert done.returncode == 0
    layers = len(image_of(fresh).layers)
    blobs = len(list((fresh.root / "content/blobs/sha256").iterdir()))
    word = "layers" if layers != 1 else "layer"
    assert done.stdout == f"{blobs} blobs, {layers} {word}, 1 image, 1 container: sound\n"
    assert "Hashing" in done.stderr
    assert fresh("system", "check", "-q").stderr == ""
    assert sorted(str(path) for path in fresh.root.rglob("*")) == before


def test_a_store_without_anything_is_sound(empty: Pyrun) -> None:
    done = empty("system", "check", "-q")
    assert (done.returncode, done.stdout) == (
        0,
        "0 blobs, 0 layers, 0 images, 0 containers: sound\n",
    ), done.stderr


@pytest.mark.parametrize(
    ("which", "how"),
    [
        ("layer", "flipped"),
        ("layer", "cut short"),
        ("layer", "gone"),
        ("config", "flipped"),
        ("config", "gone"),
        ("manifest", "cut short"),
        ("manifest", "gone"),
        ("index", "gone"),
    ],
)
def test_a_bad_blob_is_fetched_again(fresh: Pyrun, which: str, how: str) -> None:
    image = image_of(fresh)
    digest = {
        "layer": image.layers[0].digest,
        "config": image.id,
        "manifest": image.manifest,
        "index": image.digest,
    }[which]
    path = blob_of(fresh, digest)
    good = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "flipped":
        flip(path, len(good) // 2)
    else:
        os.truncate(path, len(good) // 2)
    found = [problem for problem in check(fresh, code=1) if problem["Kind"].startswith("blob")]
    kind = "blob-missing" if how == "gone" else "blob-damaged"
    assert [(p["Kind"], p["Subject"], p["Harm"]) for p in found] == [(kind, digest, "true")]
    assert "docker.io/library/busybox:latest needs it" in found[0]["Problem"]
    assert fresh.sh("echo runs all the same") == "runs all the same\n"
    repaired(fresh)
    assert path.read_bytes() == good


def test_without_its_registry_a_bad_blob_stays_and_the_reason_is_told(fresh: Pyrun, tmp_path: Path) -> None:
    path = blob_of(fresh, image_of(fresh).layers[0].digest)
    flip(path)
    bad = path.read_bytes()
    nowhere = tmp_path / "registries.conf"
    nowhere.write_text('[[registry]]\nprefix = "docker.io"\nlocation = "127.0.0.1:1"\ninsecure = true\n')
    fresh.env["CONTAINERS_REGISTRIES_CONF"] = str(nowhere)
    (problem,) = check(fresh, "--repair", code=1)
    assert "127.0.0.1:1" in problem["Outcome"]
    assert path.read_bytes() == bad
    assert not list((fresh.root / "content").glob(".tmp*"))
    table = fresh("system", "check", "-q", "--repair").stdout
    assert table.splitlines()[0].split() == ["KIND", "SUBJECT", "PROBLEM", "OUTCOME"]
    assert table.splitlines()[-1].endswith(": 1 damaged")


# --- layers


def _change_content(path: Path) -> None:
    """Same size, same time: only the content tells."""
    st = path.stat()
    flip(path)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def _swap(path: Path) -> None:
    path.unlink()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("damage", "deep"),
    [
        (Path.unlink, False),
        (lambda path: path.with_name("stranger").write_text("x"), False),
        (lambda path: path.chmod(0o777), False),
        (lambda path: os.chown(path, 1, 1), False),
        (lambda path: os.setxattr(path, "user.x", b"y"), False),
        (lambda path: path.write_bytes(b""), False),
        (_swap, False),
        (_change_content, True),
    ],
    ids=["missing", "added", "mode", "owner", "xattr", "emptied", "replaced", "content"],
)
@pytest.mark.parametrize("driver", ["overlay", "copied"])
@pytest.mark.parametrize("seen", [False, True], ids=["first", "again"])
def test_a_changed_layer_is_found_by_name_and_made_again(
    fresh: Pyrun,
    registry: Registry,
    tmp_path: Path,
    damage: Callable[[Path], object],
    deep: bool,
    driver: str,
    seen: bool,
) -> None:
    copied.install(tmp_path / "plugin", fresh)
    pushed = registry.push_image(
        "check/changed", "latest", [tar({"etc/motd": b"hello"}), tar({"etc": None, "etc/name": b"content"})]
    )
    fresh.ok("pull", "-q", "--storage", driver, "check/changed")
    (victim,) = [
        path
        for path in (fresh.root / "layers" / driver).glob("*/**/name")
        if path.is_file() and path.read_bytes() == b"content"
    ]
    if deep or seen:
        assert check(fresh, code=0) == []  # which lists what a pull leaves unlisted
    damage(victim)
    if deep:
        assert check(fresh, code=0) == []
    options = ["--deep"] if deep else []
    (problem,) = check(fresh, *options, code=1)
    assert (problem["Kind"], problem["Harm"]) == ("layer-damaged", "true")
    assert problem["Subject"].startswith(f"{driver}/sha256:")
    assert "check/changed:latest needs it" in problem["Problem"]
    assert "etc/name: " in problem["Problem"] or "etc/stranger: not of the layer" in problem["Problem"]
    repaired(fresh, *options)
    assert victim.read_bytes() == b"content"
    assert pushed.diff_ids


def test_a_layer_without_a_record_is_half_made_and_one_with_a_bad_record_is_damaged(fresh: Pyrun) -> None:
    path = layer_of(fresh, image_of(fresh).layers[0].diff_id)
    (path / "meta.json").write_text("{")
    (problem,) = check(fresh, code=1)
    assert problem["Kind"] == "layer-damaged"
    repaired(fresh)
    (path / "meta.json").unlink()
    found = check(fresh)
    assert "layer-half-made" in kinds(found)
    check(fresh, "--repair", code=0)
    assert check(fresh, code=0) == []
    assert (path / "meta.json").exists()


def test_a_layer_that_vanished_is_missed_by_the_image_and_by_its_container(fresh: Pyrun) -> None:
    fresh.ok("run", "--name", "user", "busybox", "true")
    key = image_of(fresh).layers[0].diff_id
    shutil.rmtree(layer_of(fresh, key))
    (problem,) = check(fresh, code=1)
    assert (problem["Kind"], problem["Subject"]) == ("layer-missing", f"overlay/{key}")
    repaired(fresh)
    assert fresh.sh("echo back") == "back\n"


def test_a_layer_of_another_boot_that_was_not_synced_is_made_again(fresh: Pyrun) -> None:
    key = image_of(fresh).layers[0].diff_id
    marks = fresh.root / "layers/overlay/.unsynced"
    marks.mkdir(exist_ok=True)
    (marks / key.partition(":")[2]).write_text("another-boot")
    (marks / ("0" * 64)).write_text("another-boot")
    assert kinds(check(fresh, code=0)) == ["layer-unsynced", "stale-mark"]
    repaired(fresh)
    assert os.listdir(marks) == []


def test_a_layer_that_mends_others_is_made_again_as_it_was(fresh: Pyrun, registry: Registry) -> None:
    import io
    import tarfile

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        directory = tarfile.TarInfo("tmp")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(directory)
    registry.push_image("check/mended", "latest", [out.getvalue(), tar({"tmp/file": b"x"})])
    fresh.ok("pull", "-q", "check/mended")
    engine = Engine(str(fresh.root), str(fresh.state))
    patch = engine._layers(engine._open(), engine.image("check/mended"))[-1]
    assert check(fresh, "--deep", code=0) == []
    os.chmod(f"{patch.path}/fs/tmp", 0o700)
    (problem,) = check(fresh, code=1)
    assert problem["Subject"] == f"overlay/{patch.id}"
    repaired(fresh)
    engine = Engine(str(fresh.root), str(fresh.state))
    stack = engine._layers(engine._open(), engine.image("check/mended"))
    assert stack[-1].id == patch.id
    assert os.stat(f"{patch.path}/fs/tmp").st_mode & 0o7777 == 0o1777


def test_a_damaged_layer_that_a_container_runs_from_waits_until_it_is_stopped(fresh: Pyrun) -> None:
    running = fresh.start("run", "--rm", "--name", "busy", "busybox", "sleep", "60")
    try:
        fresh.pid_of("busy")
        path = layer_of(fresh, image_of(fresh).layers[0].diff_id) / "fs/stranger"
        path.write_text("x")
        (problem,) = check(fresh, "--repair", code=1)
        assert problem["Outcome"] == "container busy is running from it: stop it first"
        assert path.exists()
        assert fresh.pid_of("busy")
    finally:
        fresh("rm", "-f", "busy")
        running.wait(timeout=20)
    repaired(fresh)
    assert not path.exists()


def test_a_damaged_layer_is_not_thrown_away_while_its_blob_is_bad(fresh: Pyrun, tmp_path: Path) -> None:
    image = image_of(fresh)
    assert check(fresh, code=0) == []  # its layers are listed from here on
    flip(blob_of(fresh, image.layers[0].digest))
    stranger = layer_of(fresh, image.layers[0].diff_id) / "fs/stranger"
    stranger.write_text("x")
    nowhere = tmp_path / "registries.conf"
    nowhere.write_text('[[registry]]\nprefix = "docker.io"\nlocation = "127.0.0.1:1"\ninsecure = true\n')
    here = fresh.env["CONTAINERS_REGISTRIES_CONF"]
    fresh.env["CONTAINERS_REGISTRIES_CONF"] = str(nowhere)
    found = check(fresh, "--repair", code=1)
    assert kinds(found) == ["blob-damaged", "layer-damaged"]
    assert fresh.sh("echo it still runs") == "it still runs\n"
    fresh.env["CONTAINERS_REGISTRIES_CONF"] = here
    repaired(fresh)
    assert not stranger.exists()


# --- records


def known(pyrun: Pyrun) -> dict[str, object]:
    """What inspect tells of busybox, but when its record was written."""
    (found,) = json.loads(pyrun.ok("inspect", "busybox"))
    del found["Metadata"]
    return found


def test_damaged_image_records_are_made_again_from_the_blobs(fresh: Pyrun) -> None:
    fresh.ok("tag", "busybox", "busybox:second")
    before = known(fresh)
    records = sorted((fresh.root / "images").glob("*.json"))
    good = [record.read_bytes() for record in records]
    for record in records:
        record.write_bytes(b'{"half')
    found = check(fresh, code=1)
    assert kinds(found) == ["image-damaged"] * 2
    assert {problem["Subject"] for problem in found} == {
        "docker.io/library/busybox:latest",
        "docker.io/library/busybox:second",
    }
    # Without any registry: what is stored tells all.
    fresh.env["CONTAINERS_REGISTRIES_CONF"] = "/dev/null"
    repaired(fresh)
    assert [json.loads(record.read_bytes()) for record in records] == list(map(json.loads, good))
    assert known(fresh) == before


def test_a_record_made_again_claims_no_digest_that_may_be_another_repositorys(fresh: Pyrun) -> None:
    fresh.ok("tag", "busybox", "second:2")
    (record,) = (fresh.root / "images").glob("*second*.json")
    good = record.read_bytes()
    record.write_bytes(b"")
    repaired(fresh)
    assert json.loads(record.read_bytes()) == json.loads(good)
    assert json.loads(good)["digest"] == ""


def test_an_image_record_that_its_index_has_forgotten_is_pulled_again(fresh: Pyrun) -> None:
    (record,) = (fresh.root / "images").glob("*.json")
    good = json.loads(record.read_bytes())
    record.write_bytes(b"")
    (fresh.root / "content/index.json").write_text("not JSON")
    check(fresh, "--repair", code=0)
    assert check(fresh, code=0) == []
    assert json.loads(record.read_bytes()) == good


def test_a_record_that_contradicts_its_manifest_is_set_right(fresh: Pyrun) -> None:
    (path,) = (fresh.root / "images").glob("*.json")
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "config": {"Cmd": ["evil"]}}))
    (problem,) = check(fresh, code=1)
    assert (problem["Kind"], problem["Problem"]) == (
        "image-damaged",
        "its record has other settings than its config",
    )
    repaired(fresh)
    assert json.loads(path.read_bytes()) == record


@pytest.mark.parametrize("content", ["", '{"manifests": []}', None])
def test_the_index_for_other_tools_is_written_again(fresh: Pyrun, content: str | None) -> None:
    path = fresh.root / "content/index.json"
    good = json.loads(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    (problem,) = check(fresh, code=1)
    assert problem["Kind"] == "index-damaged"
    repaired(fresh)
    assert json.loads(path.read_bytes()) == good


@pytest.mark.parametrize("content", ["", "[]", "{}", None])
def test_the_stores_own_record_is_written_again(fresh: Pyrun, content: str | None) -> None:
    path = fresh.root / "storage.json"
    good = json.loads(path.read_bytes())
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    found = check(fresh, code=1)
    assert found[0]["Kind"] == "store-damaged"
    assert kinds(repaired(fresh)) == ["store-damaged"]
    record = json.loads(path.read_bytes())
    assert (record["driver"], record["version"]) == (good["driver"], good["version"])
    assert fresh.sh("echo open") == "open\n"


def test_a_store_of_another_user_is_refused(fresh: Pyrun) -> None:
    path = fresh.root / "storage.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "userns": True}))
    for command in (["check", "--repair"], ["df"], ["prune", "-f"]):
        done = fresh("system", *command)
        assert done.returncode == 1
        assert "was made by an ordinary user and can't be used as root" in done.stderr


# --- containers


@pytest.fixture
def stopped(fresh: Pyrun) -> Path:
    fresh.ok("run", "--name", "user", "busybox", "sh", "-c", "echo kept > /file")
    (directory,) = (fresh.root / "containers").iterdir()
    return directory


def test_a_containers_state_and_name_are_set_right(fresh: Pyrun, stopped: Path) -> None:
    (stopped / "state.json").write_text("{")
    (fresh.root / "names/user").unlink()
    (fresh.root / "names/nobody").write_text("0" * 64)
    found = check(fresh, code=1)
    assert kinds(found) == ["container-state", "name-lost", "name-unused"]
    repaired(fresh)
    assert (fresh.root / "names/user").read_text() == stopped.name
    assert "Exited (137)" in fresh.ok("ps", "-a")
    fresh.ok("rm", "user")


def test_a_lost_writable_layer_is_told_and_replaced_by_an_empty_one(fresh: Pyrun, stopped: Path) -> None:
    shutil.rmtree(stopped / "rw")
    (problem,) = check(fresh, code=1)
    assert (problem["Kind"], problem["Subject"]) == ("container-data", "user")
    assert "lost" in problem["Problem"]
    repaired(fresh)
    assert sorted(os.listdir(stopped / "rw")) == ["upper", "work"]


def test_a_container_whose_record_is_damaged_keeps_its_data_and_everything_it_may_need(
    fresh: Pyrun, stopped: Path
) -> None:
    good = (stopped / "config.json").read_bytes()
    (stopped / "config.json").write_text("{")
    done = fresh("system", "check", "-q", "--repair", "--format", "json")
    (problem,) = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, problem["Kind"]) == (1, "container-damaged")
    assert str(stopped) in problem["Problem"]
    assert "were not looked for" in done.stderr
    assert (stopped / "rw/upper/file").read_text() == "kept\n"
    (stopped / "config.json").write_bytes(good)
    assert check(fresh, code=0) == []


def test_a_container_whose_record_is_damaged_can_be_given_up(fresh: Pyrun, stopped: Path) -> None:
    (stopped / "config.json").write_text("{")
    done = fresh("rm", stopped.name[:12])
    assert done.returncode == 1
    assert f"pyrun rm -f {stopped.name[:12]}" in done.stderr
    assert stopped.exists()
    fresh.ok("rm", "-f", stopped.name[:12])
    assert fresh.records() == []
    assert check(fresh, code=0) == []


def test_a_driver_that_cannot_work_is_told_and_the_rest_is_looked_at(fresh: Pyrun, tmp_path: Path) -> None:
    copied.install(tmp_path / "plugin", fresh)
    fresh.ok("run", "--name", "mine", "--storage", "copied", "busybox", "true")
    fresh.ok("storage", "migrate", "-q", "copied")
    assert check(fresh, code=0) == []  # its layers are listed from here on
    fresh.env["COPIED_REFUSES"] = "yes"
    key = image_of(fresh).layers[0].diff_id
    (layer_of(fresh, key, "copied") / "fs/stranger").write_text("x")
    found = check(fresh, "--deep", code=1)
    assert kinds(found) == ["driver-unusable", "layer-damaged"]
    assert "it was told to refuse" in found[1]["Problem"] + found[0]["Problem"]
    found = check(fresh, "--repair", code=1)
    assert all("it was told to refuse" in p["Outcome"] for p in found if p["Kind"] == "layer-damaged")
    copied.uninstall(fresh)
    assert "not installed" in str(check(fresh, code=1))
    copied.install(tmp_path / "plugin", fresh)
    del fresh.env["COPIED_REFUSES"]
    repaired(fresh, "--deep")


# --- leftovers


def test_leftovers_are_named_do_no_harm_and_go(fresh: Pyrun, registry: Registry) -> None:
    registry.push_image("check/orphan", "latest", [tar({"orphan": b"x"})])
    fresh.ok("pull", "-q", "check/orphan")
    for record in (fresh.root / "images").glob("*orphan*"):
        record.unlink()
    Engine(str(fresh.root), str(fresh.state))._images().republish()
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE, check=True
    )
    pid = dead.stdout.decode().strip()
    (fresh.root / "leases").mkdir()
    for path in (
        "ingest/sha256-00.part",
        "locks/layer-overlay-00",
        "leases/00.json",
        f"storage.json.{pid}.tmp",
        f"images/.tmp-{pid}-x",
        f"content/.tmp-{pid}-y",
    ):
        (fresh.root / path).write_text("")
    (fresh.root / "staging/overlay.00").mkdir()
    (fresh.root / "staging/overlay.00/half").write_text("x")
    (fresh.root / "layers/overlay/not.a.layer").mkdir()
    found = check(fresh, code=0)
    assert {p["Kind"] for p in found} == {
        "blob-orphan",
        "half-made",
        "layer-orphan",
        "not-a-layer",
        "stale-lease",
        "stale-lock",
        "temporary",
    }
    assert {p["Harm"] for p in found} == {"false"}
    assert kinds(found).count("half-made") == 2
    assert kinds(found).count("temporary") == 3
    assert kinds(found).count("layer-orphan") == 1
    assert fresh("system", "check", "-q").stdout.splitlines()[-1].endswith(" left over")
    repaired(fresh)
    assert os.listdir(fresh.root / "staging") == os.listdir(fresh.root / "leases") == []
    assert os.listdir(fresh.root / "locks") in (["store"], [])


def test_what_living_processes_hold_is_no_problem(fresh: Pyrun) -> None:
    """Somebody makes a layer, downloads a blob, makes a container, holds a lease and a lock."""
    held = []
    for path in ("ingest/sha256-11.part", "locks/layer-overlay-11", "names/coming"):
        fd = os.open(fresh.root / path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        held.append(fd)
    os.mkdir(fresh.root / "staging/overlay.11")
    fd = os.open(fresh.root / "staging/overlay.11", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    (fresh.root / f"storage.json.{os.getpid()}.tmp").write_text("")
    try:
        assert check(fresh, code=0) == []
        assert check(fresh, "--repair", code=0) == []
    finally:
        for one in [*held, fd]:
            os.close(one)
    assert len(check(fresh, code=0)) == 4  # the file of this process is still that of a living one


def test_a_killed_supervisor_is_a_leftover_that_repair_clears_up(fresh: Pyrun) -> None:
    running = fresh.start("run", "--name", "lost", "busybox", "sleep", "60")
    fresh.pid_of("lost")
    running.kill()
    running.wait()
    assert "container-lost" in kinds(check(fresh, code=0))
    check(fresh, "--repair", code=0)
    assert check(fresh, code=0) == []
    assert "Exited (137)" in fresh.ok("ps", "-a")


# --- meanwhile


@pytest.mark.parametrize("options", [{}, {"repair": True}, {"deep": True}])
def test_read_commands_work_meanwhile(fresh: Pyrun, options: dict[str, bool]) -> None:
    fresh.ok("run", "--name", "user", "busybox", "true")
    flip(blob_of(fresh, image_of(fresh).layers[0].digest))
    os.environ["CONTAINERS_REGISTRIES_CONF"] = fresh.env["CONTAINERS_REGISTRIES_CONF"]
    worked = []

    def progress(text: str) -> None:
        for command in (["images"], ["ps", "-a"], ["inspect", "user"], ["system", "df"]):
            worked.append(fresh.ok(*command, timeout=20))

    try:
        Engine(str(fresh.root), str(fresh.state)).check(progress=progress, **options)
    finally:
        del os.environ["CONTAINERS_REGISTRIES_CONF"]
    assert len(worked) >= 12


def test_pulls_removals_and_containers_meanwhile_are_never_problems(fresh: Pyrun, registry: Registry) -> None:
    for number in range(2):
        registry.push_image(
            "check/busy", str(number), [tar({f"f{number}": os.urandom(300_000)}), tar({"top": b"t"})]
        )
    script = (
        "for i in 1 2 3; do for n in 0 1; do $P pull -q check/busy:$n && $P run --rm busybox true "
        "&& $P rmi check/busy:$n || exit 1; done; done"
    )
    command = " ".join(fresh.argv())
    worker = subprocess.Popen(
        ["sh", "-c", script],
        env={**fresh.env, "P": command},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    rounds = 0
    while worker.poll() is None:
        done = fresh("system", "check", "-q", "--deep", "--format", "json")
        harmful = [json.loads(line) for line in done.stdout.splitlines() if '"Harm":"true"' in line]
        assert (done.returncode, harmful) == (0, [])
        rounds += 1
        assert rounds < 200
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0, errors
    assert rounds > 0
    check(fresh, "--repair", code=0)
    assert check(fresh, code=0) == []


@pytest.mark.parametrize("driver", ["erofs", "fuse-overlayfs"])
def test_content_that_changed_is_found_in_a_drivers_own_form(
    fresh: Pyrun, registry: Registry, driver: str
) -> None:
    """Whatever a driver makes of a layer, a byte of it that changed shows when it is compared deeply."""
    needle = os.urandom(5000)
    registry.push_image("check/native", "latest", [tar({"etc": None, "etc/needle": needle})])
    done = fresh("pull", "-q", "--storage", driver, "check/native")
    if "can't be used" in done.stderr:
        pytest.skip(f"needs the storage driver {driver}: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert check(fresh, "--deep", code=0) == []
    (victim,) = [
        path
        for path in (fresh.root / "layers" / driver).rglob("*")
        if path.is_file() and needle in path.read_bytes()
    ]
    st = victim.stat()
    flip(victim, victim.read_bytes().index(needle) + 100)
    os.utime(victim, ns=(st.st_atime_ns, st.st_mtime_ns))
    assert check(fresh, code=0) == []
    (problem,) = check(fresh, "--deep", code=1)
    assert problem["Kind"] == "layer-damaged"
    assert "content changed" in problem["Problem"]
    repaired(fresh, "--deep")
    assert needle in victim.read_bytes()


def test_a_lazy_drivers_layers_need_no_blobs(empty: Pyrun, registry: Registry, tmp_path: Path) -> None:
    """They are sound without; where one is damaged, its blob is fetched to make it again; and they can move."""
    copied.install(tmp_path / "plugin", empty)
    module = tmp_path / "plugin/copied_driver.py"
    code = module.read_text().replace("Caps(chained=True)", "Caps(lazy=True)")
    code = code.replace(
        'blob.unpack(fd, "apply")',
        "import io; from pyrun.images.codec import decompressed; from pyrun.layers.unpack import unpack; "
        "data = b''.join(map(bytes, decompressed(iter([blob.range(0, blob.size)]), blob.media_type))); "
        "unpack(io.BytesIO(data), fd, 'apply')",
    )
    module.write_text(code)
    registry.push_image("check/lazy", "latest", [tar({"etc": None, "etc/name": b"content"})])
    empty.ok("pull", "-q", "--storage", "copied", "check/lazy")
    digest = image_of(empty, "check/lazy").layers[0].digest
    assert not blob_of(empty, digest).exists()
    assert check(empty, "--deep", code=0) == []
    (victim,) = (empty.root / "layers/copied").glob("*/fs/etc/name")
    victim.chmod(0o777)
    assert kinds(repaired(empty)) == ["layer-damaged"]
    assert victim.stat().st_mode & 0o777 == 0o644
    blob_of(empty, digest).unlink(missing_ok=True)
    empty.ok("storage", "migrate", "-q", "overlay")
    assert blob_of(empty, digest).exists()
    assert check(empty, "--deep", code=0) == []
