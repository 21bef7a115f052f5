"""What the tables of random layers tell, against what real overlay mounts of every prefix of the stack show."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rawtar import END, Stream, directory, extract, file, hardlink, header, merged, symlink

from pyrun.errors import LayerError
from pyrun.kernel import overlay
from pyrun.kernel.openat2 import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from pyrun.layers.fold import table_of
from pyrun.layers.provenance import DELETED, ENTRY, MERGED, REPLACED, VISIBLE, Stack
from pyrun.layers.table import IMPLIED, Table
from pyrun.layers.weigh import suppliers, weigh

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: overlay mounts")

# Few names, so that entries meet; every kind in the place of every other.
PARTS = st.sampled_from([b"a", b"b", b"c"])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map(b"/".join)
ENTRIES = st.one_of(
    st.tuples(st.just("file"), NAMES, st.none()),
    st.tuples(st.just("dir"), NAMES, st.none()),
    st.tuples(st.just("whiteout"), NAMES, st.none()),
    st.tuples(st.just("opaque"), st.one_of(NAMES, st.just(b"")), st.none()),
    st.tuples(
        st.just("symlink"), NAMES, st.sampled_from([b"b", b"/c/a", b"../a", b"..", b"/", b"a/b", b"."])
    ),
    st.tuples(st.just("link"), NAMES, NAMES),
    st.tuples(st.just("fifo"), NAMES, st.none()),
)
LAYERS = st.lists(st.lists(ENTRIES, max_size=8), min_size=1, max_size=4)
PATHS = st.lists(st.sampled_from([b"a", b"b", b"c", b"..", b".", b""]), min_size=1, max_size=6).map(b"/".join)

Layer = list[tuple[str, bytes, bytes | None]]


def member(kind: str, name: bytes, detail: bytes | None, token: bytes) -> bytes:
    where, slash, base = name.rpartition(b"/")
    match kind:
        case "file":
            return file(name, token)  # of this member alone
        case "dir":
            return directory(name)
        case "whiteout":
            return file(where + slash + b".wh." + base)
        case "opaque":
            return file(name + b"/.wh..wh..opq" if name else b".wh..wh..opq")
        case "symlink":
            return symlink(name, detail or b"")
        case "link":
            return hardlink(name, detail or b"")
        case _:
            return header(name, b"6")


def members(layer: Layer, number: int) -> list[bytes]:
    return [
        member(*entry, token=b"%d:%d" % (number, at) + b"." * (number * 7 + at))
        for at, entry in enumerate(layer)
    ]


class Truth:
    """The layers that unpack, their tables, and the tree that a mount of each prefix shows."""

    def __init__(self, root: Path, layers: list[Layer]) -> None:
        self.root = root
        self.tables: list[Table] = []
        self.trees: list[dict[bytes, tuple[object, ...]]] = []
        self.below: list[str] = []
        for number, layer in enumerate(layers):
            parts = members(layer, number)
            where = f"l{number}"
            stream = Stream(b"".join(parts) + END)
            try:
                done = extract(root / where, *parts)
            except LayerError as error:
                if "hard link" not in str(error):
                    with pytest.raises(LayerError):
                        table_of(stream)
                continue
            table = table_of(stream)
            assert Table.decoded(table.encoded()).names == table.names
            assert [n for n, f in zip(table.names, table.flags, strict=True) if f & IMPLIED] == done.implied
            self.below = [where] if done.opaque_root else [*self.below, where]
            self.tables.append(table)
            self.trees.append(merged(root, self.below, times=False))

    def lives(self, name: bytes, number: int) -> bool:
        """Whether layer ``number`` has a version of ``name`` that its prefix shows: by the content of files."""
        shown = self.trees[number].get(name)
        before = self.trees[number - 1].get(name) if number else None
        return shown is not None and (before is None or shown != before)


KINDS = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
}


def check(layers: list[Layer], paths: list[bytes]) -> None:
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as place:
        truth = Truth(Path(place), layers)
        if not truth.tables:
            return
        stack = Stack(truth.tables)
        names = {name for table in truth.tables for name in table.names if name}
        final = truth.trees[-1]
        assert set(final) <= names
        for name in names:
            check_name(truth, stack, name)
        check_weight(truth, names)
        check_paths(truth, stack, paths)


def check_name(truth: Truth, stack: Stack, name: bytes) -> None:
    found = stack.trace(name)
    versions = [one for one in found if one.what == ENTRY]
    visible = [one for one in versions if one.state == VISIBLE]
    shown = truth.trees[-1].get(name)
    assert bool(visible) == (shown is not None), (name, found)
    # Every layer with something of that name is told of, topmost first.
    having = [at for at, table in enumerate(truth.tables) if table.row(name) >= 0]
    marks = {one.layer for one in found if one.what != ENTRY}
    assert [one.layer for one in versions] == sorted({one.layer for one in versions}, reverse=True)
    assert {one.layer for one in versions} | marks >= set(having)
    for one in versions:
        table = truth.tables[one.layer]
        kind = table.kind(one.row)
        then = truth.trees[one.layer].get(name)
        assert then is not None, "its own layer's prefix shows it"
        assert then[0] == KINDS[kind]
        if kind == "dir":
            continue
        # It lived until the first prefix that shows something else, or nothing.
        ended = next(
            (at for at in range(one.layer + 1, len(truth.trees)) if truth.trees[at].get(name) != then), None
        )
        # A layer may bring the very same again: a fifo is no different from another.
        again = next((v.layer for v in reversed(versions) if v.layer > one.layer), None)
        if ended is None or (again is not None and again < ended):
            ended = again
        if one.state == VISIBLE:
            assert ended is None
            assert shown == then
        else:
            assert one.by == ended, (name, found)
            assert one.state == (REPLACED if name in truth.trees[one.by] else DELETED), (name, found)
    # Of a directory: what hides a version is what first makes its prefix show no directory, or an empty new one.
    if shown is not None and shown[0] == stat.S_IFDIR:
        assert {one.state for one in versions} <= {VISIBLE, MERGED, REPLACED, DELETED}
        whole = [one.layer for one in versions if one.state in (VISIBLE, MERGED)]
        assert whole == sorted(whole, reverse=True)
        assert len(visible) == 1


def check_weight(truth: Truth, names: set[bytes]) -> None:
    weight = weigh(truth.tables)
    final = truth.trees[-1]
    stack = Stack(truth.tables)
    assert {name for name in weight.visible if name} == set(final)
    for number, (table, account) in enumerate(zip(truth.tables, weight.layers, strict=True)):
        before = truth.trees[number - 1] if number else {}
        after = truth.trees[number]
        assert {name for name in before if name not in after} >= {
            name for name in table.names if name in before and chr(account.does[table.row(name)]) == "D"
        }
        listed = [
            row
            for row, name in enumerate(table.names)
            if name and not table.flags[row] & IMPLIED and table.kinds[row] != ord("w")
        ]
        assert account.names - (not table.flags[0] & IMPLIED) == len(listed)
        for row, name in enumerate(table.names):
            if not name or table.kinds[row] in b"dw":
                continue
            told = next(one for one in stack.trace(name) if one.what == ENTRY and one.layer == number)
            assert account.fate[row] == told.by + 1
            assert (weight.visible.get(name) == (number, row)) == (told.state == VISIBLE)
            assert chr(account.does[row]) == ("C" if name in before else "A"), name
    assert sum(a.wasted.bytes for a in weight.layers) == sum(one.bytes for one in weight.waste)
    # What shows, once for each file of a layer, and what does not make up what the tars hold.
    seen = {
        (number, table.offsets[row]): table.stored[row]
        for number, row in weight.visible.values()
        if chr((table := truth.tables[number]).kinds[row]) == "f"
    }
    assert sum(seen.values()) == sum(a.bytes - a.wasted.bytes for a in weight.layers)
    for name, what in final.items():
        if what[0] == stat.S_IFDIR:
            inside = [n for n in final if n.startswith(name + b"/")]
            lowest = min(o.layer for o in stack.trace(name) if o.state in (VISIBLE, MERGED))
            counts = suppliers(truth.tables, name, lowest)
            expected: dict[int, int] = {}
            for one in inside:
                number = weight.visible[one][0]
                expected[number] = expected.get(number, 0) + 1
            assert counts == expected, name


ERRORS = {errno.ENOENT: "missing", errno.ENOTDIR: "not a directory", errno.ELOOP: "loop"}


def check_paths(truth: Truth, stack: Stack, paths: list[bytes]) -> None:
    """Where the kernel leads a path, the stack does too."""
    mounted = overlay.mount_overlay(
        overlay.Stack(str(truth.root), [*reversed(truth.below), "nothing"], "upper", "work", {}), overlay.FDS
    )
    try:
        for path in paths:
            for follow in (True, False):
                place = stack.find(path, follow=follow)
                flags = os.O_PATH | (0 if follow else os.O_NOFOLLOW)
                try:
                    fd = openat2(
                        mounted, path or b".", flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
                    )
                except OSError as error:
                    theirs_says = ERRORS[error.errno]
                else:
                    theirs_says = ""
                assert place.problem == theirs_says, (path, follow)
                if theirs_says:
                    continue
                try:
                    theirs = os.fstat(fd)
                    mine = os.lstat(place.name or b".", dir_fd=mounted)
                    assert (theirs.st_ino, theirs.st_mode) == (mine.st_ino, mine.st_mode), (path, follow)
                finally:
                    os.close(fd)
    finally:
        os.close(mounted)


DIRECTORY_FILE_DIRECTORY: list[Layer] = [
    [("file", b"a/b", None)],
    [("file", b"a", None)],
    [("file", b"a/c", None), ("dir", b"a", None)],
]
DELETED_AND_MADE_ANEW: list[Layer] = [
    [("file", b"a/b/c", None), ("link", b"a/c", b"a/b/c")],
    [("whiteout", b"a", None), ("file", b"a/b/a", None), ("opaque", b"a/b", None)],
    [("opaque", b"", None), ("file", b"b", None)],
]
LINKS_IN_THE_LAYER: list[Layer] = [
    [("symlink", b"a", b"b"), ("file", b"a/c", None), ("file", b"b/c", None), ("link", b"c", b"a/c")],
    [("symlink", b"b", b"/c/a"), ("file", b"b/c", None), ("whiteout", b"b/a", None)],
]


@needs_root
@given(LAYERS, st.lists(PATHS, max_size=6))
@example(DIRECTORY_FILE_DIRECTORY, [b"a/b", b"a/c/.."])
@example(DELETED_AND_MADE_ANEW, [b"a/b/c", b"a/b/"])
@example(LINKS_IN_THE_LAYER, [b"a/c", b"b/../c", b"b/c/."])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_version_shows_in_the_prefix_it_belongs_to(layers: list[Layer], paths: list[bytes]) -> None:
    check(layers, paths)


@needs_root
@pytest.mark.long
@pytest.mark.timeout(900)
@given(LAYERS, st.lists(PATHS, max_size=6))
@settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_version_shows_in_the_prefix_it_belongs_to_in_many_rounds(
    layers: list[Layer], paths: list[bytes]
) -> None:
    check(layers, paths)
