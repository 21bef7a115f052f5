"""Registries, by the Python API On the path of `run`."""

from __future__ import annotations

from .containers import ContainerMethods


class RegistryMethods(ContainerMethods):
    """credentials, pushing, searching.:What `Engine` does with registries, pulling apart."""
