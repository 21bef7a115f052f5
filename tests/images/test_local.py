"""Image records: names, IDs, tags, removal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.errors import ConfigError, Conflict, InvalidReference, NotFound
from pyrun.images.digest import sha256
from pyrun.images.local import ImageStore, file_name
from pyrun.images.platform import host
from pyrun.images.record import Image, ImageLayer
from pyrun.images.reference import Reference

DIGEST = sha256(b"digest")


def image(name: str, number: int = 0, created: str = "2024-01-01T00:00:00Z") -> Image:
    return Image(
        reference=Reference.parse(name).canonical,
        digest=sha256(b"index %d" % number),
        manifest=sha256(b"manifest %d" % number),
        id=sha256(b"config %d" % number),
        platform="linux/amd64",
        created=created,
        config={"Cmd": ["sh"]},
        layers=[ImageLayer(DIGEST, DIGEST, 1, 1024, "application/x")],
    )


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(str(tmp_path))


def names(images: ImageStore) -> list[str]:
    return [found.reference for found in images.list()]


def test_an_image_is_found_by_name_by_id_and_by_a_unique_prefix(images: ImageStore) -> None:
    images.put(image("redis:7"))
    digits = sha256(b"config 0").removeprefix("sha256:")
    for name in ("redis:7", "docker.io/library/redis:7", digits, f"sha256:{digits}", digits[:12], digits[:3]):
        assert images.get(name).reference == "docker.io/library/redis:7"
    assert images.get(f"redis@{sha256(b'index 0')}").reference == "docker.io/library/redis:7"


def test_an_ambiguous_prefix_is_refused(images: ImageStore) -> None:
    by_first_digit: dict[str, int] = {}
    for number in range(40):
        first = sha256(b"config %d" % number)[7]
        if first in by_first_digit and not first.isdigit():
            images.put(image("one", by_first_digit[first]))
            images.put(image("two", number))
            with pytest.raises(Conflict, match=f"more than one image ID starts with {first}"):
                images.get(first)
            return
        by_first_digit[first] = number
    pytest.fail("no two of forty IDs start alike")


@pytest.mark.parametrize(
    "name", ["nope", "nope:1", "0123456789ab", "0" * 64, "sha256:" + "0" * 64, f"nope@{DIGEST}"]
)
def test_what_is_not_there_is_not_found(images: ImageStore, name: str) -> None:
    images.put(image("redis"))
    with pytest.raises(NotFound, match=name):
        images.get(name)


def test_what_is_no_name_is_said_to_be_none(images: ImageStore) -> None:
    with pytest.raises(InvalidReference, match="lowercase"):
        images.get("Redis")


def test_images_are_listed_newest_first(images: ImageStore) -> None:
    images.put(image("old", 1, "2020-01-01T00:00:00Z"))
    images.put(image("new", 2, "2024-01-01T00:00:00Z"))
    images.put(image("undated", 3, ""))
    assert [name.partition("/library/")[2] for name in names(images)] == [
        "new:latest",
        "old:latest",
        "undated:latest",
    ]


def test_a_damaged_record_is_left_out_of_the_list_and_named_when_asked_for(images: ImageStore) -> None:
    images.put(image("good", 1))
    for number, content in enumerate([b"", b"{", b"[]", b'{"reference": 1}', b"\xff", b"[" * 100_000]):
        images.put(image("bad", 2))
        Path(images.path, file_name("docker.io/library/bad:latest")).write_bytes(content)
        assert names(images) == ["docker.io/library/good:latest"], number
        assert len(images.warnings) == 1
        assert "bad" in images.warnings[0]
        with pytest.raises(ConfigError, match=r"record .*bad%3Alatest\.json is damaged"):
            images.get("bad")
    assert images.remove("bad") == [("Untagged", "bad:latest")]
    assert images.list()
    assert images.warnings == []


def test_a_record_under_another_images_name_is_damaged(images: ImageStore) -> None:
    images.put(image("a"))
    os.rename(
        os.path.join(images.path, file_name("docker.io/library/a:latest")),
        os.path.join(images.path, file_name("docker.io/library/b:latest")),
    )
    with pytest.raises(ConfigError):
        images.get("b")


def test_a_lookup_by_name_reads_one_file_and_imports_little(images: ImageStore) -> None:
    images.put(image("redis"))
    code = f"""
import sys
from pyrun.images.local import ImageStore
opened = []
def hook(event, arguments):
    if event == "open" and str(arguments[0]).startswith({images.root!r}):
        opened.append(arguments[0])
sys.addaudithook(hook)
assert ImageStore({images.root!r}).get("redis").config == {{"Cmd": ["sh"]}}
assert len(opened) == 1, opened
heavy = "msgspec http ssl typing pathlib dataclasses hashlib tomllib fcntl subprocess logging".split()
assert not set(heavy) & set(sys.modules), set(heavy) & set(sys.modules)
"""
    subprocess.run(
        [sys.executable, "-S", "-c", code], check=True, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )


# --- tagging


def test_a_tag_names_the_same_image(images: ImageStore) -> None:
    images.put(image("redis:7"))
    images.tag("redis:7", "redis:stable")
    images.tag("redis:7", "my.example/cache:1")
    assert images.get("redis:stable").digest == sha256(b"index 0")
    assert images.get("my.example/cache:1").digest == ""  # until it is pushed there
    tags, digests = images.references(images.get("redis:7"))
    assert tags == ["docker.io/library/redis:7", "docker.io/library/redis:stable", "my.example/cache:1"]
    assert digests == [f"docker.io/library/redis@{sha256(b'index 0')}"]


def test_a_tag_with_a_digest_is_refused(images: ImageStore) -> None:
    images.put(image("redis"))
    with pytest.raises(InvalidReference, match="has a digest"):
        images.tag("redis", f"x@{DIGEST}")


def test_an_image_whose_tag_moved_stays_reachable(images: ImageStore) -> None:
    images.put(image("redis", 1))
    images.put(image("redis", 2))
    assert sorted(names(images)) == [
        "docker.io/library/redis:latest",
        f"docker.io/library/redis@{sha256(b'manifest 1')}",
    ]
    assert images.get(f"redis@{sha256(b'index 1')}").id == sha256(b"config 1")
    assert images.get(sha256(b"config 1")).id == sha256(b"config 1")


def test_an_image_whose_tag_moved_and_has_another_gets_no_further_name(images: ImageStore) -> None:
    images.put(image("redis", 1))
    images.tag("redis", "keep")
    images.put(image("redis", 2))
    assert sorted(names(images)) == ["docker.io/library/keep:latest", "docker.io/library/redis:latest"]


def test_a_name_by_digest_hides_behind_a_tag_of_the_same_image(images: ImageStore) -> None:
    images.put(image(f"redis@{sha256(b'index 0')}"))
    images.put(image("redis:7"))
    assert names(images) == ["docker.io/library/redis:7"]


HOST = str(host())
FOREIGN = "linux/s390x" if "s390x" not in HOST else "linux/amd64"


def of_platform(name: str, number: int, platform: str) -> Image:
    """An image of the index 0, which lists several."""
    made = image(name, number)
    made.digest, made.platform = sha256(b"index 0"), platform
    return made


@pytest.mark.parametrize("last", [HOST, FOREIGN])
@pytest.mark.parametrize("tagged", [False, True])
def test_an_index_digest_stands_for_the_hosts_image_whichever_came_last(
    images: ImageStore, last: str, tagged: bool
) -> None:
    by_index = f"redis@{sha256(b'index 0')}"
    numbers = {HOST: 1, FOREIGN: 2}
    for platform in sorted(numbers, key=lambda platform: platform == last):
        images.put(of_platform("redis:7" if tagged else by_index, numbers[platform], platform))
    assert images.get(by_index).platform == HOST
    for number in numbers.values():
        assert images.get(f"redis@{sha256(b'manifest %d' % number)}").id == sha256(b"config %d" % number)


def test_an_index_digest_follows_the_default_platform(
    images: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_index = f"redis@{sha256(b'index 0')}"
    images.put(of_platform(by_index, 1, HOST))
    images.put(of_platform(by_index, 2, FOREIGN))
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", FOREIGN)
    assert images.get(by_index).platform == FOREIGN


def test_an_image_whose_moved_tag_left_it_a_digest_outlives_the_next_platform(images: ImageStore) -> None:
    images.put(of_platform("redis:7", 1, HOST))
    for number, platform in ((2, FOREIGN), (3, "linux/riscv64"), (4, "linux/ppc64le")):
        images.put(of_platform("redis:7", number, platform))
    assert {found.id for found in images.list()} == {sha256(b"config %d" % n) for n in range(1, 5)}


def test_a_name_by_index_digest_is_removed_one_platform_at_a_time(images: ImageStore) -> None:
    by_index = f"redis@{sha256(b'index 0')}"
    images.put(of_platform(by_index, 1, HOST))
    images.put(of_platform(by_index, 2, FOREIGN))
    assert images.remove(by_index) == [("Untagged", by_index), ("Deleted", sha256(b"config 1"))]
    assert images.remove(by_index) == [("Untagged", by_index), ("Deleted", sha256(b"config 2"))]


def test_a_pull_by_the_manifests_digest_keeps_the_index_digest_known(images: ImageStore) -> None:
    images.put(image(f"redis@{sha256(b'index 0')}"))
    direct = image(f"redis@{sha256(b'manifest 0')}")
    direct.digest = direct.manifest
    images.put(direct)
    assert images.get(f"redis@{sha256(b'index 0')}").id == sha256(b"config 0")
    assert len(images.list()) == 1


def test_a_tag_never_revives_an_image_that_is_being_removed(images: ImageStore) -> None:
    images.put(image("redis"))
    reader, gate = os.pipe()
    pid = os.fork()  # before the lock is taken: a copy of its descriptor would share it
    if not pid:
        code = 1
        try:
            os.read(reader, 1)
            images.tag("redis", "other")
        except NotFound:
            code = 10
        finally:
            os._exit(code)
    os.close(reader)
    with images.changing():
        os.write(gate, b"x")
        time.sleep(0.2)
        os.unlink(os.path.join(images.path, file_name("docker.io/library/redis:latest")))
    os.close(gate)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10
    assert images.list() == []


# --- removing


def test_the_last_name_takes_the_image_along(images: ImageStore) -> None:
    images.put(image("redis:7"))
    images.tag("redis:7", "redis:stable")
    assert images.remove("redis:7") == [("Untagged", "redis:7")]
    assert images.remove("redis:stable") == [
        ("Untagged", "redis:stable"),
        ("Untagged", f"redis@{sha256(b'index 0')}"),
        ("Deleted", sha256(b"config 0")),
    ]
    assert os.listdir(images.path) == []


def test_an_id_takes_all_names_of_one_repository_and_needs_force_for_more(images: ImageStore) -> None:
    images.put(image("redis:7"))
    images.tag("redis:7", "redis:stable")
    identifier = sha256(b"config 0")[7:19]
    images.tag("redis:7", "other:1")
    with pytest.raises(Conflict, match="several repositories"):
        images.remove(identifier)
    assert images.remove(identifier, force=True) == [
        ("Untagged", "other:1"),
        ("Untagged", "redis:7"),
        ("Untagged", "redis:stable"),
        ("Untagged", f"redis@{sha256(b'index 0')}"),
        ("Deleted", sha256(b"config 0")),
    ]


def test_a_name_by_digest_goes_with_the_last_tag_of_its_repository(images: ImageStore) -> None:
    images.put(image(f"redis@{sha256(b'index 0')}"))
    images.put(image("redis:7"))
    assert images.remove("redis:7") == [
        ("Untagged", "redis:7"),
        ("Untagged", f"redis@{sha256(b'index 0')}"),
        ("Deleted", sha256(b"config 0")),
    ]


def test_an_image_that_a_container_uses_keeps_its_last_name_unless_forced(images: ImageStore) -> None:
    images.put(image("redis:7"))
    images.tag("redis:7", "redis:stable")

    def users(id: str) -> list[str]:
        return ["web"] if id == sha256(b"config 0") else []

    images.remove("redis:stable", in_use=users)
    with pytest.raises(Conflict, match="used by container web"):
        images.remove("redis:7", in_use=users)
    assert images.get("redis:7")
    assert images.remove("redis:7", force=True, in_use=users)[-1][0] == "Deleted"


# --- files


NAME = st.from_regex(r"[a-z0-9]{1,20}(/[a-z0-9]{1,30}){0,4}", fullmatch=True)


@given(NAME, st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True), NAME)
def test_names_are_quoted_one_to_one_into_one_directory(name: str, tag: str, other: str) -> None:
    reference = Reference.parse(f"{name}:{tag}").canonical
    quoted = file_name(reference)
    assert "/" not in quoted
    assert not quoted.startswith(".")
    assert len(quoted.encode()) <= 255
    assert (quoted == file_name(Reference.parse(f"{other}:{tag}").canonical)) == (name == other)
    assert quoted != file_name(reference.swapcase())


def test_a_name_longer_than_a_file_name_works(images: ImageStore) -> None:
    long = "host.example/" + "/".join(["a" * 40] * 5) + ":" + "T" * 128
    images.put(image(long))
    images.put(image(long[:-1] + "t", 1))
    assert images.get(long).reference == long
    assert images.get(long[:-1] + "t").id == sha256(b"config 1")
    assert len(images.list()) == 2


def test_what_a_killed_writer_left_is_removed_by_the_next(images: ImageStore) -> None:
    images.put(image("redis"))
    Path(images.path, ".tmp-1-x.json").write_text("{")
    assert names(images) == ["docker.io/library/redis:latest"]
    images.tag("redis", "other")
    assert not Path(images.path, ".tmp-1-x.json").exists()


def test_a_record_holds_all_that_run_needs_in_one_line_of_json(images: ImageStore) -> None:
    images.put(image("redis"))
    path = Path(images.path, "docker.io%2Flibrary%2Fredis%3Alatest.json")
    assert Image.from_json(json.loads(path.read_bytes())).to_json() == image("redis").to_json()
    assert path.stat().st_mode & 0o777 == 0o600
