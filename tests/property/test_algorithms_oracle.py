"""Shaping and splitting against plain loops over one group at a time."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import packed

from k15core.algorithms import CutPenalty, LengthReward, MirrorDescent, mini_batches

# Rewards, response length, finish reason (stop, length, repetition) of one response.
RESPONSE = st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(1, 9), st.integers(0, 2))
GROUPS = st.lists(st.lists(RESPONSE, min_size=1, max_size=6), min_size=1, max_size=6)


def flat(groups: list[list[tuple[float, int, int]]]) -> tuple[np.ndarray, ...]:
    responses = [response for group in groups for response in group]
    rewards, lengths, reasons = zip(*responses, strict=True)
    # Ids neither sorted nor dense, as trajectories come back in any order.
    group_ids = np.repeat([(7 * i) % 97 for i in range(len(groups))], [len(g) for g in groups])
    return (
        np.array(rewards, np.float32),
        np.array(lengths, np.int32),
        np.array(reasons, np.uint8),
        group_ids.astype(np.int64),
    )


def oracle_shaping(
    group: list[tuple[float, int, int]], weight: float, penalty: float, correct_at: float
) -> list[float]:
    longest = max(length for _, length, _ in group)
    lengths = [length if reason == 0 else longest for _, length, reason in group]
    shortest = min(lengths)
    out = []
    for (reward, _, reason), length in zip(group, lengths, strict=True):
        r = reward if reason == 0 else -penalty
        if longest == shortest:
            extra = 0.0
        else:
            extra = 0.5 - (length - shortest) / (longest - shortest)
            if r < correct_at:
                extra = min(0.0, extra)
        out.append(r + weight * extra)
    return out


@given(
    GROUPS, st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([0.0, 0.5]), st.sampled_from([0.5, 1])
)
@settings(max_examples=300, deadline=None)
def test_shaping_equals_the_loop(
    groups: list[list[tuple[float, int, int]]], weight: float, penalty: float, correct_at: float
) -> None:
    rewards, lengths, reasons, group_ids = flat(groups)
    cut = CutPenalty(penalty)(rewards, reasons)
    length_reward = LengthReward(weight, starts_at=3, correct_at=correct_at)
    shaped = length_reward(cut, lengths, reasons, group_ids, iteration=3)
    expected = [x for g in groups for x in oracle_shaping(g, weight, penalty, correct_at)]
    np.testing.assert_allclose(shaped, expected, atol=1e-6)
    before = length_reward(cut, lengths, reasons, group_ids, iteration=2)
    assert before.tolist() == cut.tolist()


@given(GROUPS, st.sampled_from([0.1, 1.0]))
@settings(max_examples=200, deadline=None)
def test_baselines_equal_the_loop(groups: list[list[tuple[float, int, int]]], tau: float) -> None:
    rewards, _, _, group_ids = flat(groups)
    mean, soft = [], []
    for group in groups:
        r = [response[0] for response in group]
        mean += [x - sum(r) / len(r) for x in r]
        top = tau * math.log(sum(math.exp(x / tau) for x in r) / len(r))
        soft += [x - top for x in r]
    got = MirrorDescent(tau).advantages(rewards, rewards, group_ids)
    np.testing.assert_allclose(got, mean, atol=1e-6)
    got = MirrorDescent(tau, baseline="log_mean_exp").advantages(rewards, rewards, group_ids)
    np.testing.assert_allclose(got, soft, atol=1e-5)


@given(GROUPS, st.integers(1, 4), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_mini_batches_deal_out_whole_groups(
    groups: list[list[tuple[float, int, int]]], n: int, seed: int, random: object
) -> None:
    rewards, lengths, _, group_ids = flat(groups)
    n = min(n, len(groups))
    batch = packed([(2, int(length)) for length in lengths], group_ids=group_ids.tolist())
    tokens = len(batch.input_ids)
    contributes = np.array([random.random() < 0.7 for _ in rewards])  # type: ignore[attr-defined]
    steps = mini_batches(
        batch, rewards, np.arange(tokens, dtype=np.float32), contributes, n=n, seed=seed
    )
    seen = np.concatenate([[], *(step.batch.trajectory_ids for step in steps)])
    assert sorted(seen) == np.flatnonzero(contributes).tolist()
    for step in steps:
        rows = step.batch.trajectory_ids
        assert step.advantages.tolist() == rewards[rows].tolist()
        start = batch.cu_seqlens[rows]
        assert step.old_log_probs[step.batch.cu_seqlens[:-1]].tolist() == start.tolist()
        # Every kept row of a group is in the same mini-batch, and groups stay in one piece.
        for group in np.unique(step.batch.group_ids):
            mine = np.flatnonzero((group_ids == group) & contributes)
            assert rows[step.batch.group_ids == group].tolist() == mine.tolist()
    everything = mini_batches(
        batch,
        rewards,
        np.zeros(tokens, np.float32),
        np.ones(len(rewards), np.bool_),
        n=n,
        seed=seed,
    )
    assert len(everything) == n
    assert sum(step.responses for step in everything) == len(rewards)
    sizes = [len(step.batch.input_ids) for step in everything]
    largest = max(sum(2 + length for _, length, _ in group) for group in groups)
    assert max(sizes) - min(sizes) <= largest
