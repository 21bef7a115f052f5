"""What observers of the store are told. On the path of `run`: a plain class."""

from __future__ import annotations


class StorageEvent:
    """``kind``: "ingested" or "removed" (a layer), "prepared", "mounted" or "discarded" (a writable layer).

    driver   the driver's name
    id       the layer's id, or the container's
    seconds  how long the driver took
    """

    __slots__ = ("driver", "id", "kind", "seconds")

    def __init__(self, kind: str, driver: str, id: str, seconds: float) -> None:
        self.kind = kind
        self.driver = driver
        self.id = id
        self.seconds = seconds

    def __repr__(self) -> str:
        return f"StorageEvent({self.kind!r}, {self.driver!r}, {self.id!r}, {self.seconds:.6f})"
