"""Sizes and ages in docker's words (the rules of docker/go-units)."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")


def human_size(size: float, digits: int = 3) -> str:
    """``size`` bytes in decimal units with ``digits`` significant digits and no space: ``4.21kB``, ``109MB``.

    A value that would round up to 1000 moves to the next unit, so no exponent ever shows.
    """
    amount = float(size)
    unit = 0
    while unit < len(_UNITS) - 1 and float(f"{amount:.{digits}g}") >= 1000:
        amount /= 1000
        unit += 1
    return f"{amount:.{digits}g}{_UNITS[unit]}"


def human_duration(seconds: float) -> str:
    """A duration as `docker ps` words it; a negative one (a clock set back) counts as nothing."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = whole // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    if days < 14:
        return f"{days} days"
    if days < 60:
        return f"{days // 7} weeks"
    if days < 730:
        return f"{days // 30} months"
    return f"{whole // 3600 // 24 // 365} years"


def ago(then: float | None, now: float) -> str:
    """The CREATED column: ``N/A`` where the time is unknown."""
    return "N/A" if then is None else human_duration(now - then) + " ago"


def local_time(then: float | None) -> str:
    """The CreatedAt field: ``2026-01-02 03:04:05 +0000 UTC`` in the caller's time zone."""
    import time

    return "N/A" if then is None else time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(then))


def rfc3339(then: float | None) -> str:
    """``2026-01-02T03:04:05+01:00`` in the caller's time zone, ``Z`` for no offset, as Go writes it; "" where the
    time is unknown."""
    import time

    if then is None:
        return ""
    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(then))
    return text[:-5] + "Z" if text.endswith("+0000") else f"{text[:-2]}:{text[-2:]}"
