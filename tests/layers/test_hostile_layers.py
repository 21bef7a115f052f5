"""Hostile layers by the way that a pull takes: blob, confined child, driver. See hostile.py for them."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile import Case, bombs, corpus, packed, zstd
from rawtar import END, Stream, directory, file, header, symlink, tree

from pyrun.errors import DigestMismatch, LayerError
from pyrun.images.blob import StoredBlob
from pyrun.images.content import ContentStore
from pyrun.images.record import ImageLayer
from pyrun.layers.limits import Limits
from pyrun.layers.tar import TarReader
from pyrun.storage.contract import Env, Layer
from pyrun.storage.store import Store, open_store
from pyrun.testing import children
from support.pyrun import mounts_below

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0: device nodes, mounts and chown")

DRIVERS = ("overlay", "erofs", "vfs")


class Place:
    """A store with one driver, and beside it what no layer may touch."""

    def __init__(self, root: Path, driver: str) -> None:
        self.root = root
        (root / "outside").mkdir(parents=True)
        (root / "outside/secret").write_text("untouched")
        self.store: Store = open_store(Env(str(root / "store")), driver, {})
        self.content = ContentStore(str(root / "store"))

    def blob(self, case: Case, diff_id: str = "") -> StoredBlob:
        data = case.blob if case.blob is not None else packed(case.tar)
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if not self.content.has(digest):
            self.content.add_bytes(data, digest)
        diff_id = diff_id or f"sha256:{hashlib.sha256(case.tar).hexdigest()}"
        return StoredBlob(self.content, ImageLayer(digest, diff_id, len(data), 0, case.media_type))

    def mounted(self, *layers: Layer) -> int:
        stack = list(layers) if self.store.layers.chained else self.store.layers.mended(list(layers))
        return self.store.driver.mount(stack, None)

    def state(self) -> Any:
        """What must be the same afterwards, whatever a refused layer tried."""
        layers = self.root / "store/layers"
        return (
            tree(self.root / "outside"),
            sorted(os.listdir(self.root)),
            sorted(str(path) for path in layers.glob("*/[0-9a-f]*")),
            sorted(os.listdir(self.root / "store/staging")),
            mounts_below(self.root),
            sorted(os.listdir("/proc/self/fd")),
            Path("/proc/self/task", str(os.getpid()), "children").read_text(),
        )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Place]]:
    base = tmp_path_factory.mktemp("hostile")
    yield {driver: Place(base / driver, driver) for driver in DRIVERS}
    assert mounts_below(base) == []


def check(view: int, sees: dict[str, object]) -> None:
    for name, wanted in sees.items():
        place = f"/proc/self/fd/{view}/{name}"
        if wanted == "gone":
            assert not os.path.lexists(place), name
            continue
        found = os.lstat(place)
        if wanted == "dir":
            assert stat.S_ISDIR(found.st_mode), name
        elif wanted == "fifo":
            assert stat.S_ISFIFO(found.st_mode), name
        elif isinstance(wanted, str):
            assert os.readlink(place) == wanted.removeprefix("link:"), name
        elif isinstance(wanted, bytes):
            assert stat.S_ISREG(found.st_mode), name
            assert Path(place).read_bytes() == wanted, name
        else:
            assert isinstance(wanted, tuple)
            if wanted[0] == "same":
                assert os.path.samefile(place, f"/proc/self/fd/{view}/{wanted[1]}"), name
            elif wanted[0] == "xattrs":
                kept = [x for x in os.listxattr(place) if not x.startswith("trusted.overlay.")]
                assert kept == wanted[1], name
            else:
                assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == wanted, name


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("case", corpus(), ids=lambda case: case.name)
def test_a_hostile_layer_gets_its_answer(places: dict[str, Place], driver: str, case: Case) -> None:
    place = places[driver]
    before = place.state()
    blob = place.blob(case)
    if case.says:
        with pytest.raises(LayerError, match=case.says) as caught:
            place.store.layers.ingest(blob)
        assert str(caught.value).replace("\n", "").isprintable()
        assert len(str(caught.value)) < 10_000
        assert not blob.verified
        assert place.state() == before
        return
    layer = place.store.layers.ingest(blob)
    assert blob.verified
    assert blob.unpacked == len(case.tar)
    view = place.mounted(layer)
    try:
        check(view, case.sees)
    finally:
        os.close(view)
    place.store.layers.remove(layer.id)
    assert place.state() == before


@pytest.mark.parametrize("driver", ["overlay", "erofs"])
@pytest.mark.parametrize("case", list(bombs()), ids=lambda case: case.name)
def test_a_bomb_is_defused_in_bounded_time_and_memory(
    places: dict[str, Place], driver: str, case: Case
) -> None:
    place = places[driver]
    before = place.state()
    began = time.monotonic()
    with pytest.raises(LayerError, match=case.says):
        place.store.layers.ingest(place.blob(case))
    assert time.monotonic() - began < 60
    assert place.state() == before


@pytest.mark.parametrize("driver", ["overlay", "erofs", "vfs"])
def test_what_stands_behind_the_end_is_hashed(places: dict[str, Place], driver: str) -> None:
    place = places[driver]
    before = place.state()
    case = Case("tail", file(b"f", b"x") + END + b"tail")
    honest = f"sha256:{hashlib.sha256(file(b'f', b'x') + END).hexdigest()}"
    with pytest.raises(DigestMismatch):
        place.store.layers.ingest(place.blob(case, honest))
    assert place.state() == before


@pytest.mark.parametrize("driver", ["overlay", "erofs"])
def test_a_layer_deletes_through_no_link_of_the_layer_below(places: dict[str, Place], driver: str) -> None:
    place = places[driver]
    outside = os.fsencode(place.root / "outside")
    members = [
        directory(b"real"),
        file(b"real/kept", b"x"),
        symlink(b"out", outside) if len(outside) < 100 else b"",
    ]
    below = place.store.layers.ingest(place.blob(Case("below", b"".join(members) + END)))
    above = place.store.layers.ingest(
        place.blob(
            Case("above", file(b"out/.wh.secret") + file(b"out/.wh..wh..opq") + file(b"out/new", b"y") + END)
        )
    )
    view = place.mounted(below, above)
    try:
        check(view, {"out": "dir", "out/new": b"y", "real/kept": b"x"})
    finally:
        os.close(view)
        for layer in (above, below):
            place.store.layers.remove(layer.id)
    assert (place.root / "outside/secret").read_text() == "untouched"


def test_a_layer_larger_than_the_disk_is_refused_and_leaves_room(tmp_path: Path) -> None:
    """On a small file system of its own: compressed it fits, plain it does not."""
    names = [b"%d" % number for number in range(40)]
    noise = os.urandom(1 << 20)
    tar = b"".join(file(name, noise * 2) for name in names) + END

    def work() -> Any:
        from pyrun.kernel.mount import mount

        mount(b"tmpfs", os.fsencode(tmp_path), b"tmpfs", 0, b"size=64m")
        said = []
        for driver in ("overlay", "erofs"):
            place = Place(tmp_path / driver, driver)
            blob = place.blob(Case("large", tar, blob=zstd.compress(tar)))
            try:
                place.store.layers.ingest(blob)
            except LayerError as error:
                said.append([error.message, error.hint])
            said.append(sorted(os.listdir(tmp_path / driver / "store/staging")))
        free = os.statvfs(tmp_path)
        return [said, free.f_bavail * free.f_frsize]

    said, free = children.run(work, mounts=True, seconds=100).result()
    for answer, staging in ((said[0], said[1]), (said[2], said[3])):
        assert re.search("left|No space", answer[0])
        assert "Free some space" in answer[1]
        assert staging == []
    assert free > 3 << 20


def test_the_limits_are_those_that_are_documented() -> None:
    limits = Limits()
    assert (limits.entries, limits.header, limits.depth, limits.component) == (4_000_000, 1 << 20, 256, 255)
    assert limits.bytes is None  # what the disk has, less a reserve


class Endless:
    """Members without an end, none of them ever there together."""

    def __init__(self, member: bytes) -> None:
        self.piece = member * (1 + (1 << 20) // len(member))

    def read(self, n: int) -> bytes:
        return self.piece[: n - n % 512]


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (file(b".wh..wh.x"), "more than 20000 entries"),
        (header(b"d", b"5"), "more than 20000 entries"),
        (file(b"f" * 90, b""), "more than 20000 entries"),
    ],
)
def test_an_endless_stream_ends_in_a_refusal(member: bytes, says: str) -> None:
    with pytest.raises(LayerError, match=says):
        for _ in TarReader(Endless(member), Limits(entries=20_000)):  # type: ignore[arg-type]
            pass


@pytest.mark.long
@pytest.mark.timeout(900)
def test_four_million_entries_are_read_and_one_more_is_refused() -> None:
    with pytest.raises(LayerError, match="more than 4000000 entries"):
        for _ in TarReader(Endless(file(b".wh..wh.x"))):  # type: ignore[arg-type]
            pass


def test_memory_does_not_grow_with_the_layer(places: dict[str, Place]) -> None:
    """A layer of 8 MiB and one of 96: the processes that unpack them are of one size."""
    place = places["overlay"]

    def peak(size: int) -> Any:
        case = Case("large", file(b"f", os.urandom(1 << 20) * (size >> 20)) + END)
        blob = place.blob(case)

        def work() -> Any:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            fd = os.open(place.root / f"unpacked-{size}", os.O_RDONLY | os.O_DIRECTORY)
            blob.unpack(fd, "overlay")
            return [resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before]

        (place.root / f"unpacked-{size}").mkdir()
        return children.run(work, seconds=100).result()[0]

    small, large = peak(8 << 20), peak(96 << 20)
    assert large - small < 8 << 10, (small, large)


def test_streams_of_the_corpus_are_the_same_in_any_pieces() -> None:
    for case in corpus():
        if case.blob is not None:
            continue
        answers = set()
        for step in (1 << 20, 100):
            try:
                answers.add(len(list(TarReader(Stream(case.tar, step)))))
            except LayerError as error:
                answers.add(error.message)
        assert len(answers) == 1, case.name
