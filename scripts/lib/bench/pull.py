"""`scripts/bench pull`: cold pulls, each into a new store on a new file system, all engines in turn; and what a pull
need not fetch again."""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pyrun.lab import disk

from . import again
from .footprint import PeakMemory, busy, cpu_of
from .peers import Absent
from .picture import picture
from .pullers import NAMES, Puller
from .pullers import field as pullers
from .timing import Contender, Failed, adopt_orphans, run_once, wait_for_quiet


@dataclass
class Figures:
    """One engine's pulls of one image: wall-clock seconds, CPU seconds of the machine without the registry's, both a
    round; peak memory of all its processes in bytes, of one round more, in which nothing is timed."""

    puller: Puller
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)


class Track:
    """Where the pulls happen: a new file system each."""

    def __init__(self, work: Path, registry_pid: int, quiet: float) -> None:
        self.work = work
        self.registry_pid = registry_pid
        self.quiet = quiet
        self.waited = 0.0

    def pull(self, figures: Figures, image: str, *, timed: bool) -> None:
        """One cold pull into ``figures``. Raises `Failed`, `Absent`."""
        puller = figures.puller
        place = self.work / "disk"
        with disk.Disk(str(self.work), "ext4"):
            began = False
            try:
                puller.begin(place)
                began = True
                if puller.keeps:
                    # Everybody's store is in use already: what an engine does once for a store is no part of a pull.
                    other = puller.command(place, "busybox:latest")
                    run_once(Contender(puller.name, puller.version, other, puller.environ))
                contender = Contender(
                    puller.name, puller.version, puller.command(place, image), puller.environ
                )
                if not timed:
                    with PeakMemory() as memory:
                        run_once(contender)
                    figures.memory = max(figures.memory, memory.peak)
                    return
                os.sync()
                self.waited += wait_for_quiet(self.quiet)
                before, served = busy(), cpu_of(self.registry_pid)
                seconds = run_once(contender)
                time.sleep(0.2)  # what a daemon does right after is of the pull's making
                used = busy() - before - (cpu_of(self.registry_pid) - served)
                figures.seconds.append(seconds)
                figures.cpu.append(used)
            finally:
                if began:
                    puller.end(place)


def race(
    track: Track, field_: Sequence[Puller], image: str, rounds: int, absent: dict[str, str]
) -> list[Figures]:
    """``rounds`` pulls by everybody, in turn. The first round watches memory; who fails in it takes no part."""
    runners = [Figures(puller) for puller in field_]
    for number in range(rounds + 1):
        for figures in list(runners):
            try:
                track.pull(figures, image, timed=number > 0)
            except (Failed, Absent) as reason:
                if number or figures.puller.name == "pyrun":
                    raise
                runners.remove(figures)
                absent[figures.puller.name] = str(reason)
        if sys.stdout.isatty():
            print(f"\r{image}: round {number} of {rounds} ", end="", flush=True)
    return runners


def report(image: str, runners: Sequence[Figures]) -> None:
    size = f"{'median s':>10}{'min':>8}{'max':>8}{'CPU s':>8}{'MiB':>7}"
    print(f"\n{image:14}{size}   {'pyrun / it':>10}   {'CPU / its':>9}   version")
    ours = runners[0]
    for one in runners:
        print(
            f"{one.puller.name:14}{one.median:10.2f}{min(one.seconds):8.2f}{max(one.seconds):8.2f}"
            f"{one.median_cpu:8.2f}{one.memory / (1 << 20):7.0f}   {ours.median / one.median:10.3f}   "
            f"{ours.median_cpu / one.median_cpu:9.3f}   {one.puller.version}"
        )


def save(results: dict[str, list[Figures]], rest: Sequence[again.Figure], folder: Path) -> list[Path]:
    """A CSV file of every figure, and a chart of the medians; nothing in them names this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"pull-{time.strftime('%Y-%m-%d')}"
    kernel, cpus = os.uname().release, os.cpu_count()
    with open(f"{stem}.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["measure", "engine", "version", "round", "seconds", "cpu_seconds", "kernel", "cpus"])
        for image, runners in results.items():
            for one in runners:
                for number, (seconds, cpu) in enumerate(zip(one.seconds, one.cpu, strict=True), 1):
                    row = (one.puller.name, one.puller.version, number, f"{seconds:.3f}", f"{cpu:.2f}")
                    writer.writerow([f"pull {image}", *row, kernel, cpus])
        writer.writerow([])
        writer.writerow(["measure", "engine", "value", "unit"])
        for image, runners in results.items():
            for one in runners:
                writer.writerow([f"peak memory of pull {image}", one.puller.name, one.memory >> 20, "MiB"])
        for figure in rest:
            writer.writerow([figure.name, "pyrun", f"{figure.value:.4g}", figure.unit])
    with open(f"{stem}.svg", "w", encoding="utf-8") as out:
        out.write(
            picture(
                {
                    image: [(r.puller.name, r.median, r.median_cpu, r.memory) for r in runners]
                    for image, runners in results.items()
                }
            )
        )
    return [Path(f"{stem}.csv"), Path(f"{stem}.svg")]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench pull", description="See scripts/bench --help.")
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("--quiet-wait", type=float, default=20.0)
    parser.add_argument("--only", default=",".join(NAMES))
    parser.add_argument("--images", default="redis,big")
    parser.add_argument("--save", type=Path, metavar="DIR")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layout", type=Path, required=True)
    parser.add_argument("--registry", required=True)
    parser.add_argument("--registry-pid", type=int, required=True)
    options = parser.parse_args(arguments)
    names = [name for name in options.only.split(",") if name]
    images = [name for name in options.images.split(",") if name]
    if options.rounds < 1 or not set(names) <= set(NAMES) or not set(images) <= {"busybox", "redis", "big"}:
        parser.error(
            f"--rounds takes a positive number, --only names out of {','.join(NAMES)},"
            " --images out of busybox,redis,big"
        )
    if "pyrun" not in names:
        names.insert(0, "pyrun")
    names.sort(key=lambda name: name != "pyrun")
    adopt_orphans()
    with ExitStack() as cleanup:
        folder = options.work / "pull"
        folder.mkdir()
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        track = Track(folder, options.registry_pid, options.quiet_wait)
        field_, absent = pullers(options.registry, options.layout, names)
        if "pyrun" in absent:
            print(f"bench: pyrun can't take part: {absent['pyrun']}", file=sys.stderr)
            return 1
        results = {}
        try:
            for image in images:
                # What could not take part once is not tried again.
                able = [puller for puller in field_ if puller.name not in absent]
                results[image] = race(track, able, f"{image}:latest", options.rounds, absent)
                report(image, results[image])
            rest = again.figures(folder, options.registry, options.rounds, options.quiet_wait)
        except (Failed, Absent) as reason:
            print(f"bench: {reason}", file=sys.stderr)
            return 1
        print()
        for figure in rest:
            print(f"{figure.name:52}{figure.value:10.4g} {figure.unit}")
        for name, why in absent.items():
            print(f"{name:14}left out: {why}")
        print(
            "\nCold pulls, whole process, each on a new ext4 into a store that holds but busybox;"
            f" medians of {options.rounds} rounds in turn."
            "\nCPU: of the whole machine, without the registry's. MiB: the most that all processes of the engine held"
            "\nat once, daemons included (shared pages in parts), in a round of its own."
            f"\n{track.waited:.0f} s were spent waiting for a quiet machine."
        )
        if options.save:
            for path in save(results, rest, options.save):
                print(f"saved: {path}")
    return 0
