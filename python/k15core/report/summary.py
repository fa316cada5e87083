"""The figures of a run in one small object: summary.json, and the table printed at its end.

How each is computed, from metrics.jsonl (null where it cannot be):

    held_out_before        pass rate of the held-out evaluation at iteration 0 (after SFT)
    held_out_length_reward the same at the last evaluation before the length reward begins; null
                           where it never began
    held_out_after         the same at the last evaluation
    held_out_prompts       prompts in that last evaluation
    length_sft             mean response tokens of the held-out evaluation at iteration 0
    length_peak            the largest such mean over evaluations before the length reward begins
    length_peak_iteration  where it was
    length_end             the mean at the last held-out evaluation
    caught_sft, caught_end the task's `caught` ratio at iteration 0 and at the last evaluation
    caught_peak            its largest value over evaluations before the length reward begins
    greedy_before, greedy_after, greedy_forced_before, greedy_forced_after
                           pass rate of these controls at iteration 0 and at their last evaluation
    tokens, tokens_saved   sums over iterations; saved = resumed prefixes, not sampled again
    resumed, repeats_stopped   sums over iterations
    staleness_max          the largest over iterations
    tokens_per_second      tokens sampled / seconds in rollout, both summed over iterations
    sft_seconds            run time at the last line of SFT
    seconds_by_phase       phase_seconds summed over iterations
    seconds                wall-clock seconds of the run, crashes and waits between them left out

"Before the length reward begins" are the evaluations at iterations < length_reward_from: an
evaluation at i is made after the update of iteration i. Without a length reward these are all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from k15core.errors import StorageError
from k15core.report.metrics import Metrics, read_metrics
from k15core.report.schema import Record, number

SUMMARY_FILE = "summary.json"


def summarize(metrics: Metrics) -> dict[str, Any]:
    """The summary of a run, finished or not; the module's docstring defines each figure."""
    run, held_out = metrics.run, metrics.evaluated("held_out")
    before = _at_start(held_out)
    early = before_length_reward(metrics)
    peak = max(early, key=lambda e: number(e, "mean_length") or 0.0, default={})
    last = held_out[-1] if held_out else {}
    began = early[-1] if early and len(early) < len(held_out) else {}
    summary: dict[str, Any] = {
        "name": run["name"],
        "task": run.get("task"),
        "seed": run["seed"],
        "parameters": run.get("parameters"),
        "iterations": len(metrics.iterations),
        "length_reward_from": run.get("length_reward_from"),
        "held_out_before": number(before, "pass_rate"),
        "held_out_length_reward": number(began, "pass_rate"),
        "held_out_after": number(last, "pass_rate"),
        "held_out_prompts": last.get("prompts"),
        "length_sft": number(before, "mean_length"),
        "length_peak": number(peak, "mean_length"),
        "length_peak_iteration": peak.get("iteration"),
        "length_end": number(last, "mean_length"),
        "caught_sft": number(before, "behaviour", "caught"),
        "caught_peak": _largest(number(e, "behaviour", "caught") for e in early),
        "caught_end": number(last, "behaviour", "caught"),
    }
    for label in ("greedy", "greedy_forced"):
        found = metrics.evaluated(label)
        summary[f"{label}_before"] = number(_at_start(found), "pass_rate")
        later = found[-1] if found and found[-1]["iteration"] > 0 else {}
        summary[f"{label}_after"] = number(later, "pass_rate")
    for name in ("tokens", "tokens_saved", "resumed", "repeats_stopped"):
        total = _total(metrics.iterations, name)
        summary[name] = None if total is None else int(total)
    summary["staleness_max"] = _largest(number(i, "staleness_max") for i in metrics.iterations)
    phases = seconds_by_phase(metrics)
    rollout = phases.get("rollout")
    summary["tokens_per_second"] = (
        round(summary["tokens"] / rollout, 1) if rollout and summary["tokens"] else None
    )
    summary["sft_seconds"] = _largest(number(step, "seconds") for step in metrics.sft)
    summary["seconds_by_phase"] = {name: round(spent, 3) for name, spent in phases.items()}
    summary["seconds"] = metrics.seconds()
    return summary


def write_summary(run_directory: str | Path) -> dict[str, Any]:
    """Compute the summary of a run directory and put it there as summary.json, by a rename."""
    summary = summarize(read_metrics(run_directory))
    path = Path(run_directory) / SUMMARY_FILE
    fresh = path.with_suffix(".json.new")
    try:
        fresh.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        fresh.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror}") from None
    return summary


def before_length_reward(metrics: Metrics) -> list[Record]:
    """The held-out evaluations made before the length reward begins; without one, all."""
    start = metrics.run.get("length_reward_from")
    held_out = metrics.evaluated("held_out")
    return [e for e in held_out if start is None or e["iteration"] < start]


def seconds_by_phase(metrics: Metrics) -> dict[str, float]:
    """Seconds of each phase, summed over the iterations, in the order in which they appear."""
    total: dict[str, float] = {}
    for record in metrics.iterations:
        for name in record.get("phase_seconds") or {}:
            total[name] = total.get(name, 0.0) + (number(record, "phase_seconds", name) or 0.0)
    return total


def before_after_table(summary: Mapping[str, Any]) -> str:
    """The lines that a run ends with: before, where the length reward began, after."""
    rows = [
        ("pass rate", "held_out_before", "held_out_length_reward", "held_out_after", ".3f"),
        ("tokens a response", "length_sft", "length_peak", "length_end", ".1f"),
        ("misreadings caught", "caught_sft", "caught_peak", "caught_end", ".2f"),
        ("greedy pass rate", "greedy_before", None, "greedy_after", ".3f"),
        (
            "  first step forced",
            "greedy_forced_before",
            None,
            "greedy_forced_after",
            ".3f",
        ),
    ]
    prompts = summary.get("held_out_prompts")
    title = "held-out prompts" if prompts is None else f"{prompts} held-out prompts"
    heads = ("after SFT", "peak", "end")
    if summary.get("length_reward_from") is not None:
        heads = ("after SFT", "length reward *", "end")
    lines = [f"{title:<22}" + "".join(f"{head:>17}" for head in heads)]
    for name, *keys, form in rows:
        values = [summary.get(key) if key else None for key in keys]
        if any(value is not None for value in values):
            cells = ["-" if value is None else f"{value:{form}}" for value in values]
            lines.append(f"{name:<22}" + "".join(f"{cell:>17}" for cell in cells))
    if summary.get("length_reward_from") is not None:
        lines.append(
            "* just before it began; length and misreadings caught: the largest until then"
        )
    ended = [f"seed {summary.get('seed')}"]
    if summary.get("seconds") is not None:
        ended.append(f"{summary['seconds']:.0f} s")
    if summary.get("tokens_per_second") is not None:
        ended.append(f"{summary['tokens_per_second']:,.0f} tokens a second sampled")
    lines.append(", ".join(ended))
    return "\n".join(lines)


def _at_start(evaluations: list[Record]) -> Record:
    return evaluations[0] if evaluations and evaluations[0]["iteration"] == 0 else {}


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _total(records: list[Record], name: str) -> float | None:
    values = [value for record in records if (value := number(record, name)) is not None]
    return sum(values) if values else None
