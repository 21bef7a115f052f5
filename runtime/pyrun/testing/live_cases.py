"""Cases of section C: POSIX behaviour of a running container's root."""

from __future__ import annotations


class LiveCases:
    """Cases that need the fixture ``rig``."""
