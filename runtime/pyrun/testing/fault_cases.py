"""Cases of section E: isolation and faults."""

from __future__ import annotations


class FaultCases:
    """Cases that need the fixture ``rig``."""
