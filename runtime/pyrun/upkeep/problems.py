"""What `pyrun system check` finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

# Returns "" once it is done, else why it could not be.
Repair = Callable[[], str]


@dataclass(slots=True)
class Problem:
    """kind     what sort of thing: "blob-damaged", "layer-orphan", ...
    subject  which one: a digest, "driver/key", a container's name, a path below the store
    what     what is wrong with it, in words
    harm     False for leftovers: they take space and do no harm
    fix      what ``--repair`` does about it; "" where it can do nothing
    outcome  after a repair: "repaired", or why not; "" where none was tried
    """

    kind: str
    subject: str
    what: str
    harm: bool = True
    fix: str = ""
    outcome: str = ""
    repair: Repair | None = field(default=None, repr=False, compare=False)

    @property
    def left(self) -> bool:
        return self.outcome != "repaired"


@dataclass(slots=True)
class Checked:
    """``problems`` in the order found; ``counts``: how many of which things were looked at; ``notes``: what could
    not be looked at, and why."""

    problems: list[Problem] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Nothing harmful is left."""
        return not any(problem.harm and problem.left for problem in self.problems)
