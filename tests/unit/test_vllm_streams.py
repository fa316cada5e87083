"""What the vLLM engines share, held to a naive oracle: no vLLM is needed for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k15core import RepetitionDetector
from k15core.errors import InvalidInputError
from k15core.rollout.base import Stream
from k15core.rollout.vllm.streams import (
    Streams,
    check_temperature,
    request_seed,
    sampling_parameters,
)

REPETITION = {"max_period": 8, "min_repeats": 3, "min_covered": 9, "near": False}
EOS = 0


def stream(response: list[int], budget: int, trajectory_id: int = 5) -> Stream:
    return Stream(
        trajectory_id,
        np.array([3, 4], np.int32),
        np.array(response, np.int32),
        np.empty(0, np.int32),
        budget,
        0.5,
        seed=11,
    )


def ending(response: list[int], sampled: list[int], budget: int, watch: bool) -> tuple[int, str]:
    """After how many sampled tokens the stream ends, and why; ("", all) if it does not."""
    for n, token in enumerate(sampled, 1):
        if token == EOS:
            return n, "stop"
        whole = np.array(response + sampled[:n], np.int32)
        if watch and RepetitionDetector(1, **REPETITION).extend(0, whole) is not None:
            return n, "repetition"
        if n == budget:
            return n, "length"
    return len(sampled), ""


tokens = st.lists(st.sampled_from([1, 1, 2, 3, EOS]), max_size=60)


@given(
    response=st.lists(st.sampled_from([1, 2]), max_size=12),
    sampled=tokens,
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    versions=st.lists(st.integers(0, 2), min_size=1, max_size=8),
    budget=st.integers(1, 70),
    chunk_tokens=st.integers(1, 12),
    watch=st.booleans(),
)
def test_chunks_are_the_tokens_up_to_the_ending(
    response: list[int],
    sampled: list[int],
    cuts: list[int],
    versions: list[int],
    budget: int,
    chunk_tokens: int,
    watch: bool,
) -> None:
    streams = Streams(
        eos_token_ids=[EOS], chunk_tokens=chunk_tokens, repetition=REPETITION if watch else None
    )
    looped = watch and RepetitionDetector(1, **REPETITION).extend(0, np.array(response, np.int32))
    wanted = streams.open([stream(response, budget)], 7)
    if looped:
        (chunk,) = streams.ready
        assert not wanted
        assert (len(chunk.tokens), chunk.finish_reason, chunk.loop) == (0, "repetition", looped)
        return
    assert [s.trajectory_id for s in wanted] == [5]
    told: list[int] = []
    at, turn, goes_on = 0, 0, True
    while at < len(sampled):
        part = sampled[at : at + cuts[turn % len(cuts)]]
        version = versions[turn % len(versions)]
        goes_on = streams.take(5, part, [-0.5 * t for t in part], version)
        told += [version] * len(part)
        at, turn = at + len(part), turn + 1
    count, reason = ending(response, sampled, budget, watch)
    assert goes_on == (5 in streams) == (reason == "")
    if reason == "":
        assert streams.close([5, 6]) == [5]
    chunks = list(streams.ready)
    assert [t for c in chunks for t in c.tokens.tolist()] == sampled[:count]
    assert [p for c in chunks for p in c.log_probs.tolist()] == [-0.5 * t for t in sampled[:count]]
    assert [c.version for c in chunks for _ in c.tokens] == told[:count]
    assert all(0 < len(c.tokens) <= chunk_tokens for c in chunks)
    reasons = [c.finish_reason for c in chunks]
    if count:
        assert reasons == [None] * (len(chunks) - 1) + [reason or None]
        assert (chunks[-1].loop is not None) == (reason == "repetition")
    assert len(streams) == 0


def test_a_response_that_has_ended_gets_an_empty_chunk() -> None:
    streams = Streams(eos_token_ids=[EOS], chunk_tokens=4, repetition=None)
    assert [s.trajectory_id for s in streams.open([stream([1, EOS], 9), stream([1], 9, 6)], 3)] == [
        6
    ]
    (chunk,) = streams.ready
    assert (chunk.trajectory_id, len(chunk.tokens), chunk.finish_reason) == (5, 0, "stop")
    with pytest.raises(InvalidInputError, match="trajectory 6: expected one that does not run"):
        streams.open([stream([1], 9, 8), stream([1], 9, 6)], 3)
    assert streams.ids == [6]
    assert not streams.take(99, [1], [0.0], 3)
    streams.discard()
    assert not streams.ready
    assert len(streams) == 0


def test_a_requests_seed_is_its_own() -> None:
    seeds = {
        request_seed(seed, trajectory, length)
        for seed in (0, 1, (1 << 64) - 1)
        for trajectory in range(40)
        for length in range(40)
    }
    assert len(seeds) == 3 * 40 * 40
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    # Recorded: a run's tokens must not change with a later version of this package.
    assert request_seed(0, 0, 0) == 5831080094074308321
    assert request_seed(7, 123, 45) == 3398573337298045045


def test_what_vllm_is_asked_for() -> None:
    asked = sampling_parameters(stream([1, 2], 9), [EOS])
    assert asked["seed"] == request_seed(11, 5, 2)
    assert (asked["max_tokens"], asked["temperature"], asked["logprobs"]) == (9, 0.5, 0)
    assert (asked["stop_token_ids"], asked["ignore_eos"]) == ([EOS], True)


@pytest.mark.parametrize("temperature", [0.0, 0.01, 1.0])
def test_temperatures_that_vllm_takes(temperature: float) -> None:
    check_temperature(temperature)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="chunk_tokens = 0"):
        Streams(eos_token_ids=[], chunk_tokens=0, repetition=None)
    with pytest.raises(InvalidInputError, match="repetition"):
        Streams(eos_token_ids=[], chunk_tokens=1, repetition={"periods": 3})
    with pytest.raises(InvalidInputError, match=r"temperature = 0\.009"):
        check_temperature(0.009)
