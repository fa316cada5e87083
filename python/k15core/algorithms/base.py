"""What an algorithm is to the trainer: advantages before the step, a loss inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class LossTerms:
    """One micro-batch of B whole responses with N trained tokens (loss mask 1), as tensors.

    `rows` is the response, 0 … B - 1, that each token belongs to. `responses` is the P·k of the
    mini-batch, so that the losses of its micro-batches add up to the loss of the mini-batch.
    """

    log_probs: torch.Tensor  # [N] under the weights in training, with gradient
    old_log_probs: torch.Tensor  # [N] under π_i
    rows: torch.Tensor  # [N], int64
    advantages: torch.Tensor  # [B]
    responses: int

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Per-token values [N] summed over each response: [B], 0 where no token is trained."""
        return values.new_zeros(len(self.advantages)).index_add(0, self.rows, values)


class Algorithm(Protocol):
    """A policy-gradient rule. The trainer knows nothing else about it."""

    def advantages(
        self,
        rewards: NDArray[np.float32],
        shaped: NDArray[np.float32],
        group_ids: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Advantages [B] from rewards [B] (after `CutPenalty`) and shaped rewards [B].

        Shaped rewards have the length reward in them too.
        """
        ...

    def contributes(
        self,
        advantages: NDArray[np.float32],
        shaped: NDArray[np.float32],
        group_ids: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Which responses [B] the loss is computed over; the others still count in P·k."""
        ...

    def loss(self, terms: LossTerms) -> torch.Tensor:
        """The scalar to minimise: this micro-batch's part of the mini-batch's loss."""
        ...
