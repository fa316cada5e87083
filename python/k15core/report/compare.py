"""Several runs on one page: their held-out curves overlaid, their summaries side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from k15core.errors import InvalidInputError
from k15core.report.html import FULL, HALF, duration, plot, write_page
from k15core.report.metrics import Metrics, read_metrics
from k15core.report.schema import number
from k15core.report.series import LINES, largest, points, rate_axis
from k15core.report.summary import summarize
from k15core.report.svg import Chart, Point, percent, plain_number, svg

COMPARISON_FILE = "compare.html"

FIGURES: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("seed", "seed", str),
    ("parameters", "parameters", "{:,}".format),
    ("iterations", "iterations", "{:,}".format),
    ("length reward from", "length_reward_from", str),
    ("pass rate after SFT", "held_out_before", "{:.3f}".format),
    ("pass rate when the length reward began", "held_out_length_reward", "{:.3f}".format),
    ("pass rate at the end", "held_out_after", "{:.3f}".format),
    ("greedy after SFT", "greedy_before", "{:.3f}".format),
    ("greedy after SFT, first step forced", "greedy_forced_before", "{:.3f}".format),
    ("greedy at the end", "greedy_after", "{:.3f}".format),
    ("tokens a response after SFT", "length_sft", "{:.1f}".format),
    ("tokens a response at the peak", "length_peak", "{:.1f}".format),
    ("tokens a response at the end", "length_end", "{:.1f}".format),
    ("misreadings caught at the peak", "caught_peak", "{:.2f}".format),
    ("tokens sampled", "tokens", "{:,}".format),
    ("tokens kept by resuming", "tokens_saved", "{:,}".format),
    ("repeats stopped", "repeats_stopped", "{:,}".format),
    ("largest staleness", "staleness_max", "{:.0f}".format),
    ("tokens a second of rollout", "tokens_per_second", "{:,.0f}".format),
    ("time in SFT", "sft_seconds", duration),
    ("wall time", "seconds", duration),
)
"""Rows of the table: what it says, the name in summary.json, how it is written."""


@dataclass(frozen=True)
class Run:
    """One of the runs: its metrics, its figures, the class of its colour."""

    label: str
    metrics: Metrics
    summary: dict[str, Any]
    css: str


def write_comparison(run_directories: Sequence[str | Path], path: str | Path | None = None) -> Path:
    """Write one page that compares runs; returns its path.

    Without a `path` it is compare.html beside the first run's directory. Raises InvalidInputError
    for fewer than two runs, or where one of them holds no readable metrics.
    """
    directories = [Path(directory) for directory in run_directories]
    if len(directories) < 2:
        raise InvalidInputError(f"runs are {len(directories)}; expected at least two to compare")
    runs = [_run(directory, place) for place, directory in enumerate(directories)]
    if path is None:
        path = directories[0].resolve().parent / COMPARISON_FILE
    return write_page(Path(path), "compare.html", _context(runs))


def _run(directory: Path, place: int) -> Run:
    metrics = read_metrics(directory)
    return Run(
        label=directory.resolve().name,
        metrics=metrics,
        summary=summarize(metrics),
        css=LINES[place % len(LINES)],
    )


def _context(runs: Sequence[Run]) -> dict[str, object]:
    rows = [
        (text, [_cell(run.summary.get(name), form) for run in runs])
        for text, name, form in FIGURES
        if any(run.summary.get(name) is not None for run in runs)
    ]

    def half(name: str, label: str, along: Callable[[Run], dict[int, float]], x: str) -> object:
        return plot(lambda width: _overlay(runs, width, name, label, along, x), HALF)

    return {
        "runs": runs,
        "rows": rows,
        "plots": {
            "pass_rate": plot(
                lambda width: _overlay(runs, width, "pass_rate", "pass rate", _steps, "iteration"),
                FULL,
            ),
            "length": plot(
                lambda width: _overlay(
                    runs, width, "mean_length", "tokens a response", _steps, "iteration"
                ),
                FULL,
            ),
            "by_tokens": half("pass_rate", "pass rate", _tokens, "tokens sampled"),
            "by_time": half("pass_rate", "pass rate", _seconds, "seconds"),
        },
    }


def _cell(value: object, form: Callable[[Any], str]) -> str:
    return "–" if value is None else form(value)


def _steps(run: Run) -> dict[int, float]:
    return {e["iteration"]: float(e["iteration"]) for e in run.metrics.evaluated()}


def _tokens(run: Run) -> dict[int, float]:
    """Tokens sampled in RL up to each iteration; empty where nobody counted them."""
    records = run.metrics.iterations
    if all(number(r, "tokens") is None for r in records):
        return {}
    sums = accumulate(number(r, "tokens") or 0.0 for r in records)
    return {0: 0.0} | {r["iteration"]: s for r, s in zip(records, sums, strict=True)}


def _seconds(run: Run) -> dict[int, float]:
    """Wall-clock seconds up to each held-out evaluation, SFT included."""
    found = ((e["iteration"], number(e, "seconds")) for e in run.metrics.evaluated())
    return {iteration: seconds for iteration, seconds in found if seconds is not None}


def _overlay(
    runs: Sequence[Run],
    width: float,
    name: str,
    label: str,
    along: Callable[[Run], dict[int, float]],
    x_label: str,
) -> str | None:
    """Held-out curves of the runs over iterations, tokens or seconds."""
    series: list[tuple[Run, list[Point]]] = []
    for run in runs:
        place = along(run)
        curve = points(run.metrics.evaluated(), name)
        series.append((run, [(place[int(i)], y) for i, y in curve if int(i) in place]))
    high = largest(*(curve for _, curve in series))
    if high is None:
        return None
    rate = name == "pass_rate"
    end = max(x for _, curve in series for x, _ in curve)
    top, at = rate_axis(high) if rate else (high * 1.08, None)
    chart = Chart(width, 260, (0, end), (0, top), top=30, bottom=40)
    chart.axes(x_label, label, y_ticks=at, y_format=percent if rate else plain_number)
    for run, curve in series:
        chart.line(curve, run.css)
        chart.dots(curve, f"{run.css} small", name=run.label, radius=2.4)
    return svg((chart,), f"{label} of {len(runs)} runs over {x_label}")
