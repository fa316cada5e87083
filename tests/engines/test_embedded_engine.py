import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import SMALL
from generation import run, stories

from k15core import RepetitionDetector
from k15core.errors import InvalidInputError
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.models.weights import DirectoryWeights, ModelWeights, save_model
from k15core.rollout.embedded import EmbeddedEngine
from k15core.types import Lease

CONFIG = {**SMALL, "model_type": "qwen3", "head_dim": 8}


@pytest.fixture(scope="module")
def model() -> LeanModel:
    return new_model(CONFIG, seed=1, embedding_std=1.0, head_std=0.25)


def engine_of(model: LeanModel | Path, **options: Any) -> EmbeddedEngine:
    return EmbeddedEngine(model, **{"max_total_tokens": 128, "slots": 8, **options})


def test_length_ends_a_stream_and_its_budget_is_exact(model: LeanModel) -> None:
    told = stories([[5, 6, 7]], k=12)
    budgets = list(range(1, 13))
    run(engine_of(model, eos_token_ids=[]), told, budgets)
    assert [len(story.tokens) for story in told] == budgets
    assert {story.reason for story in told} == {"length"}


def test_stop_keeps_the_end_token(model: LeanModel) -> None:
    free = stories([[5, 6, 7]])
    run(engine_of(model, eos_token_ids=[]), free, 60)
    eos = free[0].tokens[30]
    cut = free[0].tokens.index(eos) + 1
    told = stories([[5, 6, 7]])
    run(engine_of(model, eos_token_ids=[96, eos]), told, 60)
    assert told[0].reason == "stop"
    assert told[0].tokens == free[0].tokens[:cut]
    # A response that has ended already is said to have.
    engine = engine_of(model, eos_token_ids=[eos])
    told[0].reason = None
    assert run(engine, told, 5) == 1
    assert told[0].reason == "stop"
    assert len(told[0].tokens) == cut
    assert engine.stats.prefilled == 0


def test_chunks_come_at_least_every_so_many_tokens(model: LeanModel) -> None:
    engine = engine_of(model, eos_token_ids=[], chunk_tokens=5)

    async def sizes() -> list[tuple[int, str | None]]:
        engine.start(
            [stories([[5, 6, 7]])[0].lease()], max_new_tokens=[17], temperature=1.0, seed=0
        )
        return [(len(c.tokens), c.finish_reason) async for c in engine.chunks()]

    assert asyncio.run(sizes()) == [(5, None), (5, None), (5, None), (2, "length")]


def test_stop_lets_go_and_the_others_go_on(model: LeanModel) -> None:
    engine = engine_of(model, eos_token_ids=[], slots=3, chunk_tokens=4)
    told = stories([[5, 6, 7], [8, 9]], k=4)
    want = stories([[5, 6, 7], [8, 9]], k=4)
    run(engine_of(model, eos_token_ids=[]), want, 20)

    async def drive() -> None:
        engine.start([s.lease() for s in told], max_new_tokens=[20] * 8, temperature=1.0, seed=0)
        seen, sampled = 0, 0
        async for chunk in engine.chunks():
            told[chunk.trajectory_id].add(chunk)
            seen += 1
            if seen == 5:  # three streams in, the second chunk of two of them out
                sampled = engine.stats.steps
                engine.stop([0, 7, 1234])
        # What had been sampled came, to the last token, and nothing after it.
        assert 4 < len(told[0].tokens) == sampled < 20
        assert told[0].reason is None
        assert told[7].tokens == []

    asyncio.run(drive())
    for story, whole in zip(told, want, strict=True):
        n = len(story.tokens)
        assert story.told == (whole.tokens[:n], whole.log_probs[:n])
        assert n == 20 or story.trajectory_id in (0, 7)
    engine.update_weights(ModelWeights(model), 1)


def test_start_while_chunks_are_consumed(model: LeanModel) -> None:
    engine = engine_of(model, eos_token_ids=[], slots=2)
    told = stories([[5, 6, 7], [8, 9], [4]])
    want = stories([[5, 6, 7], [8, 9], [4]])
    run(engine_of(model, eos_token_ids=[]), want, 40)

    def begin(i: int) -> None:
        engine.start([told[i].lease()], max_new_tokens=[40], temperature=1.0, seed=0)

    async def drive() -> None:
        begin(0)
        started = 1
        async for chunk in engine.chunks():
            told[chunk.trajectory_id].add(chunk)
            if started < 3:
                begin(started)
                started += 1

    asyncio.run(drive())
    assert [s.told for s in told] == [s.told for s in want]


@pytest.mark.parametrize("slots", [1, 3, 8, 64])
def test_a_prompt_is_computed_once(model: LeanModel, slots: int) -> None:
    prompts = [list(range(5, 5 + n)) for n in (30, 7, 7, 12)]
    engine = engine_of(model, eos_token_ids=[], slots=slots)
    run(engine, stories([prompts[0], prompts[1], prompts[3]], k=8), list(range(1, 25)))
    assert engine.stats.prefilled == 30 + 7 + 12
    assert engine.stats.shared == 7 * (30 + 7 + 12)


def test_new_weights_drop_what_the_old_ones_computed(model: LeanModel, tmp_path: Path) -> None:
    other = new_model(CONFIG, seed=2, embedding_std=1.0, head_std=0.25)
    save_model(other, tmp_path)
    engine = engine_of(model, eos_token_ids=[])
    told = stories([[5, 6, 7]], k=3)
    run(engine, told, 10)
    engine.update_weights(DirectoryWeights(tmp_path), 1)
    again = stories([[5, 6, 7]], k=3)
    run(engine, again, 10)
    fresh = stories([[5, 6, 7]], k=3)
    run(engine_of(tmp_path, eos_token_ids=[], version=1), fresh, 10)
    assert [s.told for s in again] == [s.told for s in fresh]
    assert [s.told for s in again] != [s.told for s in told]
    assert {version for s in again for version in s.versions} == {1}
    # Old tokens are prefilled under the new weights; the log-probs of new ones are of the new.
    run(engine, told, 10)
    assert engine.stats.replayed == 0
    assert told[0].versions == [0] * 10 + [1] * 10


def test_weights_are_copies() -> None:
    mine = new_model(CONFIG, seed=3)
    engine = engine_of(mine, eos_token_ids=[])
    before, after = stories([[5, 6, 7]]), stories([[5, 6, 7]])
    run(engine, before, 10)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.mul_(1.7)
    run(engine, after, 10)
    assert before[0].told == after[0].told


def test_weights_of_another_model_are_refused_and_nothing_is_lost(model: LeanModel) -> None:
    engine = engine_of(model, eos_token_ids=[])
    before, after = stories([[5, 6, 7]]), stories([[5, 6, 7]])
    run(engine, before, 10)
    other = new_model({**CONFIG, "num_hidden_layers": 2}, seed=0)
    with pytest.raises(InvalidInputError, match=r"version 1: no parameter model\.layers\.2"):
        engine.update_weights(ModelWeights(other), 1)
    run(engine, after, 10)
    assert before[0].told == after[0].told
    assert engine.version == 0


def test_no_update_while_streams_run(model: LeanModel) -> None:
    engine = engine_of(model)
    engine.start([stories([[5]])[0].lease()], max_new_tokens=[5], temperature=1.0, seed=0)
    with pytest.raises(InvalidInputError, match="with 1 streams: expected none"):
        engine.update_weights(ModelWeights(model), 1)
    engine.stop([0])
    engine.update_weights(ModelWeights(model), 1)
    assert engine.version == 1


class TestRepetition:
    SETTINGS: dict[str, Any] = {"min_covered": 10, "min_repeats": 3, "near": False}  # noqa: RUF012

    def looping(self, model: LeanModel, **options: Any) -> Any:
        told = stories([[i, i + 1] for i in range(2, 40)])
        engine = engine_of(model, eos_token_ids=[], repetition=self.SETTINGS, **options)
        run(engine, told, 100, temperature=0)
        return told

    def test_loops_are_found_as_the_detector_finds_them(self, model: LeanModel) -> None:
        told = self.looping(model)
        loops = [story for story in told if story.reason == "repetition"]
        assert len(loops) > 5
        for story in told:
            detector = RepetitionDetector(1, **self.SETTINGS)
            found = [loop for token in story.tokens if (loop := detector.push(token))]
            assert found == ([story.loop] if story.loop else [])
            if story.loop:
                assert story.reason == "repetition"

    def test_a_loop_that_began_before_the_break_is_found(self, model: LeanModel) -> None:
        whole = self.looping(model)
        engine = engine_of(model, eos_token_ids=[], slots=16, repetition=self.SETTINGS, version=1)
        for story in whole:
            if story.reason != "repetition":
                continue
            for kept in (len(story.tokens) - 3, len(story.tokens)):
                parts = stories([story.prompt], first=story.trajectory_id)
                parts[0].tokens = story.tokens[:kept]
                parts[0].versions = [0] * kept
                run(engine, parts, 20, temperature=0)
                assert parts[0].reason == "repetition"
                assert parts[0].loop == story.loop
                assert parts[0].tokens == story.tokens

    def test_off(self, model: LeanModel) -> None:
        told = stories([[2, 3]])
        run(engine_of(model, eos_token_ids=[], repetition=None), told, 100, temperature=0)
        assert told[0].reason == "length"

    def test_unknown_settings_are_refused(self, model: LeanModel) -> None:
        with pytest.raises(InvalidInputError, match=r"repetition = .*min_coverd"):
            engine_of(model, repetition={"min_coverd": 3})


def lease(ids: list[int], prompt: int, versions: int | None = None) -> Lease:
    count = len(ids) if versions is None else versions
    return Lease(4, 0, 0.0, np.array(ids, np.int32), prompt, np.zeros(count, np.uint32))


@pytest.mark.parametrize(
    ("leases", "arguments", "message"),
    [
        ([lease([1, 2], 2)], {"max_new_tokens": []}, "0 entries: expected 1"),
        ([lease([1, 2], 2)], {"max_new_tokens": [0]}, "max_new_tokens = 0: expected at least 1"),
        ([lease([1, 2], 2)], {"max_new_tokens": [127]}, "at most max_total_tokens = 128 together"),
        ([lease([1, 2], 0)], {}, "trajectory 4: prompt_length = 0"),
        ([lease([1, 2], 3)], {}, "trajectory 4: prompt_length = 3"),
        ([lease([1, 2], 2, versions=1)], {}, "1 versions: expected"),
        ([lease([1, 97], 2)], {}, "token ids 1 to 97: expected 0 to 96"),
        ([lease([-1, 9], 2)], {}, "token ids -1 to 9: expected 0 to 96"),
        ([lease([1], 1)], {"temperature": -0.5}, "temperature = -0.5: expected"),
        ([lease([1], 1)], {"temperature": float("nan")}, "temperature = nan: expected"),
        ([lease([1], 1)], {"seed": -1}, "seed = -1: expected"),
        ([lease([1], 1), lease([2], 1)], {"max_new_tokens": [1, 1]}, "trajectory 4: expected one"),
    ],
)
def test_a_start_that_does_not_fit(
    model: LeanModel, leases: list[Lease], arguments: dict[str, Any], message: str
) -> None:
    engine = engine_of(model)
    given = {"max_new_tokens": [1], "temperature": 1.0, "seed": 0, **arguments}
    with pytest.raises(InvalidInputError, match=message):
        engine.start(leases, **given)
    engine.update_weights(ModelWeights(model), 1)  # nothing was started


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots = 0: expected"),
        ({"max_total_tokens": 513}, "max_total_tokens = 513: expected at most"),
        ({"chunk_tokens": -1}, "chunk_tokens = -1: expected"),
    ],
)
def test_settings_out_of_range(model: LeanModel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        engine_of(model, **options)
