"""Cuts an iteration's batch into optimizer steps: whole groups, about equal in tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from k15core.algorithms.groups import checked_rows, group_bounds
from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from k15core.types import PackedBatch


@dataclass(frozen=True)
class MiniBatch:
    """What `Trainer.step` takes. `responses` is P·k, in which skipped responses count too."""

    batch: PackedBatch
    advantages: NDArray[np.float32]  # [B]
    old_log_probs: NDArray[np.float32]  # [T]
    responses: int


def mini_batches(
    batch: PackedBatch,
    advantages: NDArray[np.float32],
    old_log_probs: NDArray[np.float32],
    contributes: NDArray[np.bool_],
    *,
    n: int,
    seed: int,
) -> list[MiniBatch]:
    """Deal the groups out to n mini-batches, the rows that do not contribute left out.

    A function of its arguments. Groups go in an order drawn from `seed`, each to the mini-batch
    with the fewest tokens so far, so that the largest exceeds the smallest by at most one group.
    A mini-batch of which nothing contributes is not returned.
    """
    rows = len(batch)
    checked_rows("advantages", advantages, rows)
    if old_log_probs.shape != batch.input_ids.shape:
        raise InvalidInputError(
            f"old_log_probs has shape {old_log_probs.shape}: expected {batch.input_ids.shape}, "
            "as input_ids"
        )
    if contributes.shape != (rows,) or contributes.dtype != np.bool_:
        raise InvalidInputError(
            f"contributes is {contributes.dtype} of shape {contributes.shape}: expected bool of "
            f"shape ({rows},)"
        )
    bounds = group_bounds(batch.group_ids)
    groups = len(bounds) - 1
    if not 1 <= n <= groups:
        raise InvalidInputError(f"n is {n}: expected 1 … {groups}, the groups of the batch")
    # The packed old log-probs travel through `select` in a field of their shape.
    whole = replace(batch, rollout_log_probs=old_log_probs)
    steps = []
    for members in _deal(batch.cu_seqlens[bounds], n, seed):
        mine = np.concatenate([np.arange(bounds[g], bounds[g + 1]) for g in members])
        kept = mine[contributes[mine]]
        if len(kept):
            part = batch.select(kept)
            old = whole.select(kept).rollout_log_probs
            steps.append(MiniBatch(part, advantages[kept], old, len(mine)))
    return steps


def _deal(token_bounds: NDArray[np.int32], n: int, seed: int) -> list[list[int]]:
    """Groups of each of n mini-batches, ascending; `token_bounds` [G + 1] has where each begins."""
    sizes = np.diff(token_bounds)
    dealt: list[list[int]] = [[] for _ in range(n)]
    tokens = [0] * n
    for group in np.random.default_rng(seed).permutation(len(sizes)):
        lightest = min(range(n), key=lambda i: (tokens[i], len(dealt[i])))
        dealt[lightest].append(int(group))
        tokens[lightest] += int(sizes[group])
    return [sorted(members) for members in dealt]
