"""The figures of how the run worked: segments, staleness, tokens, repeats, time, optimisation.

A figure returns SVG, or None where the run has no data for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from k15core.report.metrics import Metrics
from k15core.report.schema import Record, number
from k15core.report.series import (
    LINES,
    largest,
    last_value,
    mark_length_reward,
    numeric,
    points,
    span,
)
from k15core.report.summary import seconds_by_phase
from k15core.report.svg import Chart, Point, percent, plain_number, svg, ticks


def segments(metrics: Metrics, width: float) -> str | None:
    """Share of finished trajectories by their number of segments, over iterations."""
    records = [r for r in metrics.iterations if r.get("segments_histogram")]
    if not records:
        return None
    bins = _bins(records, 24)
    names = ("1 segment", "2", "3", "4 or more")
    chart = Chart(width, 220, span(metrics), (0, 1), top=30, bottom=40)
    chart.axes("iteration", "", y_ticks=(0, 0.5, 1), y_format=percent)
    for part in bins:
        counts = [0.0] * len(names)
        for record in part:
            for text in record["segments_histogram"]:
                place = int(min(len(names), max(1.0, numeric(text)[0]))) - 1
                counts[place] += number(record, "segments_histogram", text) or 0.0
        total, low = sum(counts) or 1.0, 0.0
        shares = [count / total for count in counts]
        x = (part[0]["iteration"] - 1, part[-1]["iteration"])
        for place, value in enumerate(shares):
            title = f"iterations {x[0] + 1} to {x[1]}, {names[place]}: {percent(value)}"
            chart.bar(x, (low, low + value), f"step{place + 1}", title=title, gap=1)
            low += value
    chart.key([(f"step{place + 1}", name) for place, name in enumerate(names)])
    return svg((chart,), "Segments a trajectory over iterations")


def _bins(records: Sequence[Record], most: int) -> list[Sequence[Record]]:
    """The records in runs of equal length, at most so many."""
    size = -(-len(records) // most)
    return [records[i : i + size] for i in range(0, len(records), size)]


def staleness(metrics: Metrics, width: float) -> str | None:
    """Mean and largest staleness of what was trained on."""
    mean, most = (
        points(metrics.iterations, "staleness_mean"),
        points(metrics.iterations, "staleness_max"),
    )
    high = largest(mean, most)
    if high is None:
        return None
    chart = Chart(width, 220, span(metrics), (0, max(1.0, high * 1.05)), right=78, bottom=40)
    mark_length_reward(chart, metrics)
    chart.axes("iteration", "versions")
    chart.band([(x, 0.0, y) for x, y in most if y is not None], "pass faint")
    chart.line(mean, "pass")
    chart.labels([(last_value(mean), "mean", "pass"), (last_value(most), "largest", "soft")])
    return svg((chart,), "Staleness over iterations")


def tokens(metrics: Metrics, width: float) -> str | None:
    """Tokens sampled an iteration, and those of resumed prefixes that were not sampled again."""
    records = [r for r in metrics.iterations if number(r, "tokens") is not None]
    if not records:
        return None
    rows = []
    for part in _bins(records, 40):
        sampled = sum(number(r, "tokens") or 0.0 for r in part) / len(part)
        saved = sum(number(r, "tokens_saved") or 0.0 for r in part) / len(part)
        rows.append((part[0]["iteration"] - 1, part[-1]["iteration"], sampled, saved))
    chart = Chart(
        width,
        220,
        span(metrics),
        (0, max(a + b for _, _, a, b in rows) * 1.05),
        right=78,
        bottom=40,
    )
    chart.axes("iteration", "tokens an iteration")
    for first, last, sampled, saved in rows:
        chart.bar((first, last), (0, sampled), "pass", title=f"sampled: {sampled:,.0f}", gap=1)
        chart.bar(
            (first, last),
            (sampled, sampled + saved),
            "pass faint",
            title=f"kept: {saved:,.0f}",
            gap=1,
        )
    _, _, sampled, saved = rows[-1]
    chart.labels([(sampled / 2, "sampled", "pass"), (sampled + saved / 2, "kept", "soft")])
    return svg((chart,), "Tokens sampled and kept an iteration")


def repeats(metrics: Metrics, width: float) -> str | None:
    """Streams that the repetition detector stopped, an iteration."""
    counted = points(metrics.iterations, "repeats_stopped")
    high = largest(counted)
    if not high:
        return None
    chart = Chart(width, 200, span(metrics), (0, high), bottom=40)
    chart.axes(
        "iteration", "streams stopped", y_ticks=[t for t in ticks(0, high, 3) if t == int(t)]
    )
    for i, count in counted:
        if count:
            chart.bar((i - 1, i), (0, count), "four", title=f"iteration {i:g}: {count:g}", gap=1)
    return svg((chart,), "Repeats stopped over iterations")


def single(metrics: Metrics, width: float, name: str, label: str, css: str) -> str | None:
    """One field of the iterations as a line."""
    line = points(metrics.iterations, name)
    high = largest(line)
    if high is None:
        return None
    low = min(0.0, *(y for _, y in line if y is not None))
    chart = Chart(width, 220, span(metrics), (low, high * 1.05 if high > 0 else 0.0), bottom=40)
    mark_length_reward(chart, metrics)
    chart.axes("iteration", label, y_format=plain_number)
    chart.line(line, css)
    return svg((chart,), label)


def sft(metrics: Metrics, width: float) -> str | None:
    """Loss and learning rate of supervised fine-tuning, its stages one after the other."""
    if not metrics.sft:
        return None
    starts: dict[str, float] = {}
    end = 0.0
    for record in metrics.sft:
        starts.setdefault(record["stage"], end)
        end = max(
            end, starts[record["stage"]] + max(record["step"], int(number(record, "steps") or 0))
        )

    def placed(*path: str) -> list[Point]:
        return [(starts[r["stage"]] + r["step"], number(r, *path)) for r in metrics.sft]

    loss, rate = placed("loss"), placed("learning_rate")
    charts = []
    for line, css, label, height in (
        (loss, "length", "loss", 190),
        (rate, "one", "learning rate", 130),
    ):
        high = largest(line)
        if high is not None:
            last = line is rate or largest(rate) is None
            chart = Chart(
                width, height, (0, end), (0, high * 1.05), top=30, bottom=40 if last else 18
            )
            chart.axes("step" if last else "", label)
            for stage, start in starts.items():
                x = chart.at_x(start)
                if start:
                    chart.rule(start)
                if line is loss:
                    chart.text(x + 6, chart.top - 2, stage, "mark-name")
            chart.line(line, css)
            charts.append(chart)
    return svg(charts, "Loss and learning rate of supervised fine-tuning") if charts else None


def phase_shares(metrics: Metrics) -> list[tuple[str, float, str]]:
    """(phase, seconds, class): SFT, each phase of the iterations, and the rest of the run."""
    sft_end = max((number(r, "seconds") or 0.0 for r in metrics.sft), default=0.0)
    parts = {"SFT": sft_end} if sft_end else {}
    parts |= seconds_by_phase(metrics)
    rest = (metrics.seconds() or 0.0) - sum(parts.values())
    if rest > 0.01 * sum(parts.values()):
        parts["other"] = rest
    shown = [(name, spent) for name, spent in parts.items() if spent > 0]
    return [(name, spent, css) for (name, spent), css in zip(shown, LINES * 2, strict=False)]
