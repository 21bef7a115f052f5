"""References against the grammar of the distribution project, read anew as one regular expression."""

from __future__ import annotations

import ipaddress
import re

from hypothesis import given
from hypothesis import strategies as st
from rounds import rounds

from pyrun.errors import InvalidReference
from pyrun.images.reference import Reference

# The comments above `package reference` in distribution/reference, rule by rule.
_WORD = r"[a-z0-9]+"
_SEPARATOR = r"(?:[._]|__|[-]+)"
_COMPONENT = rf"{_WORD}(?:{_SEPARATOR}{_WORD})*"
_PATH = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:.]+\])"
_DOMAIN = rf"{_HOST}(?::[0-9]+)?"
_TAG = r"[\w][\w.-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"
GRAMMAR = re.compile(rf"(?:({_DOMAIN})/)?({_PATH})(?::({_TAG}))?(?:@({_DIGEST}))?", re.ASCII)
IDENTIFIER = re.compile(r"[a-f0-9]{64}")


def oracle(text: str) -> tuple[str, str, str | None, str | None] | None:
    """(domain, path, tag, digest) as docker normalises them, or None; by regular expression and splitting."""
    if IDENTIFIER.fullmatch(text):
        return None
    name, _, rest = text.partition("/")
    explicit = bool(rest) and ("." in name or ":" in name or name == "localhost")
    match = GRAMMAR.fullmatch(text if explicit else "docker.io/" + text)
    if match is None or match[1] is None:
        return None
    domain, path, tag, digest = match.groups()
    if explicit and domain != name:
        return None
    domain = domain.lower()
    host, _, port = (
        domain.rpartition(":")
        if re.search(r":[0-9]+$", domain) and not domain.endswith("]")
        else (domain, "", "")
    )
    if port and not 0 < int(port) < 65536:
        return None
    if host.startswith("[") and ":" not in host:
        return None
    if len(port) > 5:
        return None
    if domain == "index.docker.io":
        domain = "docker.io"
    if domain == "docker.io" and "/" not in path:
        path = "library/" + path
    if len(domain) + 1 + len(path) > 255:
        return None
    return domain, path, tag, digest


def printable_words(error: InvalidReference) -> None:
    assert str(error).replace("\n", "").isprintable()


def parsed(text: str) -> tuple[str, str, str | None, str | None] | None:
    try:
        found = Reference.parse(text)
    except InvalidReference as error:
        printable_words(error)
        return None
    return found.domain, found.path, None if found.implicit else found.tag, found.digest


PIECES = st.sampled_from(
    [
        *[
            "a",
            "redis",
            "A",
            "0",
            ".",
            "-",
            "--",
            "_",
            "__",
            "___",
            "/",
            "//",
            ":",
            "::",
            "@",
            "@sha256:",
            "sha512:",
        ],
        *[
            "localhost",
            "docker.io",
            "index.docker.io",
            "library/",
            "[::1]",
            "[",
            "]",
            "example.com:5000/",
            ":65536/",
        ],
        *[
            "a" * 64,
            "0" * 128,
            "f" * 32,
            "a" * 129,
            "b/" * 70,
            "latest",
            ":latest",
            "é",
            " ",
            "\n",
            "\0",
            "://",
            "%",
        ],
    ]
)
# What the grammar makes, mostly.
WORDS = st.text(alphabet="ab0", min_size=1, max_size=4)
MADE = st.builds(
    lambda domain, path, tag, digest: domain + path + tag + digest,
    st.sampled_from(
        [
            "",
            "",
            "localhost/",
            "Example.com/",
            "h:5000/",
            "[fe80::1]:80/",
            "a.b-c:70000/",
            "UPPER/",
            "index.docker.io/",
        ]
    ),
    st.lists(WORDS, min_size=1, max_size=4).flatmap(
        lambda words: st.sampled_from([".", "_", "__", "-", "---", "/", "._"]).map(
            lambda between: between.join(words)
        )
    ),
    st.one_of(st.just(""), st.text(alphabet="aA0._-", min_size=1, max_size=6).map(lambda tag: ":" + tag)),
    st.sampled_from(
        ["", "", "@sha256:" + "a1" * 32, "@sha512:" + "a1" * 64, "@sha256:" + "A1" * 32, "@md5:" + "a1" * 16]
    ),
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=8).map("".join),
    st.text(alphabet="abzA09._-/:@[]", max_size=40),
    st.text(max_size=30),
    MADE,
)


@given(TEXTS)
@rounds(800)
def test_what_is_a_reference_and_what_it_names_is_as_the_grammar_says(text: str) -> None:
    assert parsed(text) == oracle(text)


@given(TEXTS)
@rounds(400)
def test_every_form_of_a_reference_names_the_same(text: str) -> None:
    try:
        found = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(found.canonical).canonical == found.canonical
    assert Reference.parse(found.familiar).canonical == found.canonical
    assert Reference.parse(found.repository).repository == found.repository
    assert "/" not in found.domain
    assert ".." not in found.path.split("/")


def test_the_oracle_knows_the_examples_of_the_specification() -> None:
    digest = "sha256:" + "a" * 64
    assert oracle("redis") == ("docker.io", "library/redis", None, None)
    assert oracle(f"localhost/x:1@{digest}") == ("localhost", "x", "1", digest)
    assert oracle("a/b") == ("docker.io", "a/b", None, None)
    assert oracle("[::1]:5000/x") == ("[::1]:5000", "x", None, None)
    assert oracle("A") is oracle("a..b") is oracle("a" * 64) is oracle("") is None
    assert ipaddress.ip_address("::1")
