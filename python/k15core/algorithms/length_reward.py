"""The length reward of the Kimi k1.5 report, section 2.3.3: among right answers, short ones win."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from k15core.algorithms.groups import checked_rows, group_bounds, per_group
from k15core.algorithms.penalty import was_cut
from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LengthReward:
    """Adds `weight` · (λ if the response is correct, else min(0, λ)) to rewards.

    λ = 0.5 - (len - min_len) / (max_len - min_len) over the lengths of the group; 0 for a group of
    equal lengths. A response that was cut counts as the longest of its group: a loop that was
    stopped early is not short. The weight is 0 before iteration `starts_at` (in the caller's
    count), constant from there on. A reward of at least `correct_at` is correct.
    """

    weight: float
    starts_at: int = 0
    correct_at: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise InvalidInputError(f"weight is {self.weight}: expected a number >= 0")
        if self.starts_at < 0:
            raise InvalidInputError(f"starts_at is {self.starts_at}: expected an iteration >= 0")
        if not 0 < self.correct_at <= 1:
            raise InvalidInputError(
                f"correct_at is {self.correct_at}: expected 0 < correct_at <= 1"
            )

    def weight_at(self, iteration: int) -> float:
        """The weight in force at an iteration."""
        return self.weight if iteration >= self.starts_at else 0.0

    def __call__(
        self,
        rewards: NDArray[np.float32],
        lengths: NDArray[np.int32],
        finish_reasons: NDArray[np.uint8],
        group_ids: NDArray[np.int64],
        *,
        iteration: int,
    ) -> NDArray[np.float32]:
        """Shaped rewards [B] from rewards [B] (after `CutPenalty`) and response lengths [B]."""
        values = checked_rows("rewards", rewards, len(group_ids))
        tokens = checked_rows("lengths", lengths, len(group_ids))
        cut = was_cut(finish_reasons)
        bounds = group_bounds(group_ids)
        sizes = np.diff(bounds)
        longest = np.repeat(per_group(np.maximum, tokens, bounds), sizes)
        tokens = np.where(cut, longest, tokens)
        shortest = np.repeat(per_group(np.minimum, tokens, bounds), sizes)
        span = longest - shortest
        lam = np.where(span > 0, 0.5 - (tokens - shortest) / np.maximum(span, 1), 0.0)
        correct = (values >= self.correct_at) & ~cut
        extra = np.where(correct, lam, np.minimum(lam, 0.0))
        return (values + self.weight_at(iteration) * extra).astype(np.float32)
