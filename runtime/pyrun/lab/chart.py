"""A benchmark's figures as a picture: SVG written here, PNG drawn by Pillow where it is installed.

One panel a measure, one bar a driver, its figure beside it. Bars are linear within a panel, from zero; panels are
not to a common scale. Colours (of Okabe and Ito, told apart by everybody) repeat what the labels say.
"""

from __future__ import annotations

import io
import textwrap
from xml.sax.saxutils import escape

from ..errors import Unsupported
from . import sample
from .bench import Measure, Report
from .figures import human, notes, ratio

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C")
_INK, _PALE, _TRACK = "#1f2328", "#59636e", "#eef1f4"
_WIDTH = 960
_MARGIN = 32
_GAP = 40  # between the two columns of panels
_COLUMN = (_WIDTH - 2 * _MARGIN - _GAP) // 2
_LABEL = 104
_VALUE = 112
_BAR = 13
_STEP = 19
_TITLE = 26  # of a panel
_TOP = 88
_NOTE = 150  # characters of a line below the panels
_SCALE = 2  # pixels a unit in a PNG


class Canvas:
    """Rectangles and lines of text, in the order they were put there."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self.width = width
        self.height = height
        self.title = title
        self.description = description
        self.rects: list[tuple[float, float, float, float, str]] = []
        self.texts: list[tuple[float, float, str, int, str, str, bool]] = []

    def rect(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self.rects.append((x, y, width, height, colour))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 12,
        anchor: str = "start",
        colour: str = _INK,
        bold: bool = False,
    ) -> None:
        """``y`` is the baseline; ``anchor`` "start" or "end"."""
        self.texts.append((x, y, text, size, anchor, colour, bold))

    def svg(self) -> str:
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" aria-labelledby="title description" '
            "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif\">",
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="description">{escape(self.description)}</desc>',
            f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>',
        ]
        for x, y, width, height, colour in self.rects:
            lines.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" '
                f'fill="{colour}"/>'
            )
        for x, y, text, size, anchor, colour, bold in self.texts:
            weight = ' font-weight="600"' if bold else ""
            end = ' text-anchor="end"' if anchor == "end" else ""
            lines.append(
                f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{weight}{end}>'
                f"{escape(text)}</text>"
            )
        return "\n".join([*lines, "</svg>"]) + "\n"

    def png(self) -> bytes:
        """Raises `Unsupported` where Pillow is not installed."""
        try:
            from PIL import Image, ImageDraw, ImageFont
        except ImportError:
            raise Unsupported(
                "a PNG chart needs Pillow, which is not installed",
                hint="pip install 'pyrun[bench]', or write an SVG: --chart FILE.svg",
            ) from None
        image = Image.new("RGB", (self.width * _SCALE, self.height * _SCALE), "#ffffff")
        draw = ImageDraw.Draw(image)
        for x, y, width, height, colour in self.rects:
            box = [x * _SCALE, y * _SCALE, (x + width) * _SCALE, (y + height) * _SCALE]
            draw.rounded_rectangle(box, radius=min(2 * _SCALE, width * _SCALE / 2), fill=colour)
        for x, y, text, size, anchor, colour, bold in self.texts:
            draw.text(
                (x * _SCALE, y * _SCALE),
                text.replace("µ", "u"),  # which Pillow's own font lacks
                fill=colour,
                font=ImageFont.load_default(size * _SCALE),
                anchor="rs" if anchor == "end" else "ls",
                stroke_width=1 if bold else 0,
                stroke_fill=colour,
            )
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        return out.getvalue()


def chart(report: Report) -> Canvas:
    """The picture of the report's medians."""
    drivers = len(report.results)
    panel = _TITLE + drivers * _STEP + 18
    rows = (len(report.measures) + 1) // 2
    rounds = "1 round" if report.rounds == 1 else f"medians of {report.rounds} rounds"
    said = [line for text in notes(report)[1:] for line in textwrap.wrap(text, _NOTE)]
    height = _TOP + rows * panel + 16 * len(said) + 16
    canvas = Canvas(_WIDTH, height, "pyrun storage drivers compared", _description(report))
    canvas.text(_MARGIN, 42, "pyrun storage drivers", size=20, bold=True)
    canvas.text(
        _MARGIN,
        64,
        f"{sample.SIZES[report.size]} in 3 layers; {rounds}; Linux {report.kernel} on {report.machine}. "
        "Shorter is better.",
        colour=_PALE,
    )
    for number, measure in enumerate(report.measures):
        column, row = divmod(number, rows)  # down the first column, then the second
        _panel(canvas, report, measure, _MARGIN + column * (_COLUMN + _GAP), _TOP + row * panel)
    for number, text in enumerate(said):
        canvas.text(_MARGIN, _TOP + rows * panel + 6 + 16 * number, text, size=11, colour=_PALE)
    return canvas


def _panel(canvas: Canvas, report: Report, measure: Measure, x: float, y: float) -> None:
    canvas.text(x, y + 14, measure.title[:1].upper() + measure.title[1:], size=13, bold=True)
    medians = [result.median(measure.key) for result in report.results]
    longest = max((value for value in medians if value is not None), default=0.0)
    room = _COLUMN - _LABEL - _VALUE
    for number, (result, value) in enumerate(zip(report.results, medians, strict=True)):
        top = y + _TITLE + number * _STEP
        baseline = top + _BAR - 2.5
        canvas.text(x + _LABEL - 8, baseline, _short(result.name), anchor="end")
        if value is None:
            canvas.text(x + _LABEL, baseline, "not measured", colour=_PALE)
            continue
        canvas.rect(x + _LABEL, top, room, _BAR, _TRACK)
        width = room * value / longest if longest else 0.0
        canvas.rect(x + _LABEL, top, max(width, 1.5), _BAR, _COLOURS[number % len(_COLOURS)])
        times = ratio(report, result, measure)
        text = human(value, measure.unit)
        canvas.text(x + _COLUMN - 46, baseline, text, anchor="end")
        canvas.text(x + _COLUMN, baseline, times, anchor="end", colour=_PALE)


def _short(name: str) -> str:
    return name if len(name) <= 15 else name[:13] + ".."


def _description(report: Report) -> str:
    """The whole picture in words, for readers that see none."""
    sentences = []
    for measure in report.measures:
        parts = []
        for result in report.results:
            value = result.median(measure.key)
            parts.append(f"{result.name} {'-' if value is None else human(value, measure.unit)}")
        sentences.append(f"{measure.title}: {', '.join(parts)}.")
    return " ".join(sentences)
