"""Layer tars for tests, written member by member: well-formed ones, odd ones, hostile ones.

tar(Dir("tmp", 0o1777), File("etc/motd", b"hi"), Whiteout("etc/passwd"), Opaque("var"), Link("a", "etc/motd"))
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

MTIME = 1_700_000_000


class Member:
    """One member of a tar; the functions below make them. ``mtime`` in seconds, a float where it has a part."""

    def __init__(
        self,
        name: str | bytes,
        kind: bytes,
        mode: int,
        *,
        content: bytes = b"",
        link: str | bytes = "",
        device: tuple[int, int] = (0, 0),
        uid: int = 0,
        gid: int = 0,
        mtime: float | str = MTIME,
        xattrs: Mapping[str, bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.content = content
        info = self.info = tarfile.TarInfo(_text(name))
        info.type, info.mode, info.uid, info.gid, info.size = kind, mode, uid, gid, len(content)
        info.linkname = _text(link)
        info.devmajor, info.devminor = device
        records = dict(headers or {})
        if isinstance(mtime, str):  # a pax time, digit by digit
            records["mtime"] = mtime
            info.mtime = 0
        else:
            info.mtime = mtime
        for key, value in (xattrs or {}).items():
            records[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        info.pax_headers = records


def File(name: str | bytes, content: bytes = b"", mode: int = 0o644, **more: object) -> Member:  # noqa: N802
    return Member(name, tarfile.REGTYPE, mode, content=content, **more)  # type: ignore[arg-type]


def Sparse(name: str, size: int, data: Mapping[int, bytes], **more: object) -> Member:  # noqa: N802
    """A file of ``size`` bytes that are zero but for ``data``, by offset; stored without its holes (GNU.sparse,
    pax format 1.0)."""
    runs = [*((offset, data[offset]) for offset in sorted(data)), (size, b"")]
    table = f"{len(runs)}\n" + "".join(f"{offset}\n{len(part)}\n" for offset, part in runs)
    padded = table.encode().ljust(-(-len(table) // 512) * 512, b"\0")
    headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(size),
    }
    content = padded + b"".join(part for _, part in runs)
    return Member(name, tarfile.REGTYPE, 0o644, content=content, headers=headers, **more)  # type: ignore[arg-type]


def Dir(name: str | bytes, mode: int = 0o755, **more: object) -> Member:  # noqa: N802
    return Member(name, tarfile.DIRTYPE, mode, **more)  # type: ignore[arg-type]


def Symlink(name: str | bytes, target: str | bytes, **more: object) -> Member:  # noqa: N802
    return Member(name, tarfile.SYMTYPE, 0o777, link=target, **more)  # type: ignore[arg-type]


def Link(name: str | bytes, target: str | bytes, **more: object) -> Member:  # noqa: N802
    return Member(name, tarfile.LNKTYPE, 0o644, link=target, **more)  # type: ignore[arg-type]


def Fifo(name: str | bytes, mode: int = 0o644, **more: object) -> Member:  # noqa: N802
    return Member(name, tarfile.FIFOTYPE, mode, **more)  # type: ignore[arg-type]


def Device(  # noqa: N802
    name: str | bytes, kind: str, major: int, minor: int, mode: int = 0o600, **more: object
) -> Member:
    """``kind`` "char" or "block"."""
    kind_byte = tarfile.CHRTYPE if kind == "char" else tarfile.BLKTYPE
    return Member(name, kind_byte, mode, device=(major, minor), **more)  # type: ignore[arg-type]


def Whiteout(name: str | bytes) -> Member:  # noqa: N802
    """The deletion of ``name``, as the OCI image spec writes it."""
    directory, slash, base = _text(name).rpartition("/")
    return File(f"{directory}{slash}.wh.{base}", mode=0)


def Opaque(directory: str) -> Member:  # noqa: N802
    """The mark that hides what lower layers have in ``directory`` ("" for the root)."""
    return File(f"{directory}/.wh..wh..opq" if directory else ".wh..wh..opq", mode=0)


def tar(*members: Member) -> bytes:
    """A pax tar stream of the members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
        for member in members:
            archive.addfile(member.info, io.BytesIO(member.content))
    return out.getvalue()


def many(directory: str, count: int) -> bytes:
    """A tar of ``directory`` with ``count`` empty files "000000", "000001" and so on: quick to make."""
    made = [tar(Dir(directory))[:512]]
    prefix = f"{directory}/".encode()
    block = bytearray(File(f"{directory}/000000").info.tobuf(tarfile.USTAR_FORMAT))
    block[148:156] = b" " * 8
    rest = sum(block) - sum(b"000000")
    at = len(prefix)
    for number in range(count):
        digits = b"%06d" % number
        block[at : at + 6] = digits
        block[148:156] = b"%06o\0 " % (rest + sum(digits))
        made.append(bytes(block))
    made.append(bytes(1024))
    return b"".join(made)


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
