"""Records: small JSON files, replaced whole. On the path of `run`.

A reader takes no lock and sees the old file or the new one. A writer that must not lose another's change
holds the lock of what it changes.
"""

from __future__ import annotations

import json
import os

from ..errors import ConfigError
from ..kernel.files import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def read(path: str) -> Any:
    """The record at ``path``. Raises FileNotFoundError, or `ConfigError` where it is not JSON."""
    with open(path, "rb") as file:
        content = file.read()
    try:
        return json.loads(content)
    except ValueError as error:
        raise ConfigError(
            f"the record {path} is damaged: {error}", hint="Remove it, and what it stood for."
        ) from None


def write(path: str, record: Any, *, durable: bool = True) -> None:
    """Replace the record at ``path`` atomically: temp file, (fsync), rename, (fsync of the directory).

    Without ``durable`` a power cut may lose the change, as it may lose a container that only lives now.
    """
    data = json.dumps(record, separators=(",", ":")).encode()
    replace(path, f"{path}.{os.getpid()}.tmp", data, 0o600, durable=durable)
