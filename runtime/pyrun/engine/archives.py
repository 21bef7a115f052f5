"""Images from and to files, and from containers, by the Python API. On the path of `run`."""

from __future__ import annotations

from .containers import ContainerMethods


class ArchiveMethods(ContainerMethods):
    """What `Engine` makes images and archives from."""
