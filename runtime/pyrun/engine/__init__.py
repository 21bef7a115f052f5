"""Engine: the Python API. The command line calls only this.

On the path of `run`: rooms are imported by the method that needs them.

    engine = Engine(root="/tmp/store")
    engine.pull("redis")
    code = engine.run("redis", ["redis-server", "--version"], ContainerOptions(rm=True))
"""

from __future__ import annotations

from ..errors import NotFound
from .archives import ArchiveMethods
from .core import default_root, default_state
from .provenance import ProvenanceMethods
from .registries import RegistryMethods
from .upkeep import UpkeepMethods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Engine", "default_root", "default_state"]


class Engine(RegistryMethods, ArchiveMethods, ProvenanceMethods, UpkeepMethods):
    """A store, and what can be done with it.

    root, state  directories (None: as root /var/lib/pyrun and /run/pyrun, else below XDG_DATA_HOME and
                 XDG_RUNTIME_DIR); made on first use, mode 0700
    config       a TOML file (None: /etc/pyrun/config.toml, then ~/.config/pyrun/config.toml, if present)
    storage      driver name (None: what the store recorded, else the configuration, else by choice)
    storage_opts "driver.option=value" each; and "size=10G", which limits what a container of `run` may write

    Everything raises `PyrunError` and its kinds. As an ordinary user, the first method that works on layers
    moves this process into a user namespace of its own, for good: it must have one thread then.
    """

    def inspect(self, name: str, *, kind: str | None = None, size: bool = False) -> dict[str, Any]:
        """All that is known of a container or image, as docker shows it. ``kind``: "container", "image", None.

        A container is looked for first. ``size`` adds to a container what it wrote (``SizeRw``, bytes on disk) and
        that with its image's layers (``SizeRootFs``). Raises `NotFound`.
        """
        if kind != "image":
            try:
                from ..containers.inspect import describe

                container = self.container(name)
                found = describe(container, self.root)
                if size:
                    from ..upkeep.usage import container_sizes

                    found["SizeRw"], found["SizeRootFs"] = container_sizes(self._scene(), container)
                return found
            except NotFound:
                if kind == "container":
                    raise
        try:
            return self._images().inspect(self._local(name))
        except NotFound:
            if kind == "image":
                raise
            raise NotFound(f"no such object: {name}") from None

    def info(self) -> dict[str, Any]:
        """The engine, its store and its host, as ``pyrun info`` shows them."""
        from ..host import describe

        return describe(self)
