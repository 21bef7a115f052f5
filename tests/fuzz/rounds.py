"""Settings of the fuzzers; see conftest.py."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

factor = 1


def rounds(count: int) -> settings:
    """``count`` examples in an ordinary run of the tests."""
    return settings(max_examples=count * factor, deadline=None, suppress_health_check=list(HealthCheck))
