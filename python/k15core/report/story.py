"""What happened in a run, told in sentences that its own figures fill in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from k15core.report.metrics import Metrics
from k15core.report.schema import Record, number
from k15core.report.summary import before_length_reward
from k15core.report.svg import percent


def story(metrics: Metrics, summary: Mapping[str, Any]) -> list[str]:
    """Sentences on what the run did; those whose figures are absent are left out."""
    held_out = metrics.evaluated("held_out")
    if not held_out:
        return ["No evaluation on held-out prompts has been made yet."]
    early = before_length_reward(metrics)
    first, last = held_out[0], held_out[-1]
    best = max(early, key=lambda e: number(e, "mean_length") or 0.0, default=first)
    return list(
        filter(
            None,
            (
                _start(first),
                _growth(summary, first, early[-1] if early else first, best),
                _dip(early),
                _length_reward(summary, early[-1] if early else first, last),
                _unfinished(metrics),
            ),
        )
    )


def limits(summary: Mapping[str, Any]) -> list[str]:
    """Sentences on what the run does not show."""
    said = []
    forced, greedy = summary.get("greedy_forced_before"), summary.get("greedy_before")
    if forced is not None and greedy is not None:
        beside = f"greedy decoding with the first step forced passes {percent(forced)}"
        if forced > greedy + 0.1:
            said.append(
                f"RL elicits and sharpens what SFT planted: before any RL, {beside} of the "
                f"held-out prompts, where greedy decoding alone passes {percent(greedy)}. The "
                "skill was there; the habit of using it was not."
            )
        else:
            said.append(
                f"RL elicits and sharpens what SFT planted. As a control: before any RL, {beside} "
                f"of the held-out prompts, greedy decoding alone {percent(greedy)}."
            )
    else:
        said.append(
            "RL elicits and sharpens what training before it planted; this run has no control "
            "that tells how much was there already."
        )
    rate, prompts = summary.get("held_out_after"), summary.get("held_out_prompts")
    if rate is not None and prompts and prompts > 0:
        error = _standard_error({"pass_rate": rate, "prompts": prompts})
        said.append(
            f"This is one run with one seed; on {prompts:,} prompts the last pass rate has a "
            f"standard error of {100 * error:.1f} points."
        )
    return said


def _standard_error(evaluation: Record) -> float:
    """One binomial standard error of a pass rate; 0 where the prompts were not counted."""
    rate, prompts = number(evaluation, "pass_rate"), number(evaluation, "prompts")
    if rate is None or not prompts or prompts <= 0:
        return 0.0
    return math.sqrt(max(rate * (1 - rate), 0.0) / prompts)


def _start(first: Record) -> str:
    rate, length = number(first, "pass_rate"), number(first, "mean_length")
    if first["iteration"] != 0 or rate is None:
        return ""
    said = f"After SFT the model passes {percent(rate)} of the held-out prompts"
    if length is not None:
        said += f" with {length:.1f} tokens a response"
    once = number(first, "behaviour", "at_once")
    if once is not None and once >= 0.3:
        said += f"; {percent(once)} of its responses jump to the answer without a step"
    return said + "."


def _growth(summary: Mapping[str, Any], first: Record, moment: Record, best: Record) -> str:
    rate, peak = number(moment, "pass_rate"), summary.get("length_peak")
    if rate is None or moment is first:
        return ""
    began = number(first, "pass_rate") or 0.0
    noise = math.hypot(_standard_error(first), _standard_error(moment))
    if abs(rate - began) <= 2 * noise:
        said = (
            f"At iteration {moment['iteration']} the pass rate is {percent(rate)}, a change "
            "not beyond the noise of the measurement"
        )
    else:
        verb = "raises" if rate > began else "lowers"
        said = f"RL {verb} the pass rate to {percent(rate)} by iteration {moment['iteration']}"
    start = summary.get("length_sft")
    if peak is not None and start:
        if peak > 1.2 * start:
            said += (
                f", and responses grow to {peak:.1f} tokens at iteration {best['iteration']}, "
                f"{peak / start:.1f} times what they were"
            )
        else:
            said += f"; responses stay near their length (at most {peak:.1f} tokens)"
    a, b = (number(e, "behaviour", "steps_checked") for e in (first, moment))
    c, d = (number(e, "behaviour", "caught") for e in (first, moment))
    if None not in (a, b, c, d) and (b or 0) > (a or 0):
        said += (
            f". Nobody rewarded re-reading, yet the share of steps read twice goes from "
            f"{percent(a or 0)} to {percent(b or 0)}, and the share of misreadings that a second "
            f"reading puts right from {percent(c or 0)} to {percent(d or 0)}"
        )
    return said + "."


def _dip(early: list[Record]) -> str:
    """That the pass rate had been higher before, where that is beyond noise."""
    if not early:
        return ""
    last = early[-1]
    top = max(early, key=lambda e: number(e, "pass_rate") or 0.0)
    high, now = number(top, "pass_rate"), number(last, "pass_rate")
    noise = math.hypot(_standard_error(top), _standard_error(last))
    if high is None or now is None or high - now <= 3 * noise:
        return ""
    return (
        f"The pass rate had been higher: {percent(high)} at iteration {top['iteration']}, "
        "before a setback that the curves show."
    )


def _length_reward(summary: Mapping[str, Any], moment: Record, last: Record) -> str:
    start, length = summary.get("length_reward_from"), number(last, "mean_length")
    rate, before = number(last, "pass_rate"), number(moment, "pass_rate")
    if start is None or moment is last or None in (length, rate, before):
        return ""
    change = 100 * ((rate or 0) - (before or 0))
    return (
        f"From iteration {start} on the length reward prefers the shorter of the right answers: "
        f"{length:.1f} tokens a response at the end, at a pass rate of {percent(rate or 0)} "
        f"({change:+.1f} points since the length reward began)."
    )


def _unfinished(metrics: Metrics) -> str:
    planned, done = number(metrics.run, "iterations"), len(metrics.iterations)
    if planned is None or done >= planned:
        return ""
    return f"The run has done {done} of its {planned:.0f} iterations."
