"""The figures of what was learned, each a function of the metrics and of the width it may take.

A figure returns SVG, or None where the run has no data for it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from k15core.report.metrics import Metrics
from k15core.report.schema import Record, number
from k15core.report.series import (
    LINES,
    histogram,
    largest,
    last_value,
    mark_length_reward,
    numbers,
    numeric,
    points,
    rate_axis,
    span,
)
from k15core.report.summary import before_length_reward
from k15core.report.svg import Chart, percent, svg


def story(metrics: Metrics, width: float) -> str | None:
    """Pass rate above, response length below, over iterations."""
    charts = story_charts(metrics, width)
    return svg(charts, "Pass rate and response length over iterations") if charts else None


def story_charts(metrics: Metrics, width: float) -> list[Chart]:
    """The two charts of `story`; none where nothing was measured."""
    held_out = metrics.evaluated("held_out")
    if not (held_out or metrics.iterations):
        return []
    narrow = width < 480
    right = 14 if narrow else 74
    top = _pass_rate(metrics, width, 190 if narrow else 250, right)
    trained, tested = points(metrics.iterations, "mean_length"), points(held_out, "mean_length")
    edges = _quantiles(metrics.iterations)
    # A few iterations of loops must not press the story flat: the band may leave the plot.
    high = 1.3 * (largest(trained, tested) or 1.0)
    if edges:
        high = max(high, 1.05 * statistics.median(top for _, _, top in edges))
    below = Chart(width, 186 if narrow else 240, span(metrics), (0, high), right=right, bottom=40)
    mark_length_reward(below, metrics)
    below.axes("iteration", "tokens a response")
    below.band(edges, "length faint")
    below.line(trained, "length thin")
    below.line(tested, "length")
    below.dots(tested, "length", name="held out, tokens")
    if not narrow:
        below.labels(
            [(last_value(tested), "held out", "length"), (last_value(trained), "training", "soft")]
        )
    return [top, below]


def _pass_rate(metrics: Metrics, width: float, height: float, right: float) -> Chart:
    held_out, greedy = metrics.evaluated("held_out"), metrics.evaluated("greedy")
    trained = points(metrics.iterations, "pass_rate")
    tested, without_noise = points(held_out, "pass_rate"), points(greedy, "pass_rate")
    if len(without_noise) < 3:
        without_noise = []
    high, at = rate_axis(largest(trained, tested, without_noise))
    chart = Chart(width, height, span(metrics), (0, high), right=right, top=32)
    mark_length_reward(chart, metrics, "length reward on")
    chart.axes("", "pass rate", y_ticks=at, y_format=percent)
    chart.band(_standard_errors(held_out), "pass faint")
    chart.line(trained, "pass thin")
    chart.line(without_noise, "greedy dashed")
    chart.line(tested, "pass")
    chart.dots(tested, "pass", name="held out, pass rate")
    if right > 40:
        chart.labels(
            [
                (last_value(tested), "held out", "pass"),
                (last_value(trained), "training", "soft"),
                (last_value(without_noise), "greedy", "greedy"),
            ]
        )
    return chart


def _standard_errors(evaluations: Sequence[Record]) -> list[tuple[float, float, float]]:
    """(iteration, low, high): each pass rate less and plus one binomial standard error."""
    found = []
    for e in evaluations:
        rate, prompts = number(e, "pass_rate"), number(e, "prompts")
        if rate is not None and prompts and prompts > 0 and 0 <= rate <= 1:
            error = math.sqrt(rate * (1 - rate) / prompts)
            found.append((float(e["iteration"]), rate - error, rate + error))
    return found


def _quantiles(records: Sequence[Record]) -> list[tuple[float, float, float]]:
    """(iteration, tenth, ninth decile) of response lengths."""
    found = []
    for record in records:
        deciles = numbers(record.get("length_quantiles"))
        if len(deciles) == 3:
            found.append((float(record["iteration"]), deciles[0], deciles[2]))
    return found


def behaviour(metrics: Metrics, width: float) -> str | None:
    """The task's behaviour figures over the held-out evaluations."""
    held_out = metrics.evaluated("held_out")
    names = list(dict.fromkeys(name for e in held_out for name in e.get("behaviour") or {}))
    if not names or len(held_out) < 2:
        return None
    chart = Chart(width, 260, span(metrics), (0, 1), right=100, top=32, bottom=40)
    mark_length_reward(chart, metrics, "length reward on")
    chart.axes("iteration", "share", y_ticks=(0, 0.25, 0.5, 0.75, 1), y_format=percent)
    named = []
    for name, css in zip(names, LINES, strict=False):
        line = points(held_out, "behaviour", name)
        chart.line(line, css)
        chart.dots(line, f"{css} small", name=name, radius=2.4)
        named.append((last_value(line), name.replace("_", " "), css))
    chart.labels(named)
    return svg((chart,), "Behaviour over held-out evaluations")


def length_distribution(metrics: Metrics, width: float) -> str | None:
    """Histograms of response lengths at the start, at the longest and at the end."""
    records = [r for r in metrics.iterations if histogram(r)]
    if len(records) < 3:
        return None
    share = max(1, min(5, len(records) // 3))
    early = before_length_reward(metrics)
    peak = max(early, key=lambda e: number(e, "mean_length") or 0.0, default={})
    middle = min(
        range(len(records)),
        key=lambda i: abs(records[i]["iteration"] - int(peak.get("iteration", 0))),
    )
    first = max(0, min(len(records) - share, middle - share // 2))
    parts = (
        ("at the start", records[:share], "one"),
        ("at the longest", records[first : first + share], "length"),
        ("at the end", records[-share:], "pass"),
    )
    edges = (histogram(records[0]) or ([], []))[0]
    charts = []
    rows = [(name, part, css, _shares(part, edges)) for name, part, css in parts]
    used = max((i for *_, shares in rows for i, s in enumerate(shares) if s > 0.001), default=0)
    high = max(max(shares, default=0) for *_, shares in rows) or 1.0
    for place, (name, part, css, shares) in enumerate(rows):
        end = place == len(rows) - 1
        chart = Chart(
            width,
            104 if end else 74,
            (edges[0], edges[used + 1]),
            (0, high),
            top=16,
            bottom=40 if end else 10,
        )
        chart.axes(
            "tokens a response" if end else "",
            y_ticks=(),
            x_ticks=None if end else (),
        )
        for (a, b), value in zip(pairwise(edges[: used + 2]), shares, strict=False):
            title = f"{a:g} to {b:g} tokens: {percent(value)}"
            chart.bar((a, b), (0, value), css, title=title, gap=1)
        spanned = f"{part[0]['iteration']} to {part[-1]['iteration']}"
        chart.text(chart.right, chart.top + 2, f"{name}, iterations {spanned}", "label soft", "end")
        charts.append(chart)
    return svg(charts, "Distribution of response lengths at three moments")


def _shares(records: Sequence[Record], edges: Sequence[float]) -> list[float]:
    """Counts of histograms with the same edges, added up and divided by their sum."""
    total = [0.0] * (len(edges) - 1)
    for record in records:
        its_edges, counts = histogram(record) or ([], [])
        if its_edges == edges:
            total = [a + b for a, b in zip(total, counts, strict=True)]
    everything = sum(total)
    return [count / everything if everything else 0.0 for count in total]


def control(metrics: Metrics, width: float) -> str | None:
    """Sampled, greedy, and greedy with the first step forced: before RL and after."""
    names = {
        "held_out": "sampled",
        "greedy": "greedy",
        "greedy_forced": "greedy, first step forced",
    }
    rows = [
        (text, found[0], found[-1])
        for label, text in names.items()
        if (found := metrics.evaluated(label))
    ]
    if len(rows) < 2:
        return None
    chart = Chart(
        width, 40 + 54 * len(rows), (0, 1), (0, len(rows)), left=14, right=22, top=8, bottom=32
    )
    chart.axes("pass rate", y_ticks=(), x_ticks=(0, 0.25, 0.5, 0.75, 1), x_format=percent)
    for place, (text, before, after) in enumerate(rows):
        y = len(rows) - place - 0.68
        chart.text(chart.left, chart.at_y(y) - 14, text, "label")
        values = [number(e, "pass_rate") for e in (before, after)]
        told = " → ".join(percent(v) for v in values if v is not None)
        chart.text(chart.right, chart.at_y(y) - 14, told, "label soft", "end")
        chart.line([(0, y), (1, y)], "rail")
        a, b = values
        if a is not None and b is not None:
            chart.line([(a, y), (b, y)], "pass thick")
        if a is not None and before["iteration"] == 0:
            chart.dots([(a, y)], "hollow", radius=5, name=f"{text}, before RL")
        if b is not None and after["iteration"] > 0:
            chart.dots([(b, y)], "pass", radius=5, name=f"{text}, after RL")
    return svg((chart,), "Controls before and after RL")


def difficulty(metrics: Metrics, width: float) -> str | None:
    """Held-out pass rate by difficulty and iteration, as a heat map."""
    held_out = [e for e in metrics.evaluated("held_out") if e.get("by_difficulty")]
    if not held_out:
        return None
    levels = sorted({d for e in held_out for d in e["by_difficulty"]}, key=numeric)
    chart = Chart(
        width,
        44 + 26 * len(levels),
        (0, len(held_out)),
        (0, len(levels)),
        left=34,
        right=48,
        top=20,
        bottom=24,
    )
    chart.text(0, 10, "difficulty", "axis-name")
    chart.text(chart.width, 10, "at the end", "axis-name", "end")
    for row, level in enumerate(levels):
        y = len(levels) - row
        middle = chart.at_y(y - 0.5) + 4
        chart.text(chart.left - 10, middle, level, "tick", "end")
        for column, evaluation in enumerate(held_out):
            value = number(evaluation, "by_difficulty", level, "pass_rate")
            if value is not None:
                title = f"iteration {evaluation['iteration']}, difficulty {level}: {percent(value)}"
                chart.bar(
                    (column, column + 1),
                    (y - 1, y - 0.06),
                    "pass",
                    title=title,
                    opacity=0.04 + 0.96 * value,
                    gap=1.2,
                )
        value = number(held_out[-1], "by_difficulty", level, "pass_rate")
        if value is not None:
            chart.text(chart.right + 8, middle, percent(value), "label")
    every = max(1, -(-len(held_out) // 6))
    for column in range(0, len(held_out), every):
        text = str(held_out[column]["iteration"])
        chart.text(chart.at_x(column + 0.5), chart.bottom + 15, text, "tick", "middle")
    chart.text(chart.width, chart.bottom + 15, "iteration", "axis-name", "end")
    return svg((chart,), "Held-out pass rate by difficulty")
