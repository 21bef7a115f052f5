"""The plugin objects that the entry points name, one a driver.

They stand apart from the drivers so that `run`, which knows from the store's record which class it needs,
imports that class's module without pluggy; and each imports its driver only when asked, so that a driver
that can't be imported is listed as broken, alone.
"""

from __future__ import annotations

import importlib

from pyrun.storage.hookspecs import hookimpl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyrun.storage.contract import Driver


class _Plugin:
    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @hookimpl
    def pyrun_storage_drivers(self) -> list[type[Driver]]:
        return [getattr(importlib.import_module(f"pyrun_drivers.{self.module}"), self.name)]


overlay = _Plugin("overlay", "OverlayDriver")
erofs = _Plugin("erofs", "ErofsDriver")
fuse_overlayfs = _Plugin("fuse_overlayfs", "FuseOverlayfsDriver")
aufs = _Plugin("aufs", "AufsDriver")
btrfs = _Plugin("btrfs", "BtrfsDriver")
vfs = _Plugin("vfs", "VfsDriver")
