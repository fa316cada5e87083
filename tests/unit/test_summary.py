"""summary.json: each figure as its definition says."""

import json
from pathlib import Path
from typing import Any

import pytest

from k15core.report.metrics import MetricsWriter, read_metrics
from k15core.report.summary import before_after_table, summarize, write_summary


def a_run(directory: Path, *, length_reward_from: int | None, iterations: int = 6) -> Path:
    """Held-out evaluations at 0, 2, 4, 6; the length peaks at 2, `caught` at 4."""
    now = 0.0
    with MetricsWriter(directory, tensorboard=False, clock=lambda: now) as metrics:
        metrics.write("run", name="r", seed=5, length_reward_from=length_reward_from)
        now = 10.0
        metrics.write("sft", stage="s", step=1, steps=1)
        for i in range(iterations + 1):
            now = 10.0 + i
            if i:
                metrics.write(
                    "iteration",
                    iteration=i,
                    tokens=100,
                    tokens_saved=7,
                    resumed=2,
                    repeats_stopped=1,
                    staleness_max=i % 4,
                    phase_seconds={"rollout": 0.5, "train": 0.25},
                )
            now = 10.5 + i
            if i % 2 == 0:
                metrics.write(
                    "evaluation",
                    iteration=i,
                    label="held_out",
                    prompts=500,
                    pass_rate=[0.25, 0.5, 0.75, 0.875][i // 2],
                    mean_length=[8.0, 32.0, 16.0, 64.0][i // 2],
                    behaviour={"caught": [0.125, 0.5, 0.625, 0.75][i // 2]},
                )
        metrics.write("evaluation", iteration=0, label="greedy", pass_rate=0.1)
        metrics.write("evaluation", iteration=6, label="greedy", pass_rate=0.9)
        metrics.write("evaluation", iteration=0, label="greedy_forced", pass_rate=1.0)
    return directory


def test_each_figure(tmp_path: Path) -> None:
    written = write_summary(a_run(tmp_path, length_reward_from=5))
    assert json.loads((tmp_path / "summary.json").read_text()) == written
    assert written == {
        "name": "r",
        "task": None,
        "seed": 5,
        "parameters": None,
        "iterations": 6,
        "length_reward_from": 5,
        "held_out_before": 0.25,
        "held_out_length_reward": 0.75,
        "held_out_after": 0.875,
        "held_out_prompts": 500,
        "length_sft": 8.0,
        "length_peak": 32.0,
        "length_peak_iteration": 2,
        "length_end": 64.0,
        "caught_sft": 0.125,
        "caught_peak": 0.625,
        "caught_end": 0.75,
        "greedy_before": 0.1,
        "greedy_after": 0.9,
        "greedy_forced_before": 1.0,
        "greedy_forced_after": None,
        "tokens": 600,
        "tokens_saved": 42,
        "resumed": 12,
        "repeats_stopped": 6,
        "staleness_max": 3.0,
        "tokens_per_second": 200.0,
        "sft_seconds": 10.0,
        "seconds_by_phase": {"rollout": 3.0, "train": 1.5},
        "seconds": 16.5,
    }


@pytest.mark.parametrize(
    ("start", "peak", "at_start"),
    [(2, 8.0, 0.25), (3, 32.0, 0.5), (4, 32.0, 0.5), (7, 64.0, None), (None, 64.0, None)],
)
def test_an_evaluation_counts_as_before_if_its_update_was(
    tmp_path: Path, start: int | None, peak: float, at_start: float | None
) -> None:
    summary = summarize(read_metrics(a_run(tmp_path, length_reward_from=start)))
    assert summary["length_peak"] == peak
    assert summary["held_out_length_reward"] == at_start


def test_what_was_not_measured_is_null(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as metrics:
        metrics.write("run", name="r", seed=5)
    summary = write_summary(tmp_path)
    measured = {name for name, value in summary.items() if value is not None}
    assert measured == {"name", "seed", "iterations", "seconds_by_phase"}
    assert before_after_table(summary).endswith("seed 5")


def test_the_table(tmp_path: Path) -> None:
    summary: dict[str, Any] = summarize(read_metrics(a_run(tmp_path, length_reward_from=5)))
    assert before_after_table(summary) == (
        "500 held-out prompts          after SFT  length reward *              end\n"
        "pass rate                         0.250            0.750            0.875\n"
        "tokens a response                   8.0             32.0             64.0\n"
        "misreadings caught                 0.12             0.62             0.75\n"
        "greedy pass rate                  0.100                -            0.900\n"
        "  first step forced               1.000                -                -\n"
        "* just before it began; length and misreadings caught: the largest until then\n"
        "seed 5, 16 s, 200 tokens a second sampled"
    )
