"""``pyrun which``."""

from __future__ import annotations

import os
import stat
from typing import Annotated, Any

import click
import typer

from ..errors import UsageError
from . import options as shared
from .escape import ellipsis, printable
from .output import document, flush, rows, write, write_bytes
from .session import Session, session
from .units import human_size, rfc3339

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..engine.stack import LayerInfo
    from ..engine.which import Version, Which

HEADERS = {
    "Layer": "LAYER",
    "State": "STATE",
    "Mode": "MODE",
    "Owner": "OWNER",
    "Size": "SIZE",
    "Modified": "MODIFIED",
    "CreatedBy": "CREATED BY",
}
_TYPES = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
    "link": stat.S_IFREG,
}
_WIDTH = 60  # characters of a build line


def build_line(layer: LayerInfo) -> str:
    """The line that made the layer, its white space folded."""
    return "(what the container wrote)" if layer.container else " ".join(layer.created_by.split())


def layer_name(layer: LayerInfo) -> str:
    return "container" if layer.container else str(layer.number)


def moment(ns: int) -> str:
    """``2026-01-02 03:04:05`` in the caller's time zone."""
    import time

    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(ns // 1_000_000_000))
    except (OverflowError, ValueError, OSError):
        return f"@{ns // 1_000_000_000}"


def name_text(path: str) -> str:
    """``path`` (`os.fsdecode`) for a person: bytes that are no UTF-8, and what a terminal would act on, as escapes."""
    return printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def mode_text(kind: str, mode: int) -> str:
    """As ls(1) shows it."""
    return stat.filemode(_TYPES[kind] | mode)


def _complete_path(ctx: click.Context, incomplete: str) -> list[str]:
    """Paths of the image; silent where that fails, for a prompt is no place for errors."""
    own = Session()
    given = ctx.find_root().params
    own.root, own.state, own.config = given.get("root"), given.get("state"), given.get("config")
    try:
        from ..engine.stack import suggested

        return suggested(own.engine(), ctx.params.get("name") or "", incomplete)
    except Exception:
        return []


def which(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="IMAGE|CONTAINER", autocompletion=shared.complete_any)],
    path: Annotated[str, typer.Argument(metavar="PATH", autocompletion=_complete_path)],
    layer: Annotated[str | None, typer.Argument(metavar="[@LAYER]", show_default=False)] = None,
    cat: Annotated[
        bool,
        typer.Option(
            "--cat",
            metavar="[@LAYER]",
            help="Print the file: the version that shows, or that of @LAYER, a number from the bottom or digits of a"
            " digest",
        ),
    ] = False,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="Tell of a symbolic link itself, not of what it leads to")
    ] = False,
    no_trunc: shared.NoTrunc = False,
    storage: shared.Storage = None,
    format: shared.DocumentFormat = "",
) -> int:
    """Show which layer a file comes from

    Which layer, and which line of the build, supplied PATH, what that hides in the layers below, and what deleted it.
    PATH starts at the root, and symbolic links are followed within the image.
    """
    if name.startswith("@") and layer is not None:
        name, path, layer = path, layer, name  # --cat @2 IMAGE PATH
    if layer is not None and not (cat and layer.startswith("@")):
        raise UsageError(
            f"unexpected argument {layer!r}",
            hint="A layer is named after --cat: --cat @2." if layer.startswith("@") else "",
        )
    if cat and format:
        raise UsageError(
            "--cat prints the file itself, and --format what is told of it", hint="Leave one out."
        )
    engine = session(context).engine(storage)
    if cat:
        with engine.content(name, path, layer, follow=not no_follow) as pieces:
            for piece in pieces:
                write_bytes(piece)
        return 0
    found = engine.which(name, path, follow=not no_follow)
    if not document(_document(found), format):
        _human(found, truncate=not no_trunc)
    if found.problem:
        from ..engine.which import missing

        flush()
        raise missing(found)
    return 0


def _human(found: Which, *, truncate: bool) -> None:
    for link in found.links:
        where = f"   (symbolic link of layer {layer_name(link.layer)})\n"
        write(f"{name_text(link.path)} -> {name_text(link.target)}{where}")
    visible = found.visible
    if visible is not None and not found.problem:
        what = name_text(found.path)
        whose = "the container" if visible.layer.container else f"layer {visible.layer.number}"
        count = found.layers - found.container
        of = "" if visible.layer.container else f" of {count}"
        write(f"{what} is from {whose}{of}\n")
        made = visible.layer.created_by
        if made:
            line = " ".join(made.split())
            write(f"  {printable(ellipsis(line, 200) if truncate else line)}\n")
    if found.versions:
        write("\n" if visible is not None and not found.problem else "")
        records = (_row(one, found, truncate=truncate) for one in found.versions)
        rows(records, HEADERS, tuple(HEADERS), "")
    lines = [*_details(found), *found.notes]
    if lines:
        write("\n")
    for line in lines:
        write(printable(line) + "\n")


def _row(one: Version, found: Which, *, truncate: bool) -> dict[str, str]:
    by = build_line(one.layer)
    record = {
        "Layer": layer_name(one.layer),
        "State": _state(one, found),
        "Mode": "",
        "Owner": "",
        "Size": "",
        "Modified": "",
        "CreatedBy": ellipsis(by, _WIDTH) if truncate else by,
    }
    if not one.mark and one.listed:
        record["Mode"] = mode_text(one.kind, one.mode)
        record["Owner"] = f"{one.uid}:{one.gid}"
        record["Size"] = human_size(one.size) if one.kind == "file" else ""
        record["Modified"] = moment(one.mtime_ns)
    return record


def _state(one: Version, found: Which) -> str:
    if one.kind == "whiteout":
        what = "deletes it" if one.path == found.path else f"deletes {name_text(one.path)}"
        return what if one.state != "idle" else f"{what}: nothing to delete"
    if one.kind == "opaque":
        return f"empties {name_text(one.path)}"
    if one.kind == "covered":
        return f"puts something else in place of {name_text(one.path)}"
    if one.state == "merged":
        return "adds to it"
    if not one.by:
        return one.state
    by = "the container" if found.container and one.by == found.layers else f"layer {one.by}"
    return f"{one.state} by {by}"


def _details(found: Which) -> Iterator[str]:
    """What the table has no room for."""
    for one in found.versions:
        layer = layer_name(one.layer)
        if one.kind == "symlink":
            yield f"layer {layer}: a symbolic link to {name_text(one.target)}"
        elif one.kind == "link":
            yield f"layer {layer}: a hard link to {name_text(one.target)} of a layer below, which has the content"
        elif one.target:
            yield f"layer {layer}: a hard link: the same file as {name_text(one.target)} of that layer"
        if one.device is not None:
            yield f"layer {layer}: {one.kind} device {one.device[0]}:{one.device[1]}"
        if one.copies > 1:
            yield f"layer {layer}: its tar has this name {one.copies} times, and the last one counts"
        if not one.listed and one.state == "visible":
            yield "no layer lists this directory, they only go through it: it is root's, with mode 0755"
    if found.shares:
        told = ", ".join(f"{share.names} from layer {layer_name(share.layer)}" for share in found.shares)
        yield f"below it: {told}"


def _document(found: Which) -> dict[str, Any]:
    """The object of ``--format``: about the version that shows, and with all versions."""
    visible = found.visible if not found.problem else None
    layer = visible.layer if visible else None
    return {
        "Name": found.name,
        "Container": found.container,
        "Asked": found.asked,
        "Path": found.path,
        "Found": visible is not None,
        "Problem": found.problem,
        "At": found.at,
        "Layer": layer.number if layer else 0,
        "Layers": found.layers,
        "DiffID": layer.diff_id if layer else "",
        "Digest": layer.digest if layer else "",
        "CreatedBy": layer.created_by if layer else "",
        "Type": visible.kind if visible else "",
        "Size": visible.size if visible else 0,
        "Links": [
            {"Path": link.path, "Target": link.target, "Layer": link.layer.number} for link in found.links
        ],
        "Versions": [_version(one) for one in found.versions],
        "Shares": [{"Layer": share.layer.number, "Names": share.names} for share in found.shares],
        "Notes": list(found.notes),
    }


def _version(one: Version) -> dict[str, Any]:
    layer = one.layer
    told: dict[str, Any] = {
        "Layer": layer.number,
        "Container": layer.container,
        "DiffID": layer.diff_id,
        "Digest": layer.digest,
        "Created": layer.created,
        "CreatedBy": layer.created_by,
        "Path": one.path,
        "Type": one.kind,
        "State": one.state,
    }
    if one.mark:
        return told
    told.update(
        By=one.by,
        Listed=one.listed,
        Mode=mode_text(one.kind, one.mode),
        UID=one.uid,
        GID=one.gid,
        Size=one.size,
        Modified=rfc3339(one.mtime_ns / 1e9) if abs(one.mtime_ns) < 1 << 61 else "",
        ModifiedNs=one.mtime_ns,
        Target=one.target,
        Device=list(one.device) if one.device else None,
        Copies=one.copies,
    )
    return told
