"""`scripts/bench start`: how long a container takes to start and end."""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from .peers import Field
from .timing import Contender, Failed, adopt_orphans, round_robin, run_once

# Above this a trial run has met a timeout of the engine's own, and a median of those would flatter pyrun.
SLOWEST = 10.0
PEERS = ("podman", "docker", "runc", "crun")


def report(contenders: list[Contender], absent: dict[str, str], waited: float) -> None:
    print(f"\n{'':10}{'median ms':>11}{'min':>9}{'max':>9}   {'pyrun / it':>10}   version")
    ours = contenders[0].median
    for one in contenders:
        low, high = min(one.seconds), max(one.seconds)
        print(
            f"{one.name:10}{one.median * 1e3:11.1f}{low * 1e3:9.1f}{high * 1e3:9.1f}   "
            f"{ours / one.median:10.3f}   {one.version}"
        )
    for name, why in absent.items():
        print(f"{name:10}  left out: {why}")
    rounds = len(contenders[0].seconds)
    print(f"\n`run --rm --network none busybox true`, whole process, {rounds} rounds in turn;")
    print(f"below 1 pyrun is faster. {waited:.0f} s were spent waiting for a quiet machine.")


def save(contenders: list[Contender], folder: Path) -> Path:
    """A CSV file of every time, one line a run; nothing in it names this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"start-{time.strftime('%Y-%m-%d')}.csv"
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["engine", "version", "round", "milliseconds", "kernel", "cpus"])
        for one in contenders:
            for number, seconds in enumerate(one.seconds, 1):
                cells = (
                    one.name,
                    one.version,
                    number,
                    f"{seconds * 1e3:.2f}",
                    os.uname().release,
                    os.cpu_count(),
                )
                writer.writerow(cells)
    return path


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench start", description="See scripts/bench --help.")
    parser.add_argument("-n", "--rounds", type=int, default=15)
    parser.add_argument("--quiet-wait", type=float, default=5.0)
    parser.add_argument("--only", default=",".join(PEERS))
    parser.add_argument("--save", type=Path, metavar="DIR")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layout", type=Path, required=True)
    parser.add_argument("--registry", required=True)
    options = parser.parse_args(arguments)
    names = [name for name in options.only.split(",") if name]
    if options.rounds < 1 or not set(names) <= set(PEERS):
        parser.error(f"--rounds takes a positive number, --only names out of {','.join(PEERS)}")
    adopt_orphans()
    with ExitStack() as cleanup:
        field = Field(options.work, options.registry, options.layout, cleanup)
        contenders, absent = field.all(["pyrun", *names])
        if "pyrun" in absent:
            print(f"bench: pyrun can't take part: {absent['pyrun']}", file=sys.stderr)
            return 1
        # A trial run each: one that can't start a container here is told, and does not end the others' race.
        for one in list(contenders):
            try:
                if (seconds := run_once(one)) > SLOWEST:
                    raise Failed(
                        f"took {seconds:.0f} s: it waited for something here, which is no start time"
                    )
            except Failed as reason:
                if one.name == "pyrun":
                    print(f"bench: {reason}", file=sys.stderr)
                    return 1
                contenders.remove(one)
                absent[one.name] = str(reason)
        shown = sys.stdout.isatty()

        def tell(number: int) -> None:
            if shown:
                print(f"\rround {number} of {options.rounds} ", end="", flush=True)

        try:
            waited = round_robin(contenders, options.rounds, options.quiet_wait, tell)
        except Failed as reason:
            print(f"bench: {reason}", file=sys.stderr)
            return 1
        report(contenders, absent, waited)
        if options.save:
            print(f"saved: {save(contenders, options.save)}")
    return 0
