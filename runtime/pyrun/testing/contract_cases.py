"""Cases of section A: what the contract promises of every driver."""

from __future__ import annotations


class ContractCases:
    """Cases that need the fixture ``rig``."""
