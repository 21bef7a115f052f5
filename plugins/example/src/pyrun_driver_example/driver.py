"""A storage driver that copies: every layer is a whole tree, its parent's with the layer applied to it."""

import os

from pyrun.errors import PyrunError
from pyrun.storage import tree, trial
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
        tree.copy(parent and f"{parent.path}/tree", f"{dest}/tree")
        tree.unpack(blob, f"{dest}/tree")

    def prepare(self, layers, dest, size=None):
        tree.copy(f"{layers[-1].path}/tree" if layers else None, f"{dest}/tree")

    def mount(self, layers, rw, idmap=None):
        path = rw or (layers[-1].path if layers else None)
        return tree.mount(path and f"{path}/tree", readonly=rw is None, idmap=idmap)
