"""The grammar of image references, by table and by generated text."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyrun.errors import InvalidReference
from pyrun.images.reference import Reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "canonical", "familiar"),
    [
        ("redis", "docker.io/library/redis:latest", "redis:latest"),
        ("redis:7", "docker.io/library/redis:7", "redis:7"),
        ("library/redis", "docker.io/library/redis:latest", "redis:latest"),
        ("docker.io/redis", "docker.io/library/redis:latest", "redis:latest"),
        ("index.docker.io/redis", "docker.io/library/redis:latest", "redis:latest"),
        ("index.docker.io/a/b", "docker.io/a/b:latest", "a/b:latest"),
        ("user/app:v1", "docker.io/user/app:v1", "user/app:v1"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
        ("localhost:5000/app", "localhost:5000/app:latest", "localhost:5000/app:latest"),
        ("host:80/a/b:t", "host:80/a/b:t", "host:80/a/b:t"),
        ("quay.io/a/b", "quay.io/a/b:latest", "quay.io/a/b:latest"),
        ("Quay.IO/a/b", "quay.io/a/b:latest", "quay.io/a/b:latest"),
        ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
        ("a/b/c/d/e", "docker.io/a/b/c/d/e:latest", "a/b/c/d/e:latest"),
        ("docker.io/localhost/a", "docker.io/localhost/a:latest", "docker.io/localhost/a:latest"),
        ("a.b__c-d---e_f", "docker.io/library/a.b__c-d---e_f:latest", "a.b__c-d---e_f:latest"),
        ("a:_", "docker.io/library/a:_", "a:_"),
        ("a:" + "x" * 128, "docker.io/library/a:" + "x" * 128, "a:" + "x" * 128),
        (f"redis@{DIGEST}", f"docker.io/library/redis@{DIGEST}", f"redis@{DIGEST}"),
        (f"redis:7@{DIGEST}", f"docker.io/library/redis@{DIGEST}", f"redis@{DIGEST}"),
        (f"redis@sha512:{HEX * 2}", f"docker.io/library/redis@sha512:{HEX * 2}", f"redis@sha512:{HEX * 2}"),
        (f"{HEX}:tag", f"docker.io/library/{HEX}:tag", f"{HEX}:tag"),
        ("sha256:abc", "docker.io/library/sha256:abc", "sha256:abc"),
    ],
)
def test_a_reference_has_one_canonical_and_one_familiar_form(
    text: str, canonical: str, familiar: str
) -> None:
    reference = Reference.parse(text)
    assert (reference.canonical, reference.familiar) == (canonical, familiar)


def test_with_a_tag_and_a_digest_both_are_known_and_the_digest_decides() -> None:
    reference = Reference.parse(f"redis:7@{DIGEST}")
    assert (reference.tag, reference.digest, reference.implicit) == ("7", DIGEST, False)
    assert Reference.parse("redis").implicit


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "/",
        "@",
        ":tag",
        "a:",
        "a/",
        "/a",
        "a//b",
        "A",
        "user/App",
        "Host/app",  # no dot, no colon: a path, and so lowercase
        "-a",
        "a-",
        "_a",
        "a..b",
        "a___b",
        "a._b",
        "a:-b",
        "a:.b",
        "a:" + "x" * 129,
        "a:b:c",
        "a b",
        " a",
        "a\n",
        "a\x1b[31m",
        "café",
        "a:٣",  # a digit, but not an ASCII one
        "a" * 300,
        HEX,
        f"a@{HEX}",
        "a@sha256:abc",
        f"a@sha256:{HEX.upper()}",
        f"a@md5:{HEX[:32]}",
        f"a@sha512:{HEX}",
        f"a@{DIGEST}@{DIGEST}",
        "host:port/a",
        "host:0/a",
        "host:65536/a",
        "host:123456/a",
        "-host.io/a",
        "host-.io/a",
        "host..io/a",
        ".io/a",
        "[::1/a",
        "[nope]:80/a",
        "[::1]x/a",
        "https://docker.io/redis",
        "docker.io/",
        "localhost:5000/",
        "../../etc/passwd",
        "a/../b",
        "docker.io/.",
    ],
)
def test_what_is_no_reference_is_refused_with_a_reason_and_an_example(text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        Reference.parse(text)
    assert "is not an image reference: " in caught.value.message
    assert "redis:7" in caught.value.hint
    assert caught.value.message.isprintable()


@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(reference.canonical).canonical == reference.canonical


@given(
    st.text(string.ascii_lowercase[:3] + "0A.:/@-_[]", max_size=30),
    st.sampled_from(["", "@" + DIGEST, "@sha256:0"]),
)
def test_both_forms_of_a_reference_mean_the_same_image(text: str, digest: str) -> None:
    try:
        reference = Reference.parse(text + digest)
    except InvalidReference:
        return
    assert Reference.parse(reference.canonical) == Reference.parse(reference.familiar)
    assert Reference.parse(reference.familiar).canonical == reference.canonical


@pytest.mark.parametrize("scheme", ["http", "https", "docker"])
def test_a_url_is_told_what_to_leave_out(scheme: str) -> None:
    with pytest.raises(InvalidReference, match=f"leave out {scheme}://"):
        Reference.parse(f"{scheme}://docker.io/redis@{'sha256:' + 'a' * 64}")
