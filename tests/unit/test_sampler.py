import ast
import doctest
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import k15core
from k15core import PriorityIndex, PromptSampler, _core
from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from k15core import types

    def satisfies(sampler: PromptSampler) -> types.PromptSampler:
        return sampler


STUB = Path(k15core.__file__).parent / "_core.pyi"
IDS = np.arange(100, 120)
LABELS = np.repeat(np.arange(1, 6), 4).astype(np.float32)


@pytest.mark.parametrize("name", ["PriorityIndex", "PromptSampler"])
def test_the_examples_of_the_stub_run(name: str) -> None:
    classes = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ClassDef)]
    (text,) = [ast.get_docstring(node) for node in classes if node.name == name]
    names = {name: getattr(_core, name)}
    test = doctest.DocTestParser().get_doctest(text or "", names, name, None, None)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@given(
    hnp.arrays(np.float32, st.integers(1, 300), elements=st.integers(0, 1000).map(np.float32)),
    st.integers(0, 2**64 - 1),
    st.data(),
)
def test_index_draws_what_it_says(weights: np.ndarray, seed: int, data: st.DataObject) -> None:
    index = PriorityIndex(len(weights))
    order = np.array(data.draw(st.permutations(range(len(weights)))), np.int64)
    doubled = np.concatenate([order, order])
    stale = np.concatenate([np.ones_like(weights), weights[order]])
    index.update(doubled[::-1][::-1], stale.astype(data.draw(st.sampled_from(["f4", "f8"]))))
    np.testing.assert_array_equal(index.weights(), weights)
    np.testing.assert_array_equal(index.weights(order), weights[order])
    assert index.total == weights.sum(dtype=np.float64)
    able = np.flatnonzero(weights)
    drawn = index.sample(len(able), seed=seed, replace=False)
    assert drawn.dtype == np.int64
    np.testing.assert_array_equal(np.sort(drawn), able)
    with pytest.raises(InvalidInputError, match="weight above 0"):
        index.sample(len(able) + 1, seed=seed, replace=False)
    if len(able):
        many = index.sample(200, seed=seed)
        assert np.isin(many, able).all()
        np.testing.assert_array_equal(many, index.sample(200, seed=seed))
        np.testing.assert_array_equal(index.sample(1, seed=seed), drawn[:1])


@given(
    st.lists(
        st.tuples(st.integers(0, 19), st.floats(0, 1, width=32), st.integers(0, 50)), max_size=60
    ),
    st.floats(0.5, 1),
)
def test_rates_are_decayed_means(events: list[tuple[int, float, int]], gamma: float) -> None:
    sampler = PromptSampler(IDS, gamma=gamma, prior_rate=0.3, prior_count=2.0, rule="priority")
    for prompt, reward, version in events:
        sampler.update(IDS[[prompt]], f32(reward), version)
    newest = max((version for *_, version in events), default=0)
    top, bottom = np.full(20, 0.6), np.full(20, 2.0)
    for prompt, reward, version in events:
        top[prompt] += gamma ** (newest - version) * reward
        bottom[prompt] += gamma ** (newest - version)
    np.testing.assert_allclose(sampler.success_rates(), top / bottom, rtol=1e-6)

    twin = PromptSampler(IDS, gamma=gamma, prior_rate=0.3, prior_count=2.0, rule="priority")
    twin.restore(sampler.state())
    for replace in (False, True):
        ours = sampler.sample(15, seed=3, replace=replace)
        np.testing.assert_array_equal(twin.sample(15, seed=3, replace=replace), ours)


def test_priority_draws_in_proportion_to_failure() -> None:
    sampler = PromptSampler(IDS[:4], rule="priority", alpha=2.0, epsilon=0.05, gamma=1.0)
    sampler.update(IDS[:3], f32(1.0, 0.5, 0.0), version=1)
    weights = (1 - sampler.success_rates().astype(float)) ** 2 + 0.05
    drawn = sampler.sample(200_000, seed=0, replace=True)
    counts = np.bincount(drawn - IDS[0], minlength=4)
    expected = len(drawn) * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # 3 degrees of freedom, p = 0.001


def test_warmup_on_all_then_the_hard_only() -> None:
    sampler = PromptSampler(
        IDS, difficulty=LABELS, curriculum="difficulty", warmup_iterations=2, min_difficulty=4.0
    )
    assert [sampler.admissible(i) for i in range(4)] == [20, 20, 8, 8]
    assert sorted(sampler.sample(20, seed=0, iteration=1)) == IDS.tolist()
    assert sorted(sampler.sample(8, seed=0, iteration=2)) == IDS[LABELS >= 4].tolist()
    assert (sampler.sample(500, seed=0, iteration=2, replace=True) >= IDS[12]).all()


def test_too_few_admitted_are_filled_up_from_the_nearest() -> None:
    sampler = PromptSampler(
        IDS, difficulty=LABELS, rule="priority", curriculum="difficulty", min_difficulty=5.0
    )
    drawn = sampler.sample(7, seed=1)
    assert set(drawn[:4]) == set(IDS[LABELS == 5])
    assert len(set(drawn[4:]) & set(IDS[LABELS == 4])) == 3
    assert set(sampler.sample(4, seed=1)) == set(IDS[LABELS == 5]), "the range is as before"


def test_by_pass_rate_with_priority() -> None:
    sampler = PromptSampler(
        IDS, rule="learnability", curriculum="pass_rate", max_pass_rate=0.4, warmup_iterations=1
    )
    sampler.update(IDS[:5], np.zeros(5, np.float32), version=1)
    assert sampler.admissible(1) == 5
    assert set(sampler.sample(5, seed=0, iteration=1)) == set(IDS[:5])
    sampler.update(IDS[:1], f32(1.0), version=1)
    assert sampler.admissible(1) == 4
    assert IDS[0] not in sampler.sample(4, seed=0, iteration=1)


def test_pace_goes_from_easy_to_all() -> None:
    sampler = PromptSampler(
        IDS, difficulty=LABELS, curriculum="difficulty", pace_iterations=4, pace_start=0.0
    )
    assert [sampler.admissible(i) for i in range(6)] == [4, 8, 12, 16, 20, 20]


@pytest.mark.parametrize("rule", ["uniform", "priority", "learnability", "thompson"])
def test_draws_are_a_function_of_state_and_seed(rule: str) -> None:
    def fresh() -> PromptSampler:
        sampler = PromptSampler(IDS, rule=rule)
        sampler.update(IDS[:10], np.linspace(0, 1, 10, dtype=np.float32), version=2)
        return sampler

    one, other = fresh(), fresh()
    one.sample(5, seed=9)
    np.testing.assert_array_equal(one.sample(12, seed=4), other.sample(12, seed=4))
    assert one.sample(12, seed=4).tolist() != one.sample(12, seed=5).tolist()


def test_threads_wait_for_each_other() -> None:
    index, indices = PriorityIndex(50_000), np.arange(50_000)

    def work(weight: float) -> None:
        for seed in range(20):
            index.update(indices, np.full(50_000, weight))
            index.sample(1000, seed=seed)

    threads = [threading.Thread(target=work, args=(w,)) for w in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert index.total in (50_000.0, 100_000.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "greedy"}, "rule = greedy: expected one of uniform, priority"),
        ({"alpha": -1.0}, "alpha = -1"),
        ({"epsilon": 0.0}, "epsilon = 0: expected a number above 0"),
        ({"gamma": 1.5}, "gamma = 1.5"),
        ({"prior_count": float("nan")}, "prior_count = NaN"),
        ({"curriculum": "easy"}, "curriculum = easy: expected one of none"),
        ({"curriculum": "difficulty", "min_difficulty": 2.0}, "difficulty = None"),
        ({"curriculum": "pass_rate"}, "expected max_pass_rate, pace_iterations or both"),
        ({"curriculum": "pass_rate", "max_pass_rate": 1.5}, "max_pass_rate = 1.5"),
        ({"min_difficulty": 2.0}, "min_difficulty = 2: expected None unless"),
        ({"pace_start": 0.5}, "pace_start = 0.5: expected None unless"),
        ({"warmup_iterations": 3}, "warmup_iterations = 3"),
        ({"difficulty": f32(1.0)}, "difficulty = 1 labels: expected 20"),
        ({"difficulty": np.full(20, np.nan, np.float32)}, "difficulty = NaN at position 0"),
        ({"difficulty": np.zeros(20)}, "one-dimensional array of float32"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        PromptSampler(IDS, **settings)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_bad_calls_are_refused_by_name() -> None:
    sampler, index = PromptSampler(IDS), PriorityIndex(10)
    state = sampler.state()
    ids, ones = IDS[:1], f32(1.0)
    for call, message in [
        (lambda: sampler.update(np.array([7]), ones, 0), "prompt_ids = 7 at position 0"),
        (lambda: sampler.update(ids, f32(np.nan), 0), "mean_rewards = NaN at position 0"),
        (lambda: sampler.update(ids, f32(-0.5), 0), "mean_rewards = -0.5"),
        (lambda: sampler.update(ids, f32(1.0, 1.0), 0), "mean_rewards = 2 entries: expected 1"),
        (lambda: sampler.update(ids, ones, -1), "version = -1"),
        (lambda: sampler.update(ids, ones, 2**32), "version = 4294967296"),
        (lambda: sampler.sample(21, seed=0), "n = 21: expected at most 20"),
        (lambda: sampler.sample(1, seed=-1), "seed = -1"),
        (lambda: sampler.restore(state[:-1]), "state = 447 bytes"),
        (lambda: PromptSampler(IDS[:3]).restore(state), "it is of 20, the sampler has 3"),
        (lambda: PromptSampler(np.array([3, 3])), "prompt_ids = 3 at position 1"),
        (lambda: PromptSampler(IDS[:0]), "prompt_ids = 0 ids"),
        (lambda: PriorityIndex(0), "n = 0"),
        (lambda: index.update(np.array([10]), ones), "indices = 10 at position 0: expected 0 to 9"),
        (lambda: index.update(np.array([1]), f32(-1.0)), "weights = -1 at position 0"),
        (lambda: index.update(np.array([1.0]), ones), "indices = an array of float64"),
        (lambda: index.update(np.array([[1]]), ones), "with 2 axes"),
        (lambda: index.update(np.array([1]), np.array([1])), "float32 or float64"),
        (lambda: index.sample(1, seed=0), "n = 1: expected 0, for every weight is 0"),
    ]:
        with pytest.raises(InvalidInputError) as caught:
            call()
        assert message in str(caught.value)
    assert sampler.state() == state
