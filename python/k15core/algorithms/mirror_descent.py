"""Online policy mirror descent, the Kimi k1.5 report, section 2.3.2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from k15core.algorithms.groups import checked_rows, equal_groups, group_bounds, per_group
from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from k15core.algorithms.base import LossTerms


@dataclass(frozen=True)
class MirrorDescent:
    """Minimises L = -1/(P·k) Σ_j [A_j·ℓ_j - τ/2·(ℓ_j - ℓ_j^i)²].

    ℓ_j sums log π_θ over the trained tokens of response j, ℓ_j^i log π_i over the same tokens, and
    A_j is its shaped reward less a baseline over the k responses to its prompt: their mean, or the
    soft maximum τ·log mean exp(r/τ), which the optimal policy's normaliser would be. Responses with
    negative advantages push their tokens down; nothing is clipped.
    """

    tau: float
    baseline: Literal["mean", "log_mean_exp"] = "mean"
    skip_equal_groups: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and self.tau >= 0):
            raise InvalidInputError(f"tau is {self.tau}: expected a number >= 0")
        if self.baseline not in ("mean", "log_mean_exp"):
            raise InvalidInputError(
                f"baseline is {self.baseline!r}: expected 'mean' or 'log_mean_exp'"
            )
        if self.baseline == "log_mean_exp" and self.tau == 0:
            raise InvalidInputError("tau is 0: the baseline log_mean_exp needs tau > 0")

    def advantages(
        self,
        rewards: NDArray[np.float32],
        shaped: NDArray[np.float32],
        group_ids: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """A = r - baseline [B], r the shaped reward. Computed in float64."""
        del rewards
        bounds = group_bounds(group_ids)
        values = checked_rows("shaped", shaped, len(group_ids))
        sizes = np.diff(bounds)
        if self.baseline == "mean":
            baseline = per_group(np.add, values, bounds) / sizes
        else:
            # Less the group's maximum, so that no exponential overflows.
            top = per_group(np.maximum, values, bounds)
            scaled = np.exp((values - np.repeat(top, sizes)) / self.tau)
            baseline = top + self.tau * np.log(per_group(np.add, scaled, bounds) / sizes)
        return (values - np.repeat(baseline, sizes)).astype(np.float32)

    def contributes(
        self,
        advantages: NDArray[np.float32],
        shaped: NDArray[np.float32],
        group_ids: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Every response [B], or those of groups whose rewards differ (`skip_equal_groups`)."""
        del advantages
        if not self.skip_equal_groups:
            return np.ones(len(group_ids), np.bool_)
        sizes = np.diff(group_bounds(group_ids))
        return np.repeat(~equal_groups(shaped, group_ids), sizes)

    def loss(self, terms: LossTerms) -> torch.Tensor:
        """This micro-batch's part of L."""
        sequence_B = terms.sums(terms.log_probs)
        drift_B = terms.sums(terms.log_probs - terms.old_log_probs)
        gain_B = terms.advantages * sequence_B - self.tau / 2 * drift_B.square()
        return -gain_B.sum() / terms.responses
