"""Whole groups of random trajectories for the tests against other stacks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from k15core.types import PackedBatch

COLUMNS = {
    name: name.removeprefix("own_")
    for name in (
        *("own_uint8", "own_int8", "own_uint16", "own_int16", "own_uint32", "own_int32"),
        *("own_int64", "own_float32", "own_float64"),
    )
}
"""A column of each dtype, as `Store(columns=…)` takes them."""


def random_groups(
    groups: int, k: int, *, seed: int = 0, version: int = 0, spans: int = 1
) -> PackedBatch:
    """`groups` prompts with k responses each, over `spans` versions up to `version` + spans - 1."""
    rng = np.random.default_rng(seed)
    n = groups * k
    prompt_lengths = np.repeat(rng.integers(1, 6, groups), k)
    prompts = [rng.integers(0, 99, length, dtype=np.int32) for length in prompt_lengths[::k]]
    lengths = rng.integers(0, 12, n)
    mask = [np.repeat([0, 1], [p, r]) for p, r in zip(prompt_lengths, lengths, strict=True)]
    versions = [
        np.concatenate([np.zeros(p), version + np.sort(rng.integers(0, spans, r))])
        for p, r in zip(prompt_lengths, lengths, strict=True)
    ]
    rows = [
        np.concatenate([prompts[i // k], rng.integers(0, 99, r, dtype=np.int32)])
        for i, r in enumerate(lengths)
    ]
    total = [len(row) for row in rows]
    loss_mask = np.concatenate(mask)
    return PackedBatch(
        input_ids=np.concatenate(rows),
        position_ids=np.concatenate([np.arange(length, dtype=np.int32) for length in total]),
        cu_seqlens=np.concatenate(([0], np.cumsum(total))).astype(np.int32),
        max_seqlen=max(total),
        loss_mask=(loss_mask * rng.integers(0, 2, len(loss_mask))).astype(np.uint8),
        rollout_log_probs=(-loss_mask * rng.random(len(loss_mask))).astype(np.float32),
        versions=np.concatenate(versions).astype(np.uint32),
        rewards=rng.random(n, dtype=np.float32),
        group_ids=np.repeat(np.arange(groups), k),
        trajectory_ids=np.arange(n),
        prompt_ids=np.repeat(rng.integers(0, 50, groups), k),
        prompt_lengths=prompt_lengths.astype(np.int32),
        finish_reasons=rng.integers(0, 3, n).astype(np.uint8),
    )


def with_columns(batch: PackedBatch, *, seed: int = 0) -> PackedBatch:
    """The batch with values of each of COLUMNS for its response tokens, extremes among them."""
    rng = np.random.default_rng(seed)
    places = np.arange(len(batch.input_ids)) - np.repeat(
        batch.cu_seqlens[:-1], np.diff(batch.cu_seqlens)
    )
    response = places >= np.repeat(batch.prompt_lengths, np.diff(batch.cu_seqlens))
    columns = {}
    for name, dtype in COLUMNS.items():
        if np.dtype(dtype).kind == "f":
            values = rng.standard_normal(len(response)).astype(dtype)
        else:
            bounds = np.iinfo(dtype)
            values = rng.integers(bounds.min, bounds.max, len(response), dtype, endpoint=True)
            values[::3] = bounds.max
        columns[name] = np.where(response, values, np.zeros(1, dtype))
    return replace(batch, columns=columns)
