"""An image in which every sort of thing that `which` tells of happens, in a store that tests only read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyrun.testing.tars import Dir, Fifo, File, Link, Member, Opaque, Sparse, Symlink, Whiteout, tar
from support.pyrun import Pyrun
from support.registry import Registry

HOSTILE = "</script><img src=x onerror=document.title='owned'>"
RAW = b"caf\xe9-\x1b[31mred"
HISTORY: list[dict[str, Any]] = [
    {"created": "2024-05-06T07:08:09Z", "created_by": "/bin/sh -c #(nop) ADD file:base in / "},
    {"created": "2024-05-06T07:08:10Z", "created_by": '/bin/sh -c #(nop)  CMD ["sh"]', "empty_layer": True},
    {"created": "2024-05-06T07:08:11Z", "created_by": "RUN \x1b[31mapp --install\x07 # \u202emoc.live"},
    {"created": "2024-05-06T07:08:12Z", "created_by": "ENV A=1", "empty_layer": True},
    {"created": "2024-05-06T07:08:13Z", "created_by": f"RUN {HOSTILE}", "comment": "c"},
    {"created": "2024-05-06T07:08:14Z", "created_by": "RUN last"},
]
SPARSE = {4096: b"x" * 512, 1 << 19: b"y" * 512}


def layers() -> list[bytes]:
    base: list[Member] = [
        Dir("etc"),
        File("etc/passwd", b"root:x:0:0\n" * 10),
        File("etc/motd", b"one\n"),
        Link("etc/issue", "etc/motd"),
        Dir("usr"),
        Dir("usr/bin"),
        File("usr/bin/dash", b"d" * 100_000, 0o755),
        Symlink("bin", "usr/bin"),
        Symlink("usr/bin/sh", "dash"),
        Symlink("usr/bin/round", "/bin/round"),
        Dir("var"),
        Dir("var/cache"),
        *[File(f"var/cache/p{n}", b"c" * 1000 * n) for n in range(1, 11)],
        Dir("opt"),
        File("opt/old", b"old"),
        Dir("turned"),
        File("turned/into", b"link"),
        Fifo("pipe"),
    ]
    second = [
        File("etc/passwd", b"root:x:0:0\napp:x:1:1\n", 0o600, uid=5, gid=6),
        Whiteout("etc/motd"),
        Dir("srv"),
        File("srv/app", b"first"),
        File("srv/app", b"second!"),
        File(f"srv/{HOSTILE}", b"q"),
        File(b"srv/" + RAW, b"raw bytes\n"),
        Sparse("srv/sparse", 1 << 20, SPARSE),
    ]
    third = [Dir("var"), Whiteout("var/cache"), Dir("opt"), Opaque("opt"), File("opt/new", b"new")]
    fourth = [Symlink("turned", "srv"), File("srv/app", b"third"), File("usr/bin/more", b"m" * 50)]
    return [tar(*members) for members in (base, second, third, fourth)]


@pytest.fixture(scope="session")
def study(registry: Registry, mirror: Path, base: Path) -> Pyrun:
    """A store with the image "study"."""
    registry.push_image("library/study", "latest", layers(), history=HISTORY)
    pyrun = Pyrun(
        base / "study", base / "study-state", env={"CONTAINERS_REGISTRIES_CONF": str(mirror), "TZ": "UTC"}
    )
    pyrun.ok("pull", "-q", "study")
    return pyrun
