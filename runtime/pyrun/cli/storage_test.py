"""``pyrun storage test``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from . import options as shared
from .output import flush, write
from .session import session


def suite(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="DRIVER", autocompletion=shared.complete_driver)],
    root: Annotated[
        str | None,
        typer.Option(
            "--root",
            metavar="DIR",
            help="Directory to work below, on the file system to test (else the store's)",
            click_type=shared.complete_directory,
        ),
    ] = None,
    chaos: Annotated[
        bool,
        typer.Option("--chaos", help="Also kill the driver at every step, and break the disk below it"),
    ] = False,
    long: Annotated[
        bool, typer.Option("--long", help="Full sizes and rounds for cases that have smaller ones")
    ] = False,
    select: Annotated[
        str | None,
        typer.Option("-k", metavar="EXPRESSION", help="Only run cases whose names match, as pytest's -k"),
    ] = None,
    exitfirst: Annotated[bool, typer.Option("-x", "--exitfirst", help="Stop at the first failure")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only show failures and the result")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show every case by its name")] = False,
    storage_opt: shared.StorageOpt = None,
) -> int:
    """Run the conformance suite against an installed storage driver

    Works in a directory of its own, which it removes; images and containers are left alone. Ends with the line
    "DRIVER: N passed, N failed, N skipped", and exits with 0 where no case failed, 1 where one did. What a
    driver declares to be wrong must fail, and is listed and counted apart.
    """
    from ..lab.place import Place
    from ..lab.suite import run

    others = [option for option in storage_opt or () if option.partition(".")[0] != name]
    if others:
        raise UsageError(f"--storage-opt {others[0]} is not for the driver under test, {name}")
    arguments = ["-rfx"]
    arguments += ["-k", select] if select is not None else []
    arguments += ["-x"] if exitfirst else []
    arguments += ["-v"] if verbose else ["-q"] if quiet else []
    engine = session(context).engine(storage_opts=storage_opt or ())
    with Place(root or engine.root) as env:
        outcome = run(name, env, engine.driver_options(name), chaos=chaos, long=long, arguments=arguments)
    write(f"{outcome}\n")
    flush()
    return 0 if outcome.code == 0 else 1
