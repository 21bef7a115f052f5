"""The content store is a valid OCI image layout at every moment, for readers that know nothing of pyrun."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyrun.images import index
from pyrun.images.local import ImageStore
from pyrun.images.record import Image
from pyrun.images.reference import Reference
from pyrun.storage import failpoints
from support.layout import Layout
from support.many import write_images
from support.pyrun import Pyrun, copy_store
from support.registry import Registry, tar

NAMES = ["layout/one:1", "layout/one:2", "layout/two:1", "layout/three:1"]


@pytest.fixture(scope="module")
def mirror(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registries.conf by which docker.io is the tests' registry, which has the images of ``NAMES``."""
    base = tar({"base": os.urandom(40_000)})
    for number, name in enumerate(NAMES):
        repository, _, tag = name.partition(":")
        layers = [base, tar({"own": b"%d" % number * 1000})]
        # umoci may not know zstd.
        registry.push_image(
            repository, tag, layers, other_platform=number % 2 == 0, compression=("gzip", "plain")
        )
    return registry.registries_conf(tmp_path_factory.mktemp("layout") / "registries.conf")


@pytest.fixture
def pyrun(tmp_path: Path, opened: Path, mirror: Path) -> Pyrun:
    copy_store(opened, tmp_path / "store")
    return Pyrun(tmp_path / "store", tmp_path / "state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})


class Observer:
    """Reads the layout again and again in a thread, until it ends or finds it invalid."""

    def __init__(self, path: Path) -> None:
        self.layout = Layout(path)
        self.looks = 0
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.layout.look()
                self.looks += 1
            except BaseException as error:
                self.failure = error
                return
            time.sleep(0.001)

    def __enter__(self) -> Observer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


def test_readers_never_see_an_invalid_layout_while_commands_change_it_and_are_killed(pyrun: Pyrun) -> None:
    pyrun.ok("pull", "-q", NAMES[0])
    chance = random.Random(7)
    commands: list[Callable[[], list[str]]] = [
        lambda: ["pull", "-q", chance.choice(NAMES)],
        lambda: ["pull", "-q", chance.choice(NAMES)],
        lambda: ["tag", chance.choice(NAMES), f"name/{chance.randrange(4)}:x"],
        lambda: ["rmi", "-f", chance.choice(NAMES)],
        lambda: ["rmi", "-f", f"name/{chance.randrange(4)}:x"],
        lambda: ["untag", chance.choice(NAMES)],
        lambda: ["image", "prune", "-f"],
        lambda: ["image", "prune", "-a", "-f"],
        lambda: ["rmi", "--no-prune", chance.choice(NAMES)],
    ]
    killed = 0
    deadline = time.monotonic() + 10
    with Observer(pyrun.root / "content") as observer:
        while time.monotonic() < deadline and observer.failure is None:
            running = [
                pyrun.start(*chance.choice(commands)(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                for _ in range(chance.choice((1, 2)))
            ]
            for process in running:
                try:
                    process.wait(chance.uniform(0.05, 0.5) if chance.random() < 0.5 else 30)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    killed += 1
                    process.wait(30)
    assert observer.failure is None, repr(observer.failure)
    assert observer.looks > 50
    assert killed > 2
    # What the killed ones left is set right by whoever comes next.
    pyrun.ok("pull", "-q", NAMES[0])
    names = Layout(pyrun.root / "content").look()
    records = [image.reference for image in ImageStore(str(pyrun.root)).records()]
    assert {name for name in records if not name.startswith("@")} == set(names)
    done = pyrun("system", "check", "-q", "--format", "json")
    assert done.returncode == 0, done.stdout


# --- killed at each step


def in_a_child(work: Callable[[], None]) -> int:
    """How the process ended in which ``work`` was done: 0, or minus the signal."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def moved(images: ImageStore) -> None:
    """The name of one image is given to another, which leaves the first without."""
    one, two = images.get("app1:1"), images.get("app2:1")
    images.put(Image.from_json({**two.to_json(), "reference": one.reference}))


CHANGES: dict[str, Callable[[ImageStore], object]] = {
    "tag": lambda images: images.tag("app1:1", "other:x"),
    "retag": moved,
    "remove": lambda images: images.remove("app1:1"),
    "untag": lambda images: images.untag("app1:1"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("point", failpoints.IMAGES)
def test_the_next_writer_sets_right_what_a_killed_one_left(tmp_path: Path, point: str, change: str) -> None:
    write_images(tmp_path, 4)
    images = ImageStore(str(tmp_path))
    layout = Layout(images.content.path)

    def work() -> None:
        def armed(name: str) -> None:
            if name == point:
                os.kill(os.getpid(), signal.SIGKILL)

        failpoints.armed = armed
        CHANGES[change](images)

    assert in_a_child(work) == -signal.SIGKILL
    layout.look()
    images.tag("app3:1", "next:1")
    assert index.agrees(images)
    assert set(layout.look()) == {i.reference for i in images.records() if not i.unnamed}
    assert list(Path(images.path).glob(".*")) == []


def test_an_index_that_a_killed_writer_left_behind_is_no_damage(pyrun: Pyrun) -> None:
    pyrun.ok("pull", "-q", NAMES[0])
    images = ImageStore(str(pyrun.root))

    def work() -> None:
        def armed(name: str) -> None:
            if name == "images.recorded":
                os.kill(os.getpid(), signal.SIGKILL)

        failpoints.armed = armed
        images.tag(NAMES[0], "other:x")

    assert in_a_child(work) == -signal.SIGKILL
    done = pyrun("system", "check", "-q", "--format", "json")
    (found,) = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, found["Kind"], found["Harm"]) == (0, "index-damaged", "false")
    pyrun.ok("system", "check", "-q", "--repair")
    assert pyrun.ok("system", "check", "-q", "--format", "json") == ""


def test_blobs_do_not_go_while_a_stale_index_names_them(pyrun: Pyrun) -> None:
    pyrun.ok("pull", "-q", NAMES[0])
    pyrun.ok("pull", "-q", NAMES[2])
    stale = (pyrun.root / "content/index.json").read_bytes()
    pyrun.ok("rmi", "--no-prune", NAMES[0])
    # As a power cut may leave it: the record is gone, and neither the new index nor a mark is there.
    (pyrun.root / "content/index.json").write_bytes(stale)
    with Observer(pyrun.root / "content") as observer:
        time.sleep(0.05)
        assert "Total reclaimed space" in pyrun.ok("image", "prune", "-f")
    assert observer.failure is None
    assert set(Layout(pyrun.root / "content").look()) == {Reference.parse(NAMES[2]).canonical}
    assert len(list((pyrun.root / "content/blobs/sha256").iterdir())) == 5


def test_records_that_came_without_the_index_are_listed_by_the_next_change(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    images = ImageStore(str(tmp_path))
    path = Path(images.content.path, "index.json")
    old = path.read_bytes()
    images.tag("app1:1", "late:1")
    path.write_bytes(old)
    assert not index.agrees(images)
    images.tag("app1:1", "later:1")
    assert index.agrees(images)
    for broken in (b"", b"{", b"[]", b'{"manifests": [1]}'):
        path.write_bytes(broken)
        images.remove("later:1")
        assert index.agrees(images), broken
        images.tag("app1:1", "later:1")
    path.unlink()
    images.tag("app1:1", "again:1")
    assert index.agrees(images)


def test_a_layout_that_is_completed_keeps_its_index(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    content = ImageStore(str(tmp_path)).content
    before = Layout(content.path).look()
    Path(content.path, "oci-layout").unlink()
    content.make_layout()
    assert Layout(content.path).look() == before
    Path(content.path, "oci-layout").unlink()
    Path(content.path, "index.json").unlink()
    content.make_layout()
    assert Layout(content.path).look() == {}
    assert sorted(os.listdir(content.path)) == ["blobs", "index.json", "oci-layout"]


def test_a_damaged_record_is_removed_by_what_it_calls_itself(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    images = ImageStore(str(tmp_path))
    images.untag("app1:1")
    (unnamed,) = [image for image in images.records() if image.unnamed]
    for reference in (unnamed.reference, "app0:1"):
        Path(images.path_of(images.get(reference))).write_bytes(b"{")
        assert images.remove(reference) == [("Untagged", reference)]
    assert set(Layout(images.content.path).look()) == {"docker.io/library/app2:1"}
    assert index.agrees(images)


def test_the_entry_of_a_damaged_record_stays_for_the_repair(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    images = ImageStore(str(tmp_path))
    known = Layout(images.content.path).look()["docker.io/library/app1:1"]
    Path(images.path_of(images.get("app1:1"))).write_bytes(b"{")
    images.tag("app2:1", "other:1")
    images.republish()
    assert Layout(images.content.path).look()["docker.io/library/app1:1"] == known


# --- other tools


@pytest.fixture
def stored(pyrun: Pyrun) -> Iterator[Pyrun]:
    """A store with all images, names that are hard for other tools, and an image without a name."""
    for name in NAMES:
        pyrun.ok("pull", "-q", name)
    pyrun.ok("tag", NAMES[0], "localhost:5000/deep/er/name:v1.2_3-x")
    pyrun.ok("untag", NAMES[3])
    yield pyrun
    Layout(pyrun.root / "content").look()


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name", ["docker.io/layout/one:1", "docker.io/layout/two:1", "localhost:5000/deep/er/name:v1.2_3-x"]
)
def test_skopeo_finds_an_image_by_its_full_name(stored: Pyrun, tmp_path: Path, name: str) -> None:
    source = f"oci:{stored.root}/content:{name}"
    told = json.loads(run("skopeo", "inspect", source))
    assert told["Digest"] == json.loads(stored.ok("inspect", name))[0]["Digest"]
    run("skopeo", "copy", source, f"dir:{tmp_path}/copy")
    assert (tmp_path / "copy/manifest.json").exists()


def test_skopeo_reads_while_names_change(stored: Pyrun) -> None:
    source = f"oci:{stored.root}/content:docker.io/layout/one:1"
    script = 'for n in 1 2 3 4 5 6; do "$@" tag layout/two:1 busy:$n; "$@" rmi busy:$n; done'
    busy = subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", *stored.argv()],
        env=stored.env,
        stdout=subprocess.DEVNULL,
    )
    try:
        looks = 0
        while busy.poll() is None:
            run("skopeo", "inspect", "--raw", source)
            looks += 1
    finally:
        assert busy.wait(60) == 0
    assert looks > 2


def test_umoci_lists_and_unpacks(stored: Pyrun, tmp_path: Path) -> None:
    content = f"{stored.root}/content"
    assert set(run("umoci", "list", "--layout", content).split()) == set(Layout(content).look())
    run("umoci", "unpack", "--image", f"{content}:docker.io/layout/two:1", str(tmp_path / "bundle"))
    assert (tmp_path / "bundle/rootfs/own").read_bytes() == b"2" * 1000


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("docker.io/library/redis:latest", True),
        ("localhost:5000/a/b:V1.0_x-y", True),
        ("docker.io/a/b--c:1", True),
        (f"docker.io/library/redis@sha256:{'0' * 64}", True),
        ("docker.io/a/b__c:1", False),
        ("docker.io/a/b---c:1", False),
        ("[::1]:5000/a:1", False),
        ("docker.io/a/b:_x", False),
        ("docker.io/a/b:x-", False),
        ("docker.io/a/b:x..y", False),
        ("", False),
    ],
)
def test_a_reference_name_is_written_only_where_it_is_one(name: str, valid: bool) -> None:
    assert index.is_ref_name(name) is valid


def test_a_name_that_is_no_reference_name_is_in_the_index_all_the_same(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    images = ImageStore(str(tmp_path))
    for name in ("a/b__c:1", "[::1]:5000/a:1", "a/b:_x"):
        images.tag("app0:1", name)
        canonical = Reference.parse(name).canonical
        assert canonical in Layout(images.content.path).look()
        assert index.agrees(images)
        images.remove(name)
        assert canonical not in Layout(images.content.path).look()
