"""Installed packages that bring plugins."""

from __future__ import annotations

from pathlib import Path


def install(directory: Path, name: str, code: str, *, points: dict[str, str] | None = None) -> None:
    """Put a distribution ``name`` 1.2 into ``directory``, for PYTHONPATH: one module of the same name with ``code``,
    and entry points of the group "pyrun" (default: one of that name, for that module)."""
    module = name.replace("-", "_")
    (directory / f"{module}.py").write_text(code)
    info = directory / f"{module}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{point} = {target}" for point, target in (points or {name: module}).items()]
    (info / "entry_points.txt").write_text("\n".join(["[pyrun]", *lines, ""]))
