"""Metrics as series of points, and what the figures of a run share."""

from __future__ import annotations

from collections.abc import Sequence

from k15core.report.metrics import Metrics
from k15core.report.schema import Record, number
from k15core.report.svg import Chart, Point, ticks

LINES = ("one", "two", "three", "four", "five", "six", "seven", "eight")
"""Classes of lines that have no meaning of their own, in the order in which they are given out."""


def points(records: Sequence[Record], *path: str, step: str = "iteration") -> list[Point]:
    """(iteration, value) of each record, the value None where it is absent."""
    return [(float(record[step]), number(record, *path)) for record in records]


def last_value(series: Sequence[Point]) -> float | None:
    """The last value that is there."""
    return next((y for _, y in reversed(series) if y is not None), None)


def largest(*series: Sequence[Point]) -> float | None:
    """The largest value of some series, or None where they hold none."""
    return max((y for points in series for _, y in points if y is not None), default=None)


def span(metrics: Metrics) -> tuple[float, float]:
    """The iterations that an axis shows: from 0 to the last planned one, or the last that is."""
    seen = [r["iteration"] for r in (*metrics.iterations, *metrics.evaluations)]
    planned = number(metrics.run, "iterations") or 0
    return 0.0, float(max([*seen, planned if not seen else 0, 1]))


def rate_axis(high: float | None) -> tuple[float, list[float]]:
    """The top of an axis of pass rates, and its ticks: up to 1, or nearer where all are small."""
    if high is None or high > 0.5:
        return 1.0, [0, 0.25, 0.5, 0.75, 1]
    top = max(1.25 * high, 0.01)
    return top, ticks(0, top)


def mark_length_reward(chart: Chart, metrics: Metrics, label: str = "") -> None:
    """Show where the length reward begins, if it does."""
    start = number(metrics.run, "length_reward_from")
    if start is not None and start <= span(metrics)[1]:
        chart.mark(start - 0.5, label)


def numeric(level: str) -> tuple[float, str]:
    """A key that sorts labels of difficulty as numbers where they are numbers."""
    try:
        return float(level), level
    except ValueError:
        return float("inf"), level


def numbers(value: object) -> list[float]:
    """The value as numbers; empty where it is not a list of numbers alone."""
    if not isinstance(value, list):
        return []
    found = [number({"": item}, "") for item in value]
    return [] if None in found else [item for item in found if item is not None]


def histogram(record: Record) -> tuple[list[float], list[float]] | None:
    """Edges (n + 1) and counts (n) of response lengths, or None where they are not measured."""
    given = record.get("length_histogram") or {}
    edges, counts = numbers(given.get("edges")), numbers(given.get("counts"))
    if not counts or len(edges) != len(counts) + 1 or edges != sorted(set(edges)):
        return None
    return edges, counts
