"""What rmi deletes and keeps; inspect and history of what is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyrun.errors import Conflict
from pyrun.images.gc import User, collect, remove_image
from pyrun.images.local import file_name
from pyrun.storage.contract import Env
from pyrun.storage.locks import SharedLock
from pyrun.storage.shelves import Shelves, remover
from support.registry import Registry, tar

from .conftest import Engine


def _shelves(engine: Engine) -> Shelves:
    env = Env(str(engine.root))
    return Shelves(str(engine.root), env, remover(env), engine.layers)


BASE, TOP, OTHER = tar({"base": b"b" * 4000}), tar({"top": b"t"}), tar({"other": b"o"})


def test_rmi_deletes_what_no_other_image_needs(engine: Engine, registry: Registry, repository: str) -> None:
    one = registry.push_image(repository, "1", [BASE, TOP], compression=("gzip",))
    two = registry.push_image(repository, "2", [BASE, OTHER], compression=("gzip",))
    engine.pull(f"{repository}:1")
    engine.pull(f"{repository}:2")
    assert remove_image(engine.images, _shelves(engine), f"{repository}:1") == [
        ("Untagged", f"{repository}:1"),
        ("Untagged", f"{repository}@{one.digest}"),
        ("Deleted", one.config_digest),
        ("Deleted", one.diff_ids[1]),
    ]
    assert sorted(engine.layers.keys()) == sorted(two.diff_ids)
    assert set(engine.content.digests()) == {
        two.digest,
        two.manifest_digest,
        two.config_digest,
        *two.layer_digests,
    }
    assert remove_image(engine.images, _shelves(engine), f"{repository}:2")[2:] == [
        ("Deleted", two.config_digest),
        ("Deleted", two.diff_ids[1]),
        ("Deleted", two.diff_ids[0]),
    ]
    assert list(engine.layers.keys()) == list(engine.content.digests()) == []
    assert engine.partial() == []


def test_a_containers_layers_outlive_its_image(engine: Engine, registry: Registry, repository: str) -> None:
    pushed = registry.push_image(repository, "1", [BASE, TOP])
    engine.pull(f"{repository}:1")
    users = [User(pushed.config_digest, "overlay", tuple(pushed.diff_ids), "web")]
    with pytest.raises(Conflict, match="used by container web"):
        remove_image(engine.images, _shelves(engine), f"{repository}:1", users=lambda: users)
    remove_image(engine.images, _shelves(engine), f"{repository}:1", force=True, users=lambda: users)
    assert sorted(engine.layers.keys()) == sorted(pushed.diff_ids)
    assert engine.images.list() == []
    assert sorted(collect(engine.images, _shelves(engine), list).layers) == sorted(pushed.diff_ids)


def test_nothing_is_deleted_under_a_running_pull(engine: Engine, registry: Registry, repository: str) -> None:
    pushed = registry.push_image(repository, "1", [BASE])
    engine.pull(f"{repository}:1")
    engine.images.remove(f"{repository}:1")
    with SharedLock(os.path.join(engine.root, "locks", "store")):
        assert "in use" in collect(engine.images, _shelves(engine), list, patience=0.1).deferred
    assert list(engine.layers.keys()) == pushed.diff_ids
    done = collect(engine.images, _shelves(engine), list)
    assert (done.deferred, done.layers) == ("", pushed.diff_ids)
    assert done.bytes > 0


def test_nothing_is_deleted_that_an_unreadable_record_may_name(
    engine: Engine, registry: Registry, repository: str
) -> None:
    registry.push_image(repository, "1", [BASE])
    engine.pull(f"{repository}:1")
    record = Path(engine.images.path, file_name(f"docker.io/{repository}:1"))
    good = record.read_bytes()
    record.write_bytes(b"{")
    assert "is damaged" in collect(engine.images, _shelves(engine), list).deferred
    record.write_bytes(good)
    assert engine.images.get(f"{repository}:1")
    assert list(engine.layers.keys()) != []


def test_inspect_speaks_of_an_image_as_docker_does(
    engine: Engine, registry: Registry, repository: str
) -> None:
    pushed = registry.push_image(
        repository, "1", [BASE, TOP], {"Cmd": ["x"]}, author="A. Author", comment="hi"
    )
    image = engine.pull(f"{repository}:1").image
    engine.images.tag(f"{repository}:1", "other.example/x:2")
    seen = engine.images.inspect(image)
    assert seen["Id"] == pushed.config_digest
    assert seen["RepoTags"] == [f"{repository}:1", "other.example/x:2"]
    assert seen["RepoDigests"] == [f"{repository}@{pushed.digest}"]
    assert seen["RootFS"] == {"Type": "layers", "Layers": pushed.diff_ids}
    assert (seen["Size"], seen["Author"], seen["Comment"]) == (len(BASE) + len(TOP), "A. Author", "hi")
    assert {key: value for key, value in seen["Config"].items() if value} == {"Cmd": ["x"]}
    assert seen["Config"]["Env"] == []
    assert seen["Os"] == "linux"


def test_history_is_newest_first_and_gives_each_layer_to_its_step(
    engine: Engine, registry: Registry, repository: str
) -> None:
    steps = [
        {"created": "2024-01-01T00:00:00Z", "created_by": "ADD base"},
        {"created": "2024-01-02T00:00:00Z", "created_by": "ENV a=b", "empty_layer": True},
        {"created": "nonsense", "created_by": "RUN top", "comment": "c"},
    ]
    pushed = registry.push_image(repository, "1", [BASE, TOP], history=steps)
    entries = engine.images.history(engine.pull(f"{repository}:1").image)
    assert [(e.id, e.created, e.created_by, e.size, e.comment) for e in entries] == [
        (pushed.config_digest, "", "RUN top", len(TOP), "c"),
        ("", "2024-01-02T00:00:00Z", "ENV a=b", 0, ""),
        ("", "2024-01-01T00:00:00Z", "ADD base", len(BASE), ""),
    ]


@pytest.mark.parametrize(
    "steps", [None, [], [{"created_by": "one"}], [{"created_by": str(n)} for n in range(5)]]
)
def test_a_history_that_does_not_fit_the_layers_loses_none_of_them(
    engine: Engine, registry: Registry, repository: str, steps: object
) -> None:
    registry.push_image(repository, "1", [BASE, TOP], history=steps)
    entries = engine.images.history(engine.pull(f"{repository}:1").image)
    assert sum(entry.size for entry in entries) == len(BASE) + len(TOP)
    assert entries[0].id != ""
