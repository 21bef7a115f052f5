"""``pyrun layers``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import NotFound, UsageError
from . import options as shared
from .escape import ellipsis, printable
from .output import document, write
from .session import session
from .table import aligned
from .units import human_size
from .which import mode_text, moment, name_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..engine.anatomy import Count, FileReport, LayerReport, LayersReport, WasteReport

_WIDTH = 100  # characters of a build line
_WORST = 10  # lines of waste that are shown


def layers(
    context: typer.Context,
    image: Annotated[str, typer.Argument(metavar="IMAGE", autocompletion=shared.complete_image)],
    files: Annotated[bool, typer.Option("--files", help="List the files of every layer")] = False,
    layer: Annotated[
        list[int] | None,
        typer.Option("--layer", metavar="N", help="List the files of layer N, from the bottom (repeatable)"),
    ] = None,
    html: Annotated[
        str,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Write a page with a picture of the layers and their files; - for standard output",
            click_type=shared.complete_file,
        ),
    ] = "",
    no_trunc: shared.NoTrunc = False,
    storage: shared.Storage = None,
    format: shared.DocumentFormat = "",
) -> None:
    """Show what each layer of an image adds, hides and wastes

    The lowest layer is 1. Sizes are of the files in a layer; wasted is what a higher layer replaces or deletes: it is
    downloaded and stored, and never seen.
    """
    if html and (files or layer or format):
        raise UsageError(
            "--html writes a page of its own, which has the files",
            hint="Leave out --files, --layer and --format, or --html.",
        )
    report = session(context).engine(storage).layers(image)
    count = len(report.reports)
    for number in layer or ():
        if not 1 <= number <= count:
            raise NotFound(
                f"{report.name} has no layer {number}", hint=f"Its layers are 1 (the lowest) to {count}."
            )
    if html:
        from .layers_page import page

        _write_page(html, page(report))
        return
    listed = sorted(set(layer or (range(1, count + 1) if files else ())))
    if document(_document(report, listed), format) or listed:
        if not format:
            _list_files(report, listed)
        return
    _tree(report, truncate=not no_trunc)


def _write_page(path: str, text: str) -> None:
    if path == "-":
        write(text)
        return
    from ..images.archives.outlet import file_at, words
    from ..kernel.files import write_all

    with file_at(path) as fd, words(path):
        write_all(fd, text.encode())


def _tree(report: LayersReport, *, truncate: bool) -> None:
    """The stack, topmost layer first, as it lies."""
    write(
        printable(f"{report.name}  {report.platform}  {report.id.removeprefix('sha256:')[:12]}")
        + f"\n{_layers(len(report.reports))}: {human_size(report.size)} to download,"
        f" {human_size(report.content)} of files, {_wasted(report.wasted, report.content)}\n"
    )
    number_width = len(str(len(report.reports)))
    lines = []
    for one in reversed(report.reports):
        corner = "└" if one.layer.number == 1 else "├"
        lines.append(
            [
                f"{corner}─ {one.layer.number:>{number_width}}",
                human_size(one.bytes),
                _count("+", one.added),
                _count("~", one.replaced),
                _count("-", one.deleted),
                f"{human_size(one.wasted.bytes)} wasted" if one.wasted.bytes else "",
            ]
        )
    for one, line in zip(reversed(report.reports), aligned(lines).splitlines(), strict=True):
        write(line.rstrip() + "\n")
        bar = " " if one.layer.number == 1 else "│"
        by = " ".join(one.layer.created_by.split()) or "(the history does not tell)"
        write(f"{bar}  {'':{number_width}}  {printable(ellipsis(by, _WIDTH) if truncate else by)}\n")
    if any(one.replaced.names or one.deleted.names for one in report.reports):
        write("\n+ added, ~ replaced, - deleted: names, and bytes of their files\n")
    _worst(report.waste, truncate)
    for note in report.notes:
        write("\n" + printable(note) + "\n")


def _worst(waste: list[WasteReport], truncate: bool) -> None:
    if not waste:
        return
    write("\n")
    shown = waste[:_WORST] if truncate else waste
    cells = [["WASTED", "FILES", "HOW", "PATH"]]
    for one in shown:
        cells.append([human_size(one.bytes), str(one.names), waste_text(one), name_text(one.path)])
    write(aligned(cells))
    if len(shown) < len(waste):
        rest = sum(one.bytes for one in waste[len(shown) :])
        write(f"and {len(waste) - len(shown)} more, {human_size(rest)} (--no-trunc shows all)\n")


def waste_text(one: WasteReport) -> str:
    if one.how == "repeated":
        return f"repeated in layer {one.by}"
    owners = ", ".join(map(str, one.layers))
    return f"of layer {owners}, {one.how} by {one.by}"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _wasted(wasted: int, content: int) -> str:
    if not wasted:
        return "nothing wasted"
    return f"{human_size(wasted)} wasted ({100 * wasted / max(content, 1):.2g}%)"


def _count(sign: str, count: Count) -> str:
    return f"{sign}{count.names} ({human_size(count.bytes)})" if count.names else ""


def _list_files(report: LayersReport, numbers: list[int]) -> None:
    cells = [["LAYER", "CHANGE", "MODE", "OWNER", "SIZE", "MODIFIED", "HIDDEN BY", "PATH"]]
    for number in numbers:
        for file in report.files(number):
            gone = file.kind == "whiteout"
            target = f" -> {name_text(file.target)}" if file.kind == "symlink" else ""
            cells.append(
                [
                    str(number),
                    file.does or "-",
                    "" if gone else mode_text(file.kind, file.mode),
                    "" if gone else f"{file.uid}:{file.gid}",
                    human_size(file.size) if file.kind == "file" else "",
                    "" if gone else moment(file.mtime_ns),
                    str(file.hidden or ""),
                    name_text(file.path) + target,
                ]
            )
    write(aligned(cells))


def _document(report: LayersReport, numbers: list[int]) -> dict[str, Any]:
    return {
        "Name": report.name,
        "ID": report.id,
        "Platform": report.platform,
        "Size": report.size,
        "Unpacked": report.unpacked,
        "Content": report.content,
        "Wasted": report.wasted,
        "Names": report.names,
        "Layers": [_layer(report, one, one.layer.number in numbers) for one in report.reports],
        "Waste": [
            {
                "Path": one.path,
                "How": one.how,
                "By": one.by,
                "Layers": list(one.layers),
                "Names": one.names,
                "Bytes": one.bytes,
            }
            for one in report.waste
        ],
        "Notes": list(report.notes),
    }


def _layer(report: LayersReport, one: LayerReport, with_files: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "Number": one.layer.number,
        "DiffID": one.layer.diff_id,
        "Digest": one.layer.digest,
        "Created": one.layer.created,
        "CreatedBy": one.layer.created_by,
        "Comment": one.layer.comment,
        "Size": one.layer.size,
        "Unpacked": one.layer.unpacked,
        "Names": one.names,
        "Bytes": one.bytes,
    }
    for key in ("added", "replaced", "deleted", "wasted", "hides"):
        count: Count = getattr(one, key)
        told[key.capitalize()] = {"Names": count.names, "Bytes": count.bytes}
    if with_files:
        told["Files"] = [_file(file) for file in report.files(one.layer.number)]
    return told


def _file(file: FileReport) -> dict[str, Any]:
    return {
        "Path": file.path,
        "Type": file.kind,
        "Change": file.does,
        "HiddenBy": file.hidden,
        "Size": file.size,
        "Mode": "" if file.kind == "whiteout" else mode_text(file.kind, file.mode),
        "UID": file.uid,
        "GID": file.gid,
        "ModifiedNs": file.mtime_ns,
        "Target": file.target,
    }
