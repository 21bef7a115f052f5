"""Which manifest of an index suits which platform."""

from __future__ import annotations

import pytest

from pyrun.errors import PlatformUnavailable, UsageError
from pyrun.images import platform
from pyrun.images.model import Descriptor, PlatformField
from pyrun.images.platform import Platform, choose


def index(*names: str) -> list[Descriptor]:
    found = []
    for name in names:
        os, architecture, *variant = name.split("/")
        field = PlatformField(architecture=architecture, os=os, variant=variant[0] if variant else "")
        found.append(Descriptor(media_type="", digest=name, size=0, platform=field))
    return found


@pytest.mark.parametrize(
    ("there", "wanted", "chosen"),
    [
        ("linux/arm64 linux/amd64", "linux/amd64", "linux/amd64"),
        ("linux/amd64 linux/amd64/v2 linux/amd64/v3", "linux/amd64/v2", "linux/amd64/v2"),
        ("linux/amd64/v4 linux/amd64/v2 linux/amd64", "linux/amd64/v3", "linux/amd64/v2"),
        ("linux/amd64/v2 linux/amd64/v1", "linux/amd64", "linux/amd64/v1"),
        ("linux/arm/v5 linux/arm/v6 linux/arm/v7", "linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/v5 linux/arm/v6", "linux/arm/v7", "linux/arm/v6"),
        ("linux/arm/v5", "linux/arm/v8", "linux/arm/v5"),
        ("linux/arm", "linux/arm/v7", "linux/arm"),
        ("linux/arm64", "linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64", "linux/arm64/v8"),
        ("unknown/unknown linux/amd64 unknown/unknown", "linux/amd64", "linux/amd64"),
        ("windows/amd64 linux/amd64", "linux/amd64", "linux/amd64"),
        ("linux/s390x", "linux/s390x", "linux/s390x"),
    ],
)
def test_the_best_manifest_that_runs_is_chosen(there: str, wanted: str, chosen: str) -> None:
    assert choose(index(*there.split()), Platform.parse(wanted), "x").digest == chosen


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("linux/amd64/v3", "linux/amd64/v2"),
        ("linux/arm/v7", "linux/arm/v6"),
        ("linux/386", "linux/amd64"),
        ("linux/arm/v7", "linux/arm64"),
        ("windows/amd64", "linux/amd64"),
        ("unknown/unknown", "linux/amd64"),
    ],
)
def test_what_would_not_run_is_not_chosen_and_the_error_lists_what_there_is(there: str, wanted: str) -> None:
    with pytest.raises(PlatformUnavailable) as caught:
        choose(index(*there.split()), Platform.parse(wanted), "redis:7")
    assert caught.value.message == f"redis:7 has no image for {wanted}"
    assert (there if "unknown" not in there else "none") in caught.value.hint


def test_the_host_takes_its_32_bit_kin_only_where_nothing_is_better() -> None:
    host = Platform("linux", "amd64", "v3", strict=False)
    assert choose(index("linux/386", "linux/amd64"), host, "x").digest == "linux/amd64"
    assert choose(index("linux/386"), host, "x").digest == "linux/386"


def test_control_bytes_in_a_platform_do_not_reach_the_terminal() -> None:
    with pytest.raises(PlatformUnavailable) as caught:
        choose(index("linux/\x1b[2Jevil"), Platform.parse("linux/amd64"), "x")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("linux/arm64/v8", "linux/arm64/v8"),
        ("Linux/AMD64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("x86_64", "linux/amd64"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
    ],
)
def test_a_platform_is_read_as_people_write_it(text: str, parsed: str) -> None:
    assert str(Platform.parse(text)) == parsed


@pytest.mark.parametrize(
    "text", ["", "/", "linux/", "linux//v8", "a/b/c/d", "linux/a b", "nonsense", "linux/\x1b"]
)
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("missing", "level"), [("", "v4"), ("avx512bw", "v3"), ("avx2", "v2"), ("popcnt", "v1")]
)
def test_the_cpu_level_is_the_highest_whose_flags_are_all_there(missing: str, level: str) -> None:
    flags = {flag for _, needed in platform._AMD64_LEVELS for flag in needed} - {missing}
    assert platform._amd64_level(flags) == level


def test_the_environments_default_platform_holds_until_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_DEFAULT_PLATFORM", "linux/s390x")
    assert str(platform.wanted()) == "linux/s390x"
    assert str(platform.wanted("linux/riscv64")) == "linux/riscv64"
    monkeypatch.delenv("DOCKER_DEFAULT_PLATFORM")
    assert platform.wanted() == platform.host()
