"""The report of a run: one HTML page that holds all it shows, without scripts.

Figures are drawn twice, for wide pages and for narrow ones, so that their text stays legible; the
style sheet shows one of the two. Every text of a run is escaped; the page's own policy forbids
scripts and requests besides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k15core.errors import StorageError
from k15core.report import plots, plots_store, plots_system, plots_timeline, texts
from k15core.report.metrics import METRICS_FILE, Metrics, read_metrics
from k15core.report.schema import number
from k15core.report.story import limits, story
from k15core.report.summary import summarize
from k15core.report.svg import percent

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

REPORT_FILE = "report.html"
TEMPLATES = Path(__file__).parent / "templates"

FULL, HALF, NARROW = 1072.0, 508.0, 330.0
"""Widths in which figures are drawn: a column of the page, half of it, a telephone's."""


@dataclass(frozen=True)
class Plot:
    """One figure in its two widths; both None where the run has no data for it."""

    wide: Markup | None
    narrow: Markup | None


@dataclass(frozen=True)
class Card:
    """One headline: values from before to after, and a line below them."""

    name: str
    values: list[str]
    note: str
    css: str = ""


def write_report(run_directory: str | Path) -> Path:
    """Write report.html into a run directory, from its metrics.jsonl alone; returns its path.

    Works on runs that are going on or were cut short: what was not measured is left out.

    Raises InvalidInputError where the directory holds no readable metrics, StorageError where the
    page cannot be written.
    """
    metrics = read_metrics(run_directory)
    return write_page(Path(run_directory) / REPORT_FILE, "report.html", context(metrics))


def write_page(path: Path, template: str, values: Mapping[str, object]) -> Path:
    """Render a template of this package to a file, put in place by a rename."""
    page = _environment().get_template(template).render(style=style_sheet(), **values)
    fresh = path.with_suffix(".html.new")
    try:
        fresh.write_text(page, encoding="utf-8", errors="backslashreplace")
        fresh.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror}") from None
    return path


@cache
def _environment() -> Environment:
    """The templates of this package. Everything is escaped, nothing may be undefined."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def style_sheet() -> Markup:
    """The style sheet of the pages: the figures' and their own."""
    from markupsafe import Markup

    sheets = ("charts.css", "style.css")  # our own files
    return Markup("\n".join((TEMPLATES / name).read_text(encoding="utf-8") for name in sheets))


def plot(draw: Callable[[float], str | None], width: float) -> Plot:
    """A figure in a wide and a narrow drawing. What `draw` returns is SVG with texts escaped."""
    from markupsafe import Markup

    wide, narrow = draw(width), draw(NARROW)
    return Plot(Markup(wide) if wide else None, Markup(narrow) if narrow else None)


def context(metrics: Metrics) -> dict[str, object]:
    """Everything that the template shows."""
    summary = summarize(metrics)
    figures = _plots(metrics)
    held_out = metrics.evaluated("held_out")
    phases = _phases(metrics)
    values: dict[str, object] = {
        "run": metrics.run,
        "facts": _facts(metrics.run),
        "cards": _cards(summary),
        "story": story(metrics, summary),
        "limits": limits(summary),
        "temperature": f"{number(held_out[0], 'temperature') or 1.0:g}" if held_out else "1",
        "plots": figures,
        "answers": texts.pairs(metrics),
        "during": texts.of_several_versions(metrics),
        "partial_says": _partial_says(summary),
        "repeats_total": summary["repeats_stopped"],
        "repetitions": [texts.repetition(r) for r in metrics.repetitions[:3]],
        "phases": phases,
        "time_says": _time_says(summary),
        "events": metrics.events,
        "recipe": json.dumps(metrics.run.get("recipe", {}), indent=2, ensure_ascii=False),
        "summary": json.dumps(summary, indent=2, ensure_ascii=False),
        "source": METRICS_FILE,
    }
    there = {
        "learning": True,
        "responses": values["answers"] or values["during"],
        "partial": any(figures[n].wide for n in ("segments", "staleness", "tokens")),
        "store": any(figures[n].wide for n in _STORED),
        "repeats": True,
        "time": phases,
        "optimisation": any(figures[n].wide for n in ("gradient", "kl", "sft")),
        "recipe": True,
    }
    names = {
        "learning": "What it learned",
        "responses": "Responses",
        "partial": "Partial rollouts",
        "store": "The store",
        "repeats": "Repetition",
        "time": "Time",
        "optimisation": "Optimisation",
        "recipe": "Recipe and figures",
    }
    values["chapters"] = [(anchor, names[anchor]) for anchor, shown in there.items() if shown]
    return values


# The figures of the chapter on the store.
_STORED = ("stored_lengths", "stored_staleness", "stored_segments")


def _plots(metrics: Metrics) -> dict[str, Plot]:
    def half(draw: Callable[[Metrics, float], str | None]) -> Plot:
        return plot(lambda width: draw(metrics, width), HALF)

    def line(name: str, label: str, css: str) -> Plot:
        return plot(lambda width: plots_system.single(metrics, width, name, label, css), HALF)

    return {
        "story": plot(lambda width: plots.story(metrics, width), FULL),
        "behaviour": half(plots.behaviour),
        "lengths": half(plots.length_distribution),
        "control": half(plots.control),
        "difficulty": half(plots.difficulty),
        "segments": half(plots_system.segments),
        "tokens": half(plots_system.tokens),
        "staleness": half(plots_system.staleness),
        "stored_lengths": half(plots_store.lengths),
        "stored_staleness": half(plots_store.staleness),
        "stored_segments": half(plots_store.segments),
        "throughput": line("tokens_per_second", "tokens a second", "three"),
        "repeats": plot(lambda width: plots_system.repeats(metrics, width), FULL),
        "timeline": plot(lambda width: plots_timeline.timeline(metrics, width), FULL),
        "gradient": line("gradient_norm", "norm", "one"),
        "kl": line("kl", "KL", "two"),
        "entropy": line("entropy", "nats a token", "five"),
        "loss": line("loss", "loss", "four"),
        "sft": half(plots_system.sft),
    }


def _facts(run: Mapping[str, Any]) -> list[str]:
    parameters, iterations = number(run, "parameters"), number(run, "iterations")
    threads = number(run, "threads")
    return [
        *([f"task {run['task']}"] if run.get("task") else []),
        f"seed {run['seed']}",
        *([f"{parameters:,.0f} parameters"] if parameters else []),
        *([f"{iterations:.0f} iterations planned"] if iterations else []),
        *([f"{threads:.0f} thread{'' if threads == 1 else 's'}"] if threads else []),
    ]


def _cards(summary: Mapping[str, Any]) -> list[Card]:
    def arrow(form: Callable[[float], str], *names: str) -> list[str]:
        return [form(summary[name]) for name in names if summary.get(name) is not None]

    def tenth(value: float) -> str:
        return f"{value:.1f}"

    prompts = summary.get("held_out_prompts")
    peak = summary.get("length_peak_iteration")
    drafts = [
        Card(
            "Pass rate",
            arrow(percent, "held_out_before", "held_out_after"),
            f"{prompts:,} held-out prompts, sampled" if prompts else "held-out prompts, sampled",
            "pass",
        ),
        Card(
            "Tokens a response",
            arrow(tenth, "length_sft", "length_peak", "length_end"),
            "after SFT, at the peak" + (f" (iteration {peak})" if peak else "") + ", at the end",
            "length",
        ),
        Card(
            "Misreadings caught",
            arrow(percent, "caught_sft", "caught_peak"),
            "by a second reading; after SFT, at the peak",
        ),
        Card(
            "Greedy pass rate",
            arrow(percent, "greedy_before", "greedy_after"),
            "with the first step forced, before RL: "
            + (arrow(percent, "greedy_forced_before") or ["not measured"])[0],
        ),
        Card(
            "Wall time",
            arrow(duration, "seconds"),
            f"{summary['tokens']:,} tokens sampled" if summary.get("tokens") else "",
        ),
    ]
    return [card for card in drafts if card.values]


def _partial_says(summary: Mapping[str, Any]) -> str:
    resumed, saved, tokens = (summary.get(n) for n in ("resumed", "tokens_saved", "tokens"))
    if not resumed:
        return "No trajectory was longer than one iteration's budget."
    said = (
        "A trajectory may spend only so many tokens an iteration; what is unfinished waits in the "
        f"segment store and goes on in the next. Trajectories were resumed {resumed:,} times"
    )
    if saved and tokens:
        said += f"; {saved:,} tokens were kept beside {tokens:,} sampled"
    return said + "."


def _time_says(summary: Mapping[str, Any]) -> str:
    seconds, speed = summary.get("seconds"), summary.get("tokens_per_second")
    said = f"The run took {duration(seconds)}." if seconds else ""
    return said + (f" Rollout sampled {speed:,.0f} tokens a second." if speed else "")


def _phases(metrics: Metrics) -> list[dict[str, object]]:
    parts = plots_system.phase_shares(metrics)
    total = sum(spent for _, spent, _ in parts)
    return [
        {
            "name": name,
            "css": css,
            "share": spent / total,
            "seconds": duration(spent),
            "percent": f"{100 * spent / total:.1f} %",
        }
        for name, spent, css in parts
    ]


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.48 s, 42 s, 1 m 58 s, 2 h 05 m."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02} m" if hours else f"{minutes} m {rest:02} s"
