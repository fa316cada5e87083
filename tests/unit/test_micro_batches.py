"""Micro-batches for data parallelism: which trajectories, and every array that a rank computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import packed

from k15core import MicroBatch, PackedBatch, _core
from k15core.errors import InvalidInputError

LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 60)), min_size=0, max_size=40)
PADDING = st.sampled_from([(1, 1), (2, 1), (4, 16), (8, 8), (3, 30)])


def a_batch(lengths: list[tuple[int, int]]) -> PackedBatch:
    """Groups of three, and a column of the user's own."""
    if not lengths:
        return packed([(1, 1)]).select([])
    batch = packed(lengths, group_ids=[i // 3 for i in range(len(lengths))])
    return replace(batch, columns={"values": np.arange(len(batch.input_ids)) / 7})


@given(LENGTHS, st.integers(1, 6), PADDING, st.integers(1, 3), st.booleans())
def test_every_token_is_where_it_belongs(
    lengths: list[tuple[int, int]],
    ranks: int,
    padding: tuple[int, int],
    count_multiple: int,
    whole_groups: bool,
) -> None:
    """All arrays, against rows that are put together one by one."""
    batch = a_batch(lengths)
    row, total = padding
    dealt = batch.micro_batches(
        ranks=ranks,
        max_tokens=250,
        pad_to_multiple=row,
        pad_total_to_multiple=total,
        whole_groups=whole_groups,
        count_multiple=count_multiple,
        pad_token_id=31,
    )
    assert len(dealt) == ranks
    assert len({len(micros) for micros in dealt}) == 1
    assert len(dealt[0]) % count_multiple == 0
    everyone = [int(i) for micros in dealt for micro in micros for i in micro.rows]
    assert sorted(everyone) == list(range(len(batch)))
    back = np.full(len(batch.input_ids), -1, np.int32)
    for micro in (micro for micros in dealt for micro in micros):
        check(micro, batch, row, total)
        if whole_groups:
            ids = batch.group_ids[micro.rows]
            assert len(ids) == np.isin(batch.group_ids, ids).sum()
        micro.scatter(micro.input_ids, back)
    assert back.tolist() == batch.input_ids.tolist()


def check(micro: MicroBatch, batch: PackedBatch, row: int, total: int) -> None:
    names = ("input_ids", "position_ids", "loss_mask", "rollout_log_probs", "versions")
    rows: list[dict[str, list[Any]]] = []
    for i in micro.rows:
        start, end = batch.cu_seqlens[i], batch.cu_seqlens[i + 1]
        filled = -(end - start) % row
        rows.append({name: [*getattr(batch, name)[start:end], *[0] * filled] for name in names})
        rows[-1]["input_ids"][end - start :] = [31] * filled
        rows[-1]["values"] = [*batch.columns["values"][start:end], *[0] * filled]
    tokens = sum(len(r["input_ids"]) for r in rows)
    rest = -tokens % total if rows else -(-row // total) * total
    real = np.diff(batch.cu_seqlens)[micro.rows].tolist()
    padded = [len(r["input_ids"]) for r in rows]
    if rest:
        rows.append(
            {name: [31 if name == "input_ids" else 0] * rest for name in (*names, "values")}
        )
        real.append(rest)
        padded.append(rest)
    assert tokens + rest <= 250 or not len(micro)
    for name in names:
        found = getattr(micro, name)
        assert found.tolist() == [x for r in rows for x in r[name]], name
        assert found.dtype == getattr(batch, name).dtype
    for name in batch.columns:
        assert micro.columns[name].tolist() == [x for r in rows for x in r[name]]
    parameters = micro.packed_seq_params()
    assert parameters.pop("qkv_format") == "thd"
    assert parameters.pop("max_seqlen_q") == parameters.pop("max_seqlen_kv") == max(padded)
    for side in ("q", "kv"):
        for name, sizes in ((f"cu_seqlens_{side}", real), (f"cu_seqlens_{side}_padded", padded)):
            found = parameters.pop(name)
            assert found.dtype == np.int32
            assert found.tolist() == [0, *np.cumsum(sizes)]
    assert not parameters


def test_ranks_have_about_as_many_tokens() -> None:
    """Log-normal responses as of a rollout: near the lower bound, whatever the draw."""
    for seed in range(5):
        lengths = np.random.default_rng(seed).lognormal(np.log(1500), 0.8, 512).astype(int)
        batch = packed([(64, min(int(n), 16000)) for n in lengths])
        dealt = batch.micro_batches(ranks=8, max_tokens=32768)
        tokens = [sum(len(micro.input_ids) for micro in micros) for micros in dealt]
        assert max(tokens) <= 1.001 * sum(tokens) / 8
        assert len(dealt[0]) == -(-sum(tokens) // (8 * 32768))


def test_two_dimensions_travel_too() -> None:
    batch = a_batch([(2, 3), (1, 1), (4, 0)])
    (micros,) = batch.micro_batches(max_tokens=8, pad_to_multiple=4)
    values = np.arange(2 * len(batch.input_ids), dtype=np.float16).reshape(-1, 2)
    back = np.zeros_like(values)
    for micro in micros:
        there = micro.gather(values, fill=-1)
        assert there.shape == (len(micro.input_ids), 2)
        micro.scatter(there, back)
    assert back.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ranks": 0}, "ranks = 0: expected at least 1"),
        ({"max_tokens": -1}, "max_tokens = -1: expected an integer from 0"),
        ({"pad_to_multiple": 0}, "pad_to_multiple = 0: expected at least 1"),
        ({"pad_to_multiple": 4, "pad_total_to_multiple": 6}, "pad_total_to_multiple = 6: expected"),
        ({"max_tokens": 6}, "max_tokens = 6: expected at least 7, the padded tokens of row 1"),
        ({"max_tokens": 11, "whole_groups": True}, "expected at least 14, .* of group 0, which"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    batch = packed([(2, 3), (3, 4), (1, 1)], group_ids=[0, 0, 0])
    with pytest.raises(InvalidInputError, match=said):
        batch.micro_batches(**{"max_tokens": 100, **wrong})


def test_arrays_of_another_size_are_refused() -> None:
    ((micro,),) = packed([(2, 3)]).micro_batches(max_tokens=100, pad_to_multiple=4)
    with pytest.raises(InvalidInputError, match=r"values has shape \(4,\): expected 5 entries"):
        micro.gather(np.zeros(4))
    with pytest.raises(InvalidInputError, match=r"values has shape \(5,\): expected 8 entries"):
        micro.scatter(np.zeros(5), np.zeros(5))
    with pytest.raises(InvalidInputError, match="into is float32 of shape"):
        micro.scatter(np.zeros(8), np.zeros(5, np.float32))
    source, target, one = np.zeros(8, np.uint8), np.zeros(4, np.uint8), np.ones(1, np.int64)
    with pytest.raises(InvalidInputError, match="targets = 1, for 4 entries: expected a start"):
        _core.copy_runs(source, target, one, one, 4 * one, 1)
