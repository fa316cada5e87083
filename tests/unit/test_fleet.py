"""Several engines as one: the same tokens as a single engine, whoever joins, leaves or dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from families import SMALL
from generation import Story, run, stories

from k15core import Store
from k15core.errors import Error, InvalidInputError, ProcessDiedError
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.models.weights import ModelWeights
from k15core.rollout.embedded import EmbeddedEngine
from k15core.rollout.fleet import Fleet
from k15core.rollout.partial import PartialRollout
from k15core.types import Chunk, Prompt

EOS = 1


@pytest.fixture(scope="module")
def models() -> list[LeanModel]:
    config = {**SMALL, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8}
    return [new_model(config, seed=s, embedding_std=1.0, head_std=0.25) for s in (2, 3)]


@pytest.fixture(scope="module")
def alone(models: list[LeanModel]) -> list[list[Story]]:
    """What a single engine tells under each model."""
    return [told(engine(model)) for model in models]


class Mortal(EmbeddedEngine):
    """Dies after so many chunks, with all that it has not handed out, as a process does."""

    dies_after: int | None = None
    fault: type[Error] = ProcessDiedError

    async def chunks(self) -> AsyncIterator[Chunk]:
        seen = 0
        async for chunk in super().chunks():
            if self.dies_after is not None and seen >= self.dies_after:
                self.stop(list(self._ids))
                self._ready.clear()
                raise self.fault("killed")
            yield chunk
            seen += 1

    def start(self, leases, **options) -> None:
        if self.dies_after == -1:
            raise ProcessDiedError("dead")
        super().start(leases, **options)

    def acquire(self) -> None:
        self.dies_after = None


def engine(model: LeanModel, dies_after: int | None = None) -> Mortal:
    made = Mortal(model, max_total_tokens=120, slots=8, eos_token_ids=[EOS], chunk_tokens=3)
    made.dies_after = dies_after
    return made


def told(runs: object, count: int = 16, budget: int = 30) -> list[Story]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 97, int(n)).tolist() for n in rng.integers(1, 20, count // 4)]
    given = stories(prompts, k=4)
    run(runs, given, budget, seed=3)
    return given


def same(ours: list[Story], theirs: list[Story]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.tokens, a.reason) == (b.tokens, b.reason)
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=1e-4)


@pytest.mark.parametrize("count", [1, 4])
def test_the_tokens_are_those_of_one_engine(
    models: list[LeanModel], alone: list[list[Story]], count: int
) -> None:
    parts = [engine(models[0]) for _ in range(count)]
    fleet = Fleet(parts)
    same(told(fleet), alone[0])
    sampled = [part.stats.sampled for part in parts]
    assert min(sampled) > sum(sampled) / count / 3
    assert sum(part.stats.shared for part in parts) > 0, "a group's prompt is computed once"
    same(told(fleet), alone[0])


def test_engines_join_and_leave_between_iterations(
    models: list[LeanModel], alone: list[list[Story]]
) -> None:
    first, second, third = (engine(models[0]) for _ in range(3))
    fleet = Fleet([first, second])
    fleet.add(third)
    assert fleet.lost == (third,)
    told(fleet)
    assert third.stats.sampled == 0
    fleet.update_weights(ModelWeights(models[1]), 1)
    assert (fleet.version, third.version, fleet.lost) == (1, 1, ())
    fleet.remove(first)
    before = first.stats.sampled
    same(told(fleet), alone[1])
    assert third.stats.sampled > 0
    assert first.stats.sampled == before
    assert fleet.engines == (second, third)
    with pytest.raises(InvalidInputError, match="expected one of the fleet"):
        fleet.remove(first)
    with pytest.raises(InvalidInputError, match="not in the fleet yet"):
        fleet.add(third)
    fleet.remove(second)
    with pytest.raises(InvalidInputError, match="another one to stay"):
        fleet.remove(third)


@pytest.mark.parametrize("dies_after", [-1, 0, 7])
def test_streams_of_an_engine_that_died_go_on_elsewhere(
    models: list[LeanModel], alone: list[list[Story]], dies_after: int
) -> None:
    dying, other = engine(models[0], dies_after), engine(models[0])
    fleet = Fleet([dying, other])
    same(told(fleet), alone[0])
    assert fleet.lost == (dying,)
    same(told(fleet), alone[0])
    fleet.update_weights(ModelWeights(models[1]), 1)
    assert fleet.lost == ()
    before = dying.stats.sampled
    same(told(fleet), alone[1])
    assert dying.stats.sampled > before


def test_the_last_engines_death_is_the_fleets(
    models: list[LeanModel], alone: list[list[Story]]
) -> None:
    fleet = Fleet([engine(models[0], 3), engine(models[0], 5)])
    with pytest.raises(ProcessDiedError):
        told(fleet)
    with pytest.raises(ProcessDiedError, match="no engine of the fleet is left"):
        told(fleet)
    fleet.acquire()
    fleet.update_weights(ModelWeights(models[0]), 1)
    same(told(fleet), alone[0])


def test_other_faults_are_told_and_nothing_goes_on(
    models: list[LeanModel], alone: list[list[Story]]
) -> None:
    faulty, other = engine(models[0], 4), engine(models[0])
    faulty.fault = Error
    fleet = Fleet([faulty, other])
    with pytest.raises(Error, match="killed"):
        told(fleet)
    faulty.dies_after = None
    same(told(fleet), alone[0])


def test_partial_rollouts_over_a_fleet(models: list[LeanModel]) -> None:
    store = Store()
    for i in range(6):
        store.add_group(Prompt(i, np.arange(3, 6 + i, dtype=np.int32), "x"), 4)
    parts = [engine(models[0]) for _ in range(3)]
    fleet = Fleet(parts)
    rollout = PartialRollout(
        store, fleet, segment_budget=9, max_response_tokens=30, eos_token_ids=[EOS],
        clock=lambda: 0.0,
    )  # fmt: skip
    finished: list[int] = []
    version = 0
    while store.unfinished():
        parts[version % 3].dies_after = 4
        fleet.update_weights(ModelWeights(models[version % 2]), version)
        parts[(version + 1) % 3].dies_after = 4
        asyncio.run(rollout.run(version=version, seed=1, on_finished=finished.append))
        version += 1
    assert version == 4
    assert sorted(finished) == sorted(
        t for g in store.pending_groups(9) for t in store.group(g)["trajectory_ids"]
    )


def test_stop_start_and_refusals(models: list[LeanModel], alone: list[list[Story]]) -> None:
    fleet = Fleet([engine(models[0]), engine(models[0])])
    given = stories([[3, n] for n in range(10)])

    async def drive() -> None:
        options = {"temperature": 1.0, "seed": 0}
        fleet.start([s.lease() for s in given[:6]], max_new_tokens=[60] * 6, **options)
        with pytest.raises(InvalidInputError, match="trajectory 3: expected one that does not run"):
            fleet.start([given[3].lease()], max_new_tokens=[5], **options)
        with pytest.raises(InvalidInputError, match="max_new_tokens = 0"):
            fleet.start([s.lease() for s in given[6:]], max_new_tokens=[9, 9, 9, 0], **options)
        with pytest.raises(InvalidInputError, match="expected 2, one a lease"):
            fleet.start([s.lease() for s in given[6:8]], max_new_tokens=[9], **options)
        with pytest.raises(InvalidInputError, match="expected none to run"):
            fleet.update_weights(ModelWeights(models[1]), 1)
        with pytest.raises(InvalidInputError, match="none of its streams"):
            fleet.remove(fleet.engines[0])
        late = False
        async for chunk in fleet.chunks():
            given[chunk.trajectory_id].add(chunk)
            if not late:
                fleet.stop([0, 1, 2, 3, 4, 5])
                fleet.start([given[7].lease()], max_new_tokens=[20], **options)
                late = True

    asyncio.run(drive())
    single = stories([[3, 7]], first=7)
    run(engine(models[0]), single, 20)
    same([given[7]], single)
    assert not given[6].tokens

    async def go_away() -> None:
        fleet.start(
            [s.lease() for s in stories([[3]], k=6)], max_new_tokens=[60] * 6, temperature=1.0,
            seed=0,
        )  # fmt: skip
        chunks = fleet.chunks()
        await anext(chunks)
        await chunks.aclose()

    asyncio.run(go_away())
    fleet.update_weights(ModelWeights(models[0]), 1)
    same(told(fleet), alone[0])
    fleet.release()
    fleet.close()
    with pytest.raises(InvalidInputError, match="at least one"):
        Fleet([])
