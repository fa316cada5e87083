"""A bound on the policy versions of a trajectory: what ends, what is dropped, what is masked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from families import SMALL

from k15core import Lease, SharedStore, Store
from k15core.cli import main
from k15core.controller.rollout_phase import roll_out
from k15core.errors import InvalidInputError
from k15core.models.create import new_model
from k15core.models.weights import ModelWeights
from k15core.rollout.embedded import EmbeddedEngine
from k15core.rollout.partial import PartialRollout, RolloutReport
from k15core.types import Prompt

RECIPE = Path(__file__).parents[2] / "recipes" / "doors.yaml"


class Bench:
    """Groups of 3 over a model that never ends by itself: 4 tokens a version, 40 at most."""

    def __init__(self, store: Store, **settings: Any) -> None:
        self.store = store
        self.now = 0.0
        config = {**SMALL, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8}
        self.model = new_model(config, seed=2)
        engine = EmbeddedEngine(self.model, max_total_tokens=60, slots=16, eos_token_ids=[])
        self.engine = engine
        self.rollout = PartialRollout(
            store,
            engine,
            segment_budget=4,
            max_response_tokens=40,
            eos_token_ids=[],
            clock=lambda: self.now,
            **settings,
        )
        self.finished: list[int] = []
        self.dropped: list[int] = []

    def open(self, prompt_id: int, version: int) -> None:
        prompt = Prompt(prompt_id, np.arange(2, 7, dtype=np.int32), "")
        self.store.add_group(prompt, 3, version=version)

    def run(self, version: int) -> RolloutReport:
        self.engine.update_weights(ModelWeights(self.model), version)
        return asyncio.run(
            self.rollout.run(
                version=version,
                seed=3,
                on_finished=self.finished.append,
                on_dropped=self.dropped.append,
            )
        )

    def versions(self, trajectory_id: int) -> list[int]:
        return [int(v) for v in np.unique(self.store.trajectory(trajectory_id)["versions"])]


def test_finish_ends_responses_where_they_are() -> None:
    bench = Bench(Store(), max_versions=2, beyond_max_versions="finish")
    bench.open(0, 1)
    first = bench.run(1)
    bench.open(1, 2)
    second = bench.run(2)
    assert first.ended_by_span == second.ended_by_span == 0
    assert bench.finished == []
    third = bench.run(3)
    assert bench.finished == [0, 1, 2]
    assert (third.ended_by_span, third.groups_dropped) == (3, 0)
    assert third.finished == {"length": 3}
    assert (third.resumed, third.tokens_saved) == (3, 12), "of the other group only"
    assert [bench.versions(i) for i in range(6)] == [[1, 2]] * 3 + [[2, 3]] * 3
    assert bench.store.trajectory(0)["finish_reason"] == "length"
    assert len(bench.store.trajectory(0)["tokens"]) == 8


def test_drop_takes_the_whole_group() -> None:
    bench = Bench(Store(), max_versions=1, beyond_max_versions="drop")
    bench.open(0, 1)
    (lease, *_) = bench.store.lease(1, now=0, duration=1)
    bench.store.append(0, lease.epoch, 0, np.ones(2, np.int32), np.zeros(2, np.float32), 1)
    bench.store.finish(0, lease.epoch, "stop")
    bench.run(1)
    bench.open(1, 2)
    report = bench.run(2)
    assert bench.dropped == [0, 1, 2], "its finished member too"
    assert (report.groups_dropped, report.ended_by_span, report.started) == (1, 0, 3)
    assert bench.store.pending_groups(9) == [1]


def test_drop_takes_members_that_could_have_gone_on() -> None:
    bench = Bench(Store(), max_versions=1, beyond_max_versions="drop")
    bench.open(0, 1)
    (lease,) = bench.store.lease(1, now=0, duration=1)
    bench.store.append(0, lease.epoch, 0, np.ones(2, np.int32), np.zeros(2, np.float32), 1)
    bench.store.release(0, lease.epoch)
    report = bench.run(2)
    assert (bench.dropped, report.started, report.tokens) == ([0, 1, 2], 0, 0)


def test_what_is_dropped_is_not_scored() -> None:
    """A member that a killed run left finished without a score: the phase begins to score it."""
    bench = Bench(Store(), max_versions=1, beyond_max_versions="drop")
    bench.open(0, 1)
    bench.run(1)
    (lease,) = bench.store.lease(1, now=0, duration=1)
    bench.store.finish(0, lease.epoch, "length")
    bench.open(1, 2)
    scored: list[str] = []

    async def score(_: Prompt, response: str) -> float:
        scored.append(response)
        return 1.0

    parts: Any = SimpleNamespace(
        store=bench.store,
        rollout=bench.rollout,
        reward=SimpleNamespace(score=score),
        task=SimpleNamespace(tokenizer=SimpleNamespace(decode=str)),
        prompts={0: None, 1: None},
        recipe=SimpleNamespace(
            train=SimpleNamespace(prompts=2), rollout=SimpleNamespace(over_provision=0.0)
        ),
        seed=lambda *_: 3,
    )
    bench.engine.update_weights(ModelWeights(bench.model), 2)
    report, _ = asyncio.run(roll_out(parts, 2))
    assert (report.groups_dropped, report.started, scored) == (1, 3, [])


def test_time_without_tokens_counts_and_none_at_all_does_not() -> None:
    bench = Bench(Store(), max_versions=3)
    bench.open(0, 1)
    bench.open(1, 1)
    ours: list[Lease] = bench.store.lease(6, now=0, duration=1)
    for lease in ours[:3]:
        at = (lease.trajectory_id, lease.epoch, 0)
        bench.store.append(*at, np.ones(1, np.int32), np.zeros(1, np.float32), 1)
    for lease in ours:
        bench.store.release(lease.trajectory_id, lease.epoch)
    assert bench.run(4).ended_by_span == 3
    assert bench.finished == [0, 1, 2]
    assert [bench.versions(i) for i in (3, 4, 5)] == [[4]] * 3


def test_mask_lets_everything_go_on() -> None:
    bench = Bench(Store(), max_versions=1, beyond_max_versions="mask")
    bench.open(0, 1)
    for version in range(1, 11):
        report = bench.run(version)
        assert (report.ended_by_span, report.groups_dropped) == (0, 0)
    assert bench.finished == [0, 1, 2]
    assert bench.versions(0) == list(range(1, 11))


def test_what_another_worker_holds_is_not_dropped_yet(tmp_path: Path) -> None:
    with Store() as own, own.serve(tmp_path / "socket"), SharedStore(tmp_path / "socket") as other:
        bench = Bench(own, max_versions=1, beyond_max_versions="drop")
        bench.open(0, 1)
        bench.run(1)
        (theirs,) = other.lease(1, now=0, duration=5)
        report = bench.run(2)
        assert (report.groups_dropped, report.started, report.resumed) == (0, 0, 0)
        assert own.unfinished() == 3
        other.append(0, theirs.epoch, 4, np.ones(1, np.int32), np.zeros(1, np.float32), 1)
        bench.now = 5.0
        assert bench.run(2).groups_dropped == 1
        assert own.unfinished() == 0


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="max_versions = 0: expected a count of at least 1"):
        Bench(Store(), max_versions=0)
    with pytest.raises(InvalidInputError, match="beyond_max_versions = 'cut': expected finish, dr"):
        Bench(Store(), max_versions=1, beyond_max_versions="cut")


@pytest.mark.parametrize("beyond", ["finish", "drop", "mask"])
def test_a_run_keeps_its_bound(beyond: str, tmp_path: Path) -> None:
    """The whole loop with a model that knows nothing, whose responses cross many versions."""
    settings = [
        "threads=1",
        "name=bound",
        "task={kind: doors, pool: 64, held_out_per_difficulty: 1}",
        "sft=null",
        "rollout={engine: {kind: embedded, slots: 32}, segment_budget: 4, max_response_tokens: 12,"
        f" repetition: null, max_versions: 2, beyond_max_versions: {beyond}}}",
        "algorithm={skip_equal_groups: false}",
        "train={iterations: 6, prompts: 4, responses: 2, mini_batches: 1, learning_rate: 1e-4}",
        "evaluation={every: 9, prompts: 2, greedy: false}",
    ]
    arguments = [f"--set={setting}" for setting in settings]
    assert not main(["train", str(RECIPE), "--runs", str(tmp_path), *arguments])
    run = tmp_path / "bound"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    iterations = [line for line in lines if line["kind"] == "iteration"]
    trained = [json.loads(line) for line in (run / "rollouts.jsonl").read_text().splitlines()]
    spans = [[int(v) for v in one["tokens_by_version"]] for one in trained]
    longest = max((max(span) - min(span) + 1 for span in spans), default=0)
    counts = {
        name: sum(line.get(name, 0) for line in iterations)
        for name in ("ended_by_span", "groups_dropped", "tokens_masked")
    }
    effects = {"finish": "ended_by_span", "drop": "groups_dropped", "mask": "tokens_masked"}
    assert {name for name, count in counts.items() if count} == {effects[beyond]}
    assert (longest > 2) == (beyond == "mask")
    if beyond == "mask":
        # Under version v the tokens of v and v - 1 are trained on.
        version = {line["iteration"]: line["version"] for line in iterations}
        old = [
            n
            for one in trained
            for v, n in one["tokens_by_version"].items()
            if int(v) < version[one["iteration"]] - 1
        ]
        assert counts["tokens_masked"] == sum(old)
