"""The report's sentences say no more than the figures do."""

from pathlib import Path

import pytest

from k15core.report.metrics import MetricsWriter, read_metrics
from k15core.report.story import limits, story
from k15core.report.summary import summarize


def told(
    directory: Path,
    rates: list[float],
    lengths: list[float],
    *,
    start: int | None = None,
    forced: float | None = None,
) -> tuple[str, str]:
    """Story and limits of a run with these held-out evaluations at iterations 0, 1, 2, …"""
    with MetricsWriter(directory, tensorboard=False) as metrics:
        metrics.write("run", name="r", seed=0, length_reward_from=start, iterations=len(rates) - 1)
        for i, (rate, length) in enumerate(zip(rates, lengths, strict=True)):
            if i:
                metrics.write("iteration", iteration=i)
            fields = {"pass_rate": rate, "mean_length": length, "prompts": 400}
            metrics.write("evaluation", iteration=i, label="held_out", **fields)
        if forced is not None:
            metrics.write("evaluation", iteration=0, label="greedy", pass_rate=0.25)
            metrics.write("evaluation", iteration=0, label="greedy_forced", pass_rate=forced)
    read = read_metrics(directory)
    summary = summarize(read)
    return " ".join(story(read, summary)).replace("\N{NO-BREAK SPACE}", " "), " ".join(
        limits(summary)
    ).replace("\N{NO-BREAK SPACE}", " ")


def test_a_whole_story(tmp_path: Path) -> None:
    text, _ = told(tmp_path, [0.3, 0.6, 0.9, 0.89, 0.9], [5, 8, 20, 12, 7], start=3)
    assert text == (
        "After SFT the model passes 30 % of the held-out prompts with 5.0 tokens a response. "
        "RL raises the pass rate to 90 % by iteration 2, and responses grow to 20.0 tokens at "
        "iteration 2, 4.0 times what they were. From iteration 3 on the length reward prefers the "
        "shorter of the right answers: 7.0 tokens a response at the end, at a pass rate of 90 % "
        "(+0.0 points since the length reward began)."
    )


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ([0.30, 0.32], "the pass rate is 32 %, a change not beyond the noise"),
        ([0.30, 0.20], "RL lowers the pass rate to 20 %"),
        ([0.30, 0.45], "RL raises the pass rate to 45 %"),
        ([0.031, 0.034], "the pass rate is 3.4 %, a change not beyond the noise"),
    ],
)
def test_a_change_is_claimed_only_beyond_the_noise(
    tmp_path: Path, rates: list[float], words: str
) -> None:
    text, _ = told(tmp_path, rates, [5, 5])
    assert words in text
    assert "responses stay near their length" in text


def test_a_setback_is_told(tmp_path: Path) -> None:
    text, _ = told(tmp_path, [0.3, 0.95, 0.75], [5, 9, 9])
    assert "The pass rate had been higher: 95 % at iteration 1, before a setback" in text
    text, _ = told(tmp_path / "calm", [0.3, 0.95, 0.94], [5, 9, 9])
    assert "had been higher" not in text


def test_the_control_decides_what_rl_is_said_to_have_done(tmp_path: Path) -> None:
    _, text = told(tmp_path / "a", [0.3, 0.9], [5, 5], forced=0.99)
    assert "first step forced passes 99 % of the held-out prompts" in text
    assert "The skill was there" in text
    _, text = told(tmp_path / "b", [0.3, 0.9], [5, 5], forced=0.26)
    assert "The skill was there" not in text
    assert "greedy decoding alone 25 %" in text
    _, text = told(tmp_path / "c", [0.3, 0.9], [5, 5])
    assert "no control" in text
    assert "standard error of 1.5 points" in text


def test_a_run_without_evaluations_claims_nothing(tmp_path: Path) -> None:
    text, _ = told(tmp_path, [], [])
    assert text == "No evaluation on held-out prompts has been made yet."
