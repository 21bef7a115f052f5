"""The command behind scripts/make-images."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import sys
import time
from pathlib import Path

from . import bootstrap, push, recipes, tree
from .errors import BuildError
from .layout import Layout, Recipe, host_platform

_START = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - _START:6.1f}s] {text}", file=sys.stderr, flush=True)


def key() -> str:
    """Names what the images are made by: this code, the release and its sources, the architecture."""
    made_by = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        made_by.update(file.read_bytes())
    made_by.update(repr((bootstrap.release(), host_platform())).encode())
    return made_by.hexdigest()[:16]


def grow(work: Path, wanted: dict[str, tuple[str, tuple[str, ...]]]) -> dict[str, Path]:
    """Tar files of trees, ``wanted`` as name to (variant, packages); the missing ones are built at once."""
    files = {name: work / f"{name}.tar" for name in wanted}
    running = {}
    try:
        for name, (variant, packages) in wanted.items():
            if not files[name].exists():
                part, log = work / f"{name}.part.tar", work / f"{name}.log"
                running[name] = (bootstrap.start(part, log, variant=variant, packages=packages), part, log)
        if running:
            say(f"mmdebstrap ({bootstrap.mode()} mode) is making: {', '.join(running)}")
        for name, (process, part, log) in running.items():
            bootstrap.finish(process, part, log)
            os.replace(part, files[name])
            say(f"tree {name}: {files[name].stat().st_size / 1e6:.0f} MB")
    finally:
        for process, _, _ in running.values():
            if process.poll() is None:
                process.terminate()
                process.wait()
    return files


def write(path: Path, made: list[Recipe]) -> None:
    """Write a layout of ``made`` at ``path``, whole or not at all."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    layout = Layout(part)
    for recipe in made:
        layers = layout.image(recipe)
        entries, size = sum(layer.entries for layer in layers), sum(layer.unpacked for layer in layers)
        if recipe.name == "big":
            recipes.check_big(len(layers), entries, size)
        packed = sum(layer.size for layer in layers)
        say(
            f"{recipe.name}: {len(layers)} layers, {entries} entries, "
            f"{size / 1e6:.0f} MB ({packed / 1e6:.0f} MB gzip)"
        )
    layout.close()
    os.replace(part, path)


def build(cache: Path, big: bool) -> list[Path]:
    """The layouts, out of the cache where they are there. Only one process builds at a time."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        work = cache / "images" / key()
        small, large = work / "small", work / "big"
        missing_small, missing_big = not small.exists(), big and not large.exists()
        if missing_small or missing_big:
            for old in (cache / "images").glob("*"):
                if old != work:
                    shutil.rmtree(old, ignore_errors=True)
            work.mkdir(parents=True, exist_ok=True)
        if missing_small:
            files = grow(
                work,
                {
                    "base": ("minbase", ()),
                    "redis": ("minbase", recipes.REDIS_PACKAGES),
                    "busybox": ("extract", ("busybox-static",)),
                },
            )
            base = tree.read(files["base"])
            write(small, [recipes.busybox(files["busybox"]), recipes.redis(base, tree.read(files["redis"]))])
        if missing_big:
            files = grow(work, {"base": ("minbase", ()), "big": ("minbase", recipes.BIG_PACKAGES)})
            write(large, [recipes.big(tree.read(files["base"]), tree.read(files["big"]))])
        # The base tree stays for --big; the others have served.
        for name in ("redis", "busybox", "big"):
            (work / f"{name}.tar").unlink(missing_ok=True)
        return [small, large] if big else [small]


def copy(layouts: list[Path], target: Path) -> None:
    """Make ``target`` one layout of them all: copies, so that no test damages the cache."""
    if target.exists() and any(target.iterdir()) and not (target / "oci-layout").exists():
        raise BuildError(f"{target} is neither empty nor an OCI layout; name another directory")
    merged = Layout(target)
    for source in layouts:
        merged.adopt(source)
    merged.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make-images",
        description="Build the images redis and busybox (with --big also big) from Debian packages, as OCI "
        "indexes of this host's platform and a stand-in for another one. Results are cached: a second call "
        "takes seconds.",
        epilog="On stdout, with --registry: one line an image, its name and digest; with neither --registry "
        "nor --layout: the cached layout directories. Needs mmdebstrap, and root or user namespaces for "
        "ordinary users.",
    )
    parser.add_argument(
        "--big", action="store_true", help="also an image of 11 layers, 30,000 files and 1 GB"
    )
    parser.add_argument(
        "--registry", metavar="HOST:PORT", help="push to this plain-HTTP registry as library/NAME"
    )
    parser.add_argument(
        "--layout", metavar="DIR", type=Path, help="copy into this OCI image-layout directory"
    )
    parser.add_argument("--cache", metavar="DIR", type=Path, required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        layouts = build(options.cache, options.big)
        if options.layout:
            copy(layouts, options.layout)
            say(f"layout: {options.layout}")
        if options.registry:
            for path in layouts:
                for reference, digest in push.push(path, options.registry):
                    print(reference, digest)
        if not options.layout and not options.registry:
            for path in layouts:
                print(path)
    except BuildError as error:
        print(f"make-images: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"make-images: {error.strerror}: {error.filename or ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
