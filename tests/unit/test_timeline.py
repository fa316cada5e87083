from pathlib import Path
from typing import Any

from k15core.report.metrics import Metrics
from k15core.report.plots_timeline import SHOWN, last_spans, timeline


def metrics(records: list[dict[str, Any]]) -> Metrics:
    return Metrics(run_directory=Path(), run={"name": "r", "seed": 0}, iterations=records)


def iteration(number: int, *entries: object) -> dict[str, Any]:
    return {"kind": "iteration", "iteration": number, "timeline": list(entries)}


def test_the_last_iterations_are_drawn_a_row_a_phase() -> None:
    records = [
        iteration(
            i, ["rollout", 10.0 * i, 6.0], ["stop", 10.0 * i + 6, 0.5], ["train", 10.0 * i + 7, 2]
        )
        for i in range(1, 12)
    ]
    drawn = timeline(metrics(records), 1072.0)
    assert drawn is not None
    assert drawn.count("<rect") == 3 * SHOWN
    for text in (">rollout<", ">stop<", ">train<", "iteration 11, train: 2 s", "iteration 6, stop"):
        assert text in drawn
    assert "iteration 5," not in drawn
    assert drawn.index(">rollout<") < drawn.index(">stop<") < drawn.index(">train<")


def test_a_run_without_a_timeline_has_no_figure_and_hostile_entries_are_left_out() -> None:
    assert timeline(metrics([{"iteration": 1}]), 330.0) is None
    odd = iteration(1, ["a", 0, 1], "text", ["b", -1, 2], ["c", 1], [3, 1, 1], ["<d>", 2, True])
    assert [span[1] for span in last_spans([odd])] == ["a", "<d>"]
    drawn = timeline(metrics([odd]), 330.0)
    assert drawn is not None
    assert "<d>" not in drawn
