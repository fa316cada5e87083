"""Groups: where they begin, which of them teach nothing, which of their segments are too old."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from k15core.types import PackedBatch


def group_bounds(group_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each group begins, and the end: int64 [G + 1]. Refuses a group in two pieces."""
    if group_ids.ndim != 1 or len(group_ids) == 0:
        raise InvalidInputError(f"group_ids has shape {group_ids.shape}: expected [B], B >= 1")
    starts = np.flatnonzero(np.diff(group_ids, prepend=group_ids[0] - 1))
    ids, pieces = np.unique(group_ids[starts], return_counts=True)
    if (pieces > 1).any():
        raise InvalidInputError(
            f"group_ids has group {ids[pieces > 1][0]} in {pieces.max()} pieces: expected the "
            "responses of a group next to each other"
        )
    return np.append(starts, len(group_ids)).astype(np.int64)


def per_group(
    reduce: np.ufunc, values: NDArray[np.float64], bounds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Reduce values [B] over each group (`np.add`, `np.maximum`, …): [G]."""
    reduced: NDArray[np.float64] = reduce.reduceat(values, bounds[:-1])
    return reduced


def equal_groups(shaped: NDArray[np.float32], group_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which groups [G] have one and the same shaped reward in all their responses.

    With the mean as baseline their advantages are 0: only the pull towards π_i is left of them.
    """
    bounds = group_bounds(group_ids)
    values = checked_rows("shaped", shaped, len(group_ids))
    equal: NDArray[np.bool_] = per_group(np.minimum, values, bounds) == per_group(
        np.maximum, values, bounds
    )
    return equal


def mask_stale(batch: PackedBatch, *, version: int, max_segment_staleness: int) -> PackedBatch:
    """The batch with the tokens older than `version - max_segment_staleness` not trained on.

    `version` is the trainer's. The report leaves segments of earlier iterations out of the loss
    (section 2.6.2, partial rollouts); whoever wants to train on them does not call this. Shares
    every array but `loss_mask` with the batch it was given.
    """
    if max_segment_staleness < 0:
        raise InvalidInputError(
            f"max_segment_staleness is {max_segment_staleness}: expected 0 or more versions"
        )
    newest = int(batch.versions.max(initial=0))
    if newest > version:
        raise InvalidInputError(
            f"version is {version}, but the batch holds tokens of version {newest}: expected the "
            "trainer's version, which is at least as new"
        )
    fresh = batch.versions.astype(np.int64) >= version - max_segment_staleness
    return replace(batch, loss_mask=np.where(fresh, batch.loss_mask, 0).astype(np.uint8))


def checked_rows(name: str, values: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """One finite number a response, as float64; anything else is refused by name."""
    if values.shape != (rows,):
        raise InvalidInputError(f"{name} has shape {values.shape}: expected [{rows}], as group_ids")
    if not np.isfinite(values).all():
        worst = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InvalidInputError(f"{name}[{worst}] is {values[worst]}: expected a finite number")
    return values.astype(np.float64)
