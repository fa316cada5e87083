"""A stream's tokens and log-probs are the same bits whatever ran beside it and however it broke."""

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from families import SMALL
from generation import ENDED, Story, run, stories
from hypothesis import given, settings
from hypothesis import strategies as st

from k15core.models import decode
from k15core.models.create import new_model
from k15core.models.lean import LeanModel
from k15core.rollout.embedded import EmbeddedEngine, arrange, engine

LIMIT = 60  # response tokens over a life
TOTAL = 110


def model_of(family: str) -> LeanModel:
    config = {**SMALL, "model_type": family, "num_key_value_heads": 2, "head_dim": 8}
    return new_model(config, seed=1, embedding_std=1.0, head_std=0.25)


@pytest.fixture(autouse=True, scope="module")
def short_classes() -> Iterator[None]:
    """Streams of these lengths fall into several classes, and are moved between rows often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrange, "SHORT", 16)
        patch.setattr(engine, "ARRANGE_STEPS", 3)
        yield


MODELS = {family: model_of(family) for family in ("llama", "qwen2", "qwen3")}
PROMPTS = [
    np.random.default_rng(i).integers(2, 97, n).tolist()
    for i, n in enumerate([1, 2, 5, 11, 11, 17, 33, 48])
]
SETTINGS = {"min_covered": 12, "min_repeats": 3}


CACHES = ("native", "torch")


def engine_of(
    model: LeanModel, slots: int, *, cache: str = "native", **options: object
) -> EmbeddedEngine:
    options = {"eos_token_ids": [1], "repetition": SETTINGS, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "is_native", lambda *_: cache == "native")
        return EmbeddedEngine(model, max_total_tokens=TOTAL, slots=slots, **options)


@functools.cache
def alone(family: str, temperature: float, seed: int, cache: str = "native") -> dict[int, Story]:
    """Every stream run to its end in one go, one at a time."""
    serial = engine_of(MODELS[family], 1, cache=cache)
    told = stories(PROMPTS, k=2)
    for story in told:
        run(serial, [story], LIMIT, temperature=temperature, seed=seed)
    return {story.trajectory_id: story for story in told}


def test_the_streams_end_in_every_way() -> None:
    reasons = {
        story.reason
        for family in MODELS
        for temperature in (0.0, 1.0)
        for story in alone(family, temperature, 3).values()
    }
    assert reasons == {"stop", "length", "repetition"}


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_resumed_streams_equal_uninterrupted_ones(data: st.DataObject) -> None:
    family = data.draw(st.sampled_from(sorted(MODELS)), "family")
    cache = data.draw(st.sampled_from(CACHES), "cache")
    temperature = data.draw(st.sampled_from([0.0, 1.0]), "temperature")
    order = data.draw(st.permutations(range(2 * len(PROMPTS))), "order")
    count = data.draw(st.integers(1, len(order)), "count")
    told = [stories(PROMPTS, k=2)[i] for i in order[:count]]
    breaks = data.draw(st.integers(0, 4), "breaks")
    while todo := [s for s in told if s.reason not in ENDED and len(s.tokens) < LIMIT]:
        some_engine = engine_of(
            MODELS[family],
            data.draw(st.sampled_from([1, 2, 3, 8, 20, 32, 64]), "slots"),
            cache=cache,
            chunk_tokens=data.draw(st.sampled_from([1, 4, 16]), "chunk_tokens"),
            min_rows=data.draw(st.sampled_from([8, 32]), "min_rows"),
        )
        breaks -= 1
        some, budget, stop_after = todo, LIMIT, None
        if breaks >= 0:
            some = todo[: data.draw(st.integers(1, len(todo)), "some")]
            budget = data.draw(st.sampled_from([1, 7, 30, LIMIT]), "budget")
            stop_after = data.draw(st.one_of(st.none(), st.integers(1, 40)), "stop_after")
        run(
            some_engine,
            some,
            [min(budget, LIMIT - len(story.tokens)) for story in some],
            temperature=temperature,
            seed=3,
            stop_after=stop_after,
        )
    for story in told:
        want = alone(family, temperature, 3, cache)[story.trajectory_id]
        assert story.told == want.told
        assert story.loop == want.loop
        if want.reason in ENDED:
            assert story.reason == want.reason


@pytest.mark.parametrize("cache", CACHES)
def test_a_resume_in_a_later_version_does_not_depend_on_the_company(cache: str) -> None:
    """Older tails are prefilled: their lengths, not their neighbours, decide the bits."""
    model = MODELS["qwen3"]
    begun = stories(PROMPTS, k=2)
    run(engine_of(model, 32, cache=cache), begun, 25, seed=3)
    begun = [story for story in begun if story.reason == "length"]

    def resumed(slots: int, order: np.ndarray) -> dict[int, tuple[list[int], list[float]]]:
        later = engine_of(model, slots, cache=cache, version=1)
        again = [Story(s.trajectory_id, s.prompt, s.tokens[:], s.log_probs[:], s.versions[:])
                 for s in (begun[i] for i in order)]  # fmt: skip
        run(later, again, 30, seed=4)
        return {story.trajectory_id: story.told for story in again}

    rng = np.random.default_rng(0)
    want = resumed(1, np.arange(len(begun)))
    assert len(want) > 6
    for slots in (2, 7, 64):
        assert resumed(slots, rng.permutation(len(begun))) == want


def test_prefilled_tails_go_on_as_decoded_ones() -> None:
    """Where only the version changes, noise goes on at its position: the same tokens come."""
    model = MODELS["llama"]
    whole, parts = stories(PROMPTS), stories(PROMPTS)
    run(engine_of(model, 8, repetition=None), whole, 45, seed=6)
    for version, budget in ((0, 10), (1, 15), (2, 20)):
        todo = [story for story in parts if story.reason != "stop"]
        run(engine_of(model, 8, repetition=None, version=version), todo, budget, seed=6)
    assert [story.tokens for story in parts] == [story.tokens for story in whole]
    for a, b in zip(parts, whole, strict=True):
        np.testing.assert_allclose(a.log_probs, b.log_probs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_with_any_number_of_threads(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        few, many = (stories(PROMPTS, k=2) for _ in range(2))
        run(engine_of(MODELS["llama"], 3), few[:3], 20, seed=9)
        run(engine_of(MODELS["llama"], 32), many, 20, seed=9)
        assert [s.told for s in few[:3]] == [s.told for s in many[:3]]
    finally:
        torch.set_num_threads(before)


def test_noise_is_of_the_seed_and_the_trajectory() -> None:
    model, runs = MODELS["qwen3"], []
    for seed, first in ((0, 0), (0, 0), (1, 0), (0, 100)):
        told = stories([PROMPTS[3]], k=6, first=first)
        run(engine_of(model, 8, repetition=None), told, 30, seed=seed)
        runs.append([story.tokens for story in told])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert runs[0] != runs[3]
    assert len({tuple(tokens) for tokens in runs[0]}) > 1
