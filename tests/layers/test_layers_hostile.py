"""What a hostile layer tries, and the answer: a LayerError that names the entry, or a harmless tree."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from rawtar import (
    END,
    Stream,
    checksummed,
    directory,
    extract,
    file,
    gnu,
    hardlink,
    header,
    long,
    padded,
    pax,
    record,
    symlink,
    tree,
)

from pyrun.errors import LayerError
from pyrun.layers.limits import Limits
from pyrun.layers.tar import TarReader
from pyrun.layers.unpack import unpack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0: device nodes and chown")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the tree with one file, which has to stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("untouched")
    before = tree(tmp_path / "outside")
    yield tmp_path / "outside"
    assert tree(tmp_path / "outside") == before


def refused(tmp_path: Path, *members: bytes, match: str, **options: object) -> None:
    fds = len(os.listdir("/proc/self/fd"))
    umask = os.umask(0o22)
    with pytest.raises(LayerError, match=match):
        extract(tmp_path / "root", *members, **options)
    assert len(os.listdir("/proc/self/fd")) == fds
    assert os.umask(umask) == 0o22


# --- names


@pytest.mark.parametrize("name", [b"..", b"../x", b"a/../../x", b"a/..", b"/../x", b"./../x", b"a/../b"])
@pytest.mark.parametrize("form", ["overlay", "apply"])
def test_a_dot_dot_component_is_refused(tmp_path: Path, outside: Path, name: bytes, form: str) -> None:
    refused(tmp_path, directory(b"a"), file(name, b"x"), match=r"'\.\.'", whiteouts=form)


def test_a_dot_dot_component_of_a_pax_path_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, pax((b"path", b"a/../../x")), file(b"x", b"x"), match=r"'\.\.'")


def test_a_dot_dot_component_of_a_gnu_long_name_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, gnu(b"L", b"d/" * 60 + b"../x"), file(b"x", b"x"), match=r"'\.\.'")


def test_a_hard_link_target_with_dot_dot_is_refused(tmp_path: Path, outside: Path) -> None:
    refused(tmp_path, hardlink(b"x", b"../outside/secret"), match=r"'\.\.'")


def test_absolute_names_stay_below_the_root(tmp_path: Path, outside: Path) -> None:
    name = os.fsencode(outside / "secret")
    extract(
        tmp_path / "root", long(name), file(b"//" + name, b"mine") if len(name) < 98 else file(name, b"mine")
    )
    assert (tmp_path / "root" / str(outside / "secret").lstrip("/")).read_bytes() == b"mine"


def test_an_absolute_hard_link_target_is_looked_for_below_the_root(tmp_path: Path) -> None:
    extract(tmp_path / "root", file(b"etc/a", b"x"), hardlink(b"b", b"/etc/a"))
    assert (tmp_path / "root/b").stat().st_nlink == 2


def test_names_are_brought_to_one_form(tmp_path: Path) -> None:
    extract(tmp_path / "root", directory(b"./a//b/./"), file(b".//a/b//c", b"1"), file(b"a/b/c", b"2"))
    assert (tmp_path / "root/a/b/c").read_bytes() == b"2"


def test_a_nul_in_a_pax_name_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, pax((b"path", b"a\0b")), file(b"x"), match="NUL")
    refused(tmp_path, pax((b"path", b"a\0b/c")), file(b"x"), match="NUL")
    refused(tmp_path, pax((b"linkpath", b"a\0b")), symlink(b"x", b"y"), match="NUL")


def test_control_bytes_of_a_name_are_escaped_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(LayerError) as caught:
        extract(tmp_path / "root", file(b"\x1b]0;owned\x07/../\xff", b""))
    assert str(caught.value).isprintable()


def test_a_component_of_256_bytes_is_refused_and_one_of_255_is_not(tmp_path: Path) -> None:
    refused(tmp_path, file(b"n" * 256), match="longer than 255")
    refused(tmp_path, file(b"n" * 256 + b"/x"), match="longer than 255")
    extract(tmp_path / "root", file(b"n" * 255, b"x"))
    assert (tmp_path / "root" / ("n" * 255)).exists()


def test_the_deletion_of_a_name_of_255_bytes_is_longer_and_allowed(tmp_path: Path) -> None:
    extract(tmp_path / "root", file(b".wh." + b"n" * 255))
    assert os.stat(tmp_path / "root" / ("n" * 255)).st_rdev == 0
    refused(tmp_path, file(b".wh." + b"n" * 256), match="longer than 255")


def test_256_directories_deep_is_allowed_and_one_more_is_refused(tmp_path: Path) -> None:
    extract(tmp_path / "ok", file(b"d/" * 255 + b"f", b"x"))
    refused(tmp_path, file(b"d/" * 256 + b"f", b"x"), match="deeper than 256")


def test_symbolic_links_do_not_lead_past_the_depth_limit(tmp_path: Path) -> None:
    deep = b"d/" * 200 + b"e"
    refused(
        tmp_path,
        directory(deep),
        gnu(b"K", deep) + symlink(b"s", b""),
        file(b"s/" + b"d/" * 100 + b"f"),
        match="deeper than 256",
    )


# --- links


@pytest.mark.parametrize("form", ["overlay", "apply"])
@pytest.mark.parametrize(
    "target", [b"%s", b"../outside", b"../../../../../../../../../..%s", b"/proc/self/cwd"]
)
def test_a_file_written_through_a_symlink_stays_below_the_root(
    tmp_path: Path, outside: Path, target: bytes, form: str
) -> None:
    target = target % os.fsencode(outside) if b"%s" in target else target
    extract(tmp_path / "root", symlink(b"out", target), file(b"out/secret", b"evil"), whiteouts=form)
    inside = [path for path in (tmp_path / "root").rglob("secret") if path.is_file()]
    assert [path.read_bytes() for path in inside] == [b"evil"]


def test_a_magic_link_is_a_name_like_any_other(tmp_path: Path) -> None:
    extract(tmp_path / "root", symlink(b"l", b"/proc/self/root"), file(b"l/x", b"x"))
    assert (tmp_path / "root/proc/self/root/x").is_file()
    assert not os.path.exists("/x")


def test_a_directory_swapped_for_a_symlink_between_entries_stays_below_the_root(
    tmp_path: Path, outside: Path
) -> None:
    extract(
        tmp_path / "root",
        directory(b"d"),
        file(b"d/one", b"1"),
        symlink(b"d", os.fsencode(outside)) if len(str(outside)) < 100 else symlink(b"d", b"../outside"),
        file(b"d/secret", b"evil"),
    )
    assert os.readlink(tmp_path / "root/d")
    assert [p.read_bytes() for p in (tmp_path / "root").rglob("secret") if p.is_file()] == [b"evil"]


def test_a_file_over_a_symlink_replaces_the_link(tmp_path: Path, outside: Path) -> None:
    extract(tmp_path / "root", symlink(b"f", b"../outside/secret"), file(b"f", b"evil"))
    assert not (tmp_path / "root/f").is_symlink()


def test_a_directory_over_a_symlink_replaces_the_link(tmp_path: Path, outside: Path) -> None:
    extract(
        tmp_path / "root",
        symlink(b"d", b"../outside"),
        directory(b"d", mode=0o700, uid=77),
        file(b"d/secret"),
    )
    assert (tmp_path / "root/d").lstat().st_uid == 77


def test_directory_attributes_are_not_set_through_a_symlink_that_came_later(
    tmp_path: Path, outside: Path
) -> None:
    extract(tmp_path / "root", directory(b"d", mode=0o777, uid=77, mtime=5), symlink(b"d", b"../outside"))
    assert outside.stat().st_uid == 0


@pytest.mark.parametrize("loop", [[(b"a", b"a")], [(b"a", b"b"), (b"b", b"a")], [(b"a", b"a/x/..")]])
def test_a_symlink_loop_is_refused(tmp_path: Path, loop: list[tuple[bytes, bytes]]) -> None:
    refused(tmp_path, *(symlink(*pair) for pair in loop), file(b"a/x"), match="too many symbolic links")


def test_links_that_multiply_are_refused_in_bounded_time(tmp_path: Path) -> None:
    links = [symlink(b"l%d" % i, b"l%d/../l%d/../l%d" % (i + 1, i + 1, i + 1)) for i in range(30)]
    refused(tmp_path, *links, directory(b"l30"), file(b"l0/x"), match="too many symbolic links")


def test_a_hard_link_out_through_a_symlink_finds_nothing(tmp_path: Path, outside: Path) -> None:
    refused(tmp_path, symlink(b"out", b"../outside"), hardlink(b"x", b"out/secret"), match="hard link")


def test_a_hard_link_to_a_symlink_links_the_symlink(tmp_path: Path, outside: Path) -> None:
    extract(tmp_path / "root", symlink(b"s", b"../outside/secret"), hardlink(b"h", b"s"))
    assert (tmp_path / "root/h").is_symlink()
    assert os.readlink(tmp_path / "root/h") == "../outside/secret"


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ((directory(b"d"), hardlink(b"x", b"d")), "the directory 'd'"),
        ((hardlink(b"x", b"missing"),), "lacks"),
        ((file(b"x"), hardlink(b"x", b"x")), "place of its target"),
        ((file(b"d/x"), hardlink(b"d", b"d/x")), "place of its target"),
        ((hardlink(b"x", b"/"),), "root directory"),
        ((file(b".wh.gone"), hardlink(b"x", b"gone")), "lacks"),
    ],
)
def test_a_hard_link_needs_a_file_of_the_layer(
    tmp_path: Path, members: tuple[bytes, ...], match: str
) -> None:
    refused(tmp_path, *members, match=match)


def test_a_file_used_as_a_directory_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, file(b"f"), file(b"f/x"), match="'f' is used as a directory")


@pytest.mark.parametrize(
    "member", [file(b"./"), symlink(b"/", b"x"), header(b".", b"6"), hardlink(b"", b"x")]
)
def test_a_root_entry_that_is_no_directory_is_refused(tmp_path: Path, member: bytes) -> None:
    refused(tmp_path, member, match="root entry")


# --- whiteouts, devices, attributes


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh."])
def test_a_whiteout_of_no_name_is_refused(tmp_path: Path, name: bytes) -> None:
    refused(tmp_path, file(name), match="whiteout")


@pytest.mark.parametrize("form", ["overlay", "apply"])
def test_aufs_metadata_is_ignored(tmp_path: Path, form: str) -> None:
    many = [file(b".wh..wh.%d" % i, b"content") for i in range(2000)]
    extract(tmp_path / "root", file(b".wh..wh.aufs"), file(b".wh..wh.plnk/1.2", b"x"), *many, whiteouts=form)
    assert tree(tmp_path / "root") == {}


def test_a_directory_named_as_a_whiteout_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, file(b".wh.d/x"), match="named as a whiteout")


@pytest.mark.parametrize("form", ["overlay", "userxattr", "apply"])
def test_a_whiteout_through_a_symlink_deletes_nothing_outside(
    tmp_path: Path, outside: Path, form: str
) -> None:
    extract(
        tmp_path / "root",
        symlink(b"out", b"../outside"),
        file(b"out/.wh.secret"),
        file(b"out/.wh..wh..opq"),
        whiteouts=form,
    )


@pytest.mark.parametrize("form", ["overlay", "apply"])
def test_a_raw_character_device_0_0_is_refused(tmp_path: Path, form: str) -> None:
    refused(tmp_path, header(b"gone", b"3"), match="'gone'.*whiteout", whiteouts=form)


def test_a_device_number_that_the_kernel_would_cut_short_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, header(b"x", b"3", major=0o10000), match="device number")
    refused(tmp_path, header(b"x", b"4", major=1, minor=0o4000000), match="device number")


def test_overlay_and_selinux_attributes_are_dropped_and_others_kept(tmp_path: Path) -> None:
    names = [
        b"trusted.overlay.opaque",
        b"trusted.overlay.redirect",
        b"user.overlay.opaque",
        b"security.selinux",
    ]
    xattrs = [(b"SCHILY.xattr." + name, b"y") for name in [*names, b"trusted.mine"]]
    extract(tmp_path / "root", pax(*xattrs), directory(b"d"), pax(*xattrs), file(b"f"))
    assert os.listxattr(tmp_path / "root/d") == os.listxattr(tmp_path / "root/f") == ["trusted.mine"]


def test_setuid_survives_the_change_of_owner(tmp_path: Path) -> None:
    extract(
        tmp_path / "root",
        file(b"su", b"x" * 9000, mode=0o6755, uid=5, gid=6),
        directory(b"d", mode=0o3777, gid=9),
    )
    assert stat.S_IMODE((tmp_path / "root/su").stat().st_mode) == 0o6755
    assert stat.S_IMODE((tmp_path / "root/d").stat().st_mode) == 0o3777


def test_a_setgid_directory_and_its_default_acl_do_not_rub_off(tmp_path: Path) -> None:
    acl = bytes.fromhex("02000000 01000700ffffffff 04000000ffffffff 10000700ffffffff 20000000ffffffff")
    extract(
        tmp_path / "root",
        pax((b"SCHILY.xattr.system.posix_acl_default", acl)),
        directory(b"d", mode=0o2755, gid=50),
        file(b"d/f", mode=0o644),
        directory(b"d/e", mode=0o755),
    )
    for name in ("d/f", "d/e"):
        assert (tmp_path / "root" / name).stat().st_gid == 0
        assert os.listxattr(tmp_path / "root" / name) == []
    assert (tmp_path / "root/d/f").stat().st_mode & 0o7777 == 0o644


# --- numbers and headers


@pytest.mark.parametrize(
    "size",
    [
        b"-1",
        b"0o17",
        b"1_0",
        b"+5",
        b"99",
        b"zz",
        b"\xff" * 12,
        b"\x80" + b"\xff" * 11,
        b"\xc0" + bytes(11),
        b" 1 1",
    ],
)
def test_a_size_that_is_no_number_is_refused(tmp_path: Path, size: bytes) -> None:
    refused(tmp_path, header(b"f", size=size), match="octal|size of")


def test_owners_that_are_no_ids_are_refused(tmp_path: Path) -> None:
    for value in (b"\xff" * 8, b"\x80\0\0\0\xff\xff\xff\xff", b"\x80\0\0\1\0\0\0\0"):
        refused(tmp_path, header(b"f", uid=value), match="'f': the owner")
        refused(tmp_path, header(b"f", gid=value), match="'f': the owner")
    refused(tmp_path, pax((b"uid", b"4294967295")), file(b"f"), match="'f': the owner")
    refused(tmp_path, pax((b"uid", b"-1")), file(b"f"), match="not a number")


@pytest.mark.parametrize(
    "mtime", [b"1_0", b"1e5", b"", b"--1", b"9" * 21, b"9" * 20, b"-" + b"9" * 20, b"1.x", b"\xd9\xa1"]
)
def test_a_pax_time_that_is_none_is_refused_or_left_out(tmp_path: Path, mtime: bytes) -> None:
    if not mtime:
        extract(tmp_path / "root", pax((b"mtime", mtime)), file(b"f", mtime=7))
        assert (tmp_path / "root/f").stat().st_mtime == 7
    else:
        refused(tmp_path, pax((b"mtime", mtime)), file(b"f"), match="time|number|layer")


def test_a_bad_checksum_is_refused(tmp_path: Path) -> None:
    block = bytearray(header(b"f"))
    block[0] ^= 1
    refused(tmp_path, bytes(block), match="checksum")


def test_a_checksum_of_signed_bytes_is_accepted(tmp_path: Path) -> None:
    block = bytearray(header(b"\xff\xfe"))
    field = sum(b if b < 128 else b - 256 for b in block[:148] + block[156:]) + 256
    block[148:156] = b"%06o\0 " % field
    extract(tmp_path / "root", bytes(block))
    assert os.listdir(os.fsencode(tmp_path / "root")) == [b"\xff\xfe"]


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"5 a=b\n",
        b"99 path=x\n",
        b"3 =\n",
        b"0 a=b\n",
        b"6 a=bb",
        b"8 abcde\n",
        b"-5 a=b\n",
        b" 7 a=b\n",
        b"\0" * 8,
    ],
)
def test_a_malformed_pax_record_is_refused(tmp_path: Path, data: bytes) -> None:
    refused(tmp_path, header(b"x", b"x", size=len(data)) + padded(data), file(b"f"), match="pax record")


def test_a_global_header_may_not_name_entries(tmp_path: Path) -> None:
    for key in (b"path", b"linkpath", b"size", b"GNU.sparse.map"):
        refused(tmp_path, pax((key, b"1"), type=b"g"), file(b"f"), match="global")


def test_two_extended_headers_for_one_entry_are_refused(tmp_path: Path) -> None:
    for twice in (pax((b"path", b"a")), gnu(b"L", b"a"), gnu(b"K", b"a")):
        refused(tmp_path, twice, twice, file(b"f"), match="two extended headers")
    refused(tmp_path, pax((b"path", b"a")), gnu(b"L", b"b"), file(b"f"), match="both")


def test_an_extended_header_at_the_end_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, file(b"f"), pax((b"path", b"a")), match="after an extended header")


def test_an_oversized_extended_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for type in b"x", b"g", b"L", b"K":
        refused(tmp_path, header(b"x", type, size=(1 << 20) + 1), match="limit of 1048576")


def test_a_pax_size_does_not_hide_entries_from_other_readers(tmp_path: Path) -> None:
    """CVE-2025-62518: the header says 0 bytes, the pax record the truth; the content holds headers."""
    inner = file(b"smuggled", b"x")
    extract(
        tmp_path / "root",
        pax((b"size", b"%d" % len(inner))),
        header(b"f", size=0) + padded(inner),
        file(b"g"),
    )
    assert sorted(os.listdir(tmp_path / "root")) == ["f", "g"]


def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    for type in b"V", b"M", b"D", b"X", b"\xff", b"9":
        refused(tmp_path, header(b"f", type), match="unknown type")


# --- the stream's end


def test_a_stream_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    whole = pax((b"path", b"name")) + file(b"a", b"x" * 700) + directory(b"d") + END
    for length in (*range(0, len(whole), 100), len(whole) - 1, len(whole) - 512):
        with pytest.raises(LayerError, match="cut off"):
            list(TarReader(Stream(whole[:length])))
    assert len(list(TarReader(Stream(whole)))) == 2


def test_a_lone_zero_block_is_refused() -> None:
    with pytest.raises(LayerError, match="lone zero block"):
        list(TarReader(Stream(file(b"a") + bytes(512) + file(b"b") + END)))


def test_what_follows_two_zero_blocks_is_read_and_ignored(tmp_path: Path) -> None:
    extract(tmp_path / "root", file(b"a"), END, file(b"b"), b"rubbish" * 999_999)
    assert os.listdir(tmp_path / "root") == ["a"]


def test_an_error_of_the_stream_passes_through_unchanged(tmp_path: Path) -> None:
    class Broken:
        def __init__(self) -> None:
            self.pieces = [file(b"a", b"x" * 100), header(b"b", size=5000)]

        def read(self, n: int) -> bytes:
            if not self.pieces:
                raise ConnectionResetError("the registry went away")
            return self.pieces.pop(0)

    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(ConnectionResetError, match="went away"):
        unpack(Broken(), fd, "overlay")
    os.close(fd)


# --- bombs


def test_a_layer_past_the_byte_limit_is_refused_before_the_file_is_written(tmp_path: Path) -> None:
    refused(
        tmp_path, file(b"a", b"x" * 600), file(b"b", b"x" * 600), match="'b'.*1000", limits=Limits(bytes=1000)
    )
    assert not (tmp_path / "root/b").exists()


def test_a_file_larger_than_the_file_system_is_refused_at_its_header(tmp_path: Path) -> None:
    refused(tmp_path, header(b"f", size=b"\x80" + (1 << 55).to_bytes(11, "big")), match="'f'.*left")


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, *(file(b"%d" % i) for i in range(11)), match="more than 10", limits=Limits(entries=10))


def test_too_many_names_to_remember_are_refused(tmp_path: Path) -> None:
    many = [directory(b"%d" % i) for i in range(100)]
    refused(tmp_path, *many, match="memory", limits=Limits(memory=10_000))
    refused(tmp_path, *many, match="memory", limits=Limits(memory=10_000), whiteouts="apply")


def test_more_directories_than_fds_are_no_problem(tmp_path: Path) -> None:
    members = [file(b"%d/%d/%d" % (i % 7, i % 300, i), b"x") for i in range(900)]
    links = [
        hardlink(b"%d/%d/l%d" % (i % 5, i % 200, i), b"%d/%d/%d" % (i % 7, i % 300, i)) for i in range(900)
    ]
    fds = len(os.listdir("/proc/self/fd"))
    extract(tmp_path / "root", *members, *links)
    assert len(os.listdir("/proc/self/fd")) == fds
    assert all((tmp_path / f"root/{i % 7}/{i % 300}/{i}").stat().st_nlink == 2 for i in range(900))


# --- sparse files that lie


def sparse_pax(version: bytes, size: int, numbers: list[int], data: bytes) -> bytes:
    text = b",".join(b"%d" % n for n in numbers)
    blocks = b"%d" % (len(numbers) // 2)
    if version == b"0.1":
        return (
            pax(
                (b"GNU.sparse.size", b"%d" % size),
                (b"GNU.sparse.numblocks", blocks),
                (b"GNU.sparse.map", text),
            )
            + header(b"f", size=len(data))
            + padded(data)
        )
    front = padded(b"".join(b"%d\n" % n for n in [len(numbers) // 2, *numbers]))
    return (
        pax(
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"f"),
            (b"GNU.sparse.realsize", b"%d" % size),
        )
        + header(b"GNUSparseFile.0/f", size=len(front) + len(data))
        + padded(front + data)
    )


@pytest.mark.parametrize("version", [b"0.1", b"1.0"])
@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        (4096, [0, 512, 0, 512]),
        (4096, [512, 512, 0, 512]),
        (900, [0, 512, 512, 512]),
        (4096, [0, 512]),
        (4096, [0, 2048]),
        (4096, [0, 500, 1024, 524]),
        (1 << 41, [0, 1024]),
        (4096, [0, 512, 18446744073709551615, 512]),
    ],
)
def test_a_sparse_map_that_lies_is_refused(
    tmp_path: Path, version: bytes, size: int, numbers: list[int]
) -> None:
    refused(tmp_path, sparse_pax(version, size, numbers, b"x" * 1024), match="sparse")


def test_a_sparse_map_that_is_true_is_expanded(tmp_path: Path) -> None:
    for version in b"0.1", b"1.0":
        root = tmp_path / version.decode()
        extract(
            root, sparse_pax(version, 1 << 33, [4096, 512, 1 << 32, 512, 1 << 33, 0], b"a" * 512 + b"b" * 512)
        )
        with open(root / "f", "rb") as opened:
            assert opened.read(5000) == bytes(4096) + b"a" * 512 + bytes(392)
            opened.seek(1 << 32)
            assert opened.read(513) == b"b" * 512 + b"\0"
        assert (root / "f").stat().st_size == 1 << 33
        assert (root / "f").stat().st_blocks < 1000


def test_an_old_gnu_sparse_header_is_expanded_and_one_that_lies_refused(tmp_path: Path) -> None:
    def old(real: int, runs: list[tuple[int, int]], data: bytes) -> bytes:
        block = bytearray(header(b"f", b"S", size=len(data), magic=b"ustar  \0"))
        for i, (offset, length) in enumerate(runs[:4]):
            block[386 + 24 * i : 410 + 24 * i] = b"%011o\0%011o\0" % (offset, length)
        block[482] = len(runs) > 4
        block[483:495] = b"%011o\0" % real
        extension = bytearray(512) if len(runs) > 4 else bytearray()
        for i, (offset, length) in enumerate(runs[4:]):
            extension[24 * i : 24 * i + 24] = b"%011o\0%011o\0" % (offset, length)
        return checksummed(block) + bytes(extension) + padded(data)

    runs = [(i * 4096, 512) for i in range(6)]
    extract(tmp_path / "ok", old(1 << 20, runs, bytes(range(256)) * 12), file(b"g", b"next"))
    content = (tmp_path / "ok/f").read_bytes()
    assert len(content) == 1 << 20
    assert all(content[i * 4096 : i * 4096 + 512] == bytes(range(256)) * 2 for i in range(6))
    assert (tmp_path / "ok/g").read_bytes() == b"next"
    refused(tmp_path, old(100, runs, b"x" * 3072), match="sparse")
    refused(tmp_path, old(1 << 20, runs, b"x" * 512), match="sparse")


def test_a_sparse_map_for_a_directory_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, pax((b"GNU.sparse.name", b"x")), directory(b"d"), match="sparse")


def test_pax_records_parse_as_they_were_made() -> None:
    assert record(b"k", b"v" * 96) == b"103 k=" + b"v" * 96 + b"\n"
