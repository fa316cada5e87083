"""Which groups a sample takes by priority, and which of their tokens it masks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from k15core import Prompt, PromptSampler, SharedStore, Store
from k15core.errors import InvalidInputError


def filled(store: Store, prompt_ids: list[int], versions: tuple[int, ...] = (0,)) -> None:
    """A complete group of one response for each prompt, with two tokens of each version."""
    for prompt_id in prompt_ids:
        store.add_group(Prompt(prompt_id, np.zeros(1, np.int32), ""), 1, version=versions[0])
    n = len(prompt_ids)
    for lease in store.lease(n, now=0, duration=1):
        for i, version in enumerate(versions):
            at = (lease.trajectory_id, lease.epoch, 2 * i)
            store.append(*at, np.zeros(2, np.int32), np.zeros(2, np.float32), version)
        store.finish(lease.trajectory_id, lease.epoch, "stop")
        store.set_reward(lease.trajectory_id, 1.0)


@pytest.fixture(params=["here", "served"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with Store(max_uses=2**31) as own:
        if request.param == "here":
            yield own
        else:
            with own.serve(tmp_path / "socket") as server, SharedStore(server.path) as client:
                yield client


def order(store: Store, weights: Any, seed: int, n: int = 100) -> list[int]:
    taken = store.sample(
        groups=n, version=0, max_staleness=9, strategy="priority", seed=seed, weights=weights
    )
    return [int(i) for i in taken.prompt_ids]


def test_first_groups_come_in_proportion_to_their_weights(store: Store) -> None:
    """Pairs of groups, against the chances of successive draws; the seeds are fixed."""
    weights = {11: 1.0, 12: 4.0, 13: 0.0, 14: 2.5, 15: 0.5}
    filled(store, [*weights])
    n, total = 4000, sum(weights.values())
    pairs = Counter(tuple(order(store, weights, seed, 2)) for seed in range(n))
    chances = {
        (a, b): u / total * v / (total - u)
        for a, u in weights.items()
        for b, v in weights.items()
        if a != b and u * v > 0
    }
    assert set(pairs) <= set(chances)
    chi2 = sum((pairs[pair] - n * p) ** 2 / (n * p) for pair, p in chances.items())
    assert chi2 < 35  # 11 degrees of freedom: one in four thousand is above


def test_a_group_has_its_place_whatever_else_there_is(store: Store) -> None:
    weights = {i: 1.0 + i % 5 for i in range(40)}
    filled(store, [*weights][:25])
    before = order(store, weights, 7)
    assert order(store, weights, 7) == before != order(store, weights, 8)
    assert sorted(before) == list(range(25))
    filled(store, [*weights][25:])
    assert [i for i in order(store, weights, 7) if i < 25] == before
    assert order(store, weights, 7, 10) == order(store, weights, 7)[:10]


def test_equal_weights_are_uniform(store: Store) -> None:
    filled(store, [*range(20)])
    uniform = store.sample(groups=20, version=0, max_staleness=0, strategy="uniform", seed=3)
    wanted = [int(i) for i in uniform.prompt_ids]
    assert order(store, dict.fromkeys(range(20), 0.25), 3) == wanted


def test_a_mapping_and_arrays_say_the_same(store: Store) -> None:
    filled(store, [*range(30)])
    ids = np.random.default_rng(0).permutation(30)
    weights = (ids % 4 / 4).astype(np.float32)
    mapping = dict(zip(ids.tolist(), weights.tolist(), strict=True))
    assert order(store, (ids, weights), 1) == order(store, mapping, 1)
    assert order(store, (ids, weights.astype(np.float64)), 1) == order(store, mapping, 1)
    assert {i % 4 for i in order(store, mapping, 1)} == {1, 2, 3}
    assert order(store, dict.fromkeys(range(30), 0), 1) == []


def test_the_weights_of_a_prompt_sampler(store: Store) -> None:
    """What was not solved comes first, of what the curriculum admits."""
    ids = np.arange(8)
    difficulty = np.arange(8, dtype=np.float32)
    sampler = PromptSampler(
        ids,
        difficulty=difficulty,
        rule="priority",
        epsilon=1e-9,
        curriculum="difficulty",
        warmup_iterations=1,
        min_difficulty=4,
        prior_count=1e-6,
    )
    sampler.update(ids, np.array([1, 0] * 4, np.float32), 1)
    filled(store, ids.tolist())
    for seed in range(20):
        taken = order(store, (sampler.prompt_ids, sampler.weights()), seed)
        assert {*taken[:4]} == {1, 3, 5, 7}
        weights = sampler.weights(iteration=1)
        assert weights[:4].tolist() == [0] * 4
        np.testing.assert_allclose(weights[4:], [0, 1, 0, 1], atol=1e-5)
        assert {*order(store, (sampler.prompt_ids, weights), seed, 2)} == {5, 7}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (None, "weights = none: expected one for each prompt, with the strategy priority"),
        ({1: 1.0, 2: float("nan")}, "weights = NaN for prompt 2: expected finite numbers"),
        ({1: 1.0, 2: -1e-9}, "for prompt 2: expected finite numbers of at least 0"),
        ({1: 1.0, 2: float("inf")}, "weights = inf for prompt 2"),
        ({1: 1.0}, "weights = none for prompt 2, of group 1: expected one for the prompt of each"),
        ({1: "x"}, "weights = .*: expected integers as prompt ids, with a number each"),
        (3, "weights = int: expected a mapping of prompt ids to weights, or a tuple"),
        ((np.array([1, 2, 1]), np.ones(3)), "weights = prompt 1 twice: expected each prompt once"),
        ((np.array([1, 2]), np.ones(3)), "weights = 3 weights: expected 2, one for each prompt id"),
        ((np.array([1, 2]), np.array([1, 1])), r"weights\[1\] = an array of int64"),
        ((np.array([1.0, 2]), np.ones(2)), r"weights\[0\] = an array of float64"),
    ],
)
def test_weights_that_cannot_be_are_refused(store: Store, weights: Any, said: str) -> None:
    filled(store, [1, 2])
    with pytest.raises(InvalidInputError, match=said):
        order(store, weights, 0)
    assert store.complete_groups() == [0, 1]


def test_weights_are_for_priority_only(store: Store) -> None:
    filled(store, [1])
    with pytest.raises(InvalidInputError, match="weights = given: expected none, or the strategy"):
        store.sample(groups=1, version=0, max_staleness=0, weights={1: 1.0})


def test_old_segments_are_masked(store: Store) -> None:
    filled(store, [1], versions=(2, 3, 5))

    def masks(age: int | None, version: int = 5) -> list[int]:
        batch = store.sample(groups=1, version=version, max_staleness=9, max_segment_staleness=age)
        assert batch.versions.tolist() == [0, 2, 2, 3, 3, 5, 5]
        return [int(m) for m in batch.loss_mask]

    assert masks(None) == [0, 1, 1, 1, 1, 1, 1]
    assert masks(0) == [0, 0, 0, 0, 0, 1, 1]
    assert masks(1) == masks(0)
    assert masks(2) == [0, 0, 0, 1, 1, 1, 1]
    assert masks(3) == masks(2**32 - 1) == masks(None)
    assert masks(3, version=6) == masks(2)
    with pytest.raises(InvalidInputError, match="max_segment_staleness = -1: expected an integer"):
        masks(-1)


def test_the_order_does_not_depend_on_threads() -> None:
    """Another process with other numbers of threads takes the same groups and micro-batches."""
    program = """
import sys; sys.path.insert(0, "tests/unit")
from test_store_sampling import Store, filled, order
with Store(max_uses=9) as store:
    filled(store, [*range(50)])
    print(order(store, {i: 1 + i % 3 for i in range(50)}, 5))
    batch = store.sample(groups=50, version=0, max_staleness=0)
    print([[m.rows.tolist() for m in r] for r in batch.micro_batches(ranks=3, max_tokens=20)])
"""
    root = Path(__file__).parents[2]
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": n, "RAYON_NUM_THREADS": n},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for n in ("1", "4")
    }
    assert len(told) == 1
