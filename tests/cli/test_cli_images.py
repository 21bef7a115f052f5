"""images, rmi, untag, image prune, inspect and system check of single images, on a real store."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from pyrun.images.local import ImageStore
from support.layout import Layout
from support.many import write_images
from support.pyrun import Pyrun, terminal, wait_for
from support.registry import OTHER_ARCHITECTURE, Pushed, Registry, tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount overlays")

LABELLED, PLAIN = "cli/labelled:1", "cli/plain:1"
PLATFORM = f"linux/{OTHER_ARCHITECTURE}"


@pytest.fixture(scope="module")
def pushed(registry: Registry) -> dict[str, Pushed]:
    """Two images that share a layer; the first has labels, and is in an index with one for another platform."""
    base = tar({"base": os.urandom(30_000)})
    return {
        LABELLED: registry.push_image(
            "cli/labelled",
            "1",
            [base, tar({"one": b"1" * 5000})],
            {"Labels": {"stage": "test", "owner": "a=b"}, "Env": ["A=b", "PATH=/bin"], "User": "5"},
            created="2024-02-01T10:00:00.120+02:00",
        ),
        PLAIN: registry.push_image(
            "cli/plain", "1", [base], other_platform=False, created="2024-03-01T00:00:00Z"
        ),
    }


@pytest.fixture(scope="module")
def filled(registry: Registry, pushed: dict[str, Pushed], base: Path) -> Pyrun:
    """A store with both images, for tests that only look."""
    conf = registry.registries_conf(base / "cli-images.conf")
    pyrun = Pyrun(
        base / "cli-images", base / "cli-images-state", env={"CONTAINERS_REGISTRIES_CONF": str(conf)}
    )
    for name in pushed:
        pyrun.ok("pull", "-q", name)
    pyrun.ok("tag", LABELLED, "other.example/name:x")
    return pyrun


@pytest.fixture
def own(fresh: Pyrun, filled: Pyrun) -> Pyrun:
    """A store with busybox and both images, to do with as one likes."""
    fresh.env["CONTAINERS_REGISTRIES_CONF"] = filled.env["CONTAINERS_REGISTRIES_CONF"]
    for name in (LABELLED, PLAIN):
        fresh.ok("pull", "-q", name)
    return fresh


def names(pyrun: Pyrun, *options: str) -> list[str]:
    return str(pyrun.ok("images", "--format", "{{.Repository}}:{{.Tag}}", *options)).split()


# --- images


def test_images_are_listed_by_name_by_pattern_and_by_filter(filled: Pyrun) -> None:
    every = ["cli/plain:1", "cli/labelled:1", "other.example/name:x"]
    assert names(filled) == every
    assert names(filled, "cli/plain") == ["cli/plain:1"]
    assert names(filled, "cli/*") == every[:2]
    assert names(filled, "cli/*:2") == []
    assert names(filled, "-f", "label=stage=test", "--filter", "reference=cli/*") == ["cli/labelled:1"]
    assert names(filled, "-f", f"before={PLAIN}") == every[1:]
    assert names(filled, "-f", f"since={LABELLED}") == ["cli/plain:1"]
    assert filled.ok("images", "nothing").splitlines() == ["REPOSITORY   TAG       IMAGE ID   CREATED   SIZE"]


def test_every_field_of_dockers_can_be_asked_for(filled: Pyrun, pushed: dict[str, Pushed]) -> None:
    found = [json.loads(line) for line in filled.ok("images", "--format", "json").splitlines()]
    plain, labelled, _ = found
    assert set(plain) == {
        *("ID", "Repository", "Tag", "Digest", "CreatedSince", "CreatedAt", "Size", "VirtualSize"),
        *("SharedSize", "UniqueSize", "Containers", "Platform"),
    }
    assert plain["Digest"] == pushed[PLAIN].digest
    assert (plain["Size"], plain["SharedSize"], plain["UniqueSize"]) == ("41kB", "41kB", "0B")
    assert (labelled["SharedSize"], labelled["UniqueSize"], labelled["Containers"]) == ("41kB", "10.2kB", "0")
    assert filled.ok("images", "--format", "table {{.ID}}\t{{.VirtualSize}}", PLAIN).splitlines()[
        0
    ].split() == [*("IMAGE", "ID", "VIRTUAL", "SIZE")]
    ids = filled.ok("images", "-q", "--no-trunc").split()
    assert ids == [pushed[PLAIN].config_digest] + [pushed[LABELLED].config_digest] * 2
    assert pushed[LABELLED].digest in filled.ok("images", "--digests", LABELLED)


def test_an_unknown_field_is_named_with_those_that_there_are(filled: Pyrun) -> None:
    for layout in ("{{.Nope}}", "table {{.Nope}}"):
        done = filled("images", "--format", layout)
        assert done.returncode == 1
        assert '"Nope"' in done.stderr
        assert "UniqueSize" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["-f", "colour=red"],
        ["--filter", "dangling=perhaps"],
        ["a", "b"],
        ["--tree", "-q"],
        ["--tree", "--digests"],
        ["--tree", "--format", "json"],
        ["[x"],
    ],
)
def test_what_can_not_be_listed_is_refused(filled: Pyrun, options: list[str]) -> None:
    done = filled("images", *options)
    assert done.returncode == 125, done.stderr
    assert done.stderr.startswith("pyrun: ")


def test_all_shows_names_that_a_tag_makes_superfluous(own: Pyrun, pushed: dict[str, Pushed]) -> None:
    own.ok("pull", "-q", f"cli/plain@{pushed[PLAIN].digest}")
    assert "cli/plain:<none>" not in names(own)
    assert {"cli/plain:<none>", "cli/plain:1"} <= set(names(own, "-a"))


def test_a_damaged_record_is_warned_of_and_the_others_are_shown(own: Pyrun) -> None:
    store = ImageStore(str(own.root))
    Path(store.path_of(store.get(PLAIN))).write_bytes(b"{")
    for options in ([], ["-q"], ["--tree"], ["-f", "dangling=false"], ["--format", "json"]):
        done = own("images", *options)
        assert done.returncode == 0
        assert done.stdout
        assert "cli%2Fplain%3A1.json is damaged" in done.stderr
    assert own.ok("rmi", PLAIN) == f"Untagged: {PLAIN}\n"
    assert own("images").stderr == ""


def test_the_tree_shows_names_and_platforms(filled: Pyrun, pushed: dict[str, Pushed]) -> None:
    lines = filled.ok("images", "--tree").splitlines()
    assert lines[0].split() == ["IMAGE", "ID", "DISK", "USAGE", "CONTENT", "SIZE", "EXTRA"]
    assert lines[1].split()[:2] == ["cli/plain:1", pushed[PLAIN].config_digest[7:19]]
    assert lines[2].startswith("└─ linux/")
    assert lines[3] == ""
    at = next(n for n, line in enumerate(lines) if line.startswith("cli/labelled:1"))
    assert lines[at + 1] == "other.example/name:x"
    assert lines[at + 2].split()[1:] == [PLATFORM, lines[at + 2].split()[2], "0B", "0B"]
    assert lines[at + 3].split()[2] == pushed[LABELLED].config_digest[7:19]
    assert filled.ok("images", "--tree", "cli/plain").count("linux/") == 1
    assert pushed[PLAIN].config_digest in filled.ok("image", "ls", "--tree", "--no-trunc", "cli/plain*")


def test_the_tree_tells_what_is_in_use_and_hides_what_has_no_tag(own: Pyrun) -> None:
    own.ok("run", "--name", "user", "busybox", "true")
    lines = own.ok("images", "--tree", "busybox").splitlines()
    assert lines[1].split()[-1] == "U"
    assert names(own, "-f", "containers=true") == ["busybox:latest"]
    own.ok("untag", "busybox")
    assert "<untagged>" not in own.ok("images", "--tree")
    assert "<untagged>" in own.ok("images", "--tree", "-a")
    assert "<none>:<none>" in names(own, "-f", "dangling=true")
    own.ok("rm", "user")


def test_the_tree_keeps_the_platforms_of_an_index_together(own: Pyrun) -> None:
    own.ok("pull", "-q", "--platform", PLATFORM, LABELLED)
    lines = own.ok("images", "--tree", "-f", "label=stage").splitlines()
    platforms = [line.split() for line in lines if line.startswith(("├─", "└─"))]
    assert len(platforms) == 2
    assert all(cells[3] != "0B" for cells in platforms)


# --- rmi, untag


def test_removing_goes_on_after_a_failure(own: Pyrun, pushed: dict[str, Pushed]) -> None:
    done = own("rmi", "nothing", PLAIN, "sha256:00", LABELLED)
    assert done.returncode == 1
    assert done.stderr.count("no such image") == 2
    plain, labelled = pushed[PLAIN], pushed[LABELLED]
    assert done.stdout.splitlines() == [
        f"Untagged: {PLAIN}",
        f"Untagged: cli/plain@{plain.digest}",
        f"Deleted: {plain.config_digest}",
        f"Untagged: {LABELLED}",
        f"Untagged: cli/labelled@{labelled.digest}",
        f"Deleted: {labelled.config_digest}",
        f"Deleted: {labelled.diff_ids[1]}",
        f"Deleted: {labelled.diff_ids[0]}",
    ]
    assert own("rmi", "-i", "nothing").stderr == ""
    assert own("rmi", "--ignore", "nothing").returncode == 0


def test_images_are_removed_by_id_by_prefix_and_by_digest(own: Pyrun, pushed: dict[str, Pushed]) -> None:
    own.ok("tag", PLAIN, "second:1")
    done = own("rmi", pushed[PLAIN].config_digest[7:20])
    assert done.returncode == 1
    assert "several names" in done.stderr
    own.ok("rmi", "second:1")
    assert "Deleted: " in own.ok("rmi", pushed[PLAIN].config_digest[7:20])
    assert "Deleted: " in own.ok("image", "rm", f"cli/labelled@{pushed[LABELLED].digest}")
    assert names(own) == ["busybox:latest"]


def test_without_pruning_layers_and_blobs_stay(own: Pyrun, pushed: dict[str, Pushed]) -> None:
    blobs = own.root / "content/blobs/sha256"
    before = set(os.listdir(blobs))
    assert own.ok("rmi", "--no-prune", PLAIN, LABELLED).count("Deleted: sha256:") == 2
    assert set(os.listdir(blobs)) == before
    assert set(Layout(own.root / "content").look()) == {"docker.io/library/busybox:latest"}
    done = own.ok("image", "prune", "-f")
    assert "Total reclaimed space: 0B" not in done
    assert len(os.listdir(blobs)) < len(before)


def test_all_images_are_removed_but_those_in_use(own: Pyrun) -> None:
    own.ok("tag", PLAIN, "second:1")
    own.ok("untag", LABELLED)
    own.ok("run", "--name", "user", "busybox", "true")
    done = own("rmi", "--all")
    assert done.returncode == 1
    assert done.stderr.count("used by container user") == 1
    assert names(own) == ["busybox:latest"]
    own.ok("rmi", "-a", "-f")
    assert names(own) == []
    own.ok("rm", "user")
    assert own.ok("rmi", "-a") == ""
    for wrong in (["-a", "busybox"], []):
        assert own("rmi", *wrong).returncode == 125


def test_what_runs_keeps_its_image(own: Pyrun) -> None:
    running = own.start("run", "--name", "running", "busybox", "sleep", "60")
    try:
        own.pid_of("running")
        id = own.ok("images", "-q", "busybox").strip()
        for options in ([id], ["-f", id], ["busybox"]):
            done = own("rmi", *options)
            assert done.returncode == 1, options
            assert "used by running container running" in done.stderr
        assert own.ok("rmi", "-f", "busybox").startswith("Untagged: busybox:latest\n")
        assert "Deleted" not in own.ok("image", "prune", "-f")
        assert own.ok("images", "-q", "-f", "dangling=true").strip() == id
    finally:
        own.ok("rm", "-f", "running")
        running.wait(30)
    assert f"deleted: sha256:{id}" in own.ok("image", "prune", "-f")


def test_untag_says_nothing_and_leaves_the_image(own: Pyrun) -> None:
    own.ok("tag", PLAIN, "second:1")
    assert own.ok("untag", PLAIN, "second:1") == ""
    assert "second:1" not in names(own)
    assert own.ok("image", "untag", PLAIN) == ""
    assert "<none>:<none>" in names(own)
    assert own("untag", PLAIN).returncode == 1


# --- prune


def test_pruning_asks_and_takes_only_what_it_may(own: Pyrun, pushed: dict[str, Pushed]) -> None:
    own.ok("untag", PLAIN)
    for answer in ("n\n", "", "maybe\n"):
        done = own("image", "prune", input=answer)
        assert (done.returncode, "nothing was removed" in done.stderr) == (1, True)
        assert done.stdout.startswith("WARNING! This will remove all dangling images.\nAre you sure")
    assert own("images", "-f", "dangling=true", "-q").stdout
    out = own.ok("image", "prune", input="y\n")
    assert f"Deleted Images:\ndeleted: {pushed[PLAIN].config_digest}\n" in out
    assert out.splitlines()[-1].startswith("Total reclaimed space: ")
    assert sorted(names(own)) == ["busybox:latest", "cli/labelled:1"]
    assert own.ok("image", "prune", "-f") == "Total reclaimed space: 0B\n"


def test_pruning_asks_on_a_terminal(own: Pyrun) -> None:
    with terminal(own, "image", "prune", "-a") as window:
        seen = window.read_until(rb"\[y/N\] ")
        assert b"all images without at least one container associated to them" in seen
        window.send(b"y\r")
        window.read_until(rb"Total reclaimed space: [^\r]*[1-9]")
        assert window.wait() == 0
    assert names(own) == []


def test_pruning_heeds_labels_ages_and_containers(own: Pyrun) -> None:
    own.ok("run", "--name", "user", "busybox", "true")
    own.ok("image", "prune", "-a", "-f", "--filter", "label=stage=live")
    own.ok("image", "prune", "-a", "-f", "--filter", "until=2024-01-15")
    assert len(names(own)) == 3
    own.ok("image", "prune", "-a", "-f", "--filter", "label!=stage")
    assert sorted(names(own)) == ["busybox:latest", "cli/labelled:1"]
    own.ok("image", "prune", "-f", "--filter", "dangling=false", "--filter", "until=2024-02-15")
    assert names(own) == ["busybox:latest"]
    own.ok("rm", "user")
    assert own("image", "prune", "-f", "--filter", "reference=x").returncode == 125


def test_pruning_everything_heeds_the_labels_of_images(own: Pyrun) -> None:
    own.ok("run", "--name", "user", "busybox", "true")
    own.ok("system", "prune", "-a", "-f", "--filter", "label=stage=test")
    assert sorted(names(own)) == ["busybox:latest", "cli/plain:1"]
    assert own.ok("ps", "-aq") != ""
    done = own("system", "prune", "-a", "--filter", "label!=stage", input="n\n")
    assert "Items to be pruned will be filtered with:\n  - label!=stage\n" in done.stdout
    own.ok("system", "prune", "-a", "-f", "--filter", "label!=stage")
    assert names(own) == []
    assert own.ok("ps", "-aq") == ""


# --- inspect


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.RepoTags}}", "[cli/labelled:1 other.example/name:x]"),
        ("{{index .RepoTags 0}}", "cli/labelled:1"),
        ("{{.Config.Env}}", "[A=b PATH=/bin]"),
        ("{{range .Config.Env}}<{{.}}>{{end}}", "<A=b><PATH=/bin>"),
        ("{{json .Config.Env}}", '["A=b","PATH=/bin"]'),
        ("{{.Config.User}}|{{.Config.WorkingDir}}|{{.Config.Entrypoint}}|{{.Config.Volumes}}", "5||[]|map[]"),
        ('{{index .Config.Labels "stage"}} {{.Config.Labels.owner}}', "test a=b"),
        ("{{len .RootFS.Layers}} {{.RootFS.Type}}", "2 layers"),
        ("{{.Created}}", "2024-02-01T08:00:00.120000Z"),
        (
            "{{.Descriptor.mediaType}} {{.Descriptor.MediaType}}",
            " ".join([f"{'application/vnd.oci.image'}.manifest.v1+json"] * 2),
        ),
        ("{{.GraphDriver.Name}} {{.Os}} {{.Parent}}", "overlay linux "),
        ("{{if .Config.Cmd}}cmd{{else}}none{{end}}", "none"),
        ("{{.Labels.stage}} {{.ManifestType}}", "test application/vnd.oci.image.manifest.v1+json"),
    ],
)
def test_templates_of_dockers_scripts_work_on_images(filled: Pyrun, template: str, text: str) -> None:
    assert filled.ok("image", "inspect", "-f", template, LABELLED) == text + "\n"


def test_an_image_is_inspected_by_name_id_and_digest(filled: Pyrun, pushed: dict[str, Pushed]) -> None:
    known = pushed[LABELLED]
    seen = [
        json.loads(filled.ok("inspect", "--type", "image", name))[0]
        for name in (LABELLED, known.config_digest, known.config_digest[7:15], f"cli/labelled@{known.digest}")
    ]
    assert all(one == seen[0] for one in seen)
    (one, *_) = seen
    assert one["Digest"] == one["Descriptor"]["digest"] == known.manifest_digest
    assert one["RepoDigests"] == [f"cli/labelled@{known.digest}"]
    assert one["Metadata"]["LastTagTime"].startswith("20")
    data = one["GraphDriver"]["Data"]
    assert (Path(data["UpperDir"]) / "one").read_bytes() == b"1" * 5000
    assert (Path(data["LowerDir"]) / "base").exists()
    assert one["Size"] == one["VirtualSize"] == 51_200


def test_what_a_container_wrote_is_told_on_request(own: Pyrun) -> None:
    own.ok("run", "--name", "writer", "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1k", "count=300")
    (found,) = json.loads(own.ok("container", "inspect", "--size", "writer"))
    size = json.loads(own.ok("inspect", "busybox"))[0]["Size"]
    assert 300 * 1024 <= found["SizeRw"] < 400 * 1024
    assert found["SizeRootFs"] == found["SizeRw"] + size
    assert "SizeRw" not in json.loads(own.ok("inspect", "writer"))[0]
    own.ok("rm", "writer")


# --- system check of single images


def check(pyrun: Pyrun, *options: str) -> tuple[int, list[dict[str, str]], str]:
    done = pyrun("system", "check", "-q", "--format", "json", *options)
    assert "Traceback" not in done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_single_image_is_checked_and_the_others_are_not(own: Pyrun, pushed: dict[str, Pushed]) -> None:
    own_layer = pushed[LABELLED].layer_digests[1]
    flip(Path(ImageStore(str(own.root)).content.blob_path(own_layer)))
    assert own.ok("system", "check", "-q", PLAIN, "busybox").endswith(" images: sound\n")
    code, found, _ = check(own, LABELLED)
    assert code == 1
    assert [(problem["Kind"], problem["Subject"]) for problem in found] == [("blob-damaged", own_layer)]
    assert "1 image: 1 damaged" in own("system", "check", "-q", pushed[LABELLED].config_digest[7:19]).stdout
    code, found, _ = check(own, "--repair", PLAIN)
    assert (code, found) == (0, [])
    code, found, _ = check(own, "--repair", LABELLED)
    assert (code, found[0]["Outcome"]) == (0, "repaired")
    assert check(own, LABELLED)[:2] == (0, [])


def test_layers_and_records_of_a_single_image_are_checked(own: Pyrun, pushed: dict[str, Pushed]) -> None:
    top = own.root / "layers/overlay" / pushed[LABELLED].diff_ids[1].removeprefix("sha256:") / "fs/one"
    top.write_bytes(b"2" * 5000)
    code, found, _ = check(own, LABELLED)
    assert (code, [problem["Kind"] for problem in found]) == (1, ["layer-damaged"])
    assert check(own, "--deep", PLAIN)[:2] == (0, [])
    assert check(own, "--repair", LABELLED)[0] == 0
    assert top.read_bytes() == b"1" * 5000
    store = ImageStore(str(own.root))
    Path(store.path_of(store.get(PLAIN))).write_bytes(b"{")
    assert check(own, LABELLED)[:2] == (0, [])
    code, found, _ = check(own, PLAIN)
    assert (code, [problem["Kind"] for problem in found]) == (1, ["image-damaged"])
    assert check(own, "--repair", PLAIN)[0] == 0
    assert store.get(PLAIN).id == pushed[PLAIN].config_digest


def test_an_image_that_is_not_there_can_not_be_checked(own: Pyrun) -> None:
    code, found, errors = check(own, "nothing", PLAIN)
    assert (code, found) == (1, [])
    assert "no such image: nothing" in errors


# --- completion, other users' commands


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["image", "pr"], "prune"),
        (["image", "ta"], "tags"),
        (["images", "--filter", "dang"], "dangling="),
        (["image", "prune", "--filter", "lab"], "label="),
        (["search", "--filter", "is-o"], "is-official="),
        (["untag", "cli/p"], "cli/plain:1"),
        (["system", "check", "cli/l"], "cli/labelled:1"),
        (["rmi", "other"], "other.example/name:x"),
    ],
)
def test_words_are_completed(filled: Pyrun, words: list[str], expected: str) -> None:
    lines = filled.ok(
        "--root", str(filled.root), "__complete", "fish", *filled.argv()[1:], *words
    ).splitlines()
    assert expected in [line.split("\t")[1] for line in lines]


# --- many


@pytest.fixture(scope="module")
def thousand(base: Path) -> Pyrun:
    write_images(base / "thousand", 1000)
    return Pyrun(base / "thousand", base / "thousand-state")


@pytest.fixture(scope="module")
def few(base: Path) -> Pyrun:
    write_images(base / "few", 5)
    return Pyrun(base / "few", base / "few-state")


def cpu_seconds(pyrun: Pyrun, *command: str) -> float:
    """The least that the command took, of several times."""
    took = []
    for _ in range(5):
        process = subprocess.Popen(pyrun.argv(*command), stdout=subprocess.DEVNULL, env=pyrun.env)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        took.append(usage.ru_utime + usage.ru_stime)
    return min(took)


@pytest.mark.parametrize("options", [[], ["-q"], ["--format", "{{.ID}} {{.Size}}"], ["app7*"], ["--digests"]])
def test_a_thousand_images_are_listed_almost_as_fast_as_a_few(
    thousand: Pyrun, few: Pyrun, options: list[str]
) -> None:
    assert len(thousand.ok("images", *options).splitlines()) >= 100
    assert cpu_seconds(thousand, "images", *options) < 6 * cpu_seconds(few, "images", *options)


def test_a_change_among_a_thousand_costs_less_than_looking_at_all(thousand: Pyrun) -> None:
    store = ImageStore(str(thousand.root))

    def took(work: object) -> float:
        best = 1.0
        for _ in range(5):
            begun = time.process_time()
            work()  # type: ignore[operator]
            best = min(best, time.process_time() - begun)
        return best

    every = took(store.records)
    image = store.get("app7:1")
    assert took(lambda: store.put(image)) < every
    assert took(lambda: store.tag("app7:1", "app7:other")) < every
    assert took(lambda: store.get("app7:1")) < every / 50
    assert took(lambda: store.get(image.id)) < every
    Layout(store.content.path).look()


def test_records_are_listed_once_the_directory_is_read(few: Pyrun) -> None:
    """A record that goes meanwhile is no error."""
    store = ImageStore(str(few.root))
    begun = subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            'for n in 1 2; do "$@" tag app1:1 busy:$n; "$@" rmi busy:$n; done',
            "sh",
            *few.argv(),
        ],
        env=few.env,
        stdout=subprocess.DEVNULL,
    )
    try:
        while begun.poll() is None:
            assert len({image.id for image in store.list()}) == 5
            assert store.warnings == []
    finally:
        wait_for(lambda: begun.poll() is not None, "the changes end", 60)
    assert begun.returncode == 0
