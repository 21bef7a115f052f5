"""registries.conf: where an image is fetched from."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyrun.errors import ConfigError, ImageError
from pyrun.images.reference import Reference
from pyrun.images.registry.registries import Registries

DIGEST = "sha256:" + "0123456789abcdef" * 4


def places(tmp_path: Path, conf: str, name: str) -> list[str]:
    path = tmp_path / "registries.conf"
    path.write_text(conf)
    registries = Registries.from_file(str(path))
    found = []
    for e in registries.endpoints(registries.reference(name)):
        found.append(f"{e}:{e.tag}" + (" insecure" if e.insecure else "") + (" mirror" if e.mirror else ""))
    return found


def test_docker_io_is_asked_at_its_api_host(tmp_path: Path) -> None:
    assert places(tmp_path, "", "redis") == ["registry-1.docker.io/library/redis:latest"]
    assert places(tmp_path, "", "quay.io/a/b:1") == ["quay.io/a/b:1"]


MIRRORS = """
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "one.example:5000/hub"
insecure = true
[[registry.mirror]]
location = "two.example"
"""


def test_mirrors_come_in_their_order_and_the_primary_last(tmp_path: Path) -> None:
    assert places(tmp_path, MIRRORS, "redis:7") == [
        "one.example:5000/hub/library/redis:7 insecure mirror",
        "two.example/library/redis:7 mirror",
        "registry-1.docker.io/library/redis:7",
    ]


def test_the_longest_prefix_wins_and_ends_at_a_boundary(tmp_path: Path) -> None:
    conf = """
        [[registry]]
        location = "a.example"
        [[registry]]
        prefix = "a.example/team"
        location = "b.example/moved"
        [[registry]]
        prefix = "a.example/team/app:1"
        location = "c.example/pinned:2"
    """
    assert places(tmp_path, conf, "a.example/x") == ["a.example/x:latest"]
    assert places(tmp_path, conf, "a.example/team/x") == ["b.example/moved/x:latest"]
    assert places(tmp_path, conf, "a.example/teams/x") == ["a.example/teams/x:latest"]
    assert places(tmp_path, conf, "a.example/team/app:1") == ["c.example/pinned:2"]
    assert places(tmp_path, conf, "a.example/team/app:10") == ["b.example/moved/app:10"]
    assert places(tmp_path, conf, "a.example:5000/team/x") == ["a.example:5000/team/x:latest"]


def test_a_wildcard_covers_subdomains_and_rewrites_nothing_without_a_location(tmp_path: Path) -> None:
    conf = '[[registry]]\nprefix = "*.example.com"\ninsecure = true\n'
    assert places(tmp_path, conf, "a.b.example.com/x") == ["a.b.example.com/x:latest insecure"]
    assert places(tmp_path, conf, "example.com/x") == ["example.com/x:latest"]
    assert places(tmp_path, conf, "a.example.com:5000/x") == ["a.example.com:5000/x:latest insecure"]
    moved = conf + 'location = "all.example/sub"\n'
    assert places(tmp_path, moved, "a.b.example.com/x") == ["all.example/sub/x:latest insecure"]


def test_what_is_pushed_goes_to_the_primary_location_on_its_own_terms(tmp_path: Path) -> None:
    """Also where a mirror is the same place, with other terms."""
    path = tmp_path / "registries.conf"
    path.write_text(
        MIRRORS + '[[registry]]\nlocation = "a.example"\ninsecure = true\n'
        '[[registry.mirror]]\nlocation = "b.example"\n'
        '[[registry]]\nprefix = "c.example"\nlocation = "d.example/c"\n'
        '[[registry.mirror]]\nlocation = "d.example/c"\ninsecure = true\n'
    )
    registries = Registries.from_file(str(path))
    found = {}
    for name in ("redis:7", "a.example/x", "c.example/x:1", "e.example/x"):
        endpoint = registries.primary(registries.reference(name))
        assert not endpoint.mirror
        found[name] = (str(endpoint), endpoint.tag, endpoint.insecure)
    assert found == {
        "redis:7": ("registry-1.docker.io/library/redis", "7", False),
        "a.example/x": ("a.example/x", "latest", True),
        "c.example/x:1": ("d.example/c/x", "1", False),
        "e.example/x": ("e.example/x", "latest", False),
    }


def test_a_blocked_name_is_refused_and_the_file_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"blocked by .*registries\.conf"):
        places(tmp_path, '[[registry]]\nlocation = "bad.example"\nblocked = true\n', "bad.example/x")


@pytest.mark.parametrize(
    ("when", "by_tag", "by_digest"),
    [("all", 2, 2), ("digest-only", 1, 2), ("tag-only", 2, 1)],
)
def test_pull_from_mirror_tells_tags_and_digests_apart(
    tmp_path: Path, when: str, by_tag: int, by_digest: int
) -> None:
    conf = '[[registry]]\nlocation = "a.io"\n[[registry.mirror]]\nlocation = "m.io"\n'
    conf += f'pull-from-mirror = "{when}"\n'
    assert len(places(tmp_path, conf, "a.io/x:1")) == by_tag
    assert len(places(tmp_path, conf, f"a.io/x@{DIGEST}")) == by_digest


def test_mirror_by_digest_only_holds_for_every_mirror(tmp_path: Path) -> None:
    conf = MIRRORS.replace('location = "docker.io"', 'location = "docker.io"\nmirror-by-digest-only = true')
    assert len(places(tmp_path, conf, "redis:7")) == 1
    assert len(places(tmp_path, conf, f"redis:7@{DIGEST}")) == 3


def test_an_alias_names_a_short_name_and_nothing_else(tmp_path: Path) -> None:
    conf = '[aliases]\n"tool" = "quay.io/x/tool"\n"ns/app" = "r.example/app"\n'
    assert places(tmp_path, conf, "tool:2") == ["quay.io/x/tool:2"]
    assert places(tmp_path, conf, "ns/app") == ["r.example/app:latest"]
    assert places(tmp_path, conf, f"tool@{DIGEST}") == ["quay.io/x/tool:None"]
    assert places(tmp_path, conf, "docker.io/tool") == ["registry-1.docker.io/library/tool:latest"]
    assert places(tmp_path, conf, "tool/more") == ["registry-1.docker.io/tool/more:latest"]


def test_credential_helpers_are_a_list_of_names(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.write_text("")
    assert Registries.from_file(str(conf)).helpers == ["containers-auth.json"]
    conf.write_text('credential-helpers = ["one", "containers-auth.json"]')
    assert Registries.from_file(str(conf)).helpers == ["one", "containers-auth.json"]
    conf.write_text('credential-helpers = "one"')
    with pytest.raises(ConfigError, match="credential-helpers is not a list"):
        Registries.from_file(str(conf))


def test_a_mirror_that_is_the_primary_is_asked_once(tmp_path: Path) -> None:
    conf = '[[registry]]\nlocation = "a.io"\n[[registry.mirror]]\nlocation = "a.io"\n'
    assert places(tmp_path, conf, "a.io/x") == ["a.io/x:latest"]


@pytest.mark.parametrize(
    ("conf", "key"),
    [
        ("[[registry]\n", "TOML"),
        ("[registries.search]\nregistries = ['a']\n", "version 1"),
        ("[registry]\nlocation = 'a.io'\n", "registry is"),
        ("registry = [1]\n", r"registry\[0\]"),
        ("[[registry]]\ninsecure = true\n", r"registry\[0\] has neither"),
        ("[[registry]]\nlocation = 1\n", r"registry\[0\]\.location"),
        ("[[registry]]\nlocation = 'a.io'\ninsecure = 'yes'\n", r"registry\[0\]\.insecure"),
        ("[[registry]]\nlocation = 'a.io'\nblocked = 1\n", r"registry\[0\]\.blocked"),
        ("[[registry]]\nlocation = 'https://a.io'\n", r"registry\[0\]\.location"),
        ("[[registry]]\nlocation = 'nodots/x'\n", r"registry\[0\]\.location"),
        ("[[registry]]\nprefix = 'a.*.io'\nlocation = 'a.io'\n", r"registry\[0\]\.prefix"),
        ("[[registry]]\nlocation = 'a.io'\n[[registry.mirror]]\n", r"mirror\[0\] has no location"),
        (
            "[[registry]]\nlocation='a.io'\n[[registry.mirror]]\nlocation='b.io'\npull-from-mirror='x'\n",
            "pull-from-mirror",
        ),
        (
            "[[registry]]\nlocation='a.io'\nmirror-by-digest-only=true\n"
            "[[registry.mirror]]\nlocation='b.io'\npull-from-mirror='all'\n",
            "pull-from-mirror",
        ),
        ("[aliases]\nx = 1\n", r"aliases\.x"),
        ("[aliases]\nx = 'A B'\n", r"aliases\.x"),
        ("aliases = 1\n", "aliases is"),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_key(tmp_path: Path, conf: str, key: str) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        places(tmp_path, conf, "redis")
    assert str(tmp_path / "registries.conf") in caught.value.message


def test_a_missing_file_that_the_environment_names_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "none.conf"))
    with pytest.raises(ConfigError, match=r"none\.conf"):
        Registries.load()


def test_the_users_file_is_read_with_the_drop_ins_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONTAINERS_REGISTRIES_CONF", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "containers"
    (folder / "registries.conf.d").mkdir(parents=True)
    (folder / "registries.conf").write_text('[[registry]]\nlocation = "a.test"\ninsecure = true\n')
    (folder / "registries.conf.d" / "20.conf").write_text('[aliases]\n"zzz-tool" = "b.test/last"\n')
    (folder / "registries.conf.d" / "10.conf").write_text('[aliases]\n"zzz-tool" = "b.test/first"\n')
    (folder / "registries.conf.d" / "ignored").write_text("not TOML at all [")
    registries = Registries.load()
    assert registries.endpoints(Reference.parse("a.test/x"))[0].insecure
    assert registries.reference("zzz-tool").canonical == "b.test/last:latest"
