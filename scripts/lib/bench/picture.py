"""The figures of `scripts/bench pull` as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyrun.lab.chart import Canvas

_WIDTH = 960
_MARGIN = 32
_LABEL = 130
_VALUE = 90
_BAR = 13
_STEP = 20
_TITLE = 28
_COLOURS = {"pyrun": "#0072B2", "curl": "#8C8C8C"}
_OTHER = "#E69F00"
_TRACK, _PALE = "#eef1f4", "#59636e"

Row = tuple[str, float, float, float]  # engine, seconds, CPU seconds, bytes


def picture(results: Mapping[str, Sequence[Row]]) -> str:
    """An SVG: for each image a panel of wall-clock time, of CPU time and of memory, a bar an engine."""
    panels = []
    for image, rows in results.items():
        panels.append((f"pull {image}, seconds", [(r[0], r[1], f"{r[1]:.2f} s") for r in rows]))
        panels.append((f"pull {image}, CPU seconds", [(r[0], r[2], f"{r[2]:.2f} s") for r in rows]))
        panels.append(
            (f"pull {image}, peak memory", [(r[0], r[3], f"{r[3] / (1 << 20):.0f} MiB") for r in rows])
        )
    height = 84 + sum(_TITLE + len(bars) * _STEP + 14 for _, bars in panels)
    said = " ".join(f"{title}: {', '.join(f'{b[0]} {b[2]}' for b in bars)}." for title, bars in panels)
    canvas = Canvas(_WIDTH, height, "Cold pulls compared", said)
    canvas.text(_MARGIN, 42, "Cold pulls, into an empty store", size=20, bold=True)
    canvas.text(_MARGIN, 64, "Medians of one interleaved run. Shorter is better.", colour=_PALE)
    y = 84
    room = _WIDTH - 2 * _MARGIN - _LABEL - _VALUE
    for title, bars in panels:
        canvas.text(_MARGIN, y + 16, title, size=13, bold=True)
        longest = max((value for _, value, _ in bars), default=0.0)
        for number, (name, value, text) in enumerate(bars):
            top = y + _TITLE + number * _STEP
            canvas.text(_MARGIN + _LABEL - 8, top + _BAR - 2.5, name, anchor="end")
            canvas.rect(_MARGIN + _LABEL, top, room, _BAR, _TRACK)
            colour = next((c for word, c in _COLOURS.items() if name.startswith(word)), _OTHER)
            width = room * value / longest if longest else 0.0
            canvas.rect(_MARGIN + _LABEL, top, max(width, 1.5), _BAR, colour)
            canvas.text(_WIDTH - _MARGIN, top + _BAR - 2.5, text, anchor="end")
        y += _TITLE + len(bars) * _STEP + 14
    return canvas.svg()
