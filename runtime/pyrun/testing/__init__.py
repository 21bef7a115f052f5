"""For authors of storage drivers: the conformance suite, chaos, and what they stand on.

from pyrun.testing import StorageConformance

class TestMine(StorageConformance):
    driver = MyDriver

Names are loaded when they are asked for; the two suites need pytest (``pip install pyrun[testing]``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..storage.tarblob import TarBlob
    from .chaos import StorageChaos
    from .conformance import StorageConformance
    from .rig import Rig

__all__ = ["Rig", "StorageChaos", "StorageConformance", "TarBlob"]

_HOMES = {
    "Rig": "pyrun.testing.rig",
    "StorageChaos": "pyrun.testing.chaos",
    "StorageConformance": "pyrun.testing.conformance",
    "TarBlob": "pyrun.storage.tarblob",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
