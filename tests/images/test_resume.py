"""Downloads that break are gone on with: in the same pull, in a later one, and from another place."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyrun.errors import DigestMismatch, ManifestUnknown, RegistryError
from pyrun.images import parts
from pyrun.images.digest import short
from pyrun.images.layerstore import sweep_staging
from pyrun.images.registry.ranges import begins, from_offset
from pyrun.images.registry.response import Deadline
from pyrun.images.transfer import sources
from support.faultproxy import (
    Fault,
    both,
    close_after,
    drip,
    extra,
    flip,
    header,
    reset_after,
    stall_after,
    status,
    truncate,
    whole,
)
from support.pyrun import wait_for
from support.registry import Pushed, Registry, tar

from .conftest import Engine, Serve, through
from .test_pull_interrupted import start

SIZE = 8_000_000  # bytes of the layer that breaks
BLOB = "GET .*/blobs/"


@pytest.fixture
def pushed(registry: Registry, repository: str) -> Pushed:
    """An image of one incompressible layer, so that a byte of the blob is a byte of the layer."""
    return registry.push_image(repository, "1", [tar({"f": random.randbytes(SIZE)})], compression=("gzip",))


@pytest.fixture
def blob_size(registry: Registry, pushed: Pushed) -> int:
    return registry.blob_path(pushed.layer_digests[0]).stat().st_size


def part(engine: Engine, pushed: Pushed) -> Path:
    return engine.root / "ingest" / parts.file_name(pushed.layer_digests[0])


def sound(engine: Engine, pushed: Pushed, repository: str) -> None:
    """The image is there, whole, and nothing else is (what killed processes were unpacking, the next one clears up)."""
    sweep_staging(engine.layers)
    assert engine.images.get(f"{repository}:1").id == pushed.config_digest
    assert all(engine.content.intact(digest) for digest in pushed.layer_digests)
    assert all(engine.layers.find(diff_id) for diff_id in pushed.diff_ids)
    assert engine.partial() == []
    assert os.listdir(engine.root / "ingest") == []


# --- within one pull


def test_a_reset_connection_is_replaced_by_one_for_the_rest(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, blob_size: int
) -> None:
    broken = int(blob_size * 0.9)
    proxy = serve(Fault(reset_after(broken), BLOB, after=1, times=1))  # the first blob is the config
    through(engine, proxy.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    first, second = proxy.requests(f"{BLOB}{pushed.layer_digests[0]}")
    kept = int(second.headers["range"].removeprefix("bytes=").rstrip("-"))
    assert (first.status, second.status) == (200, 206)
    assert second.sent == blob_size - kept
    assert second.sent <= 0.12 * blob_size


@pytest.mark.parametrize("how", [reset_after, close_after])
def test_a_connection_that_breaks_every_two_megabytes_gets_there(
    engine: Engine,
    serve: Serve,
    pushed: Pushed,
    repository: str,
    blob_size: int,
    how: Callable[[int], object],
) -> None:
    proxy = serve(Fault(how(2 << 20), f"{BLOB}{pushed.layer_digests[0]}"))  # type: ignore[arg-type]
    through(engine, proxy.host)
    began = time.monotonic()
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert len(proxy.requests(f"{BLOB}{pushed.layer_digests[0]}")) >= 4
    assert proxy.blob_bytes() <= 1.2 * blob_size
    assert time.monotonic() - began < 20


def test_one_that_gets_nowhere_is_given_up_after_five_tries_and_what_it_brought_is_kept(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str
) -> None:
    proxy = serve(Fault(close_after(100_000), f"{BLOB}{pushed.layer_digests[0]}"))
    through(engine, proxy.host)
    with pytest.raises(RegistryError, match="broke off after 500000 of ") as caught:
        engine.pull(f"{repository}:1")
    assert "Pull again" in caught.value.hint
    assert len(proxy.requests(f"{BLOB}{pushed.layer_digests[0]}")) == sources.TRIES
    assert part(engine, pushed).stat().st_size == 500_000
    assert engine.images.list() == engine.partial() == []
    waits = [state for state in engine.states(short(pushed.layer_digests[0])) if "Retrying" in state]
    assert waits == ["Retrying in 1 second"]
    through(engine, serve().host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_registry_that_is_busy_is_asked_again(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, code: int
) -> None:
    proxy = serve(Fault(status(code), f"{BLOB}{pushed.layer_digests[0]}", times=2))
    through(engine, proxy.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert [seen.status for seen in proxy.requests(f"{BLOB}{pushed.layer_digests[0]}")] == [code, code, 200]


def test_retry_after_is_honoured_and_said(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYRUN_RETRY_DELAY")
    proxy = serve(Fault(status(429, retry_after="1"), f"{BLOB}{pushed.layer_digests[0]}", times=1))
    through(engine, proxy.host)
    began = time.monotonic()
    engine.pull(f"{repository}:1")
    assert time.monotonic() - began >= 1
    assert "Retrying in 1 second" in engine.states(short(pushed.layer_digests[0]))


def test_a_registry_that_wants_to_be_left_alone_for_an_hour_is(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str
) -> None:
    proxy = serve(Fault(status(429, retry_after="3600"), f"{BLOB}{pushed.layer_digests[0]}"))
    through(engine, proxy.host)
    with pytest.raises(RegistryError, match="limits how often") as caught:
        engine.pull(f"{repository}:1")
    assert "3600 s" in caught.value.hint
    assert len(proxy.requests(f"{BLOB}{pushed.layer_digests[0]}")) == 1


def test_a_blob_that_is_missing_is_not_asked_for_twice(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str
) -> None:
    proxy = serve(Fault(status(404), f"{BLOB}{pushed.layer_digests[0]}"))
    through(engine, proxy.host)
    with pytest.raises(ManifestUnknown, match=pushed.layer_digests[0]):
        engine.pull(f"{repository}:1")
    assert len(proxy.requests(f"{BLOB}{pushed.layer_digests[0]}")) == 1


# --- across pulls

BREAKS: dict[str, Callable[[int], object]] = {"reset": reset_after, "close": close_after}


def broken_off(engine: Engine, serve: Serve, pushed: Pushed, repository: str, at: int) -> None:
    """A pull that ended with ``at`` bytes of the layer."""
    gone = both(*[])
    proxy = serve(
        Fault(close_after(at), f"{BLOB}{pushed.layer_digests[0]}", times=1),
        Fault(status(404), f"{BLOB}{pushed.layer_digests[0]}", after=1),
        Fault(gone),
    )
    through(engine, proxy.host)
    with pytest.raises(RegistryError):
        engine.pull(f"{repository}:1")
    assert part(engine, pushed).stat().st_size == at
    assert engine.images.list() == engine.partial() == []
    assert engine.layers.find(pushed.diff_ids[0]) is None


def test_the_next_pull_fetches_the_rest(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, blob_size: int
) -> None:
    broken_off(engine, serve, pushed, repository, int(blob_size * 0.9))
    proxy = serve()
    through(engine, proxy.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    (seen,) = proxy.requests(f"{BLOB}{pushed.layer_digests[0]}")
    assert seen.sent <= 0.12 * blob_size


def test_what_is_all_there_is_not_asked_for_again(
    engine: Engine, serve: Serve, registry: Registry, pushed: Pushed, repository: str
) -> None:
    broken_off(engine, serve, pushed, repository, 1000)
    part(engine, pushed).write_bytes(registry.blob_path(pushed.layer_digests[0]).read_bytes())
    proxy = serve()
    through(engine, proxy.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert proxy.requests(f"{BLOB}{pushed.layer_digests[0]}") == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_pull_that_was_ended_is_gone_on_with(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, blob_size: int, how: signal.Signals
) -> None:
    slow = serve(Fault(drip(256 << 10, 0.05), f"{BLOB}{pushed.layer_digests[0]}"))
    through(engine, slow.host)
    pull = start(engine, f"{repository}:1")
    wait_for(
        lambda: part(engine, pushed).exists() and part(engine, pushed).stat().st_size > 2_000_000,
        "some of it is there",
    )
    pull.send_signal(how)
    pull.communicate(timeout=10)
    had = part(engine, pushed).stat().st_size
    assert engine.images.list() == []
    proxy = serve()
    through(engine, proxy.host)
    wait_for(lambda: not any(parts_held(engine)), "the worker is gone")
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert had > 0
    assert proxy.blob_bytes() <= blob_size - had + 10_000  # the config, too


def parts_held(engine: Engine) -> Iterator[bool]:
    """Whether each part is locked by a process that is about to end."""
    import fcntl

    for name in os.listdir(engine.root / "ingest"):
        with open(engine.root / "ingest" / name, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield False
            except BlockingIOError:
                yield True


def test_a_full_disk_keeps_what_there_was_room_for(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, tmp_path: Path, blob_size: int
) -> None:
    proxy = serve()
    through(engine, proxy.host)
    place = tmp_path / "small"
    place.mkdir()
    small = Engine.__new__(Engine)
    small.root, small.conf = place / "store", engine.conf
    from .test_pull_interrupted import ENVIRONMENT, command

    # Twice the blob fits (its bytes, and the file in the layer); half of that at first.
    script = (
        f'mount -t tmpfs -o size={blob_size} tmpfs "$1" || exit 9; "${{@:2}}";'
        'find "$1/store/ingest" -type f -size +1k;'
        f'mount -o remount,size={4 * blob_size} "$1"; exec "${{@:2}}"'
    )
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "bash", str(place), *command(small, f"{repository}:1")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no space left" in done.stdout
    assert parts.file_name(pushed.layer_digests[0]) in done.stdout
    assert proxy.blob_bytes() < 1.5 * blob_size


@pytest.mark.parametrize("damage", ["flipped", "zeroed", "longer", "other"])
def test_a_part_that_was_changed_costs_one_more_download_and_no_more(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, blob_size: int, damage: str
) -> None:
    broken_off(engine, serve, pushed, repository, 4_000_000)
    path = part(engine, pushed)
    had = bytearray(path.read_bytes())
    if damage == "flipped":
        had[1_000_000] ^= 1
    elif damage == "zeroed":
        had[2_000_000:] = bytes(len(had) - 2_000_000)
    elif damage == "longer":
        had += bytes(blob_size)
    else:
        had[:] = random.randbytes(len(had))
    path.write_bytes(had)
    proxy = serve()
    through(engine, proxy.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert len(proxy.requests(f"{BLOB}{pushed.layer_digests[0]}")) == (1 if damage == "longer" else 2)
    assert proxy.blob_bytes() < 1.6 * blob_size + 10_000


# --- what a server says about ranges


def test_a_server_without_ranges_sends_all_again_and_the_unpacking_goes_on(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, blob_size: int
) -> None:
    blob = f"{BLOB}{pushed.layer_digests[0]}"
    proxy = serve(Fault(whole, blob), Fault(reset_after(5_000_000), blob, times=1))
    through(engine, proxy.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert [seen.status for seen in proxy.requests(blob)] == [200, 200]
    assert proxy.requests(blob)[1].sent == blob_size


LIES = {
    "another beginning": header("Content-Range", "bytes 0-9/10"),
    "another total": header("Content-Range", "bytes 5000000-5000009/5000010"),
    "no total": header("Content-Range", "bytes 5000000-5000009/*"),
    "another unit": header("Content-Range", "items 0-9/10"),
    "none": header("Content-Range"),
    "two": header("Content-Range", "bytes 5000000-8002000/8002001", "bytes 0-9/10"),
    "several parts": both(
        header("Content-Range"), header("Content-Type", "multipart/byteranges; boundary=x")
    ),
    "unsatisfiable": status(416),
    "garbage": header("Content-Range", "bytes 99999999999999999999-1/2"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_about_ranges_is_not_believed_and_all_is_fetched(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, lie: str
) -> None:
    broken_off(engine, serve, pushed, repository, 5_000_000)
    blob = f"{BLOB}{pushed.layer_digests[0]}"
    proxy = serve(Fault(LIES[lie], blob, times=1))
    through(engine, proxy.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    first, second = proxy.requests(blob)
    assert first.headers["range"] == "bytes=5000000-"
    assert "range" not in second.headers


def test_a_part_that_was_not_asked_for_is_refused(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str
) -> None:
    def act(exchange: object) -> None:
        exchange.answer.status = 206  # type: ignore[attr-defined]

    through(engine, serve(Fault(act, f"{BLOB}{pushed.layer_digests[0]}")).host)
    with pytest.raises(RegistryError, match="status 206"):
        engine.pull(f"{repository}:1")
    assert engine.images.list() == engine.partial() == []


@pytest.mark.parametrize("fault", [flip(-1000), extra(b"more", length=False)])
def test_wrong_bytes_in_the_rest_leave_nothing_and_are_asked_for_once_more_from_nothing(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, fault: Callable[[object], None]
) -> None:
    broken_off(engine, serve, pushed, repository, 5_000_000)
    blob = f"{BLOB}{pushed.layer_digests[0]}"
    proxy = serve(Fault(fault, blob))  # type: ignore[arg-type]
    through(engine, proxy.host)
    with pytest.raises(DigestMismatch, match=pushed.layer_digests[0]):
        engine.pull(f"{repository}:1")
    assert not part(engine, pushed).exists()
    assert engine.images.list() == engine.partial() == []
    assert [seen.headers.get("range") for seen in proxy.requests(blob)] == ["bytes=5000000-", None]


def test_wrong_bytes_from_the_start_are_not_asked_for_again(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str
) -> None:
    blob = f"{BLOB}{pushed.layer_digests[0]}"
    proxy = serve(Fault(flip(3_000_000), blob))
    through(engine, proxy.host)
    with pytest.raises(DigestMismatch, match=pushed.layer_digests[0]):
        engine.pull(f"{repository}:1")
    assert not part(engine, pushed).exists()
    assert len(proxy.requests(blob)) == 1


# --- with mirrors


def test_the_next_place_goes_on_where_the_last_one_broke(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, blob_size: int
) -> None:
    blob = f"{BLOB}{pushed.layer_digests[0]}"
    mirror = serve(Fault(reset_after(6_000_000), blob, times=1), Fault(status(404), blob, after=1))
    home = serve()
    through(engine, mirror.host, home.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert mirror.blob_bytes() + home.blob_bytes() <= 1.1 * blob_size


@pytest.mark.parametrize(
    "fault", [flip(1_000_000), truncate(6_000_000), extra(b"x"), extra(b"x", length=False)]
)
def test_a_mirror_with_other_bytes_gives_way_and_nothing_of_it_is_used(
    engine: Engine,
    serve: Serve,
    pushed: Pushed,
    repository: str,
    blob_size: int,
    fault: Callable[[object], None],
) -> None:
    blob = f"{BLOB}{pushed.layer_digests[0]}"
    mirror, home = serve(Fault(fault, blob)), serve()  # type: ignore[arg-type]
    through(engine, mirror.host, home.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert len(mirror.requests(blob)) == 1
    assert [seen.sent for seen in home.requests(blob)] == [blob_size]


def test_where_bytes_of_two_places_do_not_fit_all_come_from_one(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, blob_size: int
) -> None:
    blob = f"{BLOB}{pushed.layer_digests[0]}"
    # The mirror's first bytes are wrong, which shows only at the end of the home's.
    mirror = serve(
        Fault(both(flip(1000), reset_after(4_000_000)), blob, times=1), Fault(status(404), blob, after=1)
    )
    home = serve()
    through(engine, mirror.host, home.host)
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert [bool(seen.headers.get("range")) for seen in home.requests(blob)] == [True, False]


def test_a_mirror_that_stalls_is_left_for_the_next(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Deadline.__init__, "__defaults__", (0.5,))  # seconds without a byte
    blob = f"{BLOB}{pushed.layer_digests[0]}"
    mirror, home = serve(Fault(stall_after(3_000_000, 20), blob, times=1)), serve()
    through(engine, mirror.host, home.host)
    began = time.monotonic()
    engine.pull(f"{repository}:1")
    sound(engine, pushed, repository)
    assert time.monotonic() - began < 10


# --- two pullers


def test_a_second_puller_waits_and_nothing_is_fetched_twice(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, blob_size: int
) -> None:
    proxy = serve(Fault(drip(512 << 10, 0.05), f"{BLOB}{pushed.layer_digests[0]}"))
    through(engine, proxy.host)
    pulls = [start(engine, f"{repository}:1") for _ in range(3)]
    for pull in pulls:
        output = pull.communicate(timeout=60)[0]
        assert pull.returncode == 0, output
        assert "Downloading" in output, "who waits shows how far the other is"
    sound(engine, pushed, repository)
    (seen,) = proxy.requests(f"{BLOB}{pushed.layer_digests[0]}")
    assert seen.sent == blob_size


def test_the_waiter_takes_over_from_a_killed_puller_and_goes_on(
    engine: Engine, serve: Serve, pushed: Pushed, repository: str, blob_size: int
) -> None:
    blob = f"{BLOB}{pushed.layer_digests[0]}"
    proxy = serve(Fault(drip(256 << 10, 0.05), blob, times=1))
    through(engine, proxy.host)
    first = start(engine, f"{repository}:1")
    wait_for(
        lambda: part(engine, pushed).exists() and part(engine, pushed).stat().st_size > 3_000_000,
        "half is there",
    )
    second = start(engine, f"{repository}:1")
    assert second.stdout is not None
    while "Downloading" not in second.stdout.readline():
        assert second.poll() is None
    first.kill()
    first.communicate()
    assert second.communicate(timeout=30)[0]
    assert second.returncode == 0
    sound(engine, pushed, repository)
    (_, rest) = proxy.requests(blob)
    assert int(rest.headers["range"].removeprefix("bytes=").rstrip("-")) >= 3_000_000
    assert rest.sent < blob_size - 3_000_000 + 1


def test_two_images_that_share_a_layer_are_pulled_at_once(
    engine: Engine, serve: Serve, registry: Registry, repository: str
) -> None:
    layer = tar({"shared": random.randbytes(3_000_000)})
    one = registry.push_image(f"{repository}-a", "1", [layer, tar({"a": b"1"})], compression=("gzip",))
    two = registry.push_image(f"{repository}-b", "1", [layer, tar({"b": b"2"})], compression=("zstd", "gzip"))
    three = registry.push_image(f"{repository}-c", "1", [tar({"c": b"3"}), layer], compression=("gzip",))
    proxy = serve()
    through(engine, proxy.host)
    pulls = [start(engine, f"{repository}-{name}:1") for name in "abc"]
    for pull in pulls:
        output = pull.communicate(timeout=60)[0]
        assert pull.returncode == 0, output
    assert {image.id for image in engine.images.list()} == {i.config_digest for i in (one, two, three)}
    assert len(list(engine.layers.keys())) == 4, "a layer in two compressions is one layer"
    for digest in {one.layer_digests[0], two.layer_digests[0]}:
        assert engine.content.intact(digest)
        assert len(proxy.requests(f"{BLOB}{digest}")) == 1, "and each blob is fetched once"


# --- the logic by itself


@pytest.mark.parametrize(
    ("code", "said", "asked", "at"),
    [
        (200, None, 0, 0),
        (200, None, 7, 0),
        (200, "bytes 7-99/100", 7, 0),
        (206, "bytes 7-99/100", 7, 7),
        (206, " bytes 7-99/100 ", 7, 7),
        (206, "bytes 7-98/100", 7, None),
        (206, "bytes 7-99/101", 7, None),
        (206, "bytes 7-100/101", 7, None),
        (206, "bytes 8-99/100", 7, None),
        (206, "bytes 0-99/100", 7, None),
        (206, "bytes 7-99/*", 7, None),
        (206, "bytes */100", 7, None),
        (206, "bytes 7-99/100, bytes 7-99/100", 7, None),
        (206, "Bytes 7-99/100", 7, None),
        (206, "bytes 7-99/100", 0, None),
        (206, "bytes ７-99/100", 7, None),
        (206, "bytes +7-99/100", 7, None),
        (206, None, 7, None),
        (416, "bytes */100", 7, None),
        (204, None, 0, None),
        (404, None, 7, None),
    ],
)
def test_an_answer_to_a_range_is_used_only_if_it_is_exactly_the_rest(
    code: int, said: str | None, asked: int, at: int | None
) -> None:
    assert begins(code, said, asked, 100) == at


@settings(max_examples=300, deadline=None)
@given(
    code=st.sampled_from([200, 206, 206, 206, 416, 404]),
    said=st.one_of(
        st.none(),
        st.text(max_size=30),
        st.builds("bytes {}-{}/{}".format, *[st.integers(-2, 12)] * 3),
        st.from_regex(r"bytes ?[0-9*]{0,20}-?[0-9]{0,20}/[0-9*]{0,20}", fullmatch=True),
    ),
    asked=st.integers(0, 10),
)
def test_whatever_a_server_says_of_ranges_only_the_rest_is_used(
    code: int, said: str | None, asked: int
) -> None:
    at = begins(code, said, asked, 10)
    assert at in (None, 0, asked)
    if at:
        assert code == 206
        assert (said or "").strip() == f"bytes {asked}-9/10"


def test_the_whole_is_asked_for_without_a_range() -> None:
    assert from_offset(0) == {}
    assert from_offset(5) == {"Range": "bytes=5-"}
