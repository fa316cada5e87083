"""ReST, the report's comparison in section 3.5: imitate the right answers, learn nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from k15core.algorithms.groups import checked_rows
from k15core.errors import InvalidInputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from k15core.algorithms.base import LossTerms


@dataclass(frozen=True)
class ReST:
    """Minimises -1/(P·k) Σ_j ℓ_j over the correct responses: no baseline, no pull towards π_i.

    Correct is a reward of at least `correct_at` after `CutPenalty`; the length reward plays no
    part.
    """

    correct_at: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.correct_at <= 1:
            raise InvalidInputError(
                f"correct_at is {self.correct_at}: expected 0 < correct_at <= 1"
            )

    def advantages(
        self,
        rewards: NDArray[np.float32],
        shaped: NDArray[np.float32],
        group_ids: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """1 for a correct response, else 0: [B]."""
        del shaped
        values = checked_rows("rewards", rewards, len(group_ids))
        return (values >= self.correct_at).astype(np.float32)

    def contributes(
        self,
        advantages: NDArray[np.float32],
        shaped: NDArray[np.float32],
        group_ids: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """The correct responses [B]."""
        del shaped, group_ids
        positive: NDArray[np.bool_] = advantages > 0
        return positive

    def loss(self, terms: LossTerms) -> torch.Tensor:
        """This micro-batch's part of the loss."""
        gain_B = terms.advantages * terms.sums(terms.log_probs)
        return -gain_B.sum() / terms.responses
