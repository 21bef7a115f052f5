"""The EROFS index over a tar shows what unpacking the tar would make, and refuses what that refuses, in the same
words. The oracle is `pyrun.layers.unpack` on a real file system; the index is read by the kernel."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layers.rawtar import END, directory, file, gnu, hardlink, header, pax, symlink
from pyrun.errors import LayerError
from pyrun.kernel import mount as m
from pyrun.layers.unpack import Unpacked
from support.erofs import agree, make, mounted
from support.pyrun import Pyrun

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount EROFS")


@pytest.fixture(scope="module")
def place(base: Path) -> Iterator[Path]:
    """A directory on the disk, for trees."""
    with tempfile.TemporaryDirectory(prefix="erofs-", dir=base) as name:
        yield Path(name)


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
GOOD_ACL = acl((1, 6, NOBODY), (2, 7, 1000), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


# --- what files are


def test_everything_a_tar_can_hold_is_shown_as_it_would_be_unpacked(place: Path) -> None:
    done = agree(
        place,
        directory(b"./", mode=0o711, uid=3),
        directory(b"d", mode=0o2775, uid=1000, gid=100, mtime=5),
        file(b"d/f", b"content\n" * 200, mode=0o4755, uid=7, gid=8, mtime=1_700_000_000),
        file(b"d/empty"),
        file(b"d/block", b"x" * 512),
        symlink(b"d/l", b"../else/where", uid=5),
        hardlink(b"h", b"d/f"),
        hardlink(b"hl", b"d/l"),
        header(b"p", b"6", mode=0o620, gid=5),
        header(b"null", b"3", major=1, minor=3, mode=0o666),
        header(b"disk", b"4", major=259, minor=0xABCDE, mode=0o660, gid=6),
        header(b"zero", b"4", major=0, minor=0),
        file(b"not/listed/parents", b"y"),
    )
    assert not isinstance(done, str)
    assert done.implied == [b"not", b"not/listed"]


def test_times_before_1970_and_parts_of_a_second(place: Path) -> None:
    for name, time_ in ((b"old", b"-1.25"), (b"older", b"-2000000000.000000001"), (b"new", b"4000000000.5")):
        assert not isinstance(agree(place, pax((b"mtime", time_)), file(name, b"x")), str)
        assert not isinstance(agree(place, pax((b"mtime", time_)), directory(name)), str)


def test_owners_of_32_bits(place: Path) -> None:
    big = b"4294967294"
    done = agree(place, pax((b"uid", big), (b"gid", big)), file(b"f"), pax((b"uid", big)), directory(b"d"))
    assert not isinstance(done, str)


@pytest.mark.parametrize("length", [1, 100, 447, 448, 449, 511, 512, 513, 1024, 4095])
def test_targets_of_links_up_to_the_longest(place: Path, length: int) -> None:
    target = b"t" * length
    done = agree(place, *(gnu(b"K", target) + symlink(b"l%d" % n, b"") for n in range(9)))
    assert not isinstance(done, str)


def test_a_target_that_no_link_can_have_is_refused(place: Path) -> None:
    assert agree(place, gnu(b"K", b"t" * 4096) + symlink(b"l", b""), words=False)
    assert "0 bytes" in str(agree(place, symlink(b"l", b""), words=False))


def test_names_of_any_bytes_and_of_every_length(place: Path) -> None:
    names = [
        bytes([byte]) * length
        for byte in (1, 10, 32, 45, 0x2F - 1, 0x30, 127, 200, 255)
        for length in (1, 3, 255)
    ]
    names = [name for name in names if name not in (b".", b"..")]
    members = [gnu(b"L", name) + header(b"x", b"6") for name in names]
    assert not isinstance(agree(place, *members), str)


def test_names_that_sort_around_the_dots(place: Path) -> None:
    names = [b"!", b"-", b"...", b".a", b"..a", b". ", b".-", b"..!", b"/", b"0", b"\x01", b"\xff"]
    assert not isinstance(agree(place, *(file(b"d/" + name, name) for name in names if name != b"/")), str)


def test_attributes_are_kept_dropped_and_refused_as_setxattr_would(place: Path) -> None:
    def with_(kind: bytes, key: bytes, value: bytes, mode: int = 0o644) -> Unpacked | str:
        more = {"link": b"t"} if kind == b"2" else {"major": 1, "minor": 3} if kind in b"34" else {}
        member = header(b"x", kind, mode=mode, **more)
        return agree(place, pax((b"SCHILY.xattr." + key, value)) + member, words=False)

    for kind in (b"0", b"5", b"2", b"3", b"6"):
        for key, value in (
            (b"user.a", b"b"),
            (b"user.empty", b""),
            (b"user.long", b"v" * 3000),
            (b"trusted.a", b"\0\1\2"),
            (b"security.a", b"x"),
            (b"security.capability", CAPABILITY),
            (b"system.posix_acl_access", GOOD_ACL),
            (b"system.other", b"x"),
            (b"nonsense", b"x"),
            (b"system.posix_acl_access", acl()),
            (b"system.posix_acl_access", acl((1, 7, NOBODY), (4, 5, NOBODY), (32, 1, NOBODY))),
        ):
            done = with_(kind, key, value)
            if key == b"security.capability" or key.startswith((b"trusted", b"security")):
                assert not isinstance(done, str)
                assert not done.dropped
            if key == b"nonsense":
                assert not isinstance(done, str)
                assert done.dropped == [b"nonsense"]
    assert not isinstance(with_(b"5", b"system.posix_acl_default", GOOD_ACL, 0o755), str)
    for kind, key, value in (
        (b"0", b"system.posix_acl_default", GOOD_ACL),
        (b"0", b"user.", b"x"),
        (b"0", b"trusted.", b"x"),
        (b"0", b"security.capability", b"x" * 20),
        (b"0", b"security.capability", CAPABILITY[:-1]),
        (b"0", b"system.posix_acl_access", b"\2\0\0\0x"),
        (b"0", b"system.posix_acl_access", acl((1, 6, NOBODY))),
        (b"0", b"system.posix_acl_access", acl((1, 6, NOBODY), (2, 7, 5), (4, 4, NOBODY), (32, 0, NOBODY))),
        (b"5", b"system.posix_acl_default", acl((4, 6, NOBODY), (1, 6, NOBODY), (32, 0, NOBODY))),
        (b"0", b"system.posix_acl_access", acl((1, 8, NOBODY), (4, 4, NOBODY), (32, 0, NOBODY))),
    ):
        assert isinstance(with_(kind, key, value), str), (kind, key, value)


def test_many_attributes_and_a_link_in_one_inode(place: Path) -> None:
    many = [(b"SCHILY.xattr.user.n%03d" % n, b"v" * (n % 50)) for n in range(40)]
    done = agree(
        place,
        *(pax(*many) + file(b"f%d" % n, b"x" * n) for n in range(5)),
        pax(*many) + directory(b"d"),
        pax((b"SCHILY.xattr.trusted.t", b"v" * 300)) + symlink(b"l", b"t" * 90),
        pax((b"SCHILY.xattr.trusted.t", b"v" * 400)) + symlink(b"m", b"t" * 90),
        pax((b"SCHILY.xattr.security.s", b"v" * 3)) + header(b"p", b"6"),
    )
    assert not isinstance(done, str)


def test_attributes_beyond_what_an_inode_holds_are_refused_in_words(place: Path, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match=r"'f': the extended attribute 'user.a' has 70000 bytes"):
        make(tmp_path / "a", pax((b"SCHILY.xattr.user.a", b"v" * 70_000)) + file(b"f"))
    many = [(b"SCHILY.xattr.user.n%03d" % n, b"v" * 60_000) for n in range(5)]
    with pytest.raises(LayerError, match=r"'f': extended attributes of \d+ bytes"):
        make(tmp_path / "b", pax(*many) + file(b"f"))


def test_bytes_behind_the_archive_are_kept_in_the_tar(place: Path, tmp_path: Path) -> None:
    rest = b"behind" * 1000
    done = make(tmp_path / "l", file(b"f", b"x"), end=END + rest)
    kept = (tmp_path / "l/layer.tar").read_bytes()
    assert kept.endswith(END + rest)
    assert done.bytes == len(kept)
    with mounted(tmp_path / "l") as shown:
        assert Path(shown, "f").read_bytes() == b"x"


# --- what layers mean


WHITEOUTS = {
    "a whiteout": [file(b".wh.x"), file(b"d/.wh.y")],
    "a file, deleted before": [file(b"d/.wh.f"), file(b"d/f", b"1")],
    "a file, deleted after": [file(b"d/f", b"1"), file(b"d/.wh.f")],
    "a directory, deleted before": [file(b"d/.wh.e"), directory(b"d/e"), file(b"d/e/f")],
    "a directory, deleted after": [directory(b"d/e"), file(b"d/e/f"), file(b"d/.wh.e")],
    "an implied directory in place of a whiteout": [file(b"d/.wh.e"), file(b"d/e/f/g")],
    "opaque": [file(b"d/.wh..wh..opq"), file(b"d/f")],
    "opaque, not listed": [file(b"a/b/.wh..wh..opq")],
    "opaque root": [file(b".wh..wh..opq"), file(b"f")],
    "deleted twice": [file(b".wh.f"), file(b".wh.f")],
    "a link to a deleted file": [file(b".wh.f"), hardlink(b"g", b"f")],
    "aufs' own": [file(b".wh..wh.plnk/1"), file(b".wh..wh.orph"), file(b"d/.wh..wh.aufs")],
    "a whiteout in place of nothing, then a link": [file(b"d/.wh.f"), file(b"g"), hardlink(b"d/f", b"g")],
    "through a link": [directory(b"d"), symlink(b"l", b"d"), file(b"l/.wh.f"), file(b"l/.wh..wh..opq")],
}


@pytest.mark.parametrize("case", WHITEOUTS)
def test_deletions_mean_what_unpacking_makes_of_them(place: Path, case: str) -> None:
    done = agree(place, *WHITEOUTS[case])
    assert isinstance(done, str) == (case == "a link to a deleted file")


FLIPS = [
    lambda name: file(name, b"f"),
    lambda name: directory(name, mode=0o700),
    lambda name: symlink(name, b"d"),
    lambda name: header(name, b"6"),
    lambda name: file(b".wh." + name),
    lambda name: hardlink(name, b"one"),
    lambda name: file(name + b"/inside", b"g"),
]


@pytest.mark.parametrize("first", range(len(FLIPS)))
@pytest.mark.parametrize("second", range(len(FLIPS)))
def test_of_a_name_given_twice_the_last_holds(place: Path, first: int, second: int) -> None:
    agree(place, directory(b"d"), file(b"one", b"1"), FLIPS[first](b"x"), FLIPS[second](b"x"), file(b"z"))


def test_a_directory_listed_again_has_the_last_attributes(place: Path) -> None:
    attribute = pax((b"SCHILY.xattr.user.a", b"1"))
    done = agree(
        place,
        attribute + directory(b"d", mode=0o700),
        file(b"d/f"),
        file(b"d/.wh.g"),
        directory(b"d", mode=0o755, uid=4),
    )
    assert not isinstance(done, str)


def test_linked_parents_lead_where_they_lead_within_the_layer(place: Path) -> None:
    done = agree(
        place,
        directory(b"usr/bin"),
        symlink(b"bin", b"usr/bin"),
        symlink(b"abs", b"/usr/bin"),
        symlink(b"up", b"../../../usr/./bin/.."),
        symlink(b"dangling", b"to/nowhere"),
        file(b"bin/a", b"1"),
        file(b"abs/b", b"2"),
        file(b"up/c", b"3"),
        file(b"dangling/d", b"4"),
        hardlink(b"e", b"bin/a"),
        directory(b"bin"),
        file(b"bin/f"),
    )
    assert not isinstance(done, str)
    assert b"to/nowhere" in done.implied


HOSTILE: dict[str, list[bytes]] = {
    "a link that leads round": [symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")],
    "a link to itself": [symlink(b"a", b"a/a"), file(b"a/x")],
    "a file as a directory": [file(b"a"), file(b"a/b/c")],
    "a file as a directory, by a link": [file(b"d/a"), symlink(b"l", b"d/a"), file(b"l/b")],
    "a missing target": [hardlink(b"a", b"b/c")],
    "a directory as target": [directory(b"d"), hardlink(b"a", b"d")],
    "its own target": [file(b"a"), hardlink(b"a", b"a")],
    "in place of its target's directory": [file(b"d/a"), hardlink(b"d", b"d/a")],
    "a name with dots": [file(b"../a")],
    "a 0/0 device": [header(b"a", b"3")],
    "too deep": [file(b"/".join([b"d"] * 300))],
    "too deep by links": [
        directory(b"/".join([b"d"] * 200)),
        gnu(b"K", b"/".join([b"d"] * 200)) + symlink(b"l", b""),
        file(b"l/" + b"/".join([b"e"] * 100) + b"/f"),
    ],
    "a root that is a file": [file(b"./")],
    "an unknown type": [header(b"a", b"Z")],
    "cut off": [header(b"a", size=5000)],
    "a whiteout of dots": [file(b".wh...")],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_unpacking_refuses_is_refused_in_the_same_words(place: Path, case: str) -> None:
    assert isinstance(agree(place, *HOSTILE[case]), str)


def test_the_limits_hold(place: Path, tmp_path: Path) -> None:
    for limits in ({"entries": 2}, {"bytes": 10}, {"depth": 2}, {"header": 100}, {"component": 3}):
        members = [directory(b"a"), file(b"a/b/cccccc", b"x" * 20), pax((b"comment", b"y" * 200)), file(b"d")]
        assert isinstance(agree(place, *members, **limits), str), limits
    with pytest.raises(LayerError, match="take more than 10000 bytes of memory"):
        make(tmp_path / "l", *(file(b"f%d" % n) for n in range(100)), memory=10_000)


def test_a_store_that_is_full_refuses_in_words() -> None:
    with _small_disk(16 << 20) as disk:
        with pytest.raises(
            LayerError, match=r"'big': \d+ bytes, and the store's file system has \d+ left"
        ) as one:
            make(disk / "a", header(b"big", size=100 << 20), bytes(1 << 20))
        assert one.value.hint
        with pytest.raises(LayerError, match="the store's file system has") as two:
            make(disk / "b", *(file(b"f%d" % n, bytes(1 << 20)) for n in range(20)))
        assert two.value.hint
        with pytest.raises(LayerError, match="the store's file system has"):
            make(disk / "c", file(b"f"), end=END + bytes(20 << 20))


@contextlib.contextmanager
def _small_disk(size: int) -> Iterator[Path]:
    fd = m.new_mount("tmpfs", {"size": str(size)})
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


# --- real layers


def blobs(store: Path) -> Iterator[Path]:
    """The compressed layers of the images in a store."""
    content = store / "content/blobs/sha256"
    for path in content.iterdir():
        with contextlib.suppress(ValueError, UnicodeDecodeError):
            document = json.loads(path.read_bytes())
            for layer in document.get("layers", ()):
                yield content / layer["digest"].partition(":")[2]


@pytest.mark.timeout(300)
def test_layers_of_real_images_are_shown_as_they_are_unpacked(place: Path, pulled: Pyrun) -> None:
    checked = 0
    for blob in set(blobs(pulled.root)):
        if not blob.exists():  # of another platform
            continue
        with gzip.open(blob) as stream:
            done = agree(place, stream.read(), end=b"")
        assert not isinstance(done, str)
        checked += done.entries
    assert checked > 1000
