"""Where the files of an image come from, by the Python API. On the path of `run`."""

from __future__ import annotations

from .containers import ContainerMethods


class ProvenanceMethods(ContainerMethods):
    """What `Engine` tells of an image's layers."""
