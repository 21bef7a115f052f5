"""Case 76: random operations on a container, compared with the same on a plain directory."""

from __future__ import annotations

import os
from typing import ClassVar

import pytest

from .rig import Rig

_STEPS = 500
_LONG_STEPS = 20_000
_STEPS_OF_ONE_LIFE = 20
_QUICK = (
    0.05  # seconds that an empty life takes of a driver whose failures are made shorter before they are shown
)


class StatefulCases:
    """Cases that need the fixture ``rig``.

    PYRUN_CONFORMANCE_STEPS, an environment variable, is how many steps are taken in all; by default 500 that are
    the same each time, with ``long`` 20,000 that are not. With either, the shortest steps that fail are looked for.
    """

    long: ClassVar[bool]

    def test_76_random_operations_do_what_they_do_on_a_plain_directory(self, rig: Rig) -> None:
        pytest.importorskip("hypothesis", reason="hypothesis is not installed")
        from hypothesis import HealthCheck, Phase, settings
        from hypothesis.stateful import run_state_machine_as_test

        from .machine import Life

        given = os.environ.get("PYRUN_CONFORMANCE_STEPS", "")
        steps = int(given) if given else _LONG_STEPS if self.long else _STEPS
        run_state_machine_as_test(
            Life.of(rig),
            settings=settings(
                max_examples=max(steps // _STEPS_OF_ONE_LIFE, 1),
                stateful_step_count=_STEPS_OF_ONE_LIFE,
                deadline=None,
                derandomize=steps <= _STEPS,
                database=None,
                # To find the shortest life that fails takes hundreds of lives, which nobody waits for unasked.
                phases=[Phase.generate, Phase.shrink] if given or self.long else [Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
