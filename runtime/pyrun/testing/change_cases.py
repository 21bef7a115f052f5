"""Cases of section D: changes, commit, usage."""

from __future__ import annotations


class ChangeCases:
    """Cases that need the fixture ``rig``."""
