"""One picture of a run for a page that shows pictures: a README, a slide."""

from __future__ import annotations

from html import escape
from pathlib import Path

from k15core.errors import InvalidInputError, StorageError
from k15core.report.html import TEMPLATES
from k15core.report.metrics import read_metrics
from k15core.report.plots import story_charts
from k15core.report.summary import summarize
from k15core.report.svg import Chart, percent

WIDTH = 880.0


def write_picture(run_directory: str | Path, path: str | Path) -> Path:
    """Draw pass rate and response length of a run to an .svg file; returns its path.

    The file stands alone and follows the light or dark preference of who looks at it.

    Raises InvalidInputError where the run has nothing to draw or the path does not end in .svg,
    StorageError where it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".svg":
        raise InvalidInputError(f"path is {str(path)!r}; expected a name that ends in .svg")
    metrics = read_metrics(run_directory)
    charts = story_charts(metrics, WIDTH - 48)
    if not charts:
        raise InvalidInputError(f"{run_directory}: has no iteration and no evaluation to draw")
    summary = summarize(metrics)
    told = [
        " → ".join(form(summary[name]) for name in names if summary[name] is not None) + f" {unit}"
        for form, unit, names in (
            (percent, "of held-out prompts solved", ("held_out_before", "held_out_after")),
            (_tenth, "tokens a response", ("length_sft", "length_peak", "length_end")),
        )
        if summary[names[-1]] is not None
    ]
    head = Chart(WIDTH - 48, 46, (0, 1), (0, 1))
    head.text(6, 16, str(metrics.run["name"]), "label title")
    head.text(6, 38, ";  ".join(told), "axis-name")
    height, parts = 18.0, []
    for chart in (head, *charts):
        parts.append(f'<g transform="translate(24 {height:g})">{chart.body()}</g>')
        height += chart.height
    height += 14
    style = (TEMPLATES / "charts.css").read_text(encoding="utf-8")
    label = escape(f"Pass rate and response length of {metrics.run['name']} over iterations")
    drawn = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" '
        f'width="{WIDTH:g}" height="{height:g}" role="img" aria-label="{label}">'
        f"<style>{style}svg .title {{ fill: var(--ink); font-size: 17px; }}</style>"
        f'<rect width="100%" height="100%" rx="10" fill="var(--card)"/>{"".join(parts)}</svg>\n'
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(drawn, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror}") from None
    return path


def _tenth(value: float) -> str:
    return f"{value:.1f}"
