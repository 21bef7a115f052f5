"""Figures as people read them, and as files: the table, the CSV."""

from __future__ import annotations

import csv
import io

from .bench import Measure, Report, Result

_STEPS = ((1.0, "s", 1), (1e-3, "ms", 1_000), (0.0, "µs", 1_000_000))


def human(value: float, unit: str) -> str:
    """Three significant digits: "1.23 s", "45.6 ms", "789 µs", "124 MiB"."""
    if unit == "s":
        _, unit, factor = next(step for step in _STEPS if value >= step[0])
        value *= factor
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"


def ratio(report: Report, result: Result, measure: Measure) -> str:
    """How many times the first driver's figure; "" for the first driver, or where one has none."""
    first, own = report.results[0].median(measure.key), result.median(measure.key)
    if result is report.results[0] or not first or own is None:
        return ""
    times = own / first
    return "<0.01x" if times < 0.01 else f"{times:.2g}x" if times < 10 else f"{times:.0f}x"


def table(report: Report) -> list[list[str]]:
    """A row a measure, a column a driver: its median, and the ratio to the first driver's."""
    rows = [["MEASURE", *(result.name.upper() for result in report.results)]]
    for measure in report.measures:
        row = [measure.title]
        for result in report.results:
            value = result.median(measure.key)
            if value is None:
                row.append("-")
                continue
            times = ratio(report, result, measure)
            row.append(human(value, measure.unit) + (f" ({times})" if times else ""))
        rows.append(row)
    return rows


def notes(report: Report) -> list[str]:
    """What a reader of the table has to know, a line each."""
    lines = [
        f"Medians of {report.rounds} {'round' if report.rounds == 1 else 'rounds'}; in parentheses, how many times "
        f"the figure of {report.results[0].name}. Less is better."
    ]
    lines += report.notes
    lines += [f"{result.name}: {text}" for result in report.results for text in result.notes]
    return lines


def as_csv(report: Report) -> str:
    """A line a figure; seconds and MiB, as measured."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["driver", "file_system", "sample", "kernel", "measure", "unit", "round", "value"])
    for result in report.results:
        for measure in report.measures:
            for number, value in enumerate(result.values.get(measure.key, []), 1):
                writer.writerow(
                    [
                        result.name,
                        result.file_system,
                        report.size,
                        report.kernel,
                        measure.key,
                        measure.unit,
                        number,
                        f"{value:.9g}",
                    ]
                )
    return out.getvalue()
