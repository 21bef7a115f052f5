"""A storage driver that copies: every layer is a whole tree, its parent's with the layer applied to it."""

import os
from contextlib import contextmanager

from pyrun.errors import PyrunError
from pyrun.kernel import mount as m
from pyrun.layers.copy import copy_tree
from pyrun.storage import trial
from pyrun.storage.contract import Caps, Driver, Verdict


class ExampleDriver(Driver):
    name = "example"

    @classmethod
    def probe(cls, env, options):
        try:
            with trial.directory(env, cls.name) as place, trial.namespace(env) as idmap:
                driver = cls(env, options, Verdict(True, "on trial"))
                driver.prepare([], place)
                with open(f"{place}/tree/file", "wb") as file:
                    file.write(bytes(4096))
                os.close(driver.mount([], place, idmap))
        except (OSError, PyrunError) as error:
            return Verdict(False, f"a trial below {env.root} failed: {error}", "Choose another: --root DIR.")
        return Verdict(True, "copies whole trees", caps=Caps(chained=True))

    def ingest(self, blob, dest, parent):
        with copy(parent, dest) as tree:
            blob.unpack(tree, "apply")

    def prepare(self, layers, dest, size=None):
        with copy(layers[-1] if layers else None, dest):
            pass

    def mount(self, layers, rw, idmap=None):
        if rw or layers:
            fd = m.open_tree(m.AT_FDCWD, f"{rw or layers[-1].path}/tree")
        else:
            fd = m.new_mount("tmpfs", {"mode": "0755"})
        try:
            m.mount_setattr(fd, set=0 if rw else m.MOUNT_ATTR_RDONLY)
            if idmap is not None:
                m.idmap(fd, idmap)
        except BaseException:
            os.close(fd)
            raise
        return fd


@contextmanager
def copy(layer, dest):
    """Makes ``dest``/tree, a copy of the layer's tree or empty, and gives it as an open directory."""
    os.mkdir(f"{dest}/tree")
    with directory(f"{dest}/tree") as new:
        os.fchmod(new, 0o755)
        if layer:
            with directory(f"{layer.path}/tree") as old:
                copy_tree(old, new)
        yield new


@contextmanager
def directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
