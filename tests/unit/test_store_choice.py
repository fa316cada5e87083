"""Choosing outside of the store: `candidates`, `take`, `marks`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from k15core import Prompt, SharedStore, Store
from k15core.errors import InvalidInputError


@pytest.fixture
def store() -> Iterator[Store]:
    """Eight groups of two under versions 0 to 7; those with an even id have `values`."""
    with Store(columns={"values": "float32"}, max_uses=2) as store:
        for i in range(8):
            prompt = Prompt(100 + i, np.arange(3, dtype=np.int32), "")
            store.add_group(prompt, 2, version=i)
            for lease in store.lease(2, now=0, duration=1):
                who = lease.trajectory_id
                tokens = np.arange(4 + who, dtype=np.int32)
                store.append(who, lease.epoch, 0, tokens, -tokens.astype(np.float32), i)
                if i % 2 == 0:
                    store.set_column(who, "values", tokens.astype(np.float32))
                store.finish(who, lease.epoch, "stop")
                store.set_reward(who, 1.0)
        store.add_group(Prompt(9, np.arange(3, dtype=np.int32), ""), 2, version=7)
        yield store


def test_candidates_are_what_a_sample_could_take(store: Store) -> None:
    ids, tokens, prompt_ids = store.candidates(max_staleness=3, version=7)
    assert ids.tolist() == [4, 5, 6, 7]
    assert prompt_ids.tolist() == [104, 105, 106, 107]
    assert tokens.tolist() == [14 + 2 * (2 * i) + 1 for i in (4, 5, 6, 7)]
    ids, _, _ = store.candidates(max_staleness=9, version=7, columns=["values"])
    assert ids.tolist() == [0, 2, 4, 6]
    ids, tokens, _ = store.candidates(max_staleness=9, version=7)
    batch = store.sample(groups=99, max_staleness=9, version=7)
    assert np.unique(batch.group_ids).tolist() == ids.tolist()
    assert len(batch.input_ids) == tokens.sum()


def test_take(store: Store) -> None:
    batch = store.take([5, 2, 5, 8, 77])
    assert batch.group_ids.tolist() == [5, 5, 2, 2], "in their order, once, if they can be taken"
    assert set(batch.columns) == {"values"}
    assert store.take([5, 2], columns=["values"]).group_ids.tolist() == [2, 2]
    assert store.take([2]).group_ids.tolist() == [], "it was used twice"
    ids, _, _ = store.candidates(max_staleness=9, version=7)
    assert 2 not in ids
    assert 5 in ids
    with pytest.raises(InvalidInputError, match="group_id = -1"):
        store.take([-1])
    with pytest.raises(InvalidInputError, match="nothing"):
        store.take([5], columns=["nothing"])


def test_marks(store: Store, tmp_path: Path) -> None:
    assert store.marks() == {}
    for version in (7, 8, 9):
        store.mark(version)
    assert store.marks() == {2: 8, 3: 9}
    with store.serve(tmp_path / "socket"), SharedStore(tmp_path / "socket") as shared:
        assert shared.marks() == {2: 8, 3: 9}
        with pytest.raises(InvalidInputError, match="store = a SharedStore"):
            shared.candidates(max_staleness=9, version=9)
        with pytest.raises(InvalidInputError, match="store = a SharedStore"):
            shared.take([1])
        assert shared.leases() == []
        (lease,) = shared.lease(1, now=0, duration=5)
        assert shared.leases() == [(16, lease.epoch, 5.0)]
    store.rewind(2)
    assert store.marks() == {2: 8}
