import numpy as np
import pytest
import torch
from packed import packed

from k15core.algorithms import (
    CutPenalty,
    LengthReward,
    LossTerms,
    MirrorDescent,
    ReST,
    equal_groups,
    group_bounds,
    mini_batches,
)
from k15core.errors import InvalidInputError
from k15core.types import FINISH_REASONS

STOP, LENGTH, REPETITION, ABORT = (np.uint8(i) for i in range(len(FINISH_REASONS)))


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def shape(
    rewards: list[float],
    lengths: list[int],
    reasons: list[np.uint8] | None = None,
    *,
    iteration: int = 0,
    **kwargs: float,
) -> list[float]:
    """The length reward of one group."""
    length_reward = LengthReward(**{"weight": 1.0, **kwargs})
    n = len(rewards)
    return length_reward(
        f32(*rewards),
        np.array(lengths, np.int32),
        np.array(reasons or [STOP] * n, np.uint8),
        np.zeros(n, np.int64),
        iteration=iteration,
    ).tolist()


def test_length_reward_of_right_and_wrong_answers() -> None:
    # λ = 0.5, 0, -0.5 for lengths 10, 15, 20.
    assert shape([1, 1, 1], [10, 15, 20]) == [1.5, 1.0, 0.5]
    assert shape([0, 0, 0], [10, 15, 20]) == [0.0, 0.0, -0.5]
    assert shape([0, 1, 1], [10, 15, 20]) == [0.0, 1.0, 0.5]


def test_length_reward_is_zero_for_equal_lengths() -> None:
    assert shape([1, 0, 1], [7, 7, 7]) == [1.0, 0.0, 1.0]


def test_length_reward_starts_at_its_iteration() -> None:
    for iteration, expected in [(0, [1.0, 1.0]), (49, [1.0, 1.0]), (50, [1.25, 0.75])]:
        assert shape([1, 1], [10, 20], iteration=iteration, weight=0.5, starts_at=50) == expected


def test_partial_credit_counts_as_correct_from_correct_at() -> None:
    assert shape([0.75, 0.5], [10, 20], correct_at=0.75) == [1.25, 0.0]
    assert shape([0.75, 0.5], [10, 20]) == [0.75, 0.0]


@pytest.mark.parametrize("reason", [LENGTH, REPETITION])
def test_a_cut_response_counts_as_the_longest(reason: np.uint8) -> None:
    # The loop was cut after 3 tokens; the longest of the group has 20.
    assert shape([0, 1, 1], [3, 10, 20], [reason, STOP, STOP]) == [-0.5, 1.5, 0.5]
    # It never makes a right answer look long: among equal lengths the reward stays 0.
    assert shape([0, 1], [3, 20], [reason, STOP]) == [0.0, 1.0]
    # Nor may a cut response count as correct.
    assert shape([1, 1], [3, 20], [reason, STOP]) == [1.0, 1.0]


def test_cut_responses_earn_nothing_less_the_penalty() -> None:
    reasons = np.array([STOP, LENGTH, REPETITION], np.uint8)
    assert CutPenalty()(f32(1, 1, 1), reasons).tolist() == [1.0, 0.0, 0.0]
    assert CutPenalty(0.5)(f32(1, 1, 0), reasons).tolist() == [1.0, -0.5, -0.5]


def test_aborted_responses_are_refused() -> None:
    reasons = np.array([STOP, ABORT], np.uint8)
    with pytest.raises(InvalidInputError, match=r"finish_reasons\[1\] is 3.*aborted"):
        CutPenalty()(f32(1, 1), reasons)
    with pytest.raises(InvalidInputError, match="aborted"):
        shape([1, 1], [3, 4], [STOP, ABORT])


def test_advantages_subtract_the_group_mean() -> None:
    shaped, groups = f32(1, 0, 0, 0, 1, 1), ids(7, 7, 7, 7, 3, 3)
    expected = [0.75, -0.25, -0.25, -0.25, 0.0, 0.0]
    assert MirrorDescent(tau=0.1).advantages(shaped, shaped, groups).tolist() == expected


def test_advantages_subtract_the_soft_maximum() -> None:
    shaped, groups = f32(1, 0, 0, 0, 2, 2), ids(0, 0, 0, 0, 1, 1)
    algorithm = MirrorDescent(tau=0.5, baseline="log_mean_exp")
    soft = 0.5 * np.log((np.exp(2.0) + 3) / 4)
    expected = [1 - soft, -soft, -soft, -soft, 0, 0]
    np.testing.assert_allclose(algorithm.advantages(shaped, shaped, groups), expected, atol=1e-7)
    # A small temperature neither overflows nor leaves the soft maximum's limit.
    cold = MirrorDescent(tau=1e-6, baseline="log_mean_exp").advantages(shaped, shaped, groups)
    np.testing.assert_allclose(cold, [0, -1, -1, -1, 0, 0], atol=1e-5)


def test_equal_groups_are_skipped_or_kept() -> None:
    shaped, groups = f32(1, 1, 0, 1), ids(0, 0, 1, 1)
    assert equal_groups(shaped, groups).tolist() == [True, False]
    skip, keep = MirrorDescent(0.1), MirrorDescent(0.1, skip_equal_groups=False)
    advantages = skip.advantages(shaped, shaped, groups)
    assert skip.contributes(advantages, shaped, groups).tolist() == [False, False, True, True]
    assert keep.contributes(advantages, shaped, groups).all()


def test_rest_keeps_positives_only() -> None:
    rewards, groups = f32(1, 0.5, 0, 1), ids(0, 0, 1, 1)
    shaped = rewards - f32(0.5, 0, 0, 0)
    algorithm = ReST()
    advantages = algorithm.advantages(rewards, shaped, groups)
    assert advantages.tolist() == [1, 0, 0, 1]
    assert algorithm.contributes(advantages, shaped, groups).tolist() == [True, False, False, True]
    assert ReST(correct_at=0.5).advantages(rewards, shaped, groups).tolist() == [1, 1, 0, 1]


def terms(
    log_probs: list[list[float]], old: list[list[float]], advantages: list[float]
) -> LossTerms:
    flat = torch.tensor(
        [x for row in log_probs for x in row], dtype=torch.float64, requires_grad=True
    )
    rows = torch.tensor([j for j, row in enumerate(log_probs) for _ in row])
    old_flat = torch.tensor([x for row in old for x in row], dtype=torch.float64)
    return LossTerms(flat, old_flat, rows, torch.tensor(advantages, dtype=torch.float64), 8)


def test_surrogate_and_its_gradient_are_the_formula() -> None:
    log_probs, old = [[-1.0, -2.0], [], [-0.5]], [[-1.5, -1.0], [], [-0.25]]
    made = terms(log_probs, old, [0.5, -0.5, -0.25])
    loss = MirrorDescent(tau=0.2).loss(made)
    drift = [-3.0 + 2.5, 0.0, -0.5 + 0.25]
    by_hand = -(0.5 * -3.0 - 0.1 * drift[0] ** 2 - 0.25 * -0.5 - 0.1 * drift[2] ** 2) / 8
    assert loss.item() == pytest.approx(by_hand, abs=1e-15)
    loss.backward()
    # dL/d log-prob = -(A_j - τ·drift_j) / (P·k): negative advantages push down.
    slope = [-(0.5 - 0.2 * drift[0]) / 8] * 2 + [-(-0.25 - 0.2 * drift[2]) / 8]
    np.testing.assert_allclose(made.log_probs.grad, slope, atol=1e-15)


def test_rest_has_no_pull_towards_the_old_policy() -> None:
    made = terms([[-1.0, -2.0], [-0.5]], [[-9.0, -9.0], [-9.0]], [1.0, 1.0])
    loss = ReST().loss(made)
    assert loss.item() == pytest.approx(3.5 / 8)
    loss.backward()
    np.testing.assert_allclose(made.log_probs.grad, [-1 / 8] * 3)


def test_mini_batches_count_skipped_responses() -> None:
    batch = packed([(2, 3)] * 6, group_ids=[0, 0, 1, 1, 2, 2])
    kept = np.array([1, 1, 0, 0, 1, 1], np.bool_)
    advantages = np.arange(6, dtype=np.float32)
    old = np.arange(30, dtype=np.float32)
    (only,) = mini_batches(batch, advantages, old, kept, n=1, seed=0)
    assert only.responses == 6
    assert only.advantages.tolist() == [0, 1, 4, 5]
    assert only.old_log_probs.tolist() == [*range(10), *range(20, 30)]
    thirds = mini_batches(batch, advantages, old, kept, n=3, seed=0)
    assert [step.responses for step in thirds] == [2, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MirrorDescent(tau=-1), "tau is -1"),
        (lambda: MirrorDescent(tau=float("nan")), "tau is nan"),
        (lambda: MirrorDescent(tau=0, baseline="log_mean_exp"), "needs tau > 0"),
        (lambda: MirrorDescent(tau=1, baseline="max"), "baseline is 'max'"),
        (lambda: LengthReward(weight=-1), "weight is -1"),
        (lambda: LengthReward(weight=1, starts_at=-1), "starts_at is -1"),
        (lambda: LengthReward(weight=1, correct_at=0), "correct_at is 0"),
        (lambda: ReST(correct_at=1.5), "correct_at is 1.5"),
        (lambda: CutPenalty(-0.5), "repetition_penalty is -0.5"),
        (lambda: group_bounds(ids(1, 2, 1)), "group 1 in 2 pieces"),
        (lambda: group_bounds(ids()), r"shape \(0,\)"),
        (lambda: equal_groups(f32(1), ids(0, 0)), r"shaped has shape \(1,\)"),
        (
            lambda: MirrorDescent(1).advantages(f32(1), f32(float("nan")), ids(0)),
            r"shaped\[0\] is nan",
        ),
        (lambda: split(n=4), "n is 4: expected 1 … 3"),
        (lambda: split(n=0), "n is 0"),
        (lambda: split(old=np.zeros(3, np.float32)), "old_log_probs has shape"),
        (lambda: split(contributes=np.zeros(3, np.bool_)), "contributes is bool of shape"),
        (lambda: split(advantages=np.zeros(3, np.float32)), "advantages has shape"),
    ],
)
def test_bad_input_is_named(make: object, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()  # type: ignore[operator]


def split(
    n: int = 1,
    old: np.ndarray | None = None,
    contributes: np.ndarray | None = None,
    advantages: np.ndarray | None = None,
) -> None:
    batch = packed([(2, 3)] * 6, group_ids=[0, 0, 1, 1, 2, 2])
    mini_batches(
        batch,
        np.zeros(6, np.float32) if advantages is None else advantages,
        np.zeros(30, np.float32) if old is None else old,
        np.ones(6, np.bool_) if contributes is None else contributes,
        n=n,
        seed=0,
    )
