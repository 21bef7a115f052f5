"""A further driver for tests, installed as a stranger's package: "copied" keeps every layer as a whole tree, so it
is chained and its keys are chain ids. ``COPIED_REFUSES`` in the environment makes its probe say no.
"""

from __future__ import annotations

from pathlib import Path

from .pyrun import Pyrun

CODE = """
import os
from pyrun.kernel.mount import MOUNT_ATTR_RDONLY, idmap as idmapped, mount_setattr, open_tree
from pyrun.layers.copy import copy_tree
from pyrun.storage.contract import Caps, Driver, Verdict
from pyrun.storage.hookspecs import hookimpl


def _copy(source, target):
    one = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    two = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        copy_tree(one, two)
    finally:
        os.close(one)
        os.close(two)


class Copied(Driver):
    name = "copied"

    @classmethod
    def probe(cls, env, options):
        if os.environ.get("COPIED_REFUSES"):
            return Verdict(False, "it was told to refuse", "unset COPIED_REFUSES")
        return Verdict(True, "plain copies", caps=Caps(chained=True))

    @classmethod
    def version(cls):
        return "1" + os.environ.get("COPIED_REFUSES", "")

    def ingest(self, blob, dest, parent):
        os.mkdir(f"{dest}/fs", 0o755)
        if parent is not None:
            _copy(f"{parent.path}/fs", f"{dest}/fs")
        fd = os.open(f"{dest}/fs", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            blob.unpack(fd, "apply")
        finally:
            os.close(fd)

    def prepare(self, layers, dest, size=None):
        os.mkdir(f"{dest}/fs", 0o755)
        if layers:
            _copy(f"{layers[-1].path}/fs", f"{dest}/fs")

    def mount(self, layers, rw, idmap=None):
        path = f"{rw}/fs" if rw else f"{layers[-1].path}/fs"
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            tree = open_tree(fd, b"")
        finally:
            os.close(fd)
        if idmap is not None:
            idmapped(tree, idmap)
        if rw is None:
            mount_setattr(tree, set=MOUNT_ATTR_RDONLY)
        return tree


@hookimpl
def pyrun_storage_drivers():
    return [Copied]
"""


def install(directory: Path, pyrun: Pyrun) -> None:
    """Put the package into ``directory`` and on the command's path."""
    directory.mkdir(exist_ok=True)
    (directory / "copied_driver.py").write_text(CODE)
    info = directory / "copied_driver-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: copied-driver\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyrun]\ncopied = copied_driver\n")
    pyrun.env["PYTHONPATH"] = str(directory)


def uninstall(pyrun: Pyrun) -> None:
    pyrun.env.pop("PYTHONPATH", None)
