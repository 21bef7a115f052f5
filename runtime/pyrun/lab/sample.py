"""The image that benchmarks measure with: made anew each time, the same bytes each time."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator

from .program import program

_MTIME = 1_700_000_000
_PER_DIRECTORY = 40

MiB = 1 << 20


class Size:
    """How much is measured with. ``files`` small ones of ``file_bytes`` on average in the image, and one of
    ``large`` bytes; ``copies`` files are copied up, ``new`` ones written."""

    def __init__(self, files: int, file_bytes: int, large: int, copies: int, new: int) -> None:
        self.files = files
        self.file_bytes = file_bytes
        self.large = large
        self.copies = copies
        self.new = new

    def __str__(self) -> str:
        total = (self.files * self.file_bytes + self.large) / MiB
        return f"{self.files} files, {total:.0f} MiB"


SIZES = {
    "tiny": Size(200, 2 << 10, MiB, 20, 50),
    "small": Size(2000, 6 << 10, 16 * MiB, 100, 500),
    "medium": Size(8000, 6 << 10, 64 * MiB, 200, 2000),
}
LARGE = "data/large"
PROGRAM = "exit"


def small(number: int) -> str:
    """The root-relative name of a small file."""
    directory = number // _PER_DIRECTORY
    return f"usr/lib{directory % 8}/package{directory}/file{number}"


def write(directory: str, size: Size) -> list[str]:
    """Write the layers' tars, bottom to top; their paths.

    The first layer has all files; the second replaces a tenth of them and deletes one directory in twenty; the
    third adds the program `PROGRAM`, where this machine has one.
    """
    layers = [_base(size), _update(size), _top()]
    paths = []
    for number, members in enumerate(layers):
        path = f"{directory}/layer{number}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            for info, content in members:
                archive.addfile(info, io.BytesIO(content))
        paths.append(path)
    return paths


def deleted(number: int) -> bool:
    """Whether the second layer takes the small file away."""
    return (number // _PER_DIRECTORY) % 20 == 19


def _base(size: Size) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    random_ = random.Random(1)
    for name in ("usr", "data", *(f"usr/lib{n}" for n in range(8))):
        yield _directory(name)
    for number in range(size.files):
        name = small(number)
        if number % _PER_DIRECTORY == 0:
            yield _directory(name.rpartition("/")[0])
        # Sizes spread as in real trees: most are below the mean, a few far above it.
        count = min(int(random_.expovariate(1 / size.file_bytes)) + 1, 16 * size.file_bytes)
        yield _file(name, random_.randbytes(count))
    yield _file(LARGE, random_.randbytes(size.large))


def _update(size: Size) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    random_ = random.Random(2)
    for number in range(0, size.files, 10):
        if not deleted(number):
            yield _file(small(number), random_.randbytes(size.file_bytes))
    for number in range(0, size.files, _PER_DIRECTORY):
        if deleted(number):
            parent, _, base = small(number).rpartition("/")[0].rpartition("/")
            yield _file(f"{parent}/.wh.{base}", b"")


def _top() -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    yield _directory("etc")
    yield _file("etc/hostname", b"sample\n")
    code = program()
    if code is not None:
        yield _file(PROGRAM, code, 0o755)


def _directory(name: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, _MTIME
    return info, b""


def _file(name: str, content: bytes, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), mode, _MTIME
    return info, content
