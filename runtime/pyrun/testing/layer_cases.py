"""Cases of section B: what layers mean, stacked."""

from __future__ import annotations


class LayerCases:
    """Cases that need the fixture ``rig``."""
