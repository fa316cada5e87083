"""The timeline of a run's iterations: which phase had the machine when, as a Gantt chart."""

from __future__ import annotations

from collections.abc import Sequence

from k15core.report.metrics import Metrics
from k15core.report.schema import Record
from k15core.report.series import LINES
from k15core.report.svg import Chart, plain_number, svg

SHOWN = 6
"""Iterations in one figure: more would leave short phases no width."""

Span = tuple[int, str, float, float]
"""Iteration, phase, when it began and how long it took, in seconds of the run."""


def timeline(metrics: Metrics, width: float) -> str | None:
    """The phases of the last iterations over the seconds of the run, a row each.

    Phases stand in the order in which they follow one another: with a shared device that of the
    report's figure 4 (rollout, stop, reload, train, publish, offload, start, update).
    """
    spans = last_spans(metrics.iterations)
    if not spans:
        return None
    phases = list(dict.fromkeys(name for _, name, _, _ in spans))
    begin, end = spans[0][2], max(start + spent for _, _, start, spent in spans)
    rows, narrow = len(phases), width < 400
    chart = Chart(
        width,
        30 + 22 * rows + 40,
        (begin, end),
        (0, rows),
        left=84 if not narrow else 66,
        top=30,
        bottom=40,
    )
    chart.axes("seconds of the run", "", y_ticks=(), x_format=plain_number)
    for iteration in dict.fromkeys(span[0] for span in spans):
        first = next(start for i, _, start, _ in spans if i == iteration)
        chart.rule(first)
        chart.text(chart.at_x(first) + 4, chart.top - 6, f"{iteration}", "mark-name")
    for row, name in enumerate(phases):
        middle = rows - row - 0.5
        chart.text(chart.left - 8, chart.at_y(middle) + 4, name, "tick", "end")
        css = LINES[row % len(LINES)]
        for iteration, phase, start, spent in spans:
            if phase == name:
                title = f"iteration {iteration}, {name}: {spent:.3g} s"
                edges = (middle - 0.34, middle + 0.34)
                chart.bar((start, start + spent), edges, css, title=title)
    return svg((chart,), "Timeline of the phases of the last iterations")


def last_spans(records: Sequence[Record]) -> list[Span]:
    """The phases of the last iterations that have a timeline, in the order of their beginnings.

    An entry that is not [name, seconds, seconds] is left out, as everything that was not measured.
    """
    told = [record for record in records if record.get("timeline")]
    spans = [
        (int(record["iteration"]), str(entry[0]), float(entry[1]), float(entry[2]))
        for record in told[-SHOWN:]
        for entry in record["timeline"]
        if _is_span(entry)
    ]
    return sorted(spans, key=lambda span: span[2])


def _is_span(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 3
        and isinstance(entry[0], str)
        and all(isinstance(value, int | float) and value >= 0 for value in entry[1:])
    )
