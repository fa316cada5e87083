"""Packed batches for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from k15core.types import PackedBatch


def packed(
    lengths: Sequence[tuple[int, int]],
    *,
    group_ids: Sequence[int] | None = None,
    rewards: Sequence[float] | None = None,
    vocab: int = 32,
    seed: int = 0,
) -> PackedBatch:
    """Random tokens for trajectories of (prompt, response) lengths; all responses trained on."""
    rng = np.random.default_rng(seed)
    total = [p + r for p, r in lengths]
    cu = np.concatenate(([0], np.cumsum(total))).astype(np.int32)
    mask = np.concatenate([[0] * p + [1] * r for p, r in lengths])
    rows = np.arange(len(lengths), dtype=np.int64)
    return PackedBatch(
        input_ids=rng.integers(0, vocab, cu[-1], dtype=np.int32),
        position_ids=np.concatenate([np.arange(n) for n in total]).astype(np.int32),
        cu_seqlens=cu,
        max_seqlen=max(total),
        loss_mask=mask.astype(np.uint8),
        rollout_log_probs=np.where(mask, -rng.random(cu[-1]), 0).astype(np.float32),
        versions=mask.astype(np.uint32),
        rewards=np.asarray(rewards if rewards is not None else rng.random(len(rows)), np.float32),
        group_ids=rows if group_ids is None else np.asarray(group_ids, np.int64),
        trajectory_ids=rows,
        prompt_ids=rows,
        prompt_lengths=np.array([p for p, _ in lengths], np.int32),
        finish_reasons=np.zeros(len(rows), np.uint8),
    )
