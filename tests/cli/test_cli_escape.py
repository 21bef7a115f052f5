"""Nothing a registry or a user named may steer the terminal."""

import json

import pytest

from pyrun.cli.escape import ellipsis, printable, printable_json, quoted

HOSTILE = [
    ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
    ("\x9b2J", "\\x9b2J"),
    ("a\x7fb", "a\\x7fb"),
    ("a\rb\nc\td", "a\\rb\\nc\\td"),
    ("\u202etxt.exe", "\\u202etxt.exe"),
    ("\u2028", "\\u2028"),
    ("\udcff", "\\udcff"),
    ("\U000e0001", "\\U000e0001"),
]


@pytest.mark.parametrize(("text", "shown"), HOSTILE)
def test_what_is_not_printable_shows_as_its_escape(text, shown):
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_ordinary_text_of_any_language_is_left_alone():
    text = 'naïve 日本 "quotes" \\ 100%'
    assert printable(text) is text


def test_line_breaks_can_be_kept():
    assert printable("a\n\x1bb", keep="\n") == "a\n\\x1bb"


@pytest.mark.parametrize("text", [text for text, _ in HOSTILE])
def test_an_escaped_json_document_means_the_same(text):
    document = json.dumps({"k": text, "n": [text]}, ensure_ascii=False, indent=2)
    safe = printable_json(document)
    assert json.loads(safe) == {"k": text, "n": [text]}
    assert all(c.isprintable() or c == "\n" for c in safe)


def test_a_command_is_quoted_as_go_quotes():
    assert quoted('sh -c "a\\b"\n') == '"sh -c \\"a\\\\b\\"\\n"'


def test_a_long_text_is_cut_with_an_ellipsis_in_its_length():
    assert ellipsis("docker-entrypoint.sh redis-server", 20) == "docker-entrypoint.s…"
    assert ellipsis("x" * 20, 20) == "x" * 20
    assert len(ellipsis("x" * 21, 20)) == 20
