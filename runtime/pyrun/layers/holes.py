"""Where a file has data, and where holes (man lseek, SEEK_DATA). Runs are (offset, length) pairs in order."""

from __future__ import annotations

import os
from errno import ENXIO

from .ustar import BLOCK

_PAGE = 4096
_CHUNK = 1 << 20


def data_runs(fd: int, size: int) -> list[tuple[int, int]]:
    """(offset, length) of the file's data; lengths are whole blocks but for one at the file's end."""
    runs: list[tuple[int, int]] = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != ENXIO:
                raise
            break
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        start -= start % BLOCK
        end = min(at + -at % BLOCK, size)
        if end > start:
            runs.append((start, end - start))
    return runs


def written_runs(fd: int, size: int) -> list[tuple[int, int]]:
    """As `data_runs`, by content: pages that are not zero."""
    runs: list[tuple[int, int]] = []
    empty = bytes(_PAGE)
    for offset in range(0, size, _CHUNK):
        data = os.pread(fd, _CHUNK, offset)
        if not data.strip(b"\0"):
            continue
        for at in range(0, len(data), _PAGE):
            page = data[at : at + _PAGE]
            if page == empty[: len(page)]:
                continue
            if runs and sum(runs[-1]) == offset + at:
                runs[-1] = (runs[-1][0], runs[-1][1] + len(page))
            else:
                runs.append((offset + at, len(page)))
    return runs
