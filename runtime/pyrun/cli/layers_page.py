"""The page of ``pyrun layers --html``: one file that asks for nothing else, from any place.

All that comes from the image, names above all, is text to it: escaped in the markup, and in the JSON that the
script reads so that no name can end it. The page's policy lets run only the one script that is in it, by its hash, and
nothing be fetched. Without scripts the picture and the tables of layers and waste are there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from .escape import printable
from .units import human_size
from .which import mode_text, name_text

if TYPE_CHECKING:
    from ..engine.anatomy import Count, FileReport, LayerReport, LayersReport, WasteReport

# Beyond this many names the smallest files are left out, and the page says so: it has to open in a browser.
MOST = 40_000
_WORST = 25
_HERE = os.path.join(os.path.dirname(__file__), "page")

# The picture, in CSS pixels.
_HEIGHT = 420
_LEAST = 30  # of a band: a line of text fits
_GAP = 3


def page(report: LayersReport) -> str:
    """The whole document."""
    style, script = _part("layers.css"), _part("layers.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    files, left_out = _files(report)
    body = "".join(
        (
            _head(report),
            '<main><div class="split">',
            f'<section class="card"><h2>The stack</h2>{_picture(report)}</section>',
            f'<section class="card side" aria-live="polite">{_details(report)}</section>',
            "</div>",
            _waste(report),
            _browser(report, left_out),
            "</main>",
        )
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>Layers of {_text(report.name)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'{body}\n<script type="application/json" id="data">{_json({"files": files})}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _part(name: str) -> str:
    with open(os.path.join(_HERE, name), encoding="utf-8") as file:
        return file.read()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(value: str) -> str:
    """Text from the image, for markup: what can't be seen, or turns the direction of writing, as escapes."""
    return escape(printable(value))


def _json(value: object) -> str:
    """JSON that holds no "<", so nothing in it ends the element that it stands in."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")


def _by(one: LayerReport) -> str:
    return " ".join(one.layer.created_by.split()) or "(the history does not tell)"


# --- parts


def _head(report: LayersReport) -> str:
    share = 100 * report.wasted / report.content if report.content else 0
    figures = [
        ("", "layers", str(len(report.reports)), ""),
        ("", "to download", human_size(report.size), ""),
        ("", "in files", human_size(report.content), ""),
        (
            "waste" if report.wasted else "",
            "wasted",
            human_size(report.wasted),
            f"{share:.2g}%" if report.wasted else "",
        ),
        ("", "names in the end", f"{report.names:,}", ""),
    ]
    cells = "".join(
        f'<div class="{name}"><dt>{what}</dt><dd>{value}{f" <small>{more}</small>" if more else ""}</dd></div>'
        for name, what, value, more in figures
    )
    notes = "".join(f'<p class="soft">{_text(note)}</p>' for note in report.notes)
    return (
        f"<header><h1>{_text(report.name)}</h1>"
        f'<p class="soft">{_text(report.platform)} &middot; <span class="mono">{_text(report.id)}</span></p>{notes}'
        f'<dl class="figures">{cells}</dl></header>'
    )


def heights(sizes: list[int]) -> list[int]:
    """The height of each band: its part of what is left when every one has got the least, and that."""
    total = sum(sizes) or 1
    room = max(_HEIGHT - (_LEAST + _GAP) * len(sizes), 0)
    return [_LEAST + round(room * size / total) for size in sizes]


def _picture(report: LayersReport) -> str:
    ordered = list(reversed(report.reports))
    tall = heights([one.bytes for one in ordered])
    bands = []
    y = 2
    for one, height in zip(ordered, tall, strict=True):
        bands.append(_band(one, y, height, len(ordered)))
        y += height + _GAP
    return (
        f'<svg class="stack" width="100%" height="{y}" role="group" aria-label="Layers, the topmost first">'
        '<defs><pattern id="hatch" width="9" height="9" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><path d="M0 0V9"/></pattern></defs>'
        f"{''.join(bands)}</svg>"
        '<p class="legend">The lowest layer is at the bottom; the taller, the more bytes of files. '
        '<svg class="swatch" aria-hidden="true"><rect class="ground" width="100%" height="100%"/>'
        '<rect width="100%" height="100%" fill="url(#hatch)"/></svg> '
        "Hatched is wasted: replaced or deleted by a higher layer.</p>"
    )


def _band(one: LayerReport, y: int, height: int, count: int) -> str:
    number, waste = one.layer.number, one.wasted.bytes
    hue = 172 + round(100 * (number - 1) / max(count - 1, 1))
    part = 100 * waste / one.bytes if one.bytes else 0
    hatched = ""
    if part:
        width = max(part, 0.7)
        hatched = (
            f'<rect class="hatched" x="{100 - width:.2f}%" y="0" width="{width:.2f}%" height="100%" rx="0"/>'
        )
    label = f"Layer {number}: {human_size(one.bytes)}, " + (
        f"{human_size(waste)} of it wasted. " if waste else "nothing wasted. "
    )
    middle = height // 2
    two_lines = height >= 46
    by = _text(_by(one)[:200])
    first, second = (middle - 8, middle + 10) if two_lines else (middle, middle)
    lines = f'<text x="12" y="{first}" dominant-baseline="central">{number}</text>'
    lines += f'<text x="44" y="{first}" dominant-baseline="central">{human_size(one.bytes)}</text>'
    where = 44 if two_lines else 116
    lines += f'<text class="by" x="{where}" y="{second}" dominant-baseline="central">{by}</text>'
    return (
        f'<a href="#layer={number}" data-layer="{number}" aria-label="{_text(label + _by(one)[:200])}">'
        f'<title>{_text(label + _by(one)[:300])}</title><svg class="band" x="2" y="{y}" '
        f'width="calc(100% - 4px)" height="{height}">'
        f'<rect class="ground" width="100%" height="100%" rx="5" fill="hsl({hue} 50% 34%)"/>{hatched}{lines}'
        f'<rect class="edge" x="1.5" y="1.5" width="calc(100% - 3px)" height="{height - 3}" rx="5"/></svg></a>'
    )


def _details(report: LayersReport) -> str:
    sections = "".join(_section(one) for one in reversed(report.reports))
    rows = "".join(_line(one) for one in reversed(report.reports))
    return (
        '<h2>Layer by layer</h2><div id="hint"><div class="scroll"><table><thead><tr><th class="number">Layer</th>'
        '<th class="number">Files</th><th class="number">Adds</th><th class="number">Replaces</th>'
        f'<th class="number">Deletes</th><th class="number">Wasted</th></tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="soft screen">Point at a layer, or choose one, to see what made it and what it does to those below. '
        f"Choosing it again leads back here.</p></div>{sections}"
    )


def _line(one: LayerReport) -> str:
    """A layer in the overview: how many names it adds and so on, and bytes."""
    cells = [
        ("", str(one.layer.number)),
        ("", human_size(one.bytes)),
        ("added", f"{one.added.names:,}" if one.added.names else ""),
        ("changed", f"{one.replaced.names:,}" if one.replaced.names else ""),
        ("deleted", f"{one.deleted.names:,}" if one.deleted.names else ""),
        ("wasted", human_size(one.wasted.bytes) if one.wasted.bytes else ""),
    ]
    return "<tr>" + "".join(f'<td class="number {name}">{text}</td>' for name, text in cells) + "</tr>"


def _section(one: LayerReport) -> str:
    layer = one.layer
    rows = [
        ("Files", f"{human_size(one.bytes)} in {_plural(one.names, 'name')}"),
        ("Download", human_size(layer.size)),
    ]
    if one.wasted.bytes:
        rows.append(("Wasted", f'<span class="wasted">{_count(one.wasted)}</span>, hidden by higher layers'))
    for what, name, count in (
        ("Adds", "added", one.added),
        ("Replaces", "changed", one.replaced),
        ("Deletes", "deleted", one.deleted),
    ):
        if count.names:
            rows.append((what, f'<span class="{name}">{_count(count)}</span>'))
    if one.hides.bytes:
        rows.append(("Hides", f"{human_size(one.hides.bytes)} of lower layers"))
    if layer.created:
        rows.append(("Created", _text(layer.created)))
    if layer.comment:
        rows.append(("Comment", _text(layer.comment)))
    rows.append(("diff_id", f'<span class="mono">{_text(layer.diff_id)}</span>'))
    if layer.digest != layer.diff_id:
        rows.append(("Digest", f'<span class="mono">{_text(layer.digest)}</span>'))
    cells = "".join(f"<dt>{what}</dt><dd>{value}</dd>" for what, value in rows)
    return (
        f'<div class="layer" data-layer="{layer.number}"><h3>Layer {layer.number}</h3>'
        f"<pre>{_text(_by(one))}</pre><dl>{cells}</dl></div>"
    )


def _count(count: Count) -> str:
    return f"{_plural(count.names, 'name')}, {human_size(count.bytes)}"


def _waste(report: LayersReport) -> str:
    if not report.waste:
        return ""
    rows = "".join(_waste_row(one) for one in report.waste[:_WORST])
    rest = report.waste[_WORST:]
    more = ""
    if rest:
        size = human_size(sum(one.bytes for one in rest))
        more = f'<p class="soft">And {_plural(len(rest), "more")}, {size}.</p>'.replace("mores", "more")
    return (
        '<section class="card"><h2>What is wasted</h2><div class="scroll"><table><thead><tr>'
        '<th class="number">Bytes</th><th class="number">Files</th><th>How</th><th>Path</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{more}</section>"
    )


def _waste_row(one: WasteReport) -> str:
    owners = ", ".join(map(str, one.layers))
    if one.how == "repeated":
        how, path = f"repeated in the tar of layer {one.by}", "(several)"
        shown = path
    else:
        how, path = f"layer {owners}, {one.how} by {one.by}", name_text(one.path)
        shown = f'<a href="#q={escape(_quoted(path))}" data-find="{escape(path)}">{escape(path)}</a>'
    return (
        f'<tr><td class="number">{human_size(one.bytes)}</td><td class="number">{one.names:,}</td>'
        f'<td class="narrow">{how}</td><td class="path">{shown}</td></tr>'
    )


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="/")


def _browser(report: LayersReport, left_out: int) -> str:
    options = "".join(
        f'<option value="{one.layer.number}">{one.layer.number} ({human_size(one.bytes)})</option>'
        for one in reversed(report.reports)
    )
    heads = "".join(
        f'<th scope="col" data-sort="{key}"{name}><button type="button">{title}</button></th>'
        for key, title, name in (
            ("path", "Path", ""),
            ("size", "Size", ' class="number"'),
            ("layer", "Layer", ' class="number"'),
            ("change", "Change", ""),
            ("hidden", "Hidden", ""),
            ("mode", "Mode", ' class="optional"'),
            ("time", "Modified (UTC)", ' class="optional"'),
        )
    )
    note = (
        f'<p class="soft">The {_plural(left_out, "smallest name")} left out: '
        f"<code>pyrun layers --files</code> lists all.</p>".replace("names left", "names are left").replace(
            "name left", "name is left"
        )
        if left_out
        else ""
    )
    return (
        '<section class="card files" id="browse" hidden><h2>Files</h2><div class="controls">'
        '<label class="find">Find in paths (press /)<input type="search" id="find" autocomplete="off" '
        'spellcheck="false"></label>'
        f'<label>Layer<select id="choice"><option value="0">all</option>{options}</select></label>'
        '<label class="check"><input type="checkbox" id="wasted"> only what is hidden</label></div>'
        f'<p class="soft" id="told" role="status"></p><div class="scroll"><table><thead><tr>{heads}</tr></thead>'
        f'<tbody id="rows"></tbody></table></div><button class="more" type="button" id="more" hidden></button>{note}'
        "</section><noscript><p>The table of files needs scripts, which are off here: "
        "<code>pyrun layers --files</code> prints it.</p></noscript>"
    )


def _files(report: LayersReport) -> tuple[list[list[object]], int]:
    """(the rows of the table, how many were left out): directories only where they say something."""
    rows = [_row(file, number) for number, file in _each(report)]
    if len(rows) > MOST:
        rows.sort(key=lambda row: -int(str(row[3])))
    return rows[:MOST], max(len(rows) - MOST, 0)


def _each(report: LayersReport) -> Iterator[tuple[int, FileReport]]:
    for one in report.reports:
        for file in report.files(one.layer.number):
            if file.kind != "dir" or file.does != "":
                yield one.layer.number, file


def _row(file: FileReport, number: int) -> list[object]:
    gone = file.kind == "whiteout"
    return [
        name_text(file.path),
        number,
        file.does,
        file.size if file.kind == "file" else -1,
        file.hidden,
        "" if gone else mode_text(file.kind, file.mode),
        None if gone else _seconds(file.mtime_ns),
        name_text(file.target) if file.kind == "symlink" else "",
    ]


def _seconds(ns: int) -> int:
    """Within what a script's Date can tell, years 0 to 9999."""
    return max(-62_135_596_800, min(253_402_300_799, ns // 1_000_000_000))
