"""Partial rollouts over the real store and the real engine: budgets, leases, over-provisioning."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from families import SMALL

from k15core import SharedStore, Store
from k15core.errors import InvalidInputError, ProcessDiedError
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.models.weights import ModelWeights
from k15core.rollout.embedded import EmbeddedEngine
from k15core.rollout.partial import PartialRollout, RolloutReport
from k15core.types import Prompt

EOS = 1
LIFE = 40


@pytest.fixture(scope="module")
def model() -> LeanModel:
    config = {**SMALL, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8}
    return new_model(config, seed=2, embedding_std=1.0, head_std=0.25)


class Bench:
    """A store with groups of 4 and an engine over it."""

    def __init__(self, model: LeanModel, groups: int, **settings: object) -> None:
        self.model = model
        self.now = 0.0
        self.store = Store()
        for i in range(groups):
            ids = np.random.default_rng(i).integers(2, 97, 5 + i).astype(np.int32)
            self.store.add_group(Prompt(i, ids, "x"), 4)
        self.engine = EmbeddedEngine(
            model, max_total_tokens=80, slots=32, eos_token_ids=[EOS], chunk_tokens=3
        )
        options = {"segment_budget": 7, "max_response_tokens": LIFE, "lease_seconds": 10.0}
        self.rollout = PartialRollout(
            self.store,
            self.engine,
            eos_token_ids=[EOS],
            clock=lambda: self.now,
            **{**options, **settings},
        )

    def run(self, version: int, **options: object) -> RolloutReport:
        self.engine.update_weights(ModelWeights(self.model), version)
        return asyncio.run(self.rollout.run(version=version, seed=3, **options))

    def trajectories(self) -> dict[int, dict]:
        ids = [
            t for g in self.store.pending_groups(99) for t in self.store.group(g)["trajectory_ids"]
        ]
        return {i: self.store.trajectory(i) for i in ids}


def test_each_version_spends_at_most_its_budget_until_all_are_finished(model: LeanModel) -> None:
    bench = Bench(model, groups=6)
    reports = []
    while bench.store.unfinished():
        reports.append(bench.run(version=len(reports)))
    assert len(reports) == -(-LIFE // 7)

    found = bench.trajectories()
    for trajectory in found.values():
        spent = Counter(trajectory["versions"].tolist())
        ended = trajectory["finish_reason"]
        assert all(count <= 7 for count in spent.values())
        *full, _ = spent.values()
        assert all(count == 7 for count in full), "only the last segment may be short"
        assert (ended == "stop") == (trajectory["tokens"][-1] == EOS)
        assert ended == "stop" or len(trajectory["tokens"]) == LIFE
    assert sum(r.tokens for r in reports) == sum(len(t["tokens"]) for t in found.values())
    assert sum(sum(r.finished.values()) for r in reports) == len(found)
    assert reports[0].started == 24
    assert reports[0].resumed == reports[0].tokens_saved == 0
    assert reports[1].tokens_saved == 7 * reports[1].resumed > 0


def test_the_same_tokens_whatever_the_budget(model: LeanModel) -> None:
    """Noise belongs to positions: with the same weights, segments do not show in the tokens."""
    whole, parts = Bench(model, 3, segment_budget=LIFE), Bench(model, 3, segment_budget=5)
    whole.run(version=0)
    version = 0
    while parts.store.unfinished():
        parts.run(version)
        version += 1
    for i, trajectory in whole.trajectories().items():
        assert parts.trajectories()[i]["tokens"].tolist() == trajectory["tokens"].tolist()


def test_over_provisioning_lets_the_rest_go_unfinished(model: LeanModel) -> None:
    bench = Bench(model, groups=8, segment_budget=LIFE)
    finished: list[int] = []
    report = bench.run(0, on_finished=finished.append, enough=lambda: len(finished) >= 5)
    assert len(finished) == 5 == sum(report.finished.values())
    left = bench.store.unfinished()
    assert left == 32 - 5
    assert len(bench.store.lease(99, now=0.0, duration=1.0)) == left, "leases were given back"
    held = {i: t["tokens"].tolist() for i, t in bench.trajectories().items()}
    assert any(held[i] for i in held if i not in finished), "their tokens stay"


def test_an_engine_that_dies_leaves_what_it_had_to_the_next(model: LeanModel) -> None:
    bench = Bench(model, groups=2, segment_budget=LIFE)

    def die(_: int) -> None:
        raise ProcessDiedError("the engine died")

    with pytest.raises(ProcessDiedError):
        bench.run(0, on_finished=die)
    left = bench.store.unfinished()
    assert left == 8 - 1
    assert len(bench.store.lease(99, now=0.0, duration=1.0)) == left


def test_a_lost_lease_is_let_go_and_nothing_is_written(model: LeanModel) -> None:
    bench = Bench(model, groups=2, segment_budget=LIFE)
    thieves: list[int] = []

    def steal(_: int) -> None:
        if not thieves:
            bench.now = 11.0
            thieves.extend(
                lease.trajectory_id for lease in bench.store.lease(3, now=11.0, duration=99.0)
            )

    report = bench.run(0, on_finished=steal)
    assert len(thieves) == 3 == report.lost_leases
    assert all(bench.trajectories()[i]["state"] == "unfinished" for i in thieves)
    assert sum(report.finished.values()) == 8 - 3


def test_a_lease_whose_group_is_gone_is_let_go_too(model: LeanModel) -> None:
    bench = Bench(model, groups=2, segment_budget=LIFE)
    gone: list[int] = []

    def drop(trajectory_id: int) -> None:
        if not gone:
            group = bench.store.trajectory(trajectory_id)["group_id"]
            gone.extend(bench.store.group(group)["trajectory_ids"])
            bench.store.drop_groups([group])

    report = bench.run(0, on_finished=drop)
    assert report.lost_leases == len(gone) - 1, "all of the group but the one that had finished"
    assert sum(report.finished.values()) == 8 - report.lost_leases


def test_a_response_that_ended_before_its_end_was_recorded(model: LeanModel) -> None:
    """Killed between the last append and `finish`: the next rollout only records the end."""
    bench = Bench(model, groups=1)
    stopped, full, *_ = bench.store.lease(4, now=0.0, duration=1.0)
    zeros = np.zeros(LIFE, np.float32)
    bench.store.append(
        stopped.trajectory_id, stopped.epoch, 0, np.array([5, EOS], np.int32), zeros[:2], 0
    )
    bench.store.append(full.trajectory_id, full.epoch, 0, np.full(LIFE, 7, np.int32), zeros, 0)
    bench.now = 2.0
    finished: list[int] = []
    bench.run(0, on_finished=finished.append)
    assert {stopped.trajectory_id, full.trajectory_id} <= set(finished)
    found = bench.trajectories()
    assert found[stopped.trajectory_id]["finish_reason"] == "stop"
    assert found[stopped.trajectory_id]["tokens"].tolist() == [5, EOS]
    assert found[full.trajectory_id]["finish_reason"] == "length"


def test_budgets_are_checked(model: LeanModel) -> None:
    with pytest.raises(InvalidInputError, match="segment_budget = 0: expected"):
        Bench(model, 1, segment_budget=0)


def test_the_same_tokens_over_a_store_of_another_process(model: LeanModel, tmp_path: Path) -> None:
    own, client = Bench(model, 3), Bench(model, 3)
    with client.store.serve(tmp_path / "socket"), SharedStore(tmp_path / "socket") as shared:
        client.store = client.rollout.store = shared
        for bench in (own, client):
            version = 0
            while bench.store.unfinished():
                bench.run(version)
                version += 1
        for i, trajectory in own.trajectories().items():
            assert client.trajectories()[i]["tokens"].tolist() == trajectory["tokens"].tolist()
