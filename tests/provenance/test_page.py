"""The page of `pyrun layers --html`, in a real browser without a network."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.browser import Browser, Page, command
from support.pyrun import Pyrun

from .conftest import HOSTILE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the store of the image")


@pytest.fixture(scope="module")
def html(study: Pyrun, base: Path) -> Path:
    path = base / "layers.html"
    study.ok("layers", "study", "--html", str(path))
    return path


@pytest.fixture(scope="module")
def browser(base: Path) -> Iterator[Browser]:
    command()
    directory = base / "browser"
    directory.mkdir()
    with Browser(directory) as running:
        yield running


def paths(page: Page) -> list[str]:
    found: list[str] = page.run("[...document.querySelectorAll('#rows td.path')].map(c => c.textContent)")
    return found


def column(page: Page, number: int) -> list[str]:
    found: list[str] = page.run(
        f"[...document.querySelectorAll('#rows tr')].map(r => r.cells[{number}].textContent)"
    )
    return found


def quiet(page: Page) -> None:
    """Nothing was asked for but the page itself, and nothing went wrong."""
    assert page.errors == []
    assert len(page.requests) == 1
    assert page.requests[0].startswith("file:")
    assert page.dialogs == []


def test_the_rows_are_there_and_nothing_is_asked_for(browser: Browser, html: Path, study: Pyrun) -> None:
    page = browser.open(html)
    expected = json.loads(study.ok("layers", "study", "--files", "--format", "json"))
    rows = [f for layer in expected["Layers"] for f in layer["Files"] if f["Type"] != "dir" or f["Change"]]
    assert len(paths(page)) == len(rows)
    assert page.run("document.getElementById('told').textContent") == f"{len(rows)} names."
    assert page.run("document.querySelectorAll('.stack a').length") == 4
    sizes = page.run("JSON.parse(document.getElementById('data').textContent).files.map(f => f[3])")
    assert sorted(sizes) == sorted(f["Size"] if f["Type"] == "file" else -1 for f in rows)
    quiet(page)


def test_hostile_names_are_text(browser: Browser, html: Path) -> None:
    page = browser.open(html)
    assert f"/srv/{HOSTILE}" in paths(page)
    assert page.run("document.title") == "Layers of study:latest"
    assert page.run("document.querySelectorAll('img, iframe, object, embed').length") == 0
    assert page.run("document.scripts.length") == 2
    assert HOSTILE in page.run("document.querySelector('.layer[data-layer=\"3\"] pre').textContent")
    # Neither is writing turned around, nor is a control character in it.
    assert page.run("/[\\u0000-\\u0008\\u001b\\u202e]/.test(document.documentElement.textContent)") is False
    quiet(page)


def test_the_page_s_policy_stops_what_an_escape_would_have_let_through(browser: Browser, html: Path) -> None:
    page = browser.open(html)
    page.run(
        "document.body.insertAdjacentHTML('beforeend', "
        '\'<img src="https://example.invalid/x" onerror="document.title=1">\');'
        " const s = document.createElement('script'); s.textContent = 'document.title = 2'; document.body.append(s)"
    )
    page.run("new Promise(done => setTimeout(done, 200))")
    assert page.run("document.title") == "Layers of study:latest"
    assert page.errors, "the browser tells of what it stopped"


def test_columns_sort_by_mouse_and_by_key(browser: Browser, html: Path) -> None:
    page = browser.open(html)
    data = page.run(
        "JSON.parse(document.getElementById('data').textContent).files.map(f => [f[0], f[3], f[1]])"
    )
    by_size = [p for p, _, _ in sorted(data, key=lambda f: (-f[1], f[0], f[2]))]
    assert [p.partition(" → ")[0] for p in paths(page)] == by_size
    page.run("document.querySelector('th[data-sort=path] button').click()")
    page.run("new Promise(done => setTimeout(done, 50))")
    shown = [p.partition(" → ")[0] for p in paths(page)]
    assert shown == sorted(shown)
    assert page.run("document.querySelector('th[data-sort=path]').getAttribute('aria-sort')") == "ascending"
    page.run("document.querySelector('th[data-sort=path] button').focus()")
    page.press("Enter", 13)
    page.run("new Promise(done => setTimeout(done, 50))")
    assert [p.partition(" → ")[0] for p in paths(page)] == sorted(shown, reverse=True)
    assert page.run("location.hash") == "#sort=path&order=down"
    quiet(page)


def test_finding_and_choosing_a_layer_narrow_the_rows(browser: Browser, html: Path) -> None:
    page = browser.open(html)
    page.press("/", 191)
    assert page.run("document.activeElement.id") == "find"
    for letter in "CACHE":
        page.press(letter, ord(letter))
    found = paths(page)
    assert len(found) == 12
    assert all("cache" in path for path in found)
    page.run(
        "document.getElementById('find').value = ''; document.getElementById('find').dispatchEvent(new Event('input'))"
    )
    page.run("document.querySelector('.stack a[data-layer=\"4\"]').focus()")
    page.press("Enter", 13)
    page.run("new Promise(done => setTimeout(done, 50))")
    assert set(column(page, 2)) == {"4"}
    assert page.run("document.querySelector('.layer[data-layer=\"4\"]').hidden") is False
    assert page.run("document.getElementById('choice').value") == "4"
    page.run("history.back(); new Promise(done => setTimeout(done, 300))")
    assert set(column(page, 2)) == {"1", "2", "3", "4"}
    quiet(page)


def test_a_view_is_in_the_address(browser: Browser, html: Path) -> None:
    page = browser.open(html, "#layer=1&wasted=1&q=p&sort=path")
    assert set(column(page, 2)) == {"1"}
    assert all(text.startswith("by layer") for text in column(page, 4))
    assert "/etc/passwd" in paths(page)
    odd = browser.open(html, "#layer=99&sort=__proto__&order=x&q=%3Cimg%3E")
    assert paths(odd) == []
    quiet(odd)
    quiet(page)


def test_it_fits_a_phone_and_either_scheme(browser: Browser, html: Path) -> None:
    grounds = []
    for dark in (False, True):
        for width in (360, 1280):
            page = browser.open(html, width=width, dark=dark)
            assert page.run("document.documentElement.scrollWidth") <= width
            quiet(page)
        grounds.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]
    assert page.pdf_pages() >= 1


def test_bands_are_as_tall_as_their_part_and_what_is_wasted_is_hatched(
    browser: Browser, html: Path, study: Pyrun
) -> None:
    page = browser.open(html)
    tall = page.run(
        "Object.fromEntries([...document.querySelectorAll('.stack a')].map(a => [a.dataset.layer, "
        "a.querySelector('svg').getBoundingClientRect().height]))"
    )
    layers = json.loads(study.ok("layers", "study", "--format", "json"))["Layers"]
    least = min(tall.values())
    biggest = max(layers, key=lambda one: one["Bytes"])
    assert tall[str(biggest["Number"])] == max(tall.values())
    for one in layers:
        share = one["Bytes"] / sum(layer["Bytes"] for layer in layers)
        assert tall[str(one["Number"])] == pytest.approx(30 + share * (420 - 33 * 4), abs=1.5)
    assert least >= 30
    hatched = page.run(
        "Object.fromEntries([...document.querySelectorAll('.stack a')].map(a => [a.dataset.layer, "
        "a.querySelector('.hatched') ? a.querySelector('.hatched').getBoundingClientRect().width / "
        "a.querySelector('.ground').getBoundingClientRect().width : 0]))"
    )
    for one in layers:
        assert hatched[str(one["Number"])] == pytest.approx(
            max(one["Wasted"]["Bytes"] / one["Bytes"], 0.007 if one["Wasted"]["Bytes"] else 0), abs=0.01
        )


def test_the_page_is_one_file_without_addresses(html: Path, study: Pyrun) -> None:
    text = html.read_text()
    assert not re.findall(r"https?://", text)
    assert "default-src &#x27;none&#x27;" in text
    assert study.ok("layers", "study", "--html", "-") == text
    assert text.count("</script>") == 2
    head, _, rest = text.partition('<script type="application/json" id="data">')
    assert "<" not in rest.partition("</script>")[0]
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", head)
