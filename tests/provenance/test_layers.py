"""`pyrun layers`: what each layer of an image adds, replaces, deletes and wastes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pyrun.engine import Engine
from support.pyrun import Pyrun, terminal
from support.registry import Registry

from .conftest import HISTORY, HOSTILE, SPARSE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the store of the image")

CACHE = sum(1000 * n for n in range(1, 11))
SPARSE_BYTES = sum(map(len, SPARSE.values()))


def report(pyrun: Pyrun, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pyrun.ok("layers", "study", *args, "--format", "json"))
    return found


def test_the_account_of_every_layer_adds_up(study: Pyrun) -> None:
    found = report(study)
    one, two, three, four = found["Layers"]
    assert [layer["CreatedBy"] for layer in found["Layers"]] == [
        HISTORY[n]["created_by"] for n in (0, 2, 4, 5)
    ]
    assert one["Bytes"] == 110 + 4 + 100_000 + CACHE + 3 + 4
    assert (one["Added"]["Bytes"], one["Replaced"]["Names"], one["Deleted"]["Names"]) == (one["Bytes"], 0, 0)
    # Below: passwd replaced, the cache, opt/old and turned/into deleted; motd is still there by its other name.
    assert one["Wasted"]["Bytes"] == 110 + CACHE + 3 + 4
    assert two["Bytes"] == 21 + len(b"first") + len(b"second!") + 1 + len(b"raw bytes\n") + SPARSE_BYTES
    assert (two["Replaced"]["Names"], two["Replaced"]["Bytes"], two["Deleted"]["Names"]) == (1, 21, 1)
    assert two["Deleted"]["Bytes"] == 0
    assert two["Wasted"]["Bytes"] == len(b"first") + len(b"second!")
    assert (three["Deleted"]["Names"], three["Deleted"]["Bytes"]) == (1 + 10 + 1, CACHE + 3)
    assert three["Hides"]["Bytes"] == CACHE + 3
    assert (four["Wasted"]["Bytes"], four["Hides"]["Bytes"]) == (0, len(b"second!") + 4)
    assert four["Replaced"]["Names"] == 2
    assert found["Content"] == sum(layer["Bytes"] for layer in found["Layers"])
    assert found["Wasted"] == sum(one["Bytes"] for one in found["Waste"])
    assert found["Waste"][0] == {
        "Path": "/var/cache",
        "How": "deleted",
        "By": 3,
        "Layers": [1],
        "Names": 10,
        "Bytes": CACHE,
    }
    assert {one["How"] for one in found["Waste"]} == {"deleted", "replaced", "repeated"}


def test_what_shows_in_the_end_is_what_a_container_has(pulled: Pyrun) -> None:
    """Names, counted by find in a container of a real image."""
    names = pulled.sh("cd / && find . -xdev | wc -l", image="redis")
    found = json.loads(pulled.ok("layers", "redis", "--format", "json"))
    # What the engine makes to mount things on is there, too.
    assert 0 <= int(names) - found["Names"] <= 12


def test_the_stack_is_printed_as_it_lies(study: Pyrun) -> None:
    lines = study.ok("layers", "study").splitlines()
    assert lines[0].startswith("study:latest  linux/")
    assert lines[1].startswith("4 layers: ")
    assert " wasted (" in lines[1]
    assert [line[:4] for line in lines[2:10:2]] == ["├─ 4", "├─ 3", "├─ 2", "└─ 1"]
    assert lines[7].endswith("RUN \\x1b[31mapp --install\\x07 # \\u202emoc.live")
    assert lines[9] == "      /bin/sh -c #(nop) ADD file:base in /"
    assert lines[13].split()[:2] == ["WASTED", "FILES"]
    assert lines[14].split() == ["55kB", "10", "of", "layer", "1,", "deleted", "by", "3", "/var/cache"]
    assert study.ok("image", "layers", "study") == study.ok("layers", "study")


def test_the_files_of_a_layer_are_listed_with_what_became_of_them(study: Pyrun) -> None:
    lines = study.ok("layers", "study", "--layer", "2").splitlines()
    assert lines[0].split() == "LAYER CHANGE MODE OWNER SIZE MODIFIED HIDDEN BY PATH".split()
    cells = {line.rsplit("   ", 1)[1]: line.split() for line in lines[1:]}
    assert cells["/etc/motd"][:2] == ["2", "D"]
    assert cells["/etc/passwd"][1] == "C"
    assert cells["/srv/app"][-2:] == ["4", "/srv/app"]
    assert "/srv/caf\\xe9-\\x1b[31mred" in cells
    every = study.ok("layers", "study", "--files").splitlines()[1:]
    assert {line.split()[0] for line in every} == {"1", "2", "3", "4"}
    both = study.ok("layers", "study", "--layer", "4", "--layer", "2").splitlines()[1:]
    assert [line.split()[0] for line in both] == ["2"] * len(cells) + ["4"] * (len(both) - len(cells))
    files = report(study, "--layer", "4")["Layers"]
    assert "Files" not in files[0]
    turned = next(file for file in files[3]["Files"] if file["Path"] == "/turned")
    assert (turned["Type"], turned["Target"], turned["Change"]) == ("symlink", "srv", "C")


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("study", "--layer", "5"), 1, "study:latest has no layer 5"),
        (("study", "--layer", "0"), 1, "has no layer 0"),
        (("nothere",), 1, "no such image"),
        (("study", "--html", "x", "--files"), 125, "--html writes a page of its own"),
        (("study", "--html", "/nope/x.html"), 1, "/nope/x.html can't be written: No such file"),
    ],
)
def test_mistakes_are_told_in_words(study: Pyrun, args: tuple[str, ...], code: int, words: str) -> None:
    done = study("layers", *args)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr


def test_a_template_gets_the_whole_account(study: Pyrun) -> None:
    out = study.ok("layers", "study", "--format", "{{range .Layers}}{{.Number}}:{{.Wasted.Bytes}} {{end}}")
    assert out.split()[-1] == "4:0"


def test_nothing_from_the_image_acts_on_a_terminal(study: Pyrun) -> None:
    for args in ((), ("--files",), ("--format", "{{range .Layers}}{{.CreatedBy}}{{end}}")):
        with terminal(study, "layers", "study", *args, size=(24, 250)) as window:
            assert window.wait() == 0
            assert b"\x1b" not in window.output
            assert b"\x07" not in window.output
            assert "\u202e" not in window.output.decode(errors="replace")


def test_the_python_interface_tells_the_same(study: Pyrun) -> None:
    found = Engine(str(study.root), str(study.state)).layers("study")
    assert (found.name, len(found.reports), found.wasted) == ("study:latest", 4, report(study)["Wasted"])
    assert {file.path for file in found.files(3)} == {"/var", "/var/cache", "/opt", "/opt/new"}
    assert any(HOSTILE in file.path for file in found.files(2))


def test_an_image_of_many_layers_and_a_short_history(base: Path, mirror: Path, registry: Registry) -> None:
    from pyrun.testing.tars import File, tar

    many = [tar(File("counter", b"%d" % n * 100)) for n in range(45)]
    history = [{"created_by": "one"}, {"created_by": "none", "empty_layer": True}, {"created_by": "two"}]
    registry.push_image(
        "library/tall", "latest", many, compression=("plain",), other_platform=False, history=history
    )
    pyrun = Pyrun(base / "tall", base / "tall-state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
    pyrun.ok("pull", "-q", "tall")
    found = json.loads(pyrun.ok("which", "tall", "/counter", "--format", "json"))
    assert [v["Layer"] for v in found["Versions"]] == list(range(45, 0, -1))
    assert [v["By"] for v in found["Versions"]] == [0, *range(45, 1, -1)]
    # A history that ends before the layers do leaves them without words.
    assert [v["CreatedBy"] for v in found["Versions"]] == [""] * 43 + ["two", "one"]
    assert pyrun.ok("which", "tall", "/counter", "--cat", "@42") == "41" * 100
    assert pyrun.ok("layers", "tall").count("─") == 45


def test_an_image_without_layers_has_nothing(base: Path, mirror: Path, registry: Registry) -> None:
    registry.push_image("library/nothing", "latest", [])
    pyrun = Pyrun(base / "nothing", base / "nothing-state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror)})
    pyrun.ok("pull", "-q", "nothing")
    assert "0 layers: 0B to download, 0B of files, nothing wasted" in pyrun.ok("layers", "nothing")
    assert "<h1>nothing:latest</h1>" in pyrun.ok("layers", "nothing", "--html", "-")
    for args in (("/",), ("/", "--cat"), ("/x",)):
        done = pyrun("which", "nothing", *args)
        assert done.returncode == 1
        assert "has no layers" in done.stderr
