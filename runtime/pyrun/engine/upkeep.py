"""The store as a whole, by the Python API. On the path of `run`."""

from __future__ import annotations

from .core import Core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ..storage.contract import DriverReport
    from ..upkeep.migrate import Migrated
    from ..upkeep.problems import Checked
    from ..upkeep.prune import Pruned
    from ..upkeep.usage import DiskUsage


class UpkeepMethods(Core):
    """What `Engine` does with its store and host."""

    def doctor(self) -> list[DriverReport]:
        """Every storage driver, usable or not, with the reason; each is tried afresh."""
        from ..storage.store import doctor

        return doctor(self._enter(), self._storage or self.config.driver, self._options)

    def driver_options(self, name: str) -> dict[str, Any]:
        """The options that the configuration and ``storage_opts`` give to the driver ``name``, unchecked."""
        return dict(self._options.get(name, {}))

    def check(
        self,
        *,
        images: Sequence[str] = (),
        deep: bool = False,
        repair: bool = False,
        progress: Callable[[str], None] = lambda text: None,
    ) -> Checked:
        """Look for damage and leftovers, in the whole store or in ``images`` (names, IDs): see
        `pyrun.upkeep.check.check`. Works without a usable driver."""
        from ..upkeep.check import check

        return check(self._scene(), images=images, deep=deep, repair=repair, say=progress)

    def disk_usage(self) -> DiskUsage:
        """What the store takes on disk, item by item."""
        from ..upkeep.usage import disk_usage

        return disk_usage(self._scene())

    def prune(self, *, all: bool = False, before: float | None = None, filters: Sequence[str] = ()) -> Pruned:
        """Remove what is not in use: see `pyrun.upkeep.prune.prune`."""
        from ..upkeep.prune import prune

        return prune(self._scene(), all=all, before=before, filters=filters)

    def migrate(
        self, to: str, *, containers: bool = True, progress: Callable[[str], None] = lambda text: None
    ) -> Migrated:
        """Move the store to the storage driver ``to``: see `pyrun.upkeep.migrate.migrate`."""
        from ..upkeep.migrate import migrate

        done = migrate(self._scene(), to, containers=containers, say=progress)
        self._store = None  # it was open with the driver of before
        chosen = self._storage or self.config.driver
        if chosen and chosen != to:
            source = "--storage" if self._storage else f"storage.driver in {self.config.path}"
            done.notes.append(f"{source} still chooses {chosen}: change it to {to}")
        return done
