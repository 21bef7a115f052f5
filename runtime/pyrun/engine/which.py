"""Which layer of an image supplied a file, and what became of the versions below: the records of ``pyrun which``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import NotFound, UsageError
from ..layers import provenance
from ..layers.names import shown
from ..layers.provenance import COVER, ENTRY, VISIBLE, Found, Stack
from ..layers.table import IMPLIED
from .stack import LayerInfo, Opened, opened

if TYPE_CHECKING:
    from .containers import ContainerMethods


@dataclass(frozen=True, slots=True)
class Link:
    """A symbolic link on the way to the file: ``path`` in ``layer`` leads to ``target``, verbatim."""

    path: str
    target: str
    layer: LayerInfo


@dataclass(frozen=True, slots=True)
class Version:
    """What one layer has for the path.

    layer      whose it is
    path       the name it is about: the path itself, or of a mark perhaps a directory above it
    kind       "file", "dir", "symlink", "char", "block", "fifo", "link" (a hard link to a file of a lower layer); or
               a mark: "whiteout" (deletes ``path`` below), "opaque" (a directory that hides what lower layers have in
               it), "covered" (a parent is no directory in this layer)
    state      "visible", "merged" (a directory whose content shows, with another layer's attributes), "replaced",
               "deleted"; of a mark "hides" or "idle" (there was nothing to hide)
    by         the number of the layer that replaced or deleted it, 0 for none
    mode, uid, gid, size, mtime_ns   as in the layer; ``size`` in bytes, of files
    target     a symbolic link's target, or the name in the same layer that this one is a hard link to
    device     (major, minor)
    copies     how often the layer's tar has the name: the last one counts
    listed     False for a directory that the layer only goes through: its attributes are those of lower layers
    """

    layer: LayerInfo
    path: str
    kind: str
    state: str
    by: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    target: str = ""
    device: tuple[int, int] | None = None
    copies: int = 1
    listed: bool = True

    @property
    def mark(self) -> bool:
        return self.kind in ("whiteout", "opaque", "covered")


@dataclass(frozen=True, slots=True)
class Share:
    """``layer`` supplies ``names`` of the names below a directory, at any depth."""

    layer: LayerInfo
    names: int


@dataclass(frozen=True, slots=True)
class Which:
    """Where a path of an image or container comes from.

    name       of the image or container, as it was given;  container  whether it is one
    asked      the path as it was given;  path  where it leads: absolute, without symbolic links but perhaps the last
    layers     how many there are, a container's writable one included
    links      the symbolic links followed, in order
    versions   topmost layer first
    shares     of a directory: the layers that supply what shows below it, topmost first
    problem    "" where the path leads to something; else "missing", "not a directory" or "loop"
    at         the component with that problem
    notes      what else there is to know, a line each

    Paths are text as `os.fsdecode` makes it: bytes that are not UTF-8 are lone surrogates.
    """

    name: str
    container: bool
    asked: str
    path: str
    layers: int
    links: tuple[Link, ...] = ()
    versions: tuple[Version, ...] = ()
    shares: tuple[Share, ...] = ()
    problem: str = ""
    at: str = ""
    notes: tuple[str, ...] = field(default=())

    @property
    def visible(self) -> Version | None:
        """The version that shows; None where the path leads to nothing."""
        return next((one for one in self.versions if one.state == "visible"), None)

    @property
    def deletion(self) -> Version | None:
        """What made the topmost hidden version invisible, where nothing shows."""
        if self.visible is not None:
            return None
        hidden = next((one for one in self.versions if not one.mark and one.by), None)
        if hidden is None:
            return None
        return next(
            (one for one in self.versions if one.layer.number == hidden.by and one is not hidden), None
        )


def which(engine: ContainerMethods, name: str, path: str, *, follow: bool = True) -> Which:
    """See `pyrun.engine.provenance.ProvenanceMethods.which`."""
    with opened(engine, name) as stack:
        return _which(stack, path, follow)


@contextmanager
def content(
    engine: ContainerMethods, name: str, path: str, layer: str | None, *, follow: bool = True
) -> Iterator[Iterator[bytes]]:
    """See `pyrun.engine.provenance.ProvenanceMethods.content`."""
    with opened(engine, name) as stack:
        found = Stack(stack.tables)
        place = found.find(_asked(path), follow=follow)
        chosen: Found | None
        if layer is None:
            chosen = None if place.problem else found.lookup(place.name)
            if chosen is None:
                raise missing(_which(stack, path, follow))
        else:
            number = stack.chosen(layer)
            chosen = next(
                (f for f in found.trace(place.name) if f.what == ENTRY and f.layer == number),
                None,
            )
            if chosen is None:
                told = _which(stack, path, follow)
                have = ", ".join(f"@{one.layer.number}" for one in told.versions if not one.mark)
                raise NotFound(
                    f"layer {number + 1} of {name} has no {shown(b'/' + place.name)}",
                    hint=f"These have one: {have}." if have else "No layer has one.",
                )
        assert chosen is not None
        kind = stack.tables[chosen.layer].kind(chosen.row)
        source = found.source(chosen)
        if source is None:
            raise NotFound(f"{shown(b'/' + place.name)} is a hard link to a file that no lower layer shows")
        if kind not in ("file", "link"):
            target = stack.tables[chosen.layer].target(chosen.row)
            what = {"dir": "directory", "symlink": f"symbolic link to {shown(target)}"}.get(kind, kind)
            raise UsageError(
                f"{shown(b'/' + place.name)} is a {what} in layer {chosen.layer + 1}, which has no content",
                hint="--cat is for files."
                if kind != "symlink"
                else "Leave out --no-follow, or name the target.",
            )
        yield stack.sources[source.layer].read(stack.tables[source.layer], source.row)


def missing(found: Which) -> NotFound:
    """The error for a path that leads to nothing, which says what became of it."""
    where = f"{found.name} has no {shown(os.fsencode(found.path))}"
    if found.problem == "loop":
        return NotFound(
            f"{shown(os.fsencode(found.asked))} of {found.name} goes through too many symbolic links",
            hint=f"The last one looked at is {shown(os.fsencode(found.at))}.",
        )
    if found.problem == "not a directory":
        return NotFound(
            f"{where}: {shown(os.fsencode(found.at))} is not a directory", hint="Leave out what follows it."
        )
    gone = found.deletion
    if gone is not None:
        last = next(one for one in found.versions if not one.mark and one.by)
        how = f"layer {gone.layer.number} deleted " + (
            "it" if gone.path == found.path else shown(os.fsencode(gone.path))
        )
        if gone.kind == "opaque":
            how = f"layer {gone.layer.number} emptied {shown(os.fsencode(gone.path))}"
        elif gone.kind not in ("whiteout", "dir"):
            how = f"in layer {gone.layer.number} {shown(os.fsencode(gone.path))} is no directory any more"
        if gone.layer.container:
            how = how.replace(f"layer {gone.layer.number}", "the container", 1)
        see = f" --cat @{last.layer.number} prints that version." if last.kind == "file" else ""
        return NotFound(f"{where}: {how}", hint=f"Layer {last.layer.number} had it.{see}")
    if not found.layers:
        return NotFound(f"{where}: it has no layers, and so no files")
    return NotFound(f"{where}, and none of its layers ever had it", hint="Look at the directory above it.")


def _asked(path: str) -> bytes:
    name = os.fsencode(path)
    if b"\0" in name:
        raise UsageError("the path contains a NUL byte, which no file name can have")
    if not name:
        raise UsageError("the path is empty", hint="/ is the root directory.")
    return name


def _which(stack: Opened, path: str, follow: bool) -> Which:
    found = Stack(stack.tables)
    place = found.find(_asked(path), follow=follow)
    traced = found.trace(place.name)
    versions = tuple(_version(stack, one) for one in traced if _tells(stack, one, place.name))
    if not traced and not place.problem:
        place.problem = "missing"  # the root of an image without layers
    shown_one = next((one for one in traced if one.state == VISIBLE), None)
    shares: tuple[Share, ...] = ()
    directory = shown_one is not None and stack.tables[shown_one.layer].kind(shown_one.row) == "dir"
    if directory and not place.problem:
        shares = _shares(stack, place.name, traced)
    layers = stack.layers
    return Which(
        name=stack.name,
        container=stack.container is not None,
        asked=path,
        path="/" + os.fsdecode(place.name),
        layers=len(layers),
        links=tuple(
            Link("/" + os.fsdecode(step.name), os.fsdecode(step.target), layers[step.layer])
            for step in place.steps
        ),
        versions=versions,
        shares=shares,
        problem=place.problem,
        at="/" + os.fsdecode(place.at) if place.problem else "",
        notes=(*stack.notes, *_covered(stack, place.name)),
    )


def _tells(stack: Opened, found: Found, name: bytes) -> bool:
    """Whether a line about it is worth reading: a mark that hides nothing is only where it is about the name."""
    if found.what == ENTRY or found.state != "idle":
        return True
    return found.name == name and stack.tables[found.layer].kind(found.row) == "whiteout"


def _version(stack: Opened, found: Found) -> Version:
    table, row = stack.tables[found.layer], found.row
    layer = stack.layers[found.layer]
    path = "/" + os.fsdecode(found.name)
    if found.what != ENTRY:
        kind = "covered" if found.what == COVER else found.what
        return Version(layer, path, kind, found.state or "hides")
    return Version(
        layer=layer,
        path=path,
        kind=table.kind(row),
        state=found.state,
        by=found.by + 1,
        mode=table.modes[row],
        uid=table.uids[row],
        gid=table.gids[row],
        size=table.sizes[row],
        mtime_ns=table.mtimes[row],
        target=_target(table.target(row), table.kind(row)),
        device=table.devices.get(row),
        copies=table.copies.get(row, 1),
        listed=not table.flags[row] & IMPLIED,
    )


def _target(target: bytes, kind: str) -> str:
    return os.fsdecode(target if kind == "symlink" or not target else b"/" + target)


def _shares(stack: Opened, name: bytes, traced: list[Found]) -> tuple[Share, ...]:
    from ..layers.weigh import suppliers

    lowest = min(one.layer for one in traced if one.state in (VISIBLE, provenance.MERGED))
    # A mark of the lowest layer hides what is below it, and not its own part.
    found = suppliers(stack.tables, name, lowest)
    return tuple(Share(stack.layers[at], found[at]) for at in sorted(found, reverse=True))


def _covered(stack: Opened, name: bytes) -> list[str]:
    notes = []
    for cover in stack.covers:
        if name == cover or name.startswith(cover + b"/"):
            notes.append(
                f"{shown(b'/' + cover)} has something else mounted on it in the container: processes there see that"
            )
    return notes[:1]
