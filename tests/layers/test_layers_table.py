"""Tables of layers: as files, whole or damaged; and tars that only tampering could have brought into the store."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rawtar import END, Stream, directory, file, hardlink, header, long, pax, symlink
from test_layers_random import damaged, seed_archive

from pyrun.errors import LayerError
from pyrun.layers.fold import table_of
from pyrun.layers.limits import Limits
from pyrun.layers.provenance import Stack
from pyrun.layers.table import FRESH, IMPLIED, OPAQUE, Table
from pyrun.layers.weigh import weigh


def table(*members: bytes) -> Table:
    return table_of(Stream(b"".join(members) + END))


def rows(made: Table) -> dict[bytes, tuple[str, int]]:
    return {name: (made.kind(row), made.flags[row]) for row, name in enumerate(made.names)}


def test_a_table_is_the_same_after_it_was_a_file() -> None:
    made = table_of(Stream(bytes(seed_archive())))
    again = Table.decoded(made.encoded())
    for name in Table.__slots__:
        assert getattr(again, name) == getattr(made, name), name
    assert made.sparse
    assert made.devices
    assert made.targets


def test_what_the_layer_says_last_counts() -> None:
    made = table(
        file(b"a", b"1"), file(b"a", b"22"), directory(b"b"), file(b"b/c", b"333"), file(b"b", b"4444")
    )
    assert rows(made) == {b"": ("dir", IMPLIED), b"a": ("file", 0), b"b": ("file", 0)}
    assert list(made.sizes) == [0, 2, 4]
    assert made.copies == {1: 2, 2: 2}
    assert made.lost == 1 + 3


def test_deletions_and_what_stands_in_their_place() -> None:
    made = table(
        file(b".wh.gone"),
        file(b"d/.wh..wh..opq"),
        file(b".wh.new"),
        directory(b"new"),
        file(b"was", b"x"),
        directory(b"was"),
        file(b".wh.through"),
        file(b"through/x"),
    )
    assert rows(made) == {
        b"": ("dir", IMPLIED),
        b"d": ("dir", IMPLIED | OPAQUE),
        b"gone": ("whiteout", FRESH),
        b"new": ("dir", FRESH),
        b"through": ("dir", IMPLIED | FRESH),
        b"through/x": ("file", 0),
        b"was": ("dir", FRESH),
    }


def test_hard_links_have_their_files_content_and_name_it() -> None:
    made = table(
        file(b"a", b"text", mode=0o600),
        hardlink(b"b", b"a"),
        hardlink(b"c", b"./b"),
        hardlink(b"far", b"below/x"),
        symlink(b"s", b"a"),
        hardlink(b"t", b"s"),
    )
    a, b, c, far, s, t = (made.row(name) for name in (b"a", b"b", b"c", b"far", b"s", b"t"))
    assert made.offsets[a] == made.offsets[b] == made.offsets[c]
    assert (made.target(a), made.target(b), made.target(c)) == (b"", b"a", b"a")
    assert (made.kind(far), made.target(far)) == ("link", b"below/x")
    assert (made.kind(t), made.target(t), made.target(s)) == ("symlink", b"a", b"a")
    assert made.modes[c] == 0o600
    # One file: wasted only when all of its names are hidden.
    one, two = (
        weigh([made, table(*hide)]) for hide in ([file(b"a")], [file(b"a"), file(b".wh.b"), file(b".wh.c")])
    )
    assert (one.layers[0].wasted.bytes, two.layers[0].wasted.bytes) == (0, 4)


def test_a_link_across_layers_has_the_content_of_the_version_it_saw() -> None:
    stack = Stack(
        [table(file(b"a", b"old")), table(hardlink(b"b", b"a"), file(b"c")), table(file(b"a", b"new"))]
    )
    found = stack.lookup(b"b")
    assert found is not None
    source = stack.source(found)
    assert source is not None
    assert (source.layer, source.name) == (0, b"a")
    alone = Stack([table(hardlink(b"b", b"a"))])
    lost = alone.lookup(b"b")
    assert lost is not None
    assert alone.source(lost) is None


def test_times_beyond_64_bits_are_the_farthest_there_are() -> None:
    made = table(
        pax((b"mtime", b"99999999999999")), file(b"a"), pax((b"mtime", b"-99999999999999")), file(b"b")
    )
    assert list(made.mtimes[1:]) == [2**63 - 1, -(2**63 - 1)]
    assert Table.decoded(made.encoded()).mtimes == made.mtimes


@pytest.mark.parametrize(
    "members",
    [
        [file(b"a"), file(b"a/b")],
        [header(b"a", b"6"), directory(b"a/b")],
        [symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")],
        [symlink(b"a", b"a/" * 40), file(b"a/x")],
        [directory(b"d"), hardlink(b"l", b"d")],
        [file(b"../x")],
        [long(b"d/" * 300 + b"x") + header(b"x")],
    ],
)
def test_what_could_not_have_been_unpacked_is_refused(members: list[bytes]) -> None:
    with pytest.raises(LayerError):
        table(*members)


def test_a_stream_of_a_bad_tar_is_a_table_or_a_layer_error() -> None:
    archive, rng = seed_archive(), random.Random(7)
    refused = 0
    for _ in range(600):
        data = damaged(archive, rng)
        try:
            made = table_of(Stream(data, 5000), Limits(bytes=1 << 24))
        except LayerError:
            refused += 1
            continue
        stack = Stack([made, made])
        assert Table.decoded(made.encoded()).names == made.names
        weigh([made, made])
        for name in made.names:
            stack.trace(name)
            stack.find(name + b"/x")
    assert 0 < refused < 600


WHOLE = table_of(Stream(bytes(seed_archive()))).encoded()


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_no_table_and_nothing_worse(noise: bytes, at: int, taken: int) -> None:
    data = WHOLE[:at] + noise + WHOLE[at + taken :]
    if data == WHOLE:
        return
    with pytest.raises(LayerError):
        Table.decoded(data)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_file_made_with_intent_is_a_table_or_refused(data: st.DataObject) -> None:
    """Whatever stands in the compressed part, with checksums that hold."""
    import zlib

    magic = WHOLE[: WHOLE.index(b"\n") + 1]
    plain = bytearray(zlib.decompress(WHOLE[len(magic) :]))
    for _ in range(data.draw(st.integers(1, 6))):
        plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
    try:
        made = Table.decoded(magic + zlib.compress(bytes(plain)))
    except LayerError:
        return
    stack = Stack([made])
    weigh([made])
    for name in made.names[:20]:
        stack.trace(name)
        stack.find(name)


@pytest.mark.parametrize("count", ["1e999", "null", '"x"', "[]"])
def test_a_count_that_is_no_number_is_refused(count: str) -> None:
    import zlib

    magic = WHOLE[: WHOLE.index(b"\n") + 1]
    head, _, rest = zlib.decompress(WHOLE[len(magic) :]).partition(b"\n")
    changed = re.sub(rb'"entries":\d+', b'"entries":' + count.encode(), head)
    assert changed != head
    with pytest.raises(LayerError):
        Table.decoded(magic + zlib.compress(changed + b"\n" + rest))
