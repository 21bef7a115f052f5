"""``pyrun version``."""

from __future__ import annotations

import os
from typing import Any

from .. import __version__
from ..images import platform as platforms
from ..storage.contract import API
from . import options as shared
from .output import document, write

_LABELS = {
    "Version": "Version:",
    "ApiVersion": "Storage-driver API:",
    "PythonVersion": "Python version:",
    "KernelVersion": "Kernel:",
}


def versions() -> dict[str, Any]:
    """Docker's document for clients. There is no server."""
    import sys

    return {
        "Client": {
            "Version": __version__,
            "ApiVersion": str(API),
            "PythonVersion": "{}.{}.{}".format(*sys.version_info[:3]),
            "KernelVersion": os.uname().release,
            "Os": "linux",
            "Arch": platforms.host().architecture,
        }
    }


def version(format: shared.DocumentFormat = "") -> None:
    """Show the versions of pyrun and what it runs on"""
    found = versions()
    if document(found, format):
        return
    client = found["Client"]
    width = max(map(len, _LABELS.values())) + 2
    text = "Client:\n"
    for name, label in _LABELS.items():
        text += f" {label.ljust(width)}{client[name]}\n"
    write(text + f" {'OS/Arch:'.ljust(width)}{client['Os']}/{client['Arch']}\n")
