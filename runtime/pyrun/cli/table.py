"""Columns as docker aligns them: a cell is as wide as its widest text plus 3, and at least 10."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MINIMUM = 10
PADDING = 3


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The rows, a line each. The last cell of a row is not padded: a cell ends at a tab (Go's tabwriter).

    Rows may differ in length. The texts must be printable: a tab or a newline would break the columns.
    """
    widths: list[int] = []
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            if column == len(widths):
                widths.append(MINIMUM)
            widths[column] = max(widths[column], len(cell) + PADDING)
    lines = []
    for row in rows:
        padded = [cell.ljust(widths[column]) for column, cell in enumerate(row[:-1])]
        lines.append("".join([*padded, *row[-1:]]) + "\n")
    return "".join(lines)
