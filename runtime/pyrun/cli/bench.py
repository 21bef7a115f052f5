"""``pyrun storage bench``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ..errors import StorageError, UsageError
from . import options as shared
from .escape import printable
from .output import document, write
from .session import session
from .table import aligned

_MOST = 1000


def bench(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[DRIVER...]", autocompletion=shared.complete_driver)
    ] = None,
    rounds: Annotated[
        int, typer.Option("-n", "--rounds", metavar="N", help="How often to measure (default 3)")
    ] = 3,
    size: Annotated[
        str,
        typer.Option(
            "--size",
            metavar="SIZE",
            help="'tiny', 'small' (2000 files, 28 MiB) or 'medium' (8000 files, 111 MiB; the default)",
            autocompletion=shared.one_of("tiny", "small", "medium"),
        ),
    ] = "medium",
    parallel: Annotated[
        int,
        typer.Option("--parallel", metavar="N", help="Containers to start at once (default 20)"),
    ] = 20,
    fs: Annotated[
        str,
        typer.Option(
            "--fs",
            metavar="TYPE",
            help="Fresh file system for each round: 'ext4', 'btrfs' or 'xfs', or 'none' to use the directory's",
            autocompletion=shared.one_of("ext4", "btrfs", "xfs", "none"),
        ),
    ] = "",
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Directory to work below (default: of pyrun --root, else /var/tmp)",
            click_type=shared.complete_directory,
        ),
    ] = None,
    csv: Annotated[
        str | None,
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Write every single figure there, too",
            click_type=shared.complete_file,
        ),
    ] = None,
    chart: Annotated[
        str | None,
        typer.Option(
            "--chart",
            metavar="FILE",
            help="Draw the medians there, too: FILE.svg or FILE.png",
            click_type=shared.complete_file,
        ),
    ] = None,
    format: shared.DocumentFormat = "",
    storage_opt: shared.StorageOpt = None,
) -> None:
    """Measure storage drivers, and compare their figures

    Without names, every driver that works here is measured. Each round of each driver has a fresh file system, ext4
    unless the driver wants another; they take turns. Nothing of the store is used. As an ordinary user, or with
    --fs none, a plain directory serves; nothing is read cold there.
    """
    for option, number in (("--rounds", rounds), ("--parallel", parallel)):
        if not 1 <= number <= _MOST:
            raise UsageError(f"{option} {number} is not between 1 and {_MOST}")
    _check(size, fs, chart, csv)
    others = [option for option in storage_opt or () if names and option.partition(".")[0] not in names]
    if others:
        raise UsageError(f"--storage-opt {others[0]} is for none of the drivers to measure")
    found = session(context)
    engine = found.engine(storage_opts=storage_opt or ())

    from ..lab.bench import bench as measure
    from ..lab.chart import chart as draw
    from ..lab.figures import as_csv, notes, table
    from ..lab.place import Place

    shown = _Progress()
    with Place(root or found.root or "/var/tmp") as env:
        try:
            report = measure(
                names or (),
                env,
                engine.driver_options,
                size=size,
                rounds=rounds,
                starts=parallel,
                file_system=fs,
                progress=shown,
            )
        finally:
            shown.end()
    if csv is not None:
        _save(csv, as_csv(report).encode())
    if chart is not None:
        picture = draw(report)
        _save(chart, picture.png() if chart.endswith(".png") else picture.svg().encode())
    if not document(report.as_dict(), format):
        write(aligned([[printable(cell) for cell in row] for row in table(report)]))
        write("\n" + "".join(f"{printable(line)}\n" for line in notes(report)))


def _check(size: str, fs: str, chart: str | None, csv: str | None) -> None:
    """What would otherwise show after minutes of measuring."""
    from ..lab.disk import KINDS
    from ..lab.sample import SIZES

    if size not in SIZES:
        raise UsageError(f"--size {size}: unknown size", hint=f"One of {', '.join(SIZES)}.")
    if fs not in ("", "none", *KINDS):
        raise UsageError(f"--fs {fs}: unknown file system", hint=f"One of {', '.join((*KINDS, 'none'))}.")
    if chart is not None and not chart.endswith((".svg", ".png")):
        raise UsageError(f"--chart {chart}: unknown kind of picture", hint="Name it FILE.svg or FILE.png.")
    if chart is not None and chart.endswith(".png"):
        from ..lab.chart import Canvas

        Canvas(1, 1, "", "").png()
    for path in (csv, chart):
        if path is not None and not os.access(os.path.dirname(path) or ".", os.W_OK):
            raise StorageError(
                f"can't write {path}: its directory does not exist, or is not yours to write in"
            )


def _save(path: str, content: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"can't write {path}: {error.strerror}") from error


class _Progress:
    """What is being measured, on one line of a terminal; elsewhere nothing."""

    def __init__(self) -> None:
        self.terminal = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        if self.terminal:
            sys.stderr.write(f"\r\x1b[K{printable(text)}")
            sys.stderr.flush()

    def end(self) -> None:
        if self.terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
