"""What rmi and untag take, and what they refuse: docker's rules."""

from __future__ import annotations

import pytest

from pyrun.errors import Conflict, NotFound
from pyrun.images.digest import sha256
from pyrun.images.local import ImageStore

from .test_local import image, images

__all__ = ["images"]

ID = sha256(b"config 0")
DIGEST = f"redis@{sha256(b'index 0')}"


def web(id: str) -> list[str]:
    return ["web"] if id == ID else []


def names(images: ImageStore) -> list[str]:
    return sorted(found.reference.removeprefix("docker.io/library/") for found in images.records())


def test_a_running_container_keeps_its_image_by_force_without_a_name(images: ImageStore) -> None:
    images.put(image("redis:7"))
    with pytest.raises(Conflict, match="used by running container web"):
        images.remove("redis:7", in_use=web, running=web)
    assert images.remove("redis:7", force=True, in_use=web, running=web) == [
        ("Untagged", "redis:7"),
        ("Untagged", DIGEST),
    ]
    assert names(images) == [f"@{sha256(b'manifest 0')}"]
    for force in (False, True):
        with pytest.raises(Conflict, match="used by running container web"):
            images.remove(ID, force=force, in_use=web, running=web)
    assert images.remove(ID, force=True) == [("Deleted", ID)]
    assert names(images) == []


def test_a_name_of_several_goes_also_while_a_container_runs(images: ImageStore) -> None:
    images.put(image("redis:7"))
    images.tag("redis:7", "other:1")
    assert images.remove("redis:7", in_use=web, running=web) == [
        ("Untagged", "redis:7"),
        ("Untagged", DIGEST),
    ]
    assert names(images) == ["other:1"]


def test_an_id_with_several_tags_needs_force(images: ImageStore) -> None:
    images.put(image("redis:7"))
    images.tag("redis:7", "redis:8")
    with pytest.raises(Conflict, match="several names"):
        images.remove(ID[7:19])
    assert images.remove(ID[7:19], force=True)[-1] == ("Deleted", ID)


def test_an_id_with_one_tag_and_a_digest_of_its_repository_needs_none(images: ImageStore) -> None:
    images.put(image(DIGEST))
    images.put(image("redis:7"))
    assert images.remove(ID[7:19]) == [("Untagged", "redis:7"), ("Untagged", DIGEST), ("Deleted", ID)]


def test_a_digest_is_a_name_like_others(images: ImageStore) -> None:
    images.put(image(DIGEST))
    assert images.remove(DIGEST) == [("Untagged", DIGEST), ("Deleted", ID)]


def test_untag_takes_all_names_and_leaves_the_image(images: ImageStore) -> None:
    images.put(image("redis:7"))
    images.tag("redis:7", "other:1")
    assert images.untag("redis:7") == [("Untagged", "other:1"), ("Untagged", "redis:7"), ("Untagged", DIGEST)]
    assert names(images) == [f"@{sha256(b'manifest 0')}"]
    assert images.get(ID[7:19]).unnamed
    assert images.untag(ID[7:19]) == []
    images.tag(ID[7:19], "back:1")
    assert names(images) == ["back:1"]


def test_untag_takes_the_names_given(images: ImageStore) -> None:
    images.put(image("redis:7"))
    for name in ("a:1", "b:1"):
        images.tag("redis:7", name)
    assert images.untag("redis:7", ["a:1", "b:1", "a:1"]) == [("Untagged", "a:1"), ("Untagged", "b:1")]
    images.put(image("strange:1", 1))
    with pytest.raises(NotFound, match="strange:1 is not a name of image"):
        images.untag("redis:7", ["redis:7", "strange:1"])
    assert names(images) == ["redis:7", "strange:1"]


def test_an_image_by_digest_stays_what_it_is_when_it_is_untagged(images: ImageStore) -> None:
    images.put(image(DIGEST))
    assert images.untag(DIGEST) == []
    assert images.get(DIGEST)
