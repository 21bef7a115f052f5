"""Hostile layers, each with the answer that it must get: a refusal in words, or a tree."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rawtar import END, directory, file, gnu, hardlink, header, padded, pax, symlink

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
PLAIN = "application/vnd.oci.image.layer.v1.tar"

MIB = 1 << 20


def packed(tar: bytes) -> bytes:
    return gzip.compress(tar, 1)


@dataclass
class Case:
    """``tar``: one layer's stream; a bytes ``blob`` takes the place of its compression. ``says``: what the refusal
    must match; or, where "", ``sees`` is what must be there once it is mounted: bytes of a file, "dir", "link:TARGET",
    "gone", an int for a mode with uid and gid, ("same", NAME) for a hard link."""

    name: str
    tar: bytes
    says: str = ""
    sees: dict[str, object] = field(default_factory=dict)
    blob: bytes | None = None
    media_type: str = GZIP


def refused(name: str, says: str, *members: bytes, end: bytes = END) -> Case:
    return Case(name, b"".join(members) + end, says)


def harmless(name: str, sees: dict[str, object], *members: bytes, end: bytes = END) -> Case:
    return Case(name, b"".join(members) + end, "", sees)


def sparse(size: int, numbers: list[int], data: bytes, *, count: bytes | None = None) -> bytes:
    """A member "f" in pax format 0.1."""
    return (
        pax(
            (b"GNU.sparse.size", b"%d" % size),
            (b"GNU.sparse.numblocks", count if count is not None else b"%d" % (len(numbers) // 2)),
            (b"GNU.sparse.map", b",".join(b"%d" % n for n in numbers)),
        )
        + header(b"f", size=len(data))
        + padded(data)
    )


def base256(value: int, width: int) -> bytes:
    number = value & ((1 << (8 * width - 1)) - 1) if value >= 0 else (1 << (8 * width)) + value
    return (number | 1 << (8 * width - 1)).to_bytes(width, "big")


def bad_checksum() -> bytes:
    block = bytearray(file(b"f"))
    block[0] ^= 1
    return bytes(block)


def names() -> Iterator[Case]:
    for number, name in enumerate((b"..", b"../x", b"a/../../x", b"a/..", b"/../x", b"./../x", b"a/../b")):
        yield refused(f"dot-dot-{number}", r"'\.\.'", directory(b"a"), file(name, b"x"))
    yield refused("dot-dot-in-pax-path", r"'\.\.'", pax((b"path", b"a/../../x")), file(b"x"))
    yield refused("dot-dot-in-gnu-name", r"'\.\.'", gnu(b"L", b"d/" * 60 + b"../x"), file(b"x"))
    yield refused("dot-dot-in-ustar-prefix", r"'\.\.'", header(b"x", prefix=b"a/.."))
    yield refused("dot-dot-in-hard-link", r"'\.\.'", hardlink(b"x", b"../../etc/passwd"))
    yield refused("dot-dot-in-a-directory", r"'\.\.'", directory(b"../../etc"))
    yield refused("dot-dot-in-a-whiteout", r"'\.\.'|whiteout", file(b"a/../.wh.x"))
    yield harmless("absolute-name", {"etc/x": b"mine"}, file(b"/etc/x", b"mine"))
    yield harmless("many-slashes", {"etc/x": b"mine"}, file(b"////etc//.//x", b"mine"))
    yield harmless(
        "absolute-hard-link", {"b": ("same", "etc/a")}, file(b"etc/a", b"x"), hardlink(b"b", b"/etc/a")
    )
    yield refused("nul-in-a-name", "NUL", pax((b"path", b"a\0b")), file(b"x"))
    yield refused("nul-in-a-target", "NUL", pax((b"linkpath", b"a\0b")), symlink(b"x", b"y"))
    yield refused("component-of-256", "longer than 255", file(b"n" * 256))
    yield harmless("component-of-255", {"n" * 255: b"x"}, file(b"n" * 255, b"x"))
    yield refused("depth-of-257", "deeper than 256", file(b"d/" * 256 + b"f"))
    yield harmless("depth-of-256", {"d/" * 255 + "f": b"x"}, file(b"d/" * 255 + b"f", b"x"))
    yield refused("depth-of-200000", "deeper than 256", file(b"d/" * 200_000 + b"f"))
    yield refused("control-bytes", r"\\x1b", file(b"\x1b]0;owned\x07/../x"))


def links() -> Iterator[Case]:
    # The links themselves lead anywhere; what is written through them stays in the layer.
    yield harmless(
        "through-absolute-symlink",
        {"out": "link:/etc", "etc/secret": b"evil"},
        symlink(b"out", b"/etc"),
        file(b"out/secret", b"evil"),
    )
    yield harmless(
        "through-relative-symlink",
        {"etc/secret": b"evil"},
        symlink(b"out", b"../" * 20 + b"etc"),
        file(b"out/secret", b"evil"),
    )
    yield harmless(
        "through-magic-link",
        {"proc/self/root/x": b"evil"},
        symlink(b"out", b"/proc/self/root"),
        file(b"out/x", b"evil"),
    )
    yield harmless(
        "through-three-symlinks",
        {"t/x": b"evil"},
        symlink(b"a", b"b"),
        symlink(b"b", b"/c"),
        symlink(b"c", b"./t"),
        file(b"a/x", b"evil"),
    )
    yield harmless(
        "directory-swapped-for-symlink",
        {"d": "link:/etc", "etc/secret": b"evil"},
        directory(b"d"),
        file(b"d/one", b"1"),
        symlink(b"d", b"/etc"),
        file(b"d/secret", b"evil"),
    )
    yield harmless(
        "symlink-swapped-for-directory",
        {"d": "dir", "d/secret": b"mine", "etc": "gone"},
        symlink(b"d", b"/etc"),
        directory(b"d"),
        file(b"d/secret", b"mine"),
    )
    yield harmless("file-over-symlink", {"f": b"mine"}, symlink(b"f", b"/etc/passwd"), file(b"f", b"mine"))
    yield harmless(
        "attributes-through-late-symlink",
        {"d": "link:/etc"},
        directory(b"d", mode=0o777, uid=77),
        symlink(b"d", b"/etc"),
    )
    yield refused("symlink-to-itself", "too many symbolic links", symlink(b"a", b"a"), file(b"a/x"))
    yield refused(
        "symlinks-in-a-ring",
        "too many symbolic links",
        symlink(b"a", b"b"),
        symlink(b"b", b"a"),
        file(b"a/x"),
    )
    yield refused(
        "symlinks-that-multiply",
        "too many symbolic links",
        *[symlink(b"l%d" % i, b"l%d/../l%d" % (i + 1, i + 1)) for i in range(60)],
        file(b"l0/x"),
    )
    yield refused("hard-link-to-nothing", "lacks", hardlink(b"x", b"missing"))
    yield refused("hard-link-to-host", "lacks|hard link", hardlink(b"x", b"/etc/passwd"))
    yield refused(
        "hard-link-through-symlink", "hard link", symlink(b"out", b"/etc"), hardlink(b"x", b"out/passwd")
    )
    yield refused("hard-link-to-directory", "the directory 'd'", directory(b"d"), hardlink(b"x", b"d"))
    yield refused("hard-link-to-itself", "place of its target", file(b"x"), hardlink(b"x", b"x"))
    yield refused("hard-link-to-root", "root directory", hardlink(b"x", b"/"))
    yield refused("hard-link-to-whiteout", "lacks", file(b".wh.gone"), hardlink(b"x", b"gone"))
    yield harmless(
        "hard-link-to-symlink",
        {"h": "link:/etc/passwd"},
        symlink(b"s", b"/etc/passwd"),
        hardlink(b"h", b"s"),
    )
    yield harmless(
        "hard-link-over-a-file",
        {"x": ("same", "y"), "y": b"new"},
        file(b"x", b"old"),
        file(b"y", b"new"),
        hardlink(b"x", b"y"),
    )
    yield refused("file-as-a-directory", "used as a directory", file(b"f"), file(b"f/x"))


def deletions() -> Iterator[Case]:
    for number, name in enumerate((b".wh.", b".wh..", b".wh...", b"d/.wh.", b"d/.wh...")):
        yield refused(f"whiteout-of-no-name-{number}", "whiteout", file(name))
    yield refused("directory-named-as-whiteout", "named as a whiteout", file(b".wh.d/x"))
    yield harmless(
        "aufs-metadata",
        {".wh..wh.aufs": "gone", ".wh..wh.plnk": "gone", "f": b"x"},
        file(b".wh..wh.aufs"),
        file(b".wh..wh.plnk/1.2", b"x"),
        file(b"f", b"x"),
    )
    yield harmless(
        "whiteout-through-symlink",
        {"out": "link:/etc"},
        symlink(b"out", b"/etc"),
        file(b"out/.wh.passwd"),
        file(b"out/.wh..wh..opq"),
    )
    yield refused("raw-whiteout", "'gone'.*whiteout", header(b"gone", b"3"))
    yield harmless("whiteout-then-add", {"f": b"x"}, file(b".wh.f"), file(b"f", b"x"))
    yield harmless("add-then-whiteout", {"f": b"x"}, file(b"f", b"x"), file(b".wh.f"))
    yield harmless(
        "directory-then-whiteout",
        {"d": "dir", "d/f": b"x"},
        directory(b"d"),
        file(b"d/f", b"x"),
        file(b".wh.d"),
    )
    yield harmless("opaque-root", {"f": b"x"}, file(b"f", b"x"), file(b".wh..wh..opq"))


def kinds() -> Iterator[Case]:
    yield harmless("setuid-after-chown", {"su": (0o6755, 5, 6)}, file(b"su", b"x", mode=0o6755, uid=5, gid=6))
    yield harmless(
        "setgid-directory",
        {"d": (0o3777, 0, 9), "d/f": (0o644, 0, 0)},
        directory(b"d", mode=0o3777, gid=9),
        file(b"d/f"),
    )
    yield harmless("implied-parents", {"a": (0o755, 0, 0), "a/b": (0o755, 0, 0)}, file(b"a/b/c", b"x"))
    yield refused("device-number", "device number", header(b"x", b"3", major=0o10000))
    yield refused("unknown-type", "unknown type", header(b"x", b"Z"))
    for number, member in enumerate((file(b"./"), symlink(b"/", b"x"), header(b".", b"6"))):
        yield refused(f"root-is-no-directory-{number}", "root entry", member)
    yield harmless("last-of-two-wins", {"f": b"two"}, file(b"f", b"one"), file(b"f", b"two"))
    yield harmless(
        "file-over-full-directory", {"d": b"x"}, directory(b"d"), file(b"d/f", b"1"), file(b"d", b"x")
    )
    yield harmless("fifo-over-file", {"f": "fifo"}, file(b"f", b"x"), header(b"f", b"6"))
    reserved = [
        b"trusted.overlay.opaque",
        b"trusted.overlay.redirect",
        b"user.overlay.opaque",
        b"security.selinux",
    ]
    yield harmless(
        "reserved-attributes",
        {"d": ("xattrs", ["user.mine"]), "d/f": b"x"},
        pax(*[(b"SCHILY.xattr." + name, b"y") for name in [*reserved, b"user.mine"]]),
        directory(b"d"),
        file(b"d/f", b"x"),
    )


def numbers() -> Iterator[Case]:
    yield refused("size-minus", "octal|size|number", header(b"f", size=b"-0000000001\0"))
    yield refused("size-negative-base-256", "size", header(b"f", size=base256(-1, 12)))
    yield refused("size-huge-base-256", "size|bytes", header(b"f", size=base256((1 << 90) - 1, 12)))
    yield refused("size-words", "octal", header(b"f", size=b"hundred\0"))
    yield refused("size-underscore", "octal", header(b"f", size=b"0000001_0\0"))
    yield refused("size-beyond-the-disk", "left", header(b"f", size=base256(1 << 55, 12)))
    yield refused("pax-size-minus", "number", pax((b"size", b"-1")), file(b"f"))
    yield refused("pax-size-huge", "number|bytes", pax((b"size", b"9" * 30)), file(b"f"))
    yield refused("uid-beyond", "owner", header(b"f", uid=base256(1 << 32, 8)))
    yield refused("uid-minus-one", "owner", header(b"f", uid=base256((1 << 32) - 1, 8)))
    yield refused("gid-negative", "owner", header(b"f", gid=base256(-5, 8)))
    yield refused("pax-uid-huge", "owner|number", pax((b"uid", b"4294967296")), file(b"f"))
    yield refused("mtime-huge", "time", header(b"f", mtime=base256(1 << 80, 12)))
    yield harmless("mtime-before-1970", {"f": b""}, header(b"f", mtime=base256(-5, 12)))
    yield harmless("uid-base-256", {"f": (0o644, 3_000_000, 0)}, header(b"f", uid=base256(3_000_000, 8)))
    yield refused("sparse-overlap", "sparse", sparse(4096, [0, 512, 0, 512], b"x" * 1024))
    yield refused("sparse-past-the-end", "sparse", sparse(900, [0, 512, 512, 512], b"x" * 1024))
    yield refused("sparse-wrong-sum", "sparse", sparse(4096, [0, 512], b"x" * 1024))
    yield refused("sparse-2-tib", "sparse", sparse(1 << 41, [0, 1024], b"x" * 1024))
    yield refused("sparse-overflow", "sparse", sparse(4096, [0, 512, (1 << 64) - 1, 512], b"x" * 1024))
    yield refused("sparse-count-lies", "sparse", sparse(4096, [0, 1024], b"x" * 1024, count=b"7"))
    yield harmless("sparse-hole", {"f": bytes(512) + b"x" * 512}, sparse(1024, [512, 512], b"x" * 512))


def streams() -> Iterator[Case]:
    one = file(b"f", b"x" * 2000)
    yield refused("empty", "cut off", end=b"")
    yield refused("cut-in-a-header", "cut off", one + file(b"g")[:300], end=b"")
    yield refused("cut-in-content", "cut off", one[:1024], end=b"")
    yield refused("without-an-end", "cut off", one, end=b"")
    yield refused("half-an-end", "lone zero block|cut off", one, end=bytes(512))
    yield refused("lone-zero-block", "lone zero block", one, bytes(512), file(b"g"))
    yield refused("bad-checksum", "checksum", one, bad_checksum())
    yield harmless("padding-of-10-kib", {"f": b"x" * 2000}, one, end=bytes(10240))
    yield harmless(
        "more-behind-the-end", {"f": b"x" * 2000, "g": "gone"}, one, end=END + file(b"g", b"y") + END
    )
    yield refused(
        "pax-of-2-mib", "extended header", header(b"x", b"x", size=2 * MIB) + bytes(2 * MIB), file(b"f")
    )
    yield refused(
        "gnu-name-of-2-mib",
        "extended header",
        header(b"x", b"L", size=2 * MIB) + b"d" * (2 * MIB),
        file(b"f"),
    )
    yield refused("pax-malformed", "pax", header(b"x", b"x", size=10) + padded(b"99 path=x\n"), file(b"f"))
    yield refused("pax-global-path", "global", pax((b"path", b"x"), type=b"g"), file(b"f"))
    yield refused("pax-and-gnu-names", "both", gnu(b"L", b"a"), pax((b"path", b"b")), file(b"f"))
    yield refused("pax-twice", "two extended", pax((b"a", b"b")), pax((b"a", b"b")), file(b"f"))
    yield refused("pax-at-the-end", "ends after an extended", pax((b"a", b"b")))


def compressions() -> Iterator[Case]:
    tar = file(b"f", b"x") + END
    whole: dict[str, object] = {"f": b"x"}
    half = len(tar) // 2
    skippable = b"\x5a\x2a\x4d\x18\x05\0\0\0notes"
    yield Case("gzip-garbage-behind", tar, "gzip", blob=packed(tar) + b"trailing garbage")
    yield Case("gzip-zeros-behind", tar, "", whole, blob=packed(tar) + bytes(3000))
    yield Case("gzip-two-members", tar, "", whole, blob=packed(tar[:half]) + packed(tar[half:]))
    yield Case("gzip-truncated", tar, "truncated|damaged", blob=packed(tar)[:-4])
    yield Case("gzip-wrong-crc", tar, "gzip", blob=packed(tar)[:-8] + bytes(4) + packed(tar)[-4:])
    yield Case("gzip-second-member-cut", tar, "truncated|damaged", blob=packed(tar) + packed(tar)[:15])
    yield Case(
        "zstd-skippable-frames",
        tar,
        "",
        whole,
        blob=skippable + zstd.compress(tar) + skippable,
        media_type=ZSTD,
    )
    yield Case(
        "zstd-two-frames",
        tar,
        "",
        whole,
        blob=zstd.compress(tar[:half]) + zstd.compress(tar[half:]),
        media_type=ZSTD,
    )
    yield Case("zstd-garbage-behind", tar, "zstd", blob=zstd.compress(tar) + b"garbage", media_type=ZSTD)
    yield Case("zstd-truncated", tar, "truncated|damaged", blob=zstd.compress(tar)[:-3], media_type=ZSTD)
    # A frame that wants a window of 2 GiB before it says a word (RFC 8878, 3.1.1.1.2): exponent 21.
    yield Case(
        "zstd-window-bomb",
        tar,
        "zstd",
        blob=b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + bytes(600),
        media_type=ZSTD,
    )
    yield Case("type-says-zstd-is-gzip", tar, "", whole, blob=packed(tar), media_type=ZSTD)
    yield Case("type-says-gzip-is-zstd", tar, "", whole, blob=zstd.compress(tar), media_type=GZIP)
    yield Case("type-says-gzip-is-plain", tar, "", whole, blob=tar, media_type=GZIP)
    yield Case("type-says-plain-is-gzip", tar, "", whole, blob=packed(tar), media_type=PLAIN)
    yield Case("type-says-gzip-is-html", tar, "neither", blob=b"<html>" * 200, media_type=GZIP)
    yield Case("type-says-gzip-is-bzip2", tar, "neither", blob=b"BZh91AY&SY" + b"\x55" * 600, media_type=GZIP)
    yield Case(
        "gzip-in-gzip",
        tar,
        "checksum|octal|cut off|unknown|malformed",
        blob=packed(packed(tar) + bytes(1024)),
    )


def zeros(before: bytes, count: int, how: Callable[[], object]) -> bytes:
    """``before`` and then ``count`` zeros, compressed without ever being there whole."""
    packer = how()
    out = [packer.compress(before)]  # type: ignore[attr-defined]
    block = bytes(4 * MIB)
    for _ in range(count // len(block)):
        out.append(packer.compress(block))  # type: ignore[attr-defined]
    out.append(packer.flush())  # type: ignore[attr-defined]
    return b"".join(out)


def bombs() -> Iterator[Case]:
    """None of them writes more than a few bytes: what expands stands behind the end, or is refused at its header."""
    tar = file(b"f", b"x") + END
    count = 1200 * MIB
    yield Case(
        "bomb-gzip",
        tar,
        "expands more than 1000 times",
        blob=zeros(tar, count, lambda: zlib.compressobj(9, wbits=31)),
    )
    yield Case(
        "bomb-zstd",
        tar,
        "expands more than 1000 times",
        blob=zeros(tar, count, zstd.ZstdCompressor),
        media_type=ZSTD,
    )


def corpus() -> list[Case]:
    return [
        case for some in (names, links, deletions, kinds, numbers, streams, compressions) for case in some()
    ]


__all__ = ["Case", "bombs", "corpus", "packed", "zstd"]
