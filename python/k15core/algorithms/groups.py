"""Groups: where they begin, which of them teach nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


def checked_rows(name: str, values: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """One finite number a response, as float64; anything else is refused by name."""
    if values.shape != (rows,):
        raise InvalidInputError(f"{name} has shape {values.shape}: expected [{rows}], as group_ids")
    if not np.isfinite(values).all():
        worst = int(np.flatnonzero(~np.isfinite(values))[0])
        raise InvalidInputError(f"{name}[{worst}] is {values[worst]}: expected a finite number")
    return values.astype(np.float64)
