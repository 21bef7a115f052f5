"""Storage drivers by numbers: ``pyrun storage bench``.

Each driver does the same work on a fresh file system, some rounds, the drivers taking turns so that whatever else
the machine does hits all of them. The work is that of a container's life, through the engine's own layer store and
by the ``run`` command itself:

unpack          the image's layers, one after the other, until they are on the disk
first byte      prepare and mount a container, read one byte of a file; nothing of it is in memory before
walk            stat every file of that container, the first time
mount           prepare and mount a container, again and again: the median
copy-up         append a byte to each of many small files of the image, and to one large one
small files     write new ones of 4 KiB
discard         remove that container with what it wrote
start           `pyrun run --rm` of a program that exits at once, to its end; then many at the same time
page cache      what two containers that read every file keep in memory: what /proc/meminfo calls Cached, less
                what is left of it once the file system is unmounted. Other processes' reading in that moment counts
delete          remove all layers

Where file systems can't be made (as an ordinary user, or by wish), all of it happens in a directory, warm, and the
page cache is not measured.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import NotFound, StorageError, Unsupported
from ..images.local import ImageStore
from ..images.platform import wanted
from ..images.record import Image, ImageLayer
from ..kernel import mount as m
from ..kernel.process import CLONE_NEWNS, unshare
from ..layers.remove import remove_tree
from ..storage.contract import Driver, Env, Layer
from ..storage.tarblob import TarBlob
from ..testing.rig import Rig
from . import sample
from .child import call
from .disk import KINDS, Disk, require
from .suite import find, installed

_SECONDS = 1800.0  # for one phase of one round
_MOUNTS = 20
_MOUNT_SECONDS = 2.0
_STARTS_ALONE = 5
_NEW_BYTES = 4096
_IMAGE = "sample"


class Measure:
    """Something measured. ``unit`` is "s" or "MiB"; less is better in both."""

    def __init__(self, key: str, title: str, unit: str = "s") -> None:
        self.key = key
        self.title = title
        self.unit = unit


def measures(size: sample.Size, starts: int) -> list[Measure]:
    """Everything that is measured, in the order of tables."""
    return [
        Measure("unpack", "unpack the image"),
        Measure("first_byte", "first byte of a container"),
        Measure("walk", "metadata walk"),
        Measure("mount", "prepare and mount"),
        Measure("copy_up_small", f"copy-up of {size.copies} small files"),
        Measure("copy_up_large", f"copy-up of a {size.large >> 20} MiB file"),
        Measure("small_files", f"write {size.new} small files"),
        Measure("discard", "delete the container"),
        Measure("start", "start to end of a container"),
        Measure("starts", f"{starts} parallel starts"),
        Measure("page_cache", "page cache of 2 containers", "MiB"),
        Measure("delete", "delete the image"),
    ]


class Result:
    """One driver's figures.

    values       measure → a value a round, in the measure's unit
    file_system  what it ran on: "ext4", ..., or "directory"
    notes        why something was not measured, or was measured otherwise
    """

    def __init__(self, name: str, file_system: str) -> None:
        self.name = name
        self.file_system = file_system
        self.values: dict[str, list[float]] = {}
        self.notes: list[str] = []

    def median(self, key: str) -> float | None:
        values = self.values.get(key)
        return statistics.median(values) if values else None

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


class Report:
    """What `bench` found: the drivers in the order asked for, and what holds for all of them."""

    def __init__(
        self, size: str, rounds: int, measures: Sequence[Measure], results: Sequence[Result]
    ) -> None:
        self.size = size
        self.rounds = rounds
        self.measures = measures
        self.results = results
        self.kernel = os.uname().release
        self.machine = f"{os.uname().machine}, {os.cpu_count()} CPUs"
        self.notes: list[str] = []

    def as_dict(self) -> dict[str, Any]:
        return {
            "Sample": f"{self.size}: {sample.SIZES[self.size]}",
            "Rounds": self.rounds,
            "Kernel": self.kernel,
            "Machine": self.machine,
            "Notes": self.notes,
            "Drivers": [
                {
                    "Driver": result.name,
                    "FileSystem": result.file_system,
                    "Notes": result.notes,
                    "Measures": {
                        measure.key: {
                            "Title": measure.title,
                            "Unit": measure.unit,
                            "Median": result.median(measure.key),
                            "Values": result.values.get(measure.key, []),
                        }
                        for measure in self.measures
                    },
                }
                for result in self.results
            ],
        }


def bench(
    names: Sequence[str],
    env: Env,
    options: Callable[[str], Mapping[str, Any]],
    *,
    size: str = "medium",
    rounds: int = 3,
    starts: int = 20,
    file_system: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure the drivers ``names`` (none: all that work), below ``env.root``, in a directory that is removed.

    options      a driver's options by its name
    size         a name of `sample.SIZES`
    file_system  "ext4", "btrfs", "xfs", "none" (a directory, as it is); "": for each driver the first of these it
                 works on, as root, else a directory
    progress     told what is being done

    As root this process moves into a mount namespace of its own. Raises `NotFound`, `Unsupported` where a named
    driver can't be used, `StorageError` where a measurement fails.
    """
    if not env.userns:
        unshare(CLONE_NEWNS)
        m.mount(None, b"/", None, m.MS_REC | m.MS_PRIVATE)
    elif file_system not in ("", "none"):
        raise Unsupported(
            "an ordinary user can't mount a file system of its own", hint="Run it as root, or with --fs none."
        )
    place = tempfile.mkdtemp(prefix=".bench-", dir=env.root)
    try:
        progress(f"making the sample image ({sample.SIZES[size]})")
        tars = sample.write(place, sample.SIZES[size])
        bench_ = _Bench(place, tars, sample.SIZES[size], starts, progress)
        report = Report(size, rounds, measures(sample.SIZES[size], starts), [])
        subjects = bench_.choose(names, env, options, file_system, report)
        for number in range(rounds):
            for subject in subjects:
                bench_.round(subject, f"round {number + 1} of {rounds}, {subject.result.name}")
        report.results = [subject.result for subject in subjects]
        return report
    finally:
        remove_tree(place)


class _Subject:
    def __init__(self, driver: type[Driver], options: Mapping[str, Any], result: Result) -> None:
        self.driver = driver
        self.options = options
        self.result = result


class _Bench:
    def __init__(
        self, place: str, tars: Sequence[str], size: sample.Size, starts: int, progress: Callable[[str], None]
    ) -> None:
        self.place = place
        self.tars = tars
        self.size = size
        self.starts = starts
        self.progress = progress
        # The caller's configuration must not change what is measured.
        self.config = f"{place}/config.toml"
        open(self.config, "w").close()

    def choose(
        self,
        names: Sequence[str],
        env: Env,
        options: Callable[[str], Mapping[str, Any]],
        file_system: str,
        report: Report,
    ) -> list[_Subject]:
        """The drivers that can be measured, each with the file system it works on."""
        if file_system == "" and not env.userns:
            kinds: Sequence[str] = KINDS
        elif file_system in ("", "none"):
            kinds = ["directory"]
            report.notes.append("in a directory: nothing is read cold, and the page cache is not measured")
        else:
            kinds = [file_system]
        for kind in kinds[:1]:
            if kind != "directory":
                require(kind)
        drivers = [find(name) for name in names] if names else installed()
        subjects: dict[str, _Subject] = {}
        refused: dict[str, list[str]] = {}
        for kind in kinds:
            todo = [driver for driver in drivers if driver.name not in subjects]
            if not todo:
                break
            self.progress(f"trying {', '.join(driver.name for driver in todo)} on {kind}")
            try:
                found = self._tried(todo, options, kind)
            except (
                Unsupported,
                StorageError,
            ) as error:  # no tools for a further kind, or no such file system
                if kind == kinds[0]:
                    raise
                report.notes.append(f"{kind} was not tried: {error.message}")
                continue
            for driver in todo:
                if found[driver.name]:
                    refused.setdefault(driver.name, []).append(f"on {kind}: {found[driver.name]}")
                else:
                    result = Result(driver.name, kind)
                    subjects[driver.name] = _Subject(driver, options(driver.name), result)
        for name, reasons in refused.items():
            if name not in subjects:
                text = f"{name} can't be used here ({'; '.join(reasons)})"
                if names:
                    raise Unsupported(
                        f"the storage driver {text}", hint="pyrun storage doctor says what to do."
                    )
                report.notes.append(f"left out: {text}")
            elif reasons:
                report.notes.append(
                    f"{name} ran on {subjects[name].result.file_system}: {'; '.join(reasons)}"
                )
        if not subjects:
            raise NotFound("no storage driver works here", hint="pyrun storage doctor says why.")
        return [subjects[driver.name] for driver in drivers if driver.name in subjects]

    def _tried(
        self, drivers: Sequence[type[Driver]], options: Callable[[str], Mapping[str, Any]], kind: str
    ) -> dict[str, str]:
        """Why each driver refuses such a file system; "" where it doesn't."""

        def probe(root: str) -> dict[str, str]:
            reasons = {}
            for driver in drivers:
                try:
                    Rig(driver, f"{root}/{driver.name}", options(driver.name)).close()
                    reasons[driver.name] = ""
                except StorageError as error:
                    reason = error.message.removeprefix(f"{driver.name}: ")
                    reasons[driver.name] = reason.replace(f"{root}/{driver.name}", "the store")
            return reasons

        def on(root: str) -> dict[str, str]:
            found: dict[str, str] = call(lambda: probe(root), seconds=_SECONDS)
            return found

        if kind == "directory":
            with tempfile.TemporaryDirectory(dir=self.place) as root:
                return on(root)
        require(kind)
        with Disk(self.place, kind) as disk:
            return on(disk.path)

    # --- one round of one driver

    def round(self, subject: _Subject, title: str) -> None:
        if subject.result.file_system == "directory":
            with tempfile.TemporaryDirectory(dir=self.place) as root:
                try:
                    self._measure(subject, root, None, title)
                finally:
                    remove_tree(f"{root}/store")
        else:
            with Disk(self.place, subject.result.file_system) as disk:
                self._measure(subject, disk.path, disk, title)

    def _measure(self, subject: _Subject, where: str, disk: Disk | None, title: str) -> None:
        root = f"{where}/store"

        def phase(name: str, work: Callable[[Rig], Any], fresh: bool = True) -> Any:
            self.progress(f"{title}: {name}")
            if fresh and disk is not None:
                disk.unmount()
                disk.mount()
            try:
                return call(lambda: work(Rig(subject.driver, root, subject.options)), seconds=_SECONDS)
            except StorageError as error:
                raise StorageError(
                    f"measuring {subject.driver.name} failed ({name}): {error.message}", hint=error.hint
                ) from error

        found = phase("unpack", self._unpack, fresh=False)
        values: dict[str, float] = {"unpack": found["unpack"]}
        stack = [Layer(id, path) for id, path in found["stack"]]
        values.update(phase("read", lambda rig: self._cold(rig, stack)))
        values.update(phase("write", lambda rig: self._live(rig, stack), fresh=False))
        values.update(phase("start", lambda rig: self._start(rig, subject), fresh=False))
        if disk is not None:
            held = phase("page cache", lambda rig: self._read_all(rig, stack))
            disk.unmount()
            values["page_cache"] = (held - _cached()) / 1024
            disk.mount()
        values.update(phase("delete", self._delete, fresh=False))
        for key, value in values.items():
            if value > 0:  # memory that others let go of in that moment can make it less than nothing
                subject.result.values.setdefault(key, []).append(value)

    def _unpack(self, rig: Rig) -> dict[str, Any]:
        blobs = [TarBlob(path) for path in self.tars]  # reads and hashes the tar, into memory too
        made: list[Layer] = []
        began = time.perf_counter()
        for blob in blobs:
            made.append(rig.ingest(blob, made[-1] if made else None))
        stack = rig.layers.mended(made)
        rig.layers.sync()
        seconds = time.perf_counter() - began
        return {
            "unpack": seconds,
            "stack": [[layer.id, layer.path] for layer in stack],
        }

    def _cold(self, rig: Rig, stack: Sequence[Layer]) -> dict[str, float]:
        began = time.perf_counter()
        with rig.rootfs(stack) as root:
            with open(f"{root.path}/{sample.small(0)}", "rb", buffering=0) as file:
                file.read(1)
            first_byte = time.perf_counter() - began
            began = time.perf_counter()
            for _ in _files(f"{root.path}/."):
                pass
            return {"first_byte": first_byte, "walk": time.perf_counter() - began}

    def _live(self, rig: Rig, stack: Sequence[Layer]) -> dict[str, float]:
        mounts: list[float] = []
        until = time.perf_counter() + _MOUNT_SECONDS
        while len(mounts) < _MOUNTS and (len(mounts) < 3 or time.perf_counter() < until):
            began = time.perf_counter()
            rw = rig.prepare(stack)
            fd = rig.driver.mount(stack, rw)
            mounts.append(time.perf_counter() - began)
            os.close(fd)
            rig.discard(rw)
        found = {"mount": statistics.median(mounts)}
        rw = rig.prepare(stack)
        with rig.rootfs(stack, rw) as root:
            numbers = [n for n in range(self.size.files) if not sample.deleted(n)]
            step = len(numbers) // self.size.copies
            began = time.perf_counter()
            for number in numbers[:: max(step, 1)][: self.size.copies]:
                _append(f"{root.path}/{sample.small(number)}")
            found["copy_up_small"] = time.perf_counter() - began
            began = time.perf_counter()
            _append(f"{root.path}/{sample.LARGE}")
            found["copy_up_large"] = time.perf_counter() - began
            content = bytes(range(256)) * (_NEW_BYTES // 256)
            began = time.perf_counter()
            os.mkdir(f"{root.path}/new")
            for number in range(self.size.new):
                with open(f"{root.path}/new/{number}", "wb", buffering=0) as file:
                    file.write(content)
            found["small_files"] = time.perf_counter() - began
        began = time.perf_counter()
        rig.discard(rw)
        found["discard"] = time.perf_counter() - began
        return found

    def _start(self, rig: Rig, subject: _Subject) -> dict[str, float]:
        if not any(name == sample.PROGRAM for name in _top(self.tars[-1])):
            subject.result.note(f"no starts: there is no program for {os.uname().machine}")
            return {}
        _name(rig.root, self.tars)
        state = tempfile.mkdtemp(prefix="state-", dir=self.place)
        options = [f"{subject.driver.name}.{key}={value}" for key, value in subject.options.items()]
        argv = [sys.executable, "-P", "-m", "pyrun.cli.main"]
        argv += [
            "--root",
            rig.root,
            "--state",
            state,
            "--config",
            self.config,
            "run",
            "--rm",
            "--pull",
            "never",
        ]
        argv += ["--storage", subject.driver.name]
        argv += [word for option in options for word in ("--storage-opt", option)]
        if not rig.caps.idmap:
            argv += ["--userns", "host"]
        argv.append(_IMAGE)
        environ = {k: v for k, v in os.environ.items() if k != "DOCKER_DEFAULT_PLATFORM"}

        def started() -> subprocess.Popen[str]:
            return subprocess.Popen(
                argv,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )

        def ended(process: subprocess.Popen[str]) -> None:
            _, said = process.communicate(timeout=_SECONDS / 10)
            if process.returncode:
                raise StorageError(f"a container can't be started with {subject.driver.name}: {said.strip()}")

        ended(started())  # the store notes its driver, the interpreter its bytecode
        alone = []
        for _ in range(_STARTS_ALONE):
            began = time.perf_counter()
            ended(started())
            alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        processes = []
        try:
            processes = [started() for _ in range(self.starts)]
            for process in processes:
                ended(process)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        seconds = time.perf_counter() - began
        return {"start": statistics.median(alone), "starts": seconds}

    def _read_all(self, rig: Rig, stack: Sequence[Layer]) -> float:
        """What is cached, in KiB, while two containers have read everything."""
        with rig.rootfs(stack) as one, rig.rootfs(stack) as two:
            for root in (one, two):
                for path in _files(f"{root.path}/."):
                    with open(path, "rb", buffering=0) as file:
                        while file.read(1 << 20):
                            pass
            return _cached()

    def _delete(self, rig: Rig) -> dict[str, float]:
        began = time.perf_counter()
        for key in list(rig.layers.keys()):
            rig.layers.remove(key)
        return {"delete": time.perf_counter() - began}


def _files(top: str) -> Any:
    """Every regular file below ``top``, its attributes read."""
    todo = [top]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield entry.path


def _append(path: str) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(b"x")


def _cached() -> float:
    """KiB of page cache (man proc, /proc/meminfo, Cached)."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("Cached:"):
                return float(line.split()[1])
    return 0.0


def _top(path: str) -> list[str]:
    import tarfile

    with tarfile.open(path) as archive:
        return archive.getnames()


def _name(root: str, tars: Sequence[str]) -> None:
    """Record the layers, which are in the store already, as the image `_IMAGE`."""
    layers = []
    for path in tars:
        blob = TarBlob(path)
        layers.append(ImageLayer(blob.digest, blob.diff_id, blob.size, blob.size, blob.media_type))
    digest = layers[-1].digest  # of no document; nothing asks for one
    image = Image(
        reference=f"docker.io/library/{_IMAGE}:latest",
        digest=digest,
        manifest=digest,
        id=digest,
        platform=str(wanted(None)),
        created="",
        config={"Cmd": [f"/{sample.PROGRAM}"]},
        layers=layers,
    )
    ImageStore(root).put(image)
