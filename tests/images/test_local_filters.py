"""Which images a filter lets pass."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.errors import NotFound, UsageError
from pyrun.images.digest import sha256
from pyrun.images.filters import PRUNING, Filters, glob
from pyrun.images.record import Image, moment
from pyrun.images.reference import Reference


def image(name: str, created: str = "2024-01-01T00:00:00Z", **labels: str) -> Image:
    number = name.encode()
    return Image(
        reference=name if name.startswith("@") else Reference.parse(name).canonical,
        digest="" if name.startswith("@") else sha256(b"index" + number),
        manifest=sha256(b"manifest" + number),
        id=sha256(b"config" + number),
        platform="linux/amd64",
        created=created,
        config={"Labels": labels} if labels else {"Labels": None},
        layers=[],
    )


UNNAMED = image(f"@{sha256(b'x')}", "2024-03-01T00:00:00Z")
IMAGES = [
    image("redis:7", "2024-02-01T00:00:00Z", stage="test", empty=""),
    image("redis:8", "2024-04-01T01:00:00+01:00", stage="live"),
    image("ghcr.io/owner/app:1", "2024-03-01T00:00:00.5Z"),
    image(f"old@{sha256(b'manifestold')}", ""),
    UNNAMED,
]


def names(filters: list[str], used: tuple[str, ...] = ()) -> list[str]:
    def find(name: str) -> Image:
        for found in IMAGES:
            if found.reference == Reference.parse(name).canonical:
                return found
        raise NotFound(name)

    found = Filters(filters).select(IMAGES, find, used)
    return [i.reference.removeprefix("docker.io/library/").partition("@")[0] for i in found]


@pytest.mark.parametrize(
    ("filters", "passing"),
    [
        ([], ["redis:7", "redis:8", "ghcr.io/owner/app:1", "old", ""]),
        (["dangling=true"], ["old", ""]),
        (["dangling=false"], ["redis:7", "redis:8", "ghcr.io/owner/app:1"]),
        (["dangling=1"], ["old", ""]),
        (["label=stage"], ["redis:7", "redis:8"]),
        (["label=stage=test"], ["redis:7"]),
        (["label=stage", "label=empty="], ["redis:7"]),
        (["label=stage=test", "label=stage=live"], []),
        (["label!=stage=test"], ["redis:8", "ghcr.io/owner/app:1", "old", ""]),
        (["label!=stage", "dangling=false"], ["ghcr.io/owner/app:1"]),
        (["reference=redis"], ["redis:7", "redis:8"]),
        (["reference=redis:7"], ["redis:7"]),
        (["reference=red*"], ["redis:7", "redis:8"]),
        (["reference=redis:[78]"], ["redis:7", "redis:8"]),
        (["reference=redis:[^7]"], ["redis:8"]),
        (["reference=docker.io/library/redis:?"], ["redis:7", "redis:8"]),
        (["reference=*/*/app"], ["ghcr.io/owner/app:1"]),
        (["reference=*"], ["redis:7", "redis:8", "old"]),
        (["reference=redis:7", "reference=ghcr.io/*/*"], ["redis:7", "ghcr.io/owner/app:1"]),
        (["reference!=redis*"], ["ghcr.io/owner/app:1", "old", ""]),
        (["reference=redis", "reference!=*:8"], ["redis:7"]),
        (["since=redis:7"], ["redis:8", "ghcr.io/owner/app:1", ""]),
        (["after=redis:7"], ["redis:8", "ghcr.io/owner/app:1", ""]),
        (["before=redis:8"], ["redis:7", "ghcr.io/owner/app:1", "old", ""]),
        (["before=redis:8", "since=redis:7"], ["ghcr.io/owner/app:1", ""]),
        (["before=ghcr.io/owner/app:1"], ["redis:7", "old", ""]),
        (["until=2024-03-01T00:00:00Z"], ["redis:7", "old"]),
        (["until=1h"], ["redis:7", "redis:8", "ghcr.io/owner/app:1", "old", ""]),
        ([f"id={IMAGES[0].id[7:19]}"], ["redis:7"]),
        ([f"id={IMAGES[0].id}", f"id={IMAGES[1].id[:15]}"], ["redis:7", "redis:8"]),
        ([f"digest={IMAGES[0].digest}", f"digest={IMAGES[1].manifest}"], ["redis:7", "redis:8"]),
        (["containers=true"], ["redis:8"]),
        (["containers=false", "dangling=false"], ["redis:7", "ghcr.io/owner/app:1"]),
    ],
)
def test_what_passes(filters: list[str], passing: list[str]) -> None:
    assert names(filters, used=(IMAGES[1].id,)) == passing


@pytest.mark.parametrize(
    "text",
    [
        "dangling",
        "dangling=",
        "dangling=perhaps",
        "=x",
        "colour=red",
        "dangling!=true",
        "before!=redis",
        "until=yesterday",
        "until=1h,2m",
        "reference=[",
        "reference=[]",
        "reference=a\\",
        "containers=2",
    ],
)
def test_what_is_no_filter_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Filters([text])
    assert "--filter" in str(caught.value) or "pattern" in str(caught.value)


def test_filters_that_contradict_each_other_are_refused() -> None:
    for texts in (["dangling=true", "dangling=false"], ["until=1h", "until=2h"]):
        with pytest.raises(UsageError):
            Filters(texts)


def test_a_prune_takes_some_filters_only() -> None:
    with pytest.raises(UsageError, match="until, label, dangling"):
        Filters(["reference=redis"], PRUNING)
    assert Filters(["dangling=false", "until=10m"], PRUNING).dangling is False


def test_before_and_since_need_an_image_that_is_there() -> None:
    with pytest.raises(NotFound):
        names(["before=nothing"])


def test_until_counts_back_from_now() -> None:
    moment = Filters(["until=90m"]).until
    assert moment is not None
    assert abs(time.time() - 5400 - moment) < 5


PIECES: list[tuple[st.SearchStrategy[str], Callable[[str], str]]] = [
    (st.just("*"), lambda _: "[^/]*"),
    (st.just("?"), lambda _: "[^/]"),
    (st.text("ab/.:-_^$+{}()|", min_size=1, max_size=3), re.escape),
]


@given(
    st.lists(st.one_of(*(st.tuples(s, st.just(f)) for s, f in PIECES)), max_size=6),
    st.text("ab/.:-", max_size=8),
)
def test_a_pattern_means_what_its_parts_mean(
    parts: list[tuple[str, Callable[[str], str]]], text: str
) -> None:
    pattern = "".join(piece for piece, _ in parts)
    expected = "".join(meaning(piece) for piece, meaning in parts)
    assert (glob(pattern).fullmatch(text) is None) == (re.fullmatch(expected, text) is None)


@given(st.text(max_size=12), st.text(max_size=12))
def test_no_pattern_breaks_anything(pattern: str, text: str) -> None:
    try:
        compiled = glob(pattern)
    except UsageError:
        return
    compiled.fullmatch(text)
    assert glob("".join(f"\\{char}" for char in pattern)).fullmatch(pattern)


def test_a_pattern_of_many_stars_is_no_trap() -> None:
    # Gone back to at every star, this would take longer than the world has been there.
    assert not glob("*" * 200 + "a*" * 60 + "!").fullmatch("a" * 250)


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00.5Z"),
        ("2024-01-01T00:00:00.123456788Z", "2024-01-01T00:00:00.123456789Z"),
        ("2024-01-01T01:00:00+02:00", "2024-01-01T00:00:00Z"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00-00:30"),
        ("", "0001-01-01T00:00:00Z"),
        ("nonsense", "0001-01-01T00:00:00Z"),
    ],
)
def test_times_of_any_form_sort(earlier: str, later: str) -> None:
    assert moment(earlier) < moment(later)
