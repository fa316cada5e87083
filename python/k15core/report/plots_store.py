"""What the store gave to training over the whole run: histograms of length, staleness, segments.

A figure returns SVG, or None where the run has no data for it.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from k15core.report.metrics import Metrics
from k15core.report.schema import number
from k15core.report.series import histogram
from k15core.report.svg import Chart, percent, svg

_HEIGHT = 190
# More values than this share the last bar: a few stragglers must not press the rest flat.
_MOST_BARS = 12


def lengths(metrics: Metrics, width: float) -> str | None:
    """Trajectories by the length of their response."""
    found = [h for h in map(histogram, metrics.iterations) if h is not None]
    if not found:
        return None
    edges = found[-1][0]
    # A run that was resumed under another budget has other edges before.
    counted = [counts for its_edges, counts in found if its_edges == edges]
    total = [sum(column) for column in zip(*counted, strict=True)]
    if not any(count > 0 for count in total):
        return None
    used = max(i for i, count in enumerate(total) if count > 0)
    bars = [
        (a, b, count, f"{a:g} to {b:g} tokens")
        for (a, b), count in zip(pairwise(edges[: used + 2]), total, strict=False)
    ]
    return _drawn(bars, width, "tokens a response", "length", "Responses by their length")


def staleness(metrics: Metrics, width: float) -> str | None:
    """Trajectories by how many versions their oldest token was behind."""
    return _counted(metrics, width, "staleness_histogram", "versions behind", "pass")


def segments(metrics: Metrics, width: float) -> str | None:
    """Trajectories by how many policy versions wrote them."""
    return _counted(metrics, width, "segments_histogram", "segments", "three")


def _counted(metrics: Metrics, width: float, field: str, label: str, css: str) -> str | None:
    total: Counter[int] = Counter()
    for record in metrics.iterations:
        for text in record.get(field) or {}:
            count = number(record, field, text) or 0.0
            if text.isdecimal() and count > 0:
                total[int(text)] += int(count)
    if not total.total():
        return None
    low, high = min(total), max(total)
    last = min(high, low + _MOST_BARS - 1)
    bars = []
    for value in range(low, last + 1):
        rest = high if value == last else value
        count = sum(total[each] for each in range(value, rest + 1))
        name = f"{value}" if rest == value else f"{value} to {rest}"
        bars.append((value - 0.5, value + 0.5, count, f"{name} {label}"))
    return _drawn(bars, width, label, css, f"Trajectories by {label}", whole=(low, last))


def _drawn(
    bars: list[tuple[float, float, float, str]],
    width: float,
    label: str,
    css: str,
    said: str,
    *,
    whole: tuple[int, int] | None = None,
) -> str:
    everything = sum(count for _, _, count, _ in bars)
    most = max(count for _, _, count, _ in bars) / everything
    chart = Chart(width, _HEIGHT, (bars[0][0], bars[-1][1]), (0, most), bottom=40)
    marks = None if whole is None else [float(at) for at in range(whole[0], whole[1] + 1)]
    chart.axes(label, "share", x_ticks=marks, y_format=percent)
    for a, b, count, name in bars:
        share = count / everything
        title = f"{name}: {count:,.0f}, {percent(share)}"
        chart.bar((a, b), (0, share), css, title=title, gap=1)
    return svg((chart,), said)
