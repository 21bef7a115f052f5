"""Sizes and ages against docker's documented words (docker/go-units)."""

import time

import pytest

from pyrun.cli.units import ago, human_duration, human_size, local_time, rfc3339
from pyrun.images.record import since_epoch

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1, "1B"),
        (999, "999B"),
        (1000, "1kB"),
        (1024, "1.02kB"),
        (4210, "4.21kB"),
        (4214.9, "4.21kB"),
        (109_000_000, "109MB"),
        (116_500_000, "116MB"),
        (1_190_000_000, "1.19GB"),
        (10**12, "1TB"),
        (10**15, "1PB"),
        (10**18, "1EB"),
        (10**21, "1ZB"),
        (10**24, "1YB"),
        (999 * 10**24, "999YB"),
    ],
)
def test_a_size_has_three_significant_digits_and_decimal_units(size, text):
    assert human_size(size) == text


@pytest.mark.parametrize("size", [999_500, 999_999, 999_600_000, 999_999_999_999])
def test_a_size_that_rounds_up_to_a_thousand_moves_to_the_next_unit(size):
    assert human_size(size).startswith("1")
    assert "e" not in human_size(size)


def test_progress_sizes_have_four_digits():
    assert human_size(15_440_123, 4) == "15.44MB"
    assert human_size(29_120_000, 4) == "29.12MB"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "Less than a second"),
        (0, "Less than a second"),
        (0.999, "Less than a second"),
        (1, "1 second"),
        (1.99, "1 second"),
        (2, "2 seconds"),
        (59, "59 seconds"),
        (MINUTE, "About a minute"),
        (2 * MINUTE - 1, "About a minute"),
        (2 * MINUTE, "2 minutes"),
        (59 * MINUTE + 59, "59 minutes"),
        (HOUR, "About an hour"),
        (HOUR + 29 * MINUTE, "About an hour"),
        (HOUR + 30 * MINUTE, "2 hours"),
        (47 * HOUR, "47 hours"),
        (2 * DAY, "2 days"),
        (13 * DAY, "13 days"),
        (14 * DAY, "2 weeks"),
        (59 * DAY, "8 weeks"),
        (60 * DAY, "2 months"),
        (729 * DAY, "24 months"),
        (730 * DAY, "2 years"),
        (3650 * DAY, "10 years"),
    ],
)
def test_a_duration_is_told_in_dockers_words(seconds, text):
    assert human_duration(seconds) == text


def test_an_unknown_time_is_not_available():
    assert ago(None, 100.0) == "N/A"
    assert local_time(None) == "N/A"
    assert rfc3339(None) == ""
    assert ago(97.0, 100.0) == "3 seconds ago"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01T00:00:00Z", 0.0),
        ("2024-01-02T03:04:05Z", 1704164645.0),
        ("2024-01-02T03:04:05.123456789Z", 1704164645.123456),
        ("2024-01-02T05:04:05+02:00", 1704164645.0),
        ("2024-01-02T03:04:05", 1704164645.0),
    ],
)
def test_an_rfc_3339_time_is_read(text, seconds):
    assert since_epoch(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "yesterday", "0001-01-01T00:00:00Z", "2024-13-45T00:00:00Z", "9" * 5000, "\x1b[2J"]
)
def test_what_a_registry_calls_a_time_and_is_none_is_unknown(text):
    assert since_epoch(text) is None


def test_times_are_shown_in_the_callers_zone(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert local_time(1704164645.0) == "2024-01-02 03:04:05 +0000 UTC"
        assert rfc3339(1704164645.0) == "2024-01-02T03:04:05Z"
    finally:
        monkeypatch.undo()
        time.tzset()
